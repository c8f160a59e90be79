"""Every layer of the reference, and the whole model, against the complex step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import complex_step_error, normal_like
from strategies import configs, model_and_batch, seeds, small_config, tree_of

from minicoca.params import specs, tree_map
from minicoca.reference import attention, losses, model, ops, pooling, text, vision
from minicoca.tuning import kept_tokens

TOLERANCE = 1e-10


def simple(op, op_backward, **shapes):
    """A row for an op of arrays without parameters."""

    def make(rng, size):
        arguments = {k: rng.standard_normal([size[c] for c in v]) for k, v in shapes.items()}

        def backward(dy, cache):
            gradients = op_backward(dy[0], cache)
            gradients = gradients if isinstance(gradients, tuple) else (gradients,)
            return dict(zip(arguments, gradients, strict=True))

        def forward(**arguments):
            y, cache = op(*arguments.values())
            return (y,), cache

        return forward, backward, arguments

    return make


def layer(part, inputs, call, call_backward):
    """A row for a layer with the parameters that `part(size)` specifies."""

    def make(rng, size):
        arrays = {k: rng.standard_normal([size[c] for c in v]) for k, v in inputs.items()}
        arguments = arrays | {"params": tree_of(rng, part(size))}

        def forward(params, **arrays):
            y, cache = call(*arrays.values(), params)
            return (y,), cache

        def backward(dy, cache):
            return dict(zip(arguments, call_backward(dy[0], cache), strict=True))

        return forward, backward, arguments

    return make


def _block(size):
    config = small_config(image_width=size["D"], image_heads=size["H"], image_hidden=size["F"])
    return specs(config)["image"]["blocks"]["0"]


def _embedding(rng, size):
    ids = rng.integers(0, size["V"], (size["B"], size["T"]))

    def forward(table):
        y, cache = ops.embedding(ids, table)
        return (y,), cache

    arguments = {"table": rng.standard_normal((size["V"], size["D"]))}
    return forward, lambda dy, c: {"table": ops.embedding_backward(dy[0], c)}, arguments


def _masked_attention(mask_of):
    def make(rng, size):
        B, T, H, K = (size[c] for c in "BTHK")
        S = T + 1 if mask_of == "text" else size["S"]
        T = S if mask_of == "text" else T
        lengths = rng.integers(1, S - 1, B)
        mask = {
            "none": None,
            "text": attention.text_mask(lengths, S - 1),
            "lengths": (np.arange(S) < lengths[:, None])[:, None] & np.ones((B, T, S), bool),
            "causal": None,
        }[mask_of]
        if mask_of == "causal":
            S, mask = T, attention.causal_mask(T)
        shapes = {"q": (B, T, H, K), "k": (B, S, H, K), "v": (B, S, H, K)}
        arguments = {name: rng.standard_normal(shape) for name, shape in shapes.items()}

        def forward(q, k, v):
            y, cache = attention.attention(q, k, v, mask)
            return (y,), cache

        def backward(dy, cache):
            return dict(zip("qkv", attention.attention_backward(dy[0], cache), strict=True))

        return forward, backward, arguments

    return make


def _pool(mode):
    def make(rng, size):
        config = small_config(pooler=mode, image_width=10, text_width=12)
        tokens = rng.standard_normal((size["B"], 9, 10))
        arguments = {"tokens": tokens, "params": tree_of(rng, specs(config)["pooler"])}

        def forward(tokens, params):
            contrast, memory, cache = pooling.pool(tokens, params, config)
            return (contrast, memory), cache

        def backward(dy, cache):
            return dict(zip(arguments, pooling.pool_backward(*dy, cache), strict=True))

        return forward, backward, arguments

    return make


def _image_encoder(rng, size, **options):
    config = small_config(**options)
    images = rng.standard_normal((size["B"], 6, 6, 3))
    places = kept_tokens(config, int(rng.integers(99)), len(images))
    arguments = {"images": images, "params": tree_of(rng, specs(config)["image"])}

    def forward(images, params):
        y, cache = vision.image_encoder(images, params, config, places)
        return (y,), cache

    def backward(dy, cache):
        return dict(zip(arguments, vision.image_encoder_backward(dy[0], cache), strict=True))

    return forward, backward, arguments


def _unimodal(rng, size, **options):
    config = small_config(**options)
    _, _, tokens = model_and_batch(config, int(rng.integers(1000)), batch=size["B"])

    def forward(params):
        x, cls, cache = text.unimodal_decoder(tokens, params, config)
        return (x, cls), cache

    def backward(dy, cache):
        return {"params": text.unimodal_decoder_backward(*dy, cache)}

    return forward, backward, {"params": tree_of(rng, specs(config)["text"])}


def _multimodal(rng, size, masked=False, **options):
    mask = rng.random((size["B"], 7, 7)) < 0.7 if masked else None
    config = small_config(**options)
    shapes = {"x": (size["B"], 7, 12), "memory": (size["B"], 5, config.memory_width)}
    decoder = {k: v for k, v in specs(config)["decoder"].items() if k != "head"}
    arguments = {k: rng.standard_normal(s) for k, s in shapes.items()}
    arguments["params"] = tree_of(rng, decoder)

    def forward(x, memory, params):
        y, cache = text.multimodal_decoder(x, memory, params, config, mask)
        return (y,), cache

    def backward(dy, cache):
        return dict(zip(arguments, text.multimodal_decoder_backward(dy[0], cache), strict=True))

    return forward, backward, arguments


def _contrastive(rng, size):
    unit = [ops.l2_normalise(rng.standard_normal((size["B"], size["E"])))[0] for _ in range(2)]
    arguments = {"image": unit[0], "text": unit[1], "log_temperature": np.array(-1.3)}

    def forward(**arguments):
        loss, cache = losses.contrastive_loss(*arguments.values())
        return (np.asarray(loss),), cache

    def backward(dy, cache):
        return dict(zip(arguments, losses.contrastive_loss_backward(dy[0], cache), strict=True))

    return forward, backward, arguments


def _caption(rng, size):
    targets = rng.integers(1, size["V"], (size["B"], size["T"]))
    targets[0, 2:] = 0
    arguments = {"logits": rng.standard_normal((size["B"], size["T"], size["V"]))}

    def forward(logits):
        loss, cache = losses.caption_loss(logits, targets)
        return (np.asarray(loss),), cache

    return forward, lambda dy, c: {"logits": losses.caption_loss_backward(dy[0], c)}, arguments


def _attention_part(size):
    return _block(size)["attention"]


def _patchify(rng, size):
    arguments = {"images": rng.standard_normal((size["B"], 6, 6, 3))}

    def forward(images):
        return (vision.patchify(images, 2),), None

    return forward, lambda dy, _: {"images": vision.unpatchify(dy[0], 2)}, arguments


def _kinds(kind):
    return simple(lambda x: ops.gelu(x, kind), ops.gelu_backward, x="BTD")


OPS = {
    "linear": layer(
        lambda z: _block(z)["mlp"]["up"], {"x": "BTD"}, ops.linear, ops.linear_backward
    ),
    "linear without bias": layer(
        lambda z: {"weight": _block(z)["mlp"]["up"]["weight"]},
        {"x": "BTD"},
        ops.linear,
        ops.linear_backward,
    ),
    "embedding": _embedding,
    "gelu tanh": _kinds("tanh"),
    "gelu exact": _kinds("exact"),
    "layer_norm": layer(
        lambda z: _block(z)["norm_mlp"], {"x": "BTD"}, ops.layer_norm, ops.layer_norm_backward
    ),
    "softmax": simple(ops.softmax, ops.softmax_backward, x="BTD"),
    "log_softmax": simple(ops.log_softmax, ops.log_softmax_backward, x="BTD"),
    "l2_normalise": simple(ops.l2_normalise, ops.l2_normalise_backward, x="BTD"),
    "attention": _masked_attention("none"),
    "attention causal": _masked_attention("causal"),
    "attention key lengths": _masked_attention("lengths"),
    "attention CLS": _masked_attention("text"),
    "multi_head_attention": layer(
        _attention_part,
        {"x": "BTD", "memory": "BSD"},
        lambda x, m, p: attention.multi_head_attention(x, m, p, 2),
        attention.multi_head_attention_backward,
    ),
    "mlp": layer(
        lambda z: _block(z)["mlp"],
        {"x": "BTD"},
        lambda x, p: attention.mlp(x, p, "tanh"),
        attention.mlp_backward,
    ),
    "block": layer(
        _block,
        {"x": "BTD"},
        lambda x, p: attention.block(x, p, 2, "tanh", attention.causal_mask(x.shape[1])),
        attention.block_backward,
    ),
    "patchify": _patchify,
    "image_encoder plain": lambda rng, z: _image_encoder(rng, z, stem="plain"),
    "image_encoder clip": lambda rng, z: _image_encoder(rng, z, stem="clip"),
    "image_encoder of some": lambda rng, z: _image_encoder(rng, z, stem="clip", patch_keep=0.6),
    "pool cascade": _pool("cascade"),
    "pool parallel": _pool("parallel"),
    "pool shared": _pool("shared"),
    "pool none": _pool("none"),
    "unimodal_decoder": _unimodal,
    "unimodal_decoder legacy": lambda rng, z: _unimodal(rng, z, legacy_cls_mask=True),
    "multimodal_decoder": _multimodal,
    "multimodal_decoder any mask": lambda rng, z: _multimodal(rng, z, masked=True),
    "multimodal_decoder two MLPs": lambda rng, z: _multimodal(rng, z, multimodal_mlps=2),
    "multimodal_decoder patch tokens": lambda rng, z: _multimodal(rng, z, pooler="none"),
    "contrastive_loss": _contrastive,
    "caption_loss": _caption,
}


@st.composite
def sizes(draw):
    """A size for every axis letter, pairwise distinct; D is a multiple of two heads."""
    small = draw(st.permutations([3, 5, 7, 9]))
    large = draw(st.permutations([11, 13, 15, 17]))
    names = dict(zip("BTSK", small, strict=True)) | dict(zip("FVEP", large, strict=True))
    return names | {"D": draw(st.sampled_from([8, 10, 12])), "H": 2}


def check_op(name, size, seed):
    """The hand-written backward of one row is the adjoint of its forward, and linear in dy."""
    rng = np.random.default_rng(seed)
    forward, backward, arguments = OPS[name](rng, size)
    error = complex_step_error(forward, backward, arguments, rng)
    assert error < TOLERANCE, f"{name}: complex step and backward differ by {error:.1e}"
    y, cache = forward(**arguments)
    dy = normal_like(rng, {str(i): part for i, part in enumerate(y)})
    once = backward(tuple(dy.values()), cache)
    twice = backward(tuple(2 * d for d in dy.values()), cache)
    tree_map(lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-12, atol=1e-12), once, twice)


@pytest.mark.parametrize("name", OPS)
@given(size=sizes(), seed=seeds)
def test_op_gradient(name, size, seed):
    check_op(name, size, seed)


def check_model(config, seed):
    """Gradients of the whole objective, parameters and images, by complex step."""
    params, images, tokens = model_and_batch(config, seed)
    arguments = {"params": params, "images": images}

    def forward(params, images):
        outputs, cache = model.coca(params, config, images, tokens)
        return (np.asarray(outputs["loss"]),), cache

    def backward(dy, cache):
        return dict(zip(arguments, model.coca_backward(dy[0], cache), strict=True))

    error = complex_step_error(forward, backward, arguments, np.random.default_rng(seed))
    assert error < TOLERANCE, f"{config}: differ by {error:.1e}"


@given(config=configs(), seed=seeds)
def test_model_gradient(config, seed):
    check_model(config, seed)


@pytest.mark.parametrize("mode", ["cascade", "parallel", "shared", "none"])
def test_model_gradient_of_every_pooler(mode):
    check_model(small_config(pooler=mode), 1)
