"""What the reference computes, where no gradient tells: values, symmetries, names, types."""

from pathlib import Path

import numpy as np
from oracles import SuffixTracer
from strategies import model_and_batch, small_config, tree_of

from minicoca import reference
from minicoca.params import initialise, specs, tree_map
from minicoca.reference import generate, model, ops, optim, pooling, vision
from minicoca.tuning import kept_tokens

FOLDER = Path(reference.__file__).parent


def test_erf_is_the_error_function():
    from math import erf

    x = np.concatenate([np.linspace(-7, 7, 2001), [0.0, 1e-300, 5.999, 6.001, 40.0]])
    np.testing.assert_allclose(ops.erf(x), [erf(v) for v in x], rtol=1e-13, atol=1e-15)


def test_softmax_of_a_fully_masked_row_is_zero():
    x = np.array([[-np.inf, -np.inf], [1.0, -np.inf]])
    np.testing.assert_array_equal(ops.softmax(x)[0], [[0, 0], [1, 0]])


def test_unpatchify_inverts_patchify_and_patches_are_what_they_say():
    images = np.random.default_rng(0).standard_normal((2, 6, 6, 3))
    patches_BNP = vision.patchify(images, 2)
    np.testing.assert_array_equal(vision.unpatchify(patches_BNP, 2), images)
    np.testing.assert_array_equal(patches_BNP[1, 5], images[1, 2:4, 4:6].reshape(-1))


def test_image_encoder_follows_its_positions():
    """Permuting the patches together with their positions permutes the tokens."""
    config = small_config()
    params, images, _ = model_and_batch(config, 0)
    order = np.random.default_rng(1).permutation(9)
    y, _ = vision.image_encoder(images, params["image"], config)
    moved = vision.unpatchify(vision.patchify(images, 2)[:, order], 2)
    image = params["image"] | {"position": params["image"]["position"][order]}
    permuted, _ = vision.image_encoder(moved, image, config)
    np.testing.assert_allclose(permuted, y[:, order], atol=1e-12)


def test_pooling_does_not_depend_on_the_order_of_its_tokens():
    config = small_config()
    rng = np.random.default_rng(0)
    params, tokens = tree_of(rng, specs(config)["pooler"]), rng.standard_normal((3, 9, 10))
    contrast, memory, _ = pooling.pool(tokens, params, config)
    order = rng.permutation(9)
    contrast2, memory2, _ = pooling.pool(tokens[:, order], params, config)
    np.testing.assert_allclose(contrast2, contrast, atol=1e-12)
    np.testing.assert_allclose(memory2, memory, atol=1e-12)


def test_absorbing_the_projections_of_one_query_changes_nothing():
    """Outputs and all gradients; the key bias has none in either form."""
    rng = np.random.default_rng(0)
    params = tree_of(rng, specs(small_config(pooler="none"))["pooler"])["contrast"]
    tokens = rng.standard_normal((4, 9, 10))
    y, cache = pooling.attentional_pooler(tokens, params, 3)
    z, absorbed_cache = pooling.absorbed_pooler(tokens, params, 3)
    np.testing.assert_allclose(z, y, atol=1e-12)
    dy = rng.standard_normal(y.shape)
    a = pooling.attentional_pooler_backward(dy, cache)
    b = pooling.absorbed_pooler_backward(dy, absorbed_cache)
    np.testing.assert_allclose(b[0], a[0], atol=1e-12)
    tree_map(lambda m, n: np.testing.assert_allclose(n, m, atol=1e-12), a[1], b[1])


def test_suffixes_are_true():
    """Every array name in the reference says the shape that the array has, in every mode."""
    with SuffixTracer(FOLDER) as tracer:
        for options in (
            {"pooler": "cascade"},
            {"pooler": "parallel", "embed_width": 22, "gelu": "exact"},
            {"pooler": "shared", "stem": "clip", "multimodal_mlps": 2, "legacy_cls_mask": True},
            {"pooler": "none"},
            {"pooler": "none", "stem": "clip", "patch_keep": 0.7},
        ):
            config = small_config(**options)
            params, images, tokens = model_and_batch(config, 0)
            places = kept_tokens(config, 0, len(images))
            _, cache = model.coca(params, config, images, tokens, places)
            gradients, _ = model.coca_backward(1.0, cache)
            optim.optimise(params, gradients, optim.start(params, config), 1e-3, config)
            prompt = np.array([[1], [1], [1]])
            generate.generate(params, config, images, prompt, temperature=0.9, top_k=5, top_p=0.9)
            generate.beam_search(params, config, images[0], np.array([1]), beams=3)
            if "contrast" in params["pooler"]:
                contrast = params["pooler"]["contrast"]
                read = np.random.default_rng(0).standard_normal(
                    (4, 9, len(contrast["norm_key"]["scale"]))
                )
                y, cache = pooling.absorbed_pooler(read, contrast, config.pooler_heads)
                pooling.absorbed_pooler_backward(y, cache)
    assert not tracer.complaints, "\n".join(sorted(set(tracer.complaints))[:10])
    assert len(tracer.names) > 100  # it did look


def test_the_tracer_sees_a_false_suffix(tmp_path):
    source = (
        "import numpy as np\ndef f(x_BT):\n    y_TB = x_BT\n    z_BTK = x_BT\n    return y_TB\n"
    )
    (tmp_path / "wrong.py").write_text(source)
    namespace = {}
    exec(compile(source, str(tmp_path / "wrong.py"), "exec"), namespace)
    with SuffixTracer(tmp_path) as tracer:
        namespace["f"](np.zeros((2, 3)))
    assert len(tracer.complaints) == 3  # T and B swapped; an axis too many


def test_float32_stays_float32():
    config = small_config(pooler="none")
    params = initialise(config, 0, np.float32)
    _, images, tokens = model_and_batch(config, 0)
    outputs, cache = model.coca(params, config, images.astype(np.float32), tokens)
    gradients, _ = model.coca_backward(1.0, cache)
    kinds = {a.dtype for a in tree_map(np.asarray, gradients)["image"]["patch"].values()}
    tree_map(lambda g: kinds.add(g.dtype), gradients)
    assert kinds == {np.dtype(np.float32)} and outputs["loss"].dtype == np.float32
