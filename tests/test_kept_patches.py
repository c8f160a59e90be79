"""Training on some of the patches of each image (FLIP): which, and what becomes of the others."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import TRAINERS, few_shapes, short, silent, stop_after, tensors  # noqa: F401
from strategies import configs, model_and_batch, seeds, small_config

from minicoca import tuning
from minicoca.config import Config
from minicoca.engine import model as engine
from minicoca.engine import train as engine_train
from minicoca.params import flatten, initialise, tree_map, unflatten
from minicoca.reference import model as reference
from minicoca.reference import vision
from minicoca.training.loop import Stopped
from minicoca.training.run import make_trainer
from minicoca.tuning import kept_tokens

both = pytest.mark.parametrize("backend", TRAINERS)
parts = st.floats(0.01, 1)


def computed(backend, tree, config, images, tokens, places=None):
    """(outputs, {name: gradient}) of the whole objective, in float64."""
    if backend == "numpy":
        outputs, cache = reference.coca(tree, config, images, tokens, places)
        return outputs, flatten(reference.coca_backward(1.0, cache)[0])
    leaves = {k: torch.tensor(v, requires_grad=True) for k, v in flatten(tree).items()}
    given = torch.tensor(images), torch.tensor(tokens)
    places = None if places is None else torch.from_numpy(places)
    outputs = engine.coca(unflatten(leaves), config, *given, places)
    outputs["loss"].backward()
    zero = {k: np.zeros(v.shape) if v.grad is None else v.grad.numpy() for k, v in leaves.items()}
    return {k: v.detach().numpy() for k, v in outputs.items()}, zero


@given(
    keep=parts, stem=st.sampled_from(["plain", "clip"]), side=st.integers(1, 5),
    seed=seeds, step=seeds, batch=st.integers(1, 5),
)  # fmt: skip
def test_the_places_are_a_random_part_and_the_class_token(keep, stem, side, seed, step, batch):
    config = small_config(image_size=2 * side, stem=stem, patch_keep=keep, seed=seed)
    places, first = kept_tokens(config, step, batch), int(stem == "clip")
    assert abs(config.kept_patches - keep * side**2) <= 0.5 or config.kept_patches == 1
    if config.kept_patches == side**2:
        assert places is None
        return
    assert places.shape == (batch, config.kept_patches + first)
    assert (np.diff(places, axis=1) > 0).all() and places.max() < side**2 + first
    assert not first or (places[:, 0] == 0).all()
    assert places[:, first:].min() >= first
    np.testing.assert_array_equal(places, kept_tokens(config, step, batch))


def test_every_patch_is_as_likely_as_the_others_for_each_image_by_itself():
    config = small_config(patch_keep=4 / 9)
    places = np.concatenate([kept_tokens(config, step, 8) for step in range(200)])
    seen = (places[:, :, None] == np.arange(9)).any(1)
    assert np.abs(seen.mean(0) - 4 / 9).max() < 4 * np.sqrt(20 / 81 / len(seen))
    together = np.einsum("ni,nj->ij", seen * 1.0, seen * 1.0)[~np.eye(9, dtype=bool)] / len(seen)
    assert np.abs(together - 4 * 3 / (9 * 8)).max() < 4 * np.sqrt(5 / 36 / len(seen))
    rows = {tuple(row) for row in places}
    assert len(rows) == math.comb(9, 4)


@both
@pytest.mark.parametrize("stem", ["plain", "clip"])
@pytest.mark.parametrize("pooler", ["cascade", "parallel", "shared", "none"])
def test_it_is_the_model_of_a_picture_of_those_patches_at_their_own_positions(
    stem, pooler, backend
):
    """Four patches of nine are a picture of 2 x 2 patches, with four of the positions: the same
    loss and the same gradient, and none for what was dropped."""
    config = small_config(stem=stem, pooler=pooler, patch_keep=4 / 9)
    tree, images, tokens = model_and_batch(config, 0)
    first = int(stem == "clip")
    places = np.repeat([[*range(first), *(first + np.array([0, 4, 5, 7]))]], len(images), 0)
    outputs, gradients = computed(backend, tree, config, images, tokens, places)
    patches = vision.patchify(images, config.patch_size)[:, [0, 4, 5, 7]]
    small = tree | {"image": tree["image"] | {"position": tree["image"]["position"][places[0]]}}
    four = replace(config, image_size=4, patch_keep=1.0)
    cut = vision.unpatchify(patches, config.patch_size)
    want, expected = computed(backend, small, four, cut, tokens)
    assert outputs["loss"] == pytest.approx(float(want["loss"]), abs=1e-12)
    position = np.zeros_like(tree["image"]["position"])
    position[places[0]] = expected["image.position"]
    expected["image.position"] = position
    for name, value in gradients.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-12, err_msg=name)


@given(config=configs(), seed=seeds, keep=parts)
def test_engine_equals_reference(config, seed, keep):
    config = replace(config, patch_keep=keep)
    tree, images, tokens = model_and_batch(config, seed)
    places = kept_tokens(config, seed, len(images))
    (a, g), (b, h) = (computed(k, tree, config, images, tokens, places) for k in TRAINERS)
    for name in b.keys() & {"loss", "contrastive", "caption", "image", "text"}:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-10, atol=1e-10, err_msg=name)
    for name in g:
        gap = np.abs(g[name] - h[name]).max()
        assert gap <= 1e-8 * max(np.abs(g[name]).max(), 1e-6), f"{name}: off by {gap:.1e}"


def batch_of(config, seed=0, size=6):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, config.image_size, config.image_size, 3))
    tokens = rng.integers(4, config.vocabulary, (size, 5))
    return images.astype(np.uint8), np.concatenate([np.ones((size, 1), int), tokens], 1)


@pytest.mark.parametrize("accumulate", [2, 3, 5])
@pytest.mark.parametrize("stem", ["plain", "clip"])
def test_in_parts_it_is_the_same_step(stem, accumulate):
    """Each image keeps its own patches, whatever micro-batch it is in."""
    config = small_config(patch_keep=0.5, clip_norm=0.0, epsilon=1e-3, stem=stem)
    one, other = (
        make_trainer(initialise(config), replace(config, accumulate=parts))
        for parts in (1, accumulate)
    )
    for step in range(3):
        a, b = (trainer.step(step, *batch_of(config, step)) for trainer in (one, other))
        assert a == pytest.approx(b, rel=1e-4)


@both
def test_a_step_keeps_patches_of_its_own_and_what_uses_the_model_keeps_all(backend):
    """The first step of a config is seen by its own loss; another step, another loss."""
    config = small_config(patch_keep=0.5, backend=backend)
    tree, (images, tokens) = initialise(config), batch_of(config)

    def loss(step, **changes):
        return make_trainer(tree, replace(config, **changes)).step(step, images, tokens)["loss"]

    losses = [loss(0), loss(1), loss(0, seed=1), loss(0, patch_keep=1.0), loss(0, patch_keep=0.3)]
    assert len(set(losses)) == 5 and loss(1) == losses[1]
    some, all_ = (make_trainer(tree, replace(config, patch_keep=k)).model() for k in (0.5, 1.0))
    np.testing.assert_array_equal(some.embed_images(images), all_.embed_images(images))
    for a, b in zip(some.generate(images), all_.generate(images), strict=True):
        np.testing.assert_array_equal(a, b)


@both
def test_where_all_are_kept_nothing_is_drawn(backend, monkeypatch):
    def drawn(*given):
        raise AssertionError(given)

    monkeypatch.setattr(tuning, "stream", drawn)
    config = small_config(patch_keep=0.99, backend=backend)  # of nine patches nine
    report = make_trainer(initialise(config), config).step(0, *batch_of(config))
    plain = replace(config, patch_keep=1.0)
    assert report == make_trainer(initialise(plain), plain).step(0, *batch_of(plain))


@pytest.mark.slow
@both
def test_what_is_taken_up_goes_on_with_the_same_patches(backend, tmp_path, monkeypatch):
    config = short(backend=backend, patch_keep=0.5, steps=8, image_width=8, text_width=8)
    silent(config, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, backend, 4)
        silent(config, tmp_path / "parts")
    silent(None, tmp_path / "parts", taking_up=True)
    one, other = (flatten(tensors(tmp_path / n, "model.safetensors")) for n in ("whole", "parts"))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["plain", "clip"])
def test_the_step_can_be_compiled(stem):
    """As one graph, backward too, and it gives the same gradient."""
    config = small_config(patch_keep=0.5, stem=stem)
    compiled = torch.compile(engine_train.coca, backend="aot_eager", fullgraph=True)
    tree, images, tokens = model_and_batch(config, 0)
    places = torch.from_numpy(kept_tokens(config, 0, len(images)))
    images, tokens, found = torch.tensor(images), torch.tensor(tokens), []
    for way in (compiled, engine_train.coca):
        leaves = tree_map(lambda a: torch.tensor(a, requires_grad=True), tree)
        way(leaves, config, images, tokens, places)["loss"].backward()
        found.append(flatten(leaves))
    for name, leaf in found[0].items():
        torch.testing.assert_close(leaf.grad, found[1][name].grad, rtol=1e-8, atol=1e-9)


def test_a_part_is_over_0_and_at_most_1():
    for value in (5e-324, 0.5, 1, 1.0):
        assert Config(patch_keep=value).patch_keep == value
    assert Config(patch_keep=5e-324).kept_patches == 1
    for value in (0, 0.0, -0.5, math.nextafter(1, 2), 2, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError) as refusal:
            Config(patch_keep=value)
        assert str(refusal.value) == f"patch_keep={value}; it must be over 0 and at most 1"
    with pytest.raises(ValueError, match="patch_keep='1' is not of type float; it must be over 0"):
        Config(patch_keep="1")
