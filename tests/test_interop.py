"""open_clip's weights: read into our tree they make the same outputs. There and back is no proof,
for what is exchanged on the way there is exchanged again on the way back."""

import numpy as np
import pytest
import torch
from backends import BACKENDS
from hypothesis import given
from hypothesis import strategies as st
from strategies import model_and_batch, seeds, small_config
from torch_oracle import OpenClip

from minicoca import bench
from minicoca.engine.generate import CoCa
from minicoca.interop.open_clip import from_open_clip, to_open_clip
from minicoca.params import flatten, initialise, tree_map

SIZES = dict(stem="clip", pooler="shared", multimodal_mlps=2, embed_width=12, pooler_heads=3)
# Widths, sides and counts that are alike, so that what is exchanged has the right shape too.
ALIKE = dict(
    SIZES, image_width=12, image_heads=3, text_heads=3, image_hidden=12, text_hidden=12,
    vocabulary=12, text_length=8, gelu="exact",
)  # fmt: skip
CONFIGS = [small_config(**ALIKE, legacy_cls_mask=legacy) for legacy in (False, True)]
CONFIGS.append(small_config(**SIZES, gelu="exact"))


def batch(config, seed):
    params, images, tokens = model_and_batch(config, seed, tokens=config.text_length)
    return params, images, tokens


def check_equal(backend, theirs, tree, config, seed):
    """Images, texts, logits and temperature of their model and of our tree."""
    _, images, tokens = batch(config, seed)
    with torch.no_grad():
        want = theirs(torch.tensor(images), torch.tensor(tokens))
    have = backend.outputs(tree, config, images, tokens)
    valid = (tokens[:, 1:] != 0)[..., None]
    np.testing.assert_allclose(have["image"], want["image"].numpy(), atol=1e-9)
    np.testing.assert_allclose(have["text"], want["text"].numpy(), atol=1e-9)
    np.testing.assert_allclose(have["logits"], np.where(valid, want["logits"], 0), atol=1e-9)
    assert 1 / np.exp(tree["log_temperature"]) == pytest.approx(float(want["scale"]))


def check_reading(backend, config, seed):
    torch.manual_seed(seed)
    theirs = OpenClip(config).double()
    tree = from_open_clip(theirs.state_dict(), config, np.float64)
    check_equal(backend, theirs, tree, config, seed)


def check_writing(backend, config, seed):
    tree, _, _ = batch(config, seed)
    theirs = OpenClip(config).double()
    state = to_open_clip(tree, config, np.float64)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    check_equal(backend, theirs, tree, config, seed)


both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


@both
@pytest.mark.parametrize("config", CONFIGS, ids=["alike", "legacy", "apart"])
@given(seed=seeds)
def test_their_weights_make_their_outputs(backend, config, seed):
    check_reading(backend, config, seed)


@both
@pytest.mark.parametrize("config", CONFIGS, ids=["alike", "legacy", "apart"])
@given(seed=seeds)
def test_our_weights_make_our_outputs_there(backend, config, seed):
    check_writing(backend, config, seed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", CONFIGS[:2], ids=["corrected", "legacy"])
def test_the_model_of_torchs_modules_is_open_clips(config):
    """The same state dict, strictly, and the same outputs. (Its hidden widths are four times.)"""
    pytest.importorskip("open_clip", exc_type=ImportError)
    config = small_config(**ALIKE | dict(image_hidden=48, text_hidden=48),
                          legacy_cls_mask=config.legacy_cls_mask)  # fmt: skip
    torch.manual_seed(0)
    ours, theirs = OpenClip(config), bench.OpenClip(config).model.eval()
    theirs.text.correct_cls_mask = not config.legacy_cls_mask
    theirs.load_state_dict(ours.state_dict())
    _, images, tokens = batch(config, 0)
    images, tokens = torch.tensor(images).float(), torch.tensor(tokens)
    with torch.no_grad():
        want, have = theirs(images.permute(0, 3, 1, 2), tokens), ours(images, tokens)
    valid = (tokens[:, 1:] != 0)[..., None]
    for name, wanted in (("image", "image_features"), ("text", "text_features")):
        torch.testing.assert_close(have[name], want[wanted], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(have["logits"] * valid, want["logits"] * valid, atol=1e-4, rtol=1e-4)


# --- weights as people have them ------------------------------------------------------------------

CONFIG = CONFIGS[0]
WEIGHTS = {name: torch.tensor(a) for name, a in to_open_clip(initialise(CONFIG, 1), CONFIG).items()}
EXACT = flatten(from_open_clip(WEIGHTS, CONFIG))
KINDS = {
    "float32": (lambda t: t, 0),
    "float64": (torch.Tensor.double, 0),
    "bfloat16": (torch.Tensor.bfloat16, 2**-8),
    "float16": (torch.Tensor.half, 2**-11),
    "parameter": (torch.nn.Parameter, 0),
    "half parameter": (lambda t: torch.nn.Parameter(t.half()), 2**-11),
    "part of a graph": (lambda t: t.clone().requires_grad_() * 1, 0),
    "not contiguous": (lambda t: t.repeat(2, *[1] * (t.ndim - 1))[::2] if t.ndim > 1 else t, None),
    "array": (lambda t: t.numpy(), 0),
    "half array": (lambda t: t.numpy().astype(np.float16), 2**-11),
    "double array": (lambda t: t.numpy().astype(np.float64), 0),
    "list": (lambda t: t.tolist(), 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_floats_of_any_kind_become_float32_and_work(kind):
    change, error = KINDS[kind]
    tree = from_open_clip({name: change(t) for name, t in WEIGHTS.items()}, CONFIG)
    for name, array in flatten(tree).items():
        assert type(array) is np.ndarray and array.dtype == np.float32, name
        if error is not None:
            np.testing.assert_allclose(array, EXACT[name], rtol=2 * error, atol=error, err_msg=name)
    vectors = CoCa(tree, CONFIG).embed_images(np.zeros((1, 6, 6, 3), np.uint8))
    assert np.isfinite(vectors).all() and vectors.dtype == np.float32
    again = to_open_clip(tree_map(change, tree_map(torch.from_numpy, tree)), CONFIG)
    assert {array.dtype for array in again.values()} == {np.dtype(np.float32)}


NOT_FLOATS = {
    "whole numbers": lambda t: t.int(),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "complex": lambda t: t + 0j,
    "of no memory": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "booleans": lambda t: t.numpy() > 0,
    "words": lambda t: "a path",
    "nothing": lambda t: None,
    "ragged": lambda t: [[0.5], [0.5, 0.5]],
}


@pytest.mark.filterwarnings("ignore")
@given(kind=st.sampled_from(sorted(NOT_FLOATS)), place=st.integers(0, len(WEIGHTS) - 1))
def test_what_is_no_array_of_floats_is_named(kind, place):
    name = sorted(WEIGHTS)[place]
    with pytest.raises(ValueError, match=rf"^{name} is no array of floats \(.{{5,}}\)$") as error:
        from_open_clip(WEIGHTS | {name: NOT_FLOATS[kind](WEIGHTS[name])}, CONFIG)
    assert len(str(error.value)) < 300 and error.value.__suppress_context__


@given(place=st.integers(0, len(WEIGHTS) - 1), wrong=st.sampled_from([np.nan, -np.inf, 1e300]))
def test_a_weight_that_is_not_finite_is_named(place, wrong):
    name = sorted(WEIGHTS)[place]
    spoilt = WEIGHTS[name].numpy().astype(np.float64)
    spoilt.flat[-1] = wrong
    with pytest.raises(ValueError, match=f"^{name} holds numbers that are not finite"):
        from_open_clip(WEIGHTS | {name: spoilt}, CONFIG)


@given(place=st.integers(0, len(WEIGHTS) - 1), change=st.sampled_from(["more", "fewer", "axis"]))
def test_a_weight_of_another_shape_is_named_with_both(place, change):
    name = sorted(WEIGHTS)[place]
    given = WEIGHTS[name]
    if change == "axis" or given.ndim == 0:
        other = given[None]
    else:
        other = torch.cat([given, given[:1]]) if change == "more" else given[:-1]
    had = f"{name} has shape {tuple(other.shape)}, expected {tuple(given.shape)}"
    with pytest.raises(ValueError) as error:
        from_open_clip(WEIGHTS | {name: other}, CONFIG)
    assert had in str(error.value)


@given(place=st.integers(0, len(WEIGHTS) - 1))
def test_what_is_missing_or_too_many_is_named(place):
    name = sorted(WEIGHTS)[place]
    renamed = {("module." + n if n == name else n): t for n, t in WEIGHTS.items()}
    with pytest.raises(ValueError, match=f"missing {name}; not expected module.{name}$"):
        from_open_clip(renamed, CONFIG)


@pytest.mark.parametrize("given", [OpenClip(CONFIG), "weights.pt", None, [1]], ids=type)
def test_what_is_no_state_dict_is_told_so(given):
    kind = type(given).__name__
    with pytest.raises(ValueError, match=rf"a {kind} is no state dict; give model.state_dict\(\)"):
        from_open_clip(given, CONFIG)


def test_a_tree_of_another_config_is_refused():
    tree = initialise(CONFIG)
    del tree["text"]["cls"]
    with pytest.raises(ValueError, match="the weights: missing text.cls"):
        to_open_clip(tree, CONFIG)
    for function, weights in ((to_open_clip, tree), (from_open_clip, WEIGHTS)):
        with pytest.raises(ValueError, match="pooler=shared"):
            function(weights, small_config())
