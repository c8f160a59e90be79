"""Fine-tuning: weights at another image size, what of them learns, and how fast."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from backends import BACKENDS
from hypothesis import given
from hypothesis import strategies as st
from runs import TRAINERS, few_shapes, load, short, silent, stop_after, tensors  # noqa: F401
from strategies import configs, model_and_batch, small_config

from minicoca import __main__ as cli
from minicoca.config import from_dict
from minicoca.data import shapes
from minicoca.engine import optim as engine_optim
from minicoca.evaluate import evaluate
from minicoca.params import flatten, initialise, specs, tree_map
from minicoca.reference import model as reference
from minicoca.reference import optim as reference_optim
from minicoca.reference.vision import normalise
from minicoca.training import run
from minicoca.training.checkpoint import UNREACHED, load_model, read_config
from minicoca.training.loop import Stopped
from minicoca.training.run import make_trainer
from minicoca.tuning import PARTS, factors, learning, move_positions

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


@pytest.mark.slow
def test_a_run_begins_at_another_size(tmp_path, monkeypatch):
    """Its first weights are those of the run it names, moved; its file says its own size."""
    monkeypatch.setattr(run, "make_picture", lambda *given: "")
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


# --- what learns, and how fast -------------------------------------------------------------------


def pairs_of(config, seed=0, batch=6):
    """uint8 images and token ids, as a trainer takes them."""
    rng = np.random.default_rng(seed)
    side, ids = config.image_size, rng.integers(4, config.vocabulary, (batch, 5))
    images = rng.integers(0, 256, (batch, side, side, 3)).astype(np.uint8)
    return images, np.concatenate([np.ones((batch, 1), int), ids], 1)


def after(config, steps=3, seed=0, start=None):
    """(the trainer after some steps, what it reported)."""
    trainer = make_trainer(start or initialise(config, seed), config)
    return trainer, [trainer.step(step, *pairs_of(config, step)) for step in range(steps)]


def learned(trainer):
    """What the steps left of the weights themselves, not of their average."""
    return flatten(trainer.state()["params"])


HARD = dict(weight_decay=0.5, clip_norm=0.1, learning_rate=0.05, warmup=1, steps=9, batch_size=6)
both_trainers = pytest.mark.parametrize("backend", TRAINERS)


@given(config=configs())
def test_every_parameter_is_of_one_part_or_the_temperature(config):
    owners = [part for part in PARTS.values() for _ in part]
    assert len(owners) == len({top for part in PARTS.values() for top in part})
    rates = dict(image_rate=2.0, pooler_rate=3.0, text_rate=5.0)
    tree = specs(replace(config, **rates))
    found = factors(tree, replace(config, **rates))
    assert found.keys() == flatten(tree).keys()
    assert {name for name, factor in found.items() if factor == 1} == {"log_temperature"}
    for part, tops in PARTS.items():
        own = {name for name in found if name.split(".")[0] in tops}
        assert own == {name for name, factor in found.items() if factor == rates[f"{part}_rate"]}
    assert learning(replace(config, text_rate=0.0)) == sum(
        leaf.size for name, leaf in flatten(initialise(config)).items() if found[name] != 5
    )


@both_trainers
@pytest.mark.parametrize("part", PARTS)
def test_a_part_learns_as_at_its_own_rate_and_the_rest_as_before(part, backend):
    """The first step, to the last bit: the gradient is the same, whatever the rates."""
    base = small_config(**HARD, backend=backend, embed_width=22)
    slow, plain, own = (
        learned(after(replace(base, **changes), steps=1)[0])
        for changes in (dict(learning_rate=0.05 * 0.25), {}, {f"{part}_rate": 0.25})
    )
    for name, value in own.items():
        want = slow if name.split(".")[0] in PARTS[part] else plain
        np.testing.assert_array_equal(value, want[name], err_msg=name)
    assert any(not np.array_equal(slow[name], plain[name]) for name in own)


def test_factors_of_one_are_the_optimiser_itself():
    """Bit for bit: the reference's AdamW in one call, torch's in the two groups of before."""
    config = small_config(**HARD, optimizer="adamw")
    tree, _, _ = model_and_batch(config, 0)
    gradients = model_and_batch(config, 1)[0]
    state = reference_optim.start(tree, config)
    plain = reference_optim.adamw(tree, gradients, state, 0.1, config)
    parts = reference_optim.optimise(tree, gradients, state, 0.1, config)
    for kept in (0, 1):
        one, other = flatten(plain[kept]), flatten(parts[kept])
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    (optimizer,) = engine_optim.optimizers(tree_map(torch.tensor, tree), config)
    groups = optimizer.param_groups
    assert [(group["weight_decay"], group["factor"]) for group in groups] == [(0.5, 1), (0, 1)]


PATTERNS = [
    "image", "image.blocks.0-1", "image.blocks.1,text.token", "image.position , image.class",
    "decoder.blocks.0-1.cross,pooler.contrast.queries", "log_temperature", "text,decoder",
    "image_projection", "decoder.head.weight", "text.blocks.0.norm_mlp.scale",
]  # fmt: skip


def means(pattern, name):
    """Whether a pattern names a parameter, by a regular expression."""
    patterns = [p.strip().replace(".", "[.]").replace("0-1", "[01]") for p in pattern.split(",")]
    return any(re.fullmatch(rf"{p}([.].*)?", name) for p in patterns)


@both_trainers
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_frozen_stays_and_all_else_learns(pattern, backend):
    """Bit for bit, under decay, clipping and averaging, at a temperature that others clamp; and the
    norm of the gradient is that of what learns."""
    ema = dict(ema=0.5) if backend == "torch" else {}
    config = small_config(**HARD, **ema, stem="clip", embed_width=22, backend=backend)
    start = initialise(config, 3)
    start["log_temperature"] = np.float32(-4.6052)  # a little below its lowest
    images, tokens = pairs_of(config)
    tree = tree_map(lambda leaf: leaf.astype(np.float64), start)
    outputs, cache = reference.coca(tree, config, normalise(images, config), tokens)
    gradients = flatten(reference.coca_backward(1.0, cache)[0])
    trainer, reports = after(replace(config, freeze=pattern), start=start)
    squares = [(g**2).sum() for name, g in gradients.items() if not means(pattern, name)]
    assert reports[0]["gradient_norm"] == pytest.approx(np.sqrt(sum(squares)), rel=1e-4)
    names = {name for name in flatten(start) if means(pattern, name)}
    assert names and names != flatten(start).keys()
    for weights in (learned(trainer), flatten(trainer.weights())):
        for name, value in flatten(start).items():
            same = np.array_equal(weights[name], value)
            assert same if name in names else not same or name.endswith("key.bias"), name


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_engine_computes_no_gradient_of_what_is_frozen(pattern, accumulate):
    config = small_config(**HARD, stem="clip", embed_width=22, freeze=pattern)
    trainer, _ = after(replace(config, accumulate=accumulate), steps=2)
    for name, leaf in trainer.leaves.items():
        frozen = means(pattern, name)
        assert leaf.requires_grad != frozen, name
        assert (leaf.grad is None) == (frozen or name in UNREACHED), name
        assert any(leaf in one.state for one in trainer.optimizers) != frozen
    moments = flatten(trainer.state()["exp_avg"])
    assert moments.keys() == {name for name in trainer.leaves if not means(pattern, name)}


@both_trainers
def test_a_part_at_rate_0_is_frozen(backend):
    base = small_config(**HARD, backend=backend, embed_width=22)
    one, other = (
        after(replace(base, **how))
        for how in (dict(text_rate=0.0), dict(freeze="text,decoder,text_projection"))
    )
    assert one[1] == other[1]
    for name, value in learned(one[0]).items():
        np.testing.assert_array_equal(value, learned(other[0])[name])


def test_backends_agree_on_rates_and_frozen_parts():
    rates = dict(image_rate=0.3, pooler_rate=2.0, text_rate=0.7, freeze="image.blocks.0,text.cls")
    config = small_config(**HARD, **rates, epsilon=1e-3)
    (a, said), (b, told) = (after(replace(config, backend=name)) for name in TRAINERS)
    for one, other in zip(said, told, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for name, value in learned(a).items():
        np.testing.assert_allclose(learned(b)[name], value, atol=2e-5, err_msg=name)


@pytest.mark.slow
@both_trainers
def test_what_is_taken_up_keeps_what_was_frozen(backend, tmp_path, monkeypatch):
    """Stopped and gone on with is the same as never stopped, to the last bit."""
    how = dict(freeze="image.blocks,text.token", text_rate=0.5, pooler_rate=0.0, steps=8)
    config = short(backend=backend, **how, image_width=8, text_width=8)
    silent(config, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_after(patched, backend, 4)
        silent(config, tmp_path / "parts")
    silent(None, tmp_path / "parts", taking_up=True)
    assert read_config(tmp_path / "parts").freeze == how["freeze"]
    one, other = (flatten(tensors(tmp_path / n, "model.safetensors")) for n in ("whole", "parts"))
    start = flatten(initialise(replace(config, vocabulary=len(one["text.token"])), 0))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
        if means("image.blocks,text.token,pooler", name):
            np.testing.assert_array_equal(value, start[name])


def test_losses_that_reach_nothing_that_learns_change_nothing():
    config = small_config(**HARD, freeze="image,text,pooler,decoder", contrastive_weight=0.0)
    for accumulate in (1, 2):
        trainer, reports = after(replace(config, accumulate=accumulate))
        assert [report["gradient_norm"] for report in reports] == [0, 0, 0]
        for name, value in flatten(initialise(config)).items():
            np.testing.assert_array_equal(learned(trainer)[name], value)


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("imag", "there is no parameter 'imag'; did you mean 'image'?"),
        ("text.tokens", "'text.tokens'; did you mean 'text.token'?"),
        ("image.bloks.0", "'image.bloks.0'; did you mean 'image.blocks.0'?"),
        ("patch.weight", "'patch.weight'; did you mean 'image.patch.weight'?"),
        ("image.blocks.0-2", "'image.blocks.2'; did you mean"),
        ("image.blocks.1-0", "'image.blocks.1-0'; did you mean"),
        ("text.token.weight", "'text.token.weight'; did you mean 'text.token'?"),
        ("image,text,pooler,decoder,log_temperature", "leave nothing to learn"),
        ("image.0-" + "9" * 4000, "there is no parameter"),
        ("0-999." * 500, "there is no parameter"),
    ],
)
def test_an_unknown_name_names_the_nearest(pattern, message, tmp_path):
    """Before any data are read, and in one line."""
    config = small_config(freeze=pattern, data=str(tmp_path / "none"))
    with pytest.raises(ValueError) as refusal:
        silent(config, tmp_path / "run")
    assert message in str(refusal.value) and len(str(refusal.value)) < 300


def test_settings_of_before_say_what_they_said():
    """`freeze_image` of earlier versions."""
    fields = {k: v for k, v in short().to_dict().items() if k not in ("freeze", "image_rate")}
    assert from_dict(fields | {"freeze_image": False}) == from_dict(fields) == short()
    assert from_dict(fields | {"freeze_image": True}) == short(freeze="image")
    with pytest.raises(ValueError, match="unknown setting 'freeze_image'; did you mean 'freeze'"):
        from_dict(fields | {"freeze_image": 3})


@pytest.mark.slow
def test_a_moved_model_still_captions(tmp_path, monkeypatch):
    """From 32 to 48 pixels: at once better than a model that has learned for 40 steps there, and
    better still after 40 steps of its own."""
    monkeypatch.setattr(shapes, "load", lambda seed, side, *_: load(seed, side, 2000, 200))
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
