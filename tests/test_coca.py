"""What must be true of any CoCa, asked of reference and engine alike. Most of these are faults that
public implementations have had (shifted masks, counted pads, unshifted labels, ...)."""

import math

import numpy as np
import pytest
import torch
import torch_oracle
from backends import BACKENDS
from hypothesis import given
from strategies import configs, model_and_batch, seeds, small_config

from minicoca.config import preset
from minicoca.engine import text as engine_text
from minicoca.params import count, flatten, initialise, specs, tree_map

both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


@pytest.fixture(params=["as it comes", "packed", "padded"], autouse=True)
def packing(request, monkeypatch):
    """Each property with the engine's own choice, with every batch packed, and with none."""
    limit = {"packed": 2.0, "padded": 0.0}.get(request.param)
    if limit is not None:
        if "reference" in request.node.name or "[" not in request.node.name:
            pytest.skip("the reference does not pack")
        monkeypatch.setattr(engine_text, "PACK_BELOW", limit)


CORRECT = {"legacy_cls_mask": False}


@pytest.mark.parametrize(
    ("name", "image", "text"),
    [("base", 86.0, 296.8), ("large", 303.6, 483.8), ("2b", 1011.7, 1180.2)],
)
def test_parameter_counts_of_the_paper(name, image, text):
    """Table 1, recomputed: image encoder and both text decoders, without poolers. Positions for
    64 tokens are ours (the paper gives no length), hence the 0.15 million of slack."""
    tree = specs(preset(name))
    assert count(tree["image"]) / 1e6 == pytest.approx(image, abs=0.05)
    assert (count(tree["text"]) + count(tree["decoder"])) / 1e6 == pytest.approx(text, abs=0.15)


def test_parameter_counts_of_open_clip():
    """coca_ViT-B-32 has 253,560,065; ours has CLS and its position as one vector of 512."""
    assert count(specs(preset("open_clip_b32"))) == 253_560_065 - 512


def check_torchs_own_layers(backend, config, seed):
    """Embeddings and logits are those of a model that is made of torch.nn's modules."""
    params, images, tokens = model_and_batch(config, seed)
    tensors = tree_map(torch.tensor, params)
    with torch.no_grad():
        want = torch_oracle.coca(tensors, config, torch.tensor(images), torch.tensor(tokens))
    have = backend.outputs(params, config, images, tokens)
    valid = (tokens[:, 1:] != 0)[..., None]
    for name, value in want.items():
        value = np.where(valid, value, 0) if name == "logits" else value.numpy()
        np.testing.assert_allclose(have[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@both
@given(config=configs(), seed=seeds)
def test_it_is_what_torchs_own_layers_make(backend, config, seed):
    check_torchs_own_layers(backend, config, seed)


def check_causality(backend, config, seed):
    """Changing token t changes no logit before t, to the last bit, and does change some after."""
    params, images, tokens = model_and_batch(config, seed, fewest=7)
    t = 3
    changed = tokens.copy()
    changed[:, t] = 4 + (changed[:, t] - 3) % (config.vocabulary - 4)
    assert (changed[:, t] != tokens[:, t]).all() and (changed[:, t] > 0).all()
    a = backend.outputs(params, config, images, tokens)["logits"]
    b = backend.outputs(params, config, images, changed)["logits"]
    assert np.array_equal(a[:, :t], b[:, :t]), "a logit depends on a later token"
    assert np.abs(a[:, t:] - b[:, t:]).max() > 1e-6


@both
@given(config=configs(), seed=seeds)
def test_causality(backend, config, seed):
    check_causality(backend, config, seed)


def check_cls_is_dropped(backend, config, seed):
    """CLS changes the text embedding and nothing that the decoder says."""
    params, images, tokens = model_and_batch(config, seed)
    a = backend.outputs(params, config, images, tokens)
    cls = params["text"]["cls"] + np.arange(config.text_width)
    changed = params | {"text": params["text"] | {"cls": cls}}
    b = backend.outputs(changed, config, images, tokens)
    assert np.array_equal(a["logits"], b["logits"]), "a logit depends on CLS"
    assert np.abs(a["text"] - b["text"]).max() > 1e-6


@both
@given(config=configs(), seed=seeds)
def test_cls_is_dropped_before_the_multimodal_layers(backend, config, seed):
    check_cls_is_dropped(backend, config, seed)


def check_padding(backend, config, seed):
    """More padding, or another embedding of it, changes nothing: no embedding, logit or loss."""
    params, images, tokens = model_and_batch(config, seed, tokens=6)
    a = backend.outputs(params, config, images, tokens)
    longer = np.pad(tokens, ((0, 0), (0, 2)))
    table = params["text"]["token"].copy()
    table[0] += np.arange(config.text_width)
    changed = params | {"text": params["text"] | {"token": table}}
    b = backend.outputs(changed, config, images, longer)
    for name in ("text", "image", "loss", "contrastive", "caption"):
        np.testing.assert_allclose(b[name], a[name], atol=1e-12, err_msg=name)
    np.testing.assert_allclose(b["logits"][:, :5], a["logits"], atol=1e-12)


@both
@given(config=configs(**CORRECT), seed=seeds)
def test_padding_changes_nothing(backend, config, seed):
    check_padding(backend, config, seed)


@both
def test_every_length_encodes_and_one_more_is_refused(backend):
    """Lengths 2 to text_length, each alike alone and among longer ones; then both numbers."""
    config = small_config()
    params, images, tokens = model_and_batch(config, 0, batch=7, tokens=8)
    for row, length in enumerate(range(2, 9)):
        tokens[row] = [1, 4, 5, 6, 7, 8, 9, 10]
        tokens[row, length - 1] = 2
        tokens[row, length:] = 0
    together = backend.outputs(params, config, np.resize(images, (7, 6, 6, 3)), tokens)["text"]
    for row, length in enumerate(range(2, 9)):
        alone = backend.outputs(params, config, images[:1], tokens[row : row + 1, :length])["text"]
        np.testing.assert_allclose(alone[0], together[row], atol=1e-12)
    with pytest.raises(ValueError, match="9 tokens.* 8 positions"):
        backend.outputs(params, config, images[:1], np.full((1, 9), 4))


def check_padding_gradient(backend, config, seed):
    """More padding changes no gradient of any parameter."""
    params, images, tokens = model_and_batch(config, seed, tokens=6)
    a = flatten(backend.gradients(params, config, images, tokens))
    b = flatten(backend.gradients(params, config, images, np.pad(tokens, ((0, 0), (0, 2)))))
    for name in a:
        np.testing.assert_allclose(b[name], a[name], atol=1e-11, err_msg=name)


@both
@given(config=configs(**CORRECT), seed=seeds)
def test_padding_changes_no_gradient(backend, config, seed):
    check_padding_gradient(backend, config, seed)


def check_cls_sees_every_valid_token(backend, config, seed):
    """The text embedding depends on each valid token, the last one included."""
    params, images, tokens = model_and_batch(config, seed, fewest=4)
    a = backend.outputs(params, config, images, tokens)["text"]
    lengths = (tokens != 0).sum(1)
    for back in (1, 2, 3):
        changed = tokens.copy()
        place = np.arange(len(tokens)), lengths - back
        changed[place] = 4 + (changed[place] + 1) % (config.vocabulary - 4)
        b = backend.outputs(params, config, images, changed)["text"]
        assert (np.abs(a - b).max(1) > 1e-7).all(), f"CLS does not see token {back} from the end"


@both
@given(config=configs(**CORRECT), seed=seeds)
def test_cls_sees_every_valid_token(backend, config, seed):
    check_cls_sees_every_valid_token(backend, config, seed)


@both
def test_legacy_mask_is_open_clips(backend):
    """The shifted mask lets CLS see one pad: the embedding of padding then matters."""
    config = small_config(legacy_cls_mask=True)
    params, images, tokens = model_and_batch(config, 0, fewest=2)
    tokens[1, 4:] = 0
    table = params["text"]["token"].copy()
    table[0] += np.arange(config.text_width)
    changed = params | {"text": params["text"] | {"token": table}}
    a, b = (backend.outputs(p, config, images, tokens)["text"] for p in (params, changed))
    assert np.abs(a[1] - b[1]).max() > 1e-3 and np.array_equal(a[0], b[0])


def check_batch_independence(backend, config, seed):
    """What the others in its batch are changes nothing of an item, to the last bit."""
    params, images, tokens = model_and_batch(config, seed)
    a = backend.outputs(params, config, images, tokens)
    others = np.random.default_rng(seed + 1)
    images2, tokens2 = images.copy(), tokens.copy()
    images2[1:] = others.standard_normal(images[1:].shape)
    words = tokens2[1:] > 3
    tokens2[1:][words] = others.integers(4, config.vocabulary, words.sum())
    b = backend.outputs(params, config, images2, tokens2)
    for name in ("image", "text", "logits"):
        assert np.array_equal(a[name][0], b[name][0]), f"{name} depends on the rest of the batch"
    alone = backend.outputs(params, config, images[:1], tokens[:1])
    for name in ("image", "text", "logits"):
        np.testing.assert_allclose(alone[name][0], a[name][0], atol=1e-12)


@both
@given(config=configs(), seed=seeds)
def test_batch_independence(backend, config, seed):
    check_batch_independence(backend, config, seed)


def check_uniform_caption_loss(backend, config, seed):
    """With a head of zeros every token is equally likely: the loss is ln V."""
    params, images, tokens = model_and_batch(config, seed)
    head = {"weight": np.zeros_like(params["decoder"]["head"]["weight"])}
    params = params | {"decoder": params["decoder"] | {"head": head}}
    loss = backend.outputs(params, config, images, tokens)["caption"]
    assert float(loss) == pytest.approx(math.log(config.vocabulary), abs=1e-12)


@both
@given(config=configs(), seed=seeds)
def test_uniform_caption_loss(backend, config, seed):
    check_uniform_caption_loss(backend, config, seed)


def check_caption_loss_by_hand(backend, config, seed):
    """Mean over every real target, each the token after what the decoder has read."""
    params, images, tokens = model_and_batch(config, seed)
    outputs = backend.outputs(params, config, images, tokens)
    total, targets = 0.0, 0
    for row, logits in zip(tokens, outputs["logits"], strict=True):
        for place in range(1, len(row)):
            if row[place] != 0:
                z = logits[place - 1]
                total -= z[row[place]] - np.log(np.exp(z).sum())
                targets += 1
    assert float(outputs["caption"]) == pytest.approx(total / targets, abs=1e-10)


@both
@given(config=configs(), seed=seeds)
def test_caption_loss_by_hand(backend, config, seed):
    check_caption_loss_by_hand(backend, config, seed)


def check_contrastive_loss_by_hand(backend, config, seed):
    """Eq. 2, halved, by loops; and the whole is Eq. 4 with its weights."""
    params, images, tokens = model_and_batch(config, seed)
    outputs = backend.outputs(params, config, images, tokens)
    x, y, B = outputs["image"], outputs["text"], len(images)
    np.testing.assert_allclose((x * x).sum(1), 1, atol=1e-9)
    sigma = np.exp(params["log_temperature"])
    total = 0.0
    for i in range(B):
        to_text = [x[i] @ y[j] / sigma for j in range(B)]
        to_image = [x[j] @ y[i] / sigma for j in range(B)]
        for z in (to_text, to_image):
            total -= z[i] - math.log(sum(map(math.exp, z)))
    assert float(outputs["contrastive"]) == pytest.approx(total / B / 2, abs=1e-9)
    whole = config.contrastive_weight * outputs["contrastive"]
    whole = whole + config.caption_weight * outputs["caption"]
    assert float(outputs["loss"]) == pytest.approx(float(whole), abs=1e-12)


@both
@given(config=configs(contrastive_weight=0.7, caption_weight=1.9), seed=seeds)
def test_contrastive_loss_by_hand(backend, config, seed):
    check_contrastive_loss_by_hand(backend, config, seed)


def check_pads_get_no_gradient(backend, config, seed):
    """The embedding of padding is no parameter that training moves."""
    params, images, tokens = model_and_batch(config, seed)
    tokens[1, 3:] = 0
    gradients = backend.gradients(params, config, images, tokens)
    assert np.array_equal(gradients["text"]["token"][0], np.zeros(config.text_width))


@both
@given(config=configs(**CORRECT), seed=seeds)
def test_pads_get_no_gradient(backend, config, seed):
    check_pads_get_no_gradient(backend, config, seed)


def check_every_parameter_learns(backend, config, seed):
    """Every parameter gets a gradient, in every mode; only key biases (softmax ignores a shift of
    all its logits) and rows that the batch does not use may get zero."""
    params, images, tokens = model_and_batch(config, seed)
    tokens = np.pad(tokens, ((0, 0), (0, config.text_length - tokens.shape[1])))
    tokens[0] = [1, *range(4, config.text_length + 2), 2]
    for name, gradient in flatten(backend.gradients(params, config, images, tokens)).items():
        size = np.abs(gradient).max()
        if name.endswith(".key.bias"):
            assert size < 1e-12, f"{name}: a shift of all logits cannot matter"
        else:
            assert size > 1e-9, f"{name} gets no gradient"
            if name.endswith("queries"):
                assert (np.abs(gradient).max(1) > 1e-12).all(), f"{name}: a query is not used"


@both
@given(config=configs(), seed=seeds)
def test_every_parameter_learns(backend, config, seed):
    check_every_parameter_learns(backend, config, seed)


@given(config=configs())
def test_every_parameter_is_initialised(config):
    """Biases zero, scales one, matrices of the promised spread; nothing left as it was found."""
    big = preset("tiny", **{k: v for k, v in config.to_dict().items() if k != "preset"})
    for name, value in flatten(initialise(big, 0, np.float64)).items():
        spec = flatten(specs(big))[name]
        assert np.isfinite(value).all() and value.shape == spec.shape
        if isinstance(spec.fill, float):
            sampling = 6 / math.sqrt(2 * value.size)
            assert value.std() == pytest.approx(spec.fill, rel=max(sampling, 0.05)), name
        elif name.endswith("bias"):
            assert not value.any(), name
        elif name.endswith("scale"):
            assert (value == 1).all(), name
        elif name.endswith("position"):
            rows = np.unique(value.round(9), axis=0)
            assert len(rows) == len(value), "two patches have the same first position"
    assert float(initialise(big, 0)["log_temperature"]) == pytest.approx(math.log(0.07))


def test_initialisation_keeps_variance_through_the_layers():
    """At the first step no layer's output vanishes or explodes: the decoder's input to its head has
    unit spread, and the first losses are near those of guessing."""
    config = preset("tiny", image_layers=12, unimodal_layers=6, multimodal_layers=6)
    params = initialise(config, 0, np.float64)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((16, 32, 32, 3))
    tokens = np.concatenate([np.full((16, 1), 1), rng.integers(4, 64, (16, 9))], 1)
    outputs = BACKENDS[0].outputs(params, config, images, tokens)
    assert abs(float(outputs["caption"]) - math.log(64)) < 1.0
    assert 0.5 < outputs["logits"].std() < 2


@both
def test_a_loss_of_weight_zero_has_no_say(backend):
    config = small_config(contrastive_weight=0.0)
    params, images, tokens = model_and_batch(config, 0)
    outputs = backend.outputs(params, config, images, tokens)
    assert float(outputs["loss"]) == pytest.approx(2 * float(outputs["caption"]))


@both
def test_all_padding_targets_cost_nothing(backend):
    config = small_config()
    params, images, _ = model_and_batch(config, 0)
    tokens = np.zeros((3, 5), np.int64)
    tokens[:, 0] = 1
    assert float(backend.outputs(params, config, images, tokens)["caption"]) == 0
