"""Fine-tuning: weights at another image size, what of them learns, and how fast."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from backends import BACKENDS
from hypothesis import given
from hypothesis import strategies as st
from runs import few_shapes, load, short, silent  # noqa: F401
from strategies import model_and_batch, small_config

from minicoca import __main__ as cli
from minicoca.data import shapes
from minicoca.evaluate import evaluate
from minicoca.params import flatten, initialise
from minicoca.training.checkpoint import load_model, read_config
from minicoca.tuning import move_positions

both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


# --- positions at another image size ------------------------------------------------------------


def moved(patches_GGD, new, stem="plain", dtype=np.float64):
    """What becomes of positions on a grid: [new, new, D], and the class token's where there is
    one."""
    old, _, width = patches_GGD.shape
    config = small_config(image_size=2 * old, image_width=width, image_heads=1, stem=stem)
    tree = initialise(config, 0, dtype)
    first = int(stem == "clip")
    tree["image"]["position"][first:] = patches_GGD.reshape(old * old, width)
    after = move_positions(tree, replace(config, image_size=2 * new))
    want = {n: leaf for n, leaf in flatten(tree).items() if n != "image.position"}
    found = flatten(after)
    assert all(found[n] is leaf for n, leaf in want.items()), "another parameter was touched"
    assert found.keys() == {*want, "image.position"}
    np.testing.assert_array_equal(
        found["image.position"][:first], tree["image"]["position"][:first]
    )
    assert found["image.position"].dtype == dtype
    return found["image.position"][first:].reshape(new, new, width)


sides, stems = st.integers(1, 12), st.sampled_from(["plain", "clip"])


@given(old=sides, stem=stems, seed=st.integers(0, 99))
def test_the_same_size_is_the_same_tree(old, stem, seed):
    config = small_config(image_size=2 * old, stem=stem)
    tree = initialise(config, seed)
    assert move_positions(tree, config) is tree


@given(old=sides, new=sides, stem=stems, seed=st.integers(0, 99))
def test_positions_move_as_published_models_move_theirs(old, new, stem, seed):
    """torch's bicubic interpolation with anti-aliasing, as open_clip and timm call it."""
    grid = np.random.default_rng(seed).standard_normal((old, old, 3))
    images = torch.tensor(grid).permute(2, 0, 1)[None]
    how = dict(mode="bicubic", antialias=True, align_corners=False)
    want = torch.nn.functional.interpolate(images, (new, new), **how)[0].permute(1, 2, 0)
    np.testing.assert_allclose(moved(grid, new, stem), want.numpy(), atol=1e-12)


@given(old=sides, new=sides, value=st.floats(-1e3, 1e3))
def test_a_constant_stays_constant(old, new, value):
    np.testing.assert_allclose(moved(np.full((old, old, 2), value), new), value, rtol=1e-14)


@given(old=st.integers(5, 12), new=st.integers(5, 24), stem=stems, down=st.booleans())
def test_a_ramp_stays_a_ramp_inside(old, new, stem, down):
    """By rows or by columns, and the picture's edges stay where they are."""
    centres = (np.arange(old) + 0.5) / old
    grid = np.broadcast_to(centres[:, None] if down else centres, (old, old))[..., None]
    found = moved(grid, new, stem)[..., 0]
    found = found if down else found.T
    np.testing.assert_allclose(found, np.broadcast_to(found[:, :1], found.shape), atol=1e-12)
    want = (np.arange(new) + 0.5) / new
    margin = 2 * max(1 / old, 1 / new)  # what the kernel reaches
    inside = (want > margin) & (want < 1 - margin)
    np.testing.assert_allclose(found[inside, 0], want[inside], atol=1e-12)


@both
@pytest.mark.parametrize("stem", ["plain", "clip"])
@pytest.mark.parametrize("pooler", ["cascade", "none"])
def test_a_moved_model_computes(backend, stem, pooler):
    """At both sizes, also after a way there and back; what it makes of one picture changes."""
    config = small_config(image_size=8, stem=stem, pooler=pooler)
    larger = replace(config, image_size=12)
    tree, _, tokens = model_and_batch(config, 0)
    after = move_positions(tree, larger)
    images = np.random.default_rng(0).standard_normal((3, 12, 12, 3))
    outputs = backend.outputs(after, larger, images, tokens)
    assert np.isfinite(outputs["loss"])
    back = move_positions(after, config)
    gap = np.abs(back["image"]["position"] - tree["image"]["position"]).max()
    assert 0 < gap < np.abs(tree["image"]["position"]).max()


def test_a_run_begins_at_another_size(tmp_path):
    """Its first weights are those of the run it names, moved; its file says its own size."""
    begun = short(stem="clip", steps=2)
    silent(begun, tmp_path / "first")
    config = replace(read_config(tmp_path / "first"), init=str(tmp_path / "first"), image_size=48)
    silent(replace(config, learning_rate=0.0), tmp_path / "second")
    first, second = (load_model(tmp_path / name, "numpy")[0] for name in ("first", "second"))
    want = flatten(move_positions(first.params, config))
    for name, value in flatten(second.params).items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)
    assert second.config.image_size == 48 and len(want["image.position"]) == 37
    captions = second.generate(load(0, 48, 60, 20).evaluations["held_out"].images[:2])
    assert len(captions) == 2


def line(capsys, *arguments):
    """What a command says that fails: one line."""
    capsys.readouterr()
    assert cli.main(["train", *map(str, arguments)]) in (1, 2)
    text = capsys.readouterr().err.strip()
    assert "\n" not in text, text
    return text


def test_patches_that_do_not_fit_are_one_line(tmp_path, capsys):
    first = tmp_path / "first"
    silent(short(steps=1), first)
    given = ["--init", first, "--run", tmp_path / "second"]
    said = line(capsys, *given, "--image-size", 50)
    assert (
        f"--image-size 50 is not a multiple of 8, the patches of {first}; the nearest is 48" in said
    )
    said = line(capsys, *given, "--patch-size", 16)
    assert f"patch_size=16, but {first} was trained with patches of 8 pixels" in said
    said = line(capsys, *given, "--image-size", 50, "--patch-size", 10)
    assert "patches of 8 pixels" in said
    assert not (tmp_path / "second").exists()


@pytest.mark.slow
def test_a_moved_model_still_captions(tmp_path, monkeypatch):
    """From 32 to 48 pixels: at once better than a model that has learned for 40 steps there, and
    better still after 40 steps of its own."""
    monkeypatch.setattr(shapes, "load", lambda seed, side: load(seed, side, 2000, 200))
    silent(short(steps=400, warmup=40, batch_size=64, image_layers=3), tmp_path / "first")
    begun = replace(read_config(tmp_path / "first"), image_size=48, steps=40, warmup=4)
    pairs = load(0, 48, 2000, 200).evaluations["held_out"]
    found = {}
    for name, changes in {
        "moved": dict(init=str(tmp_path / "first"), learning_rate=0.0),
        "tuned": dict(init=str(tmp_path / "first"), learning_rate=1e-3),
        "fresh": {},
    }.items():
        silent(replace(begun, **changes), tmp_path / name)
        model, tokenizer = load_model(tmp_path / name, "torch")
        found[name], _ = evaluate(model, tokenizer, pairs, 200)
    print(json.dumps(found))
    for name in ("caption_bleu_4", "image_to_text_r1", "text_to_image_r1"):
        moved, tuned, fresh = (found[k][name] for k in ("moved", "tuned", "fresh"))
        assert moved > 0.2 and moved > fresh and tuned > moved + 0.05, (name, moved, tuned, fresh)
