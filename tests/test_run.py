"""Training runs: what they write, learn and keep; accumulation, both backends, checkpoints."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import (  # noqa: F401
    SHORT,
    TRAINERS,
    edited,
    few_shapes,
    metrics,
    short,
    silent,
    stop_after,
    tensors,
)
from strategies import model_and_batch, small_config

from minicoca import params
from minicoca.data import shapes
from minicoca.data.order import Order
from minicoca.engine import train as engine_train
from minicoca.params import flatten, initialise
from minicoca.reference import train as reference_train
from minicoca.reference.optim import learning_rate
from minicoca.training import loop
from minicoca.training.checkpoint import load_model, new_folder, read_config
from minicoca.training.loop import Stopped
from minicoca.training.run import make_trainer, resume


def test_accumulated_gradient_is_the_gradient():
    """Micro-batches of any number give the gradient of the whole batch, contrastive part too."""
    for weights in ((0.7, 2.0), (0.0, 2.0), (1.0, 0.0)):
        config = small_config(contrastive_weight=weights[0], caption_weight=weights[1])
        tree, _, tokens = model_and_batch(config, 0, batch=5)
        tree = params.tree_map(lambda a: a.astype(np.float32), tree)
        images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3)).astype(np.uint8)
        gradients = []
        for parts in (1, 2, 5):
            changed = {**config.to_dict(), "accumulate": parts}
            trainer = engine_train.Trainer(tree, type(config)(**changed))
            losses = trainer._gradients(trainer.batch(0, images, tokens))
            found = {n: p.grad for n, p in trainer.leaves.items() if p.grad is not None}
            gradients.append((losses, found))
        whole_losses, whole = gradients[0]
        for losses, parts in gradients[1:]:
            assert losses.keys() == whole_losses.keys()
            for name in losses:
                assert float(losses[name]) == pytest.approx(float(whole_losses[name]), rel=1e-5)
            used = {n for n, g in whole.items() if g.abs().max() > 0}
            assert used <= parts.keys()
            for name in used:
                scale = max(float(whole[name].abs().max()), 1e-2)
                assert float((parts[name] - whole[name]).abs().max()) < 1e-4 * scale, name


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_it_learns(tmp_path, backend):
    """Eight pairs are memorised: the captioning loss falls below a tenth."""
    config = short(backend=backend, steps=120, evaluate_every=0, learning_rate=3e-3, warmup=10)
    trainer = make_trainer(initialise(config), config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    tokens = np.concatenate([np.ones((8, 1), int), rng.integers(4, 60, (8, 5))], 1)
    reports = [trainer.step(step, images, tokens) for step in range(120)]
    assert reports[0]["caption"] > 2 and reports[-1]["caption"] < 0.1
    assert reports[-1]["contrastive"] < 0.1
    assert 0.01 <= reports[-1]["temperature"] <= 1


def some_pairs(count=8):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return images, np.concatenate([np.ones((count, 1), int), rng.integers(4, 60, (count, 5))], 1)


@pytest.mark.parametrize(
    "weights", [(0.7, 2.0), (0.0, 1.0), (1.0, 0.0)], ids=["both", "captions", "pairs"]
)
def test_both_trainers_take_the_same_steps(weights):
    """Scheduled, clipped and decayed; a part without a loss stays as it was."""
    options = dict(
        warmup=3, clip_norm=0.01, steps=12, learning_rate=3e-4, schedule="linear", weight_decay=0.3
    )
    options |= dict(zip(("contrastive_weight", "caption_weight"), weights, strict=True))
    configs = [short(backend=backend, **options) for backend in ("torch", "numpy")]
    trainers = [make_trainer(initialise(config), config) for config in configs]
    for step in range(12):
        ours, theirs = (trainer.step(step, *some_pairs()) for trainer in trainers)
        assert ours.keys() == theirs.keys()
        assert ours["learning_rate"] == theirs["learning_rate"] == learning_rate(step, configs[0])
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-3), name
        assert ours["gradient_norm"] > 0.01, "nothing is clipped"
    moved = 0
    for name, start in flatten(initialise(configs[0])).items():
        a, b = (flatten(trainer.weights())[name] for trainer in trainers)
        if not name.endswith("key.bias"):  # moved by rounding alone
            assert np.abs(a - b).max() < 0.02 * max(np.abs(a - start).max(), 1e-4), name
            moved += not np.array_equal(a, start)
    assert moved > 30


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_a_gradient_that_is_no_number_changes_nothing(backend, monkeypatch):
    """The loss alone is finite."""
    module = engine_train if backend == "torch" else reference_train
    config = short(backend=backend)
    trainer = make_trainer(initialise(config), config)
    clip = module.clip_by_global_norm

    def poisoned(leaves, limit):
        found = clip(leaves, limit)
        return (found[0], math.inf) if isinstance(found, tuple) else found * math.inf

    monkeypatch.setattr(module, "clip_by_global_norm", poisoned)
    report = trainer.step(0, *some_pairs())
    assert math.isfinite(report["loss"]) and report["gradient_norm"] == math.inf
    for name, value in flatten(initialise(config)).items():
        np.testing.assert_array_equal(flatten(trainer.weights())[name], value)


def test_averaged_weights_are_the_ones_that_are_used():
    config = short(ema=0.9)
    trainer = engine_train.Trainer(initialise(config), config)
    for step in range(4):
        trainer.step(step, *some_pairs())
    raw, used = trainer.leaves["text.token"], trainer.ema["text"]["token"]
    assert not torch.equal(raw, used)
    assert torch.equal(trainer.model().params["text"]["token"], used)
    np.testing.assert_array_equal(trainer.weights()["text"]["token"], used.numpy())


def test_settings_reach_what_they_set(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda function: seen.append("compile") or function)
    monkeypatch.setattr(loop, "Order", lambda *given: seen.append(given[3]) or Order(*given))
    silent(short(compile=True, distinct=True, steps=2), tmp_path / "run")
    assert seen == ["compile", True]


@pytest.mark.parametrize(
    "option", [dict(compile=True), dict(precision="bfloat16"), dict(device="cuda"), dict(ema=0.5)]
)
def test_numpy_refuses_what_only_torch_can_do(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} needs --backend torch"):
        make_trainer({}, short(backend="numpy", **option))


def test_a_frozen_image_encoder_stays_as_it_is():
    config = short(freeze="image")
    start = initialise(config)
    trainer = engine_train.Trainer(start, config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    tokens = np.concatenate([np.ones((8, 1), int), rng.integers(4, 60, (8, 5))], 1)
    for step in range(3):
        trainer.step(step, images, tokens)
    moved = flatten(trainer.weights())
    for name, value in flatten(start).items():
        same = np.array_equal(moved[name], value)
        assert same == (name.startswith("image.") or name.endswith(".key.bias")) or not value.any()


def test_a_run_begins_with_the_weights_of_another(tmp_path):
    """LiT: a trained image encoder, kept; the rest learns on."""
    silent(short(learning_rate=0.01), tmp_path / "first")
    begun = replace(read_config(tmp_path / "first"), init=str(tmp_path / "first"), steps=20)
    silent(replace(begun, freeze="image"), tmp_path / "second")
    first, second = (
        flatten(tensors(tmp_path / name, "model.safetensors")) for name in ("first", "second")
    )
    for name, value in first.items():
        if name.startswith("image."):
            np.testing.assert_array_equal(second[name], value)
    assert not np.array_equal(second["text.token"], first["text.token"])
    models = [(tmp_path / name / "tokenizer.model").read_bytes() for name in ("first", "second")]
    assert models[0] == models[1]
    with pytest.raises(ValueError, match="image.blocks.*not expected|missing|has shape"):
        silent(replace(begun, image_width=128), tmp_path / "third")


def test_one_checkpoint_two_backends_one_caption(tmp_path):
    """Weights from a torch run, read by NumPy: the same captions, beams and vectors; and back."""
    for backend in ("torch", "numpy"):
        folder = tmp_path / backend
        silent(short(backend=backend, steps=30, learning_rate=3e-3), folder)
        images = shapes.load(0, 32).evaluations["held_out"].images[:8]
        models = [load_model(folder, name) for name in ("torch", "numpy")]
        (torch_model, tokenizer), (numpy_model, _) = models
        for how in ({}, {"beams": 3}, {"temperature": 1.0, "seed": 2}):
            a, b = (m.generate(images, **how) for m in (torch_model, numpy_model))
            assert [tokenizer.decode(r) for r in a] == [tokenizer.decode(r) for r in b]
        for a, b in zip(
            (torch_model.embed_images(images), torch_model.embed_texts(np.array([[1, 5, 2]]))),
            (numpy_model.embed_images(images), numpy_model.embed_texts(np.array([[1, 5, 2]]))),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_bfloat16_computes_and_keeps_float32_weights():
    config = short(precision="bfloat16")
    trainer = engine_train.Trainer(initialise(config), config)
    images, tokens = one_batch()
    reports = [trainer.step(step, images, tokens) for step in range(5)]
    used = [p for p in trainer.leaves.values() if p.grad is not None]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in used) and len(used) > 60
    exact = engine_train.Trainer(initialise(config), short(precision="float32"))
    loss = exact.step(0, images, tokens)["loss"]
    assert reports[0]["loss"] == pytest.approx(loss, rel=0.02) and reports[0]["loss"] != loss


@pytest.mark.slow
def test_the_step_can_be_compiled():
    """The whole objective traces as one graph, backward too, and gives the same gradient."""
    config = small_config()
    compiled = torch.compile(engine_train.coca, backend="aot_eager", fullgraph=True)
    for length in (7, 5):
        tree, images, tokens = model_and_batch(config, 0, tokens=length)
        images, tokens = torch.tensor(images), torch.tensor(tokens)
        found = []
        for way in (compiled, engine_train.coca):
            leaves = params.tree_map(lambda a: torch.tensor(a, requires_grad=True), tree)
            loss = way(leaves, config, images, tokens)["loss"]
            loss.backward()
            found.append((loss.detach(), flatten(leaves)))
        (a, left), (b, right) = found
        assert float(a) == pytest.approx(float(b), abs=1e-10)
        for name in left:
            torch.testing.assert_close(left[name].grad, right[name].grad, rtol=1e-8, atol=1e-9)


def one_batch(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    return images, np.concatenate([np.ones((8, 1), int), rng.integers(4, 60, (8, 5))], 1)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_the_temperature_stays_between_its_limits(backend):
    for start in (-9.0, 9.0):
        config = short(backend=backend)
        tree = initialise(config) | {"log_temperature": np.array(start, np.float32)}
        trainer = make_trainer(tree, config)
        report = trainer.step(0, *one_batch())
        assert 0.01 - 1e-6 <= report["temperature"] <= 1 + 1e-6


def test_averaged_weights_are_averages():
    config = short(ema=0.15)
    trainer = engine_train.Trainer(initialise(config), config)
    mean = flatten(trainer.weights())
    for step in range(3):
        trainer.step(step, *one_batch(step))
        now = {name: leaf.detach().numpy() for name, leaf in trainer.leaves.items()}
        decay = (0.1, 0.15, 0.15)[step]  # the first step warms up: (1 + 0) / (10 + 0)
        mean = {name: decay * mean[name] + (1 - decay) * now[name] for name in mean}
    for name, value in flatten(trainer.weights()).items():
        np.testing.assert_allclose(value, mean[name], atol=1e-6)


def test_augmentation_changes_with_the_step_alone():
    config = short(augment=1.0)
    trainer = engine_train.Trainer(initialise(config), config)
    images, _ = one_batch()
    first, again, next_ = (trainer._images(step, images) for step in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, next_)


def test_a_log_cut_off_in_the_middle_of_a_line_is_no_obstacle(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, "torch", 7)
        silent(short(), tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    assert silent(None, tmp_path / "run", taking_up=True)["steps"] == 14


def test_what_is_not_a_checkpoint_of_this_run_is_refused(tmp_path, monkeypatch):
    stop_after(monkeypatch, "torch", 7)
    with pytest.raises(Stopped):
        silent(short(), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    text = path.read_text()
    with pytest.raises(ValueError, match="sha256 differs.*edited on purpose"):
        path.write_text(text.replace('"text_hidden": 256', '"text_hidden": 128'))
        resume(tmp_path / "run", print)
    edited(tmp_path / "run", text_hidden=128)
    with pytest.raises(ValueError, match="has shape .* expected"):
        resume(tmp_path / "run", print)
    text = path.read_text()
    for broken in (
        "[]",
        "null",
        "not JSON",
        text.replace('"image_heads": 4', '"image_heads": "4"'),
    ):
        path.write_text(broken)
        with pytest.raises(ValueError, match="config.json: "):
            resume(tmp_path / "run", print)


def test_order_shows_every_pair_once_an_epoch():
    captions = tuple((f"{i % 7}",) for i in range(30))
    for distinct in (False, True):
        order = Order(captions, 8, 0, distinct)
        seen = np.concatenate([order.indices(step) for step in range(15)])  # four epochs
        for epoch in range(4):
            assert sorted(seen[30 * epoch : 30 * epoch + 30]) == list(range(30))
        assert not np.array_equal(seen[:30], seen[30:60])
        again = Order(captions, 8, 0, distinct)
        assert np.array_equal(again.indices(9), order.indices(9))  # no memory of earlier steps
    first = Order(captions, 7, 0, True).indices(0)
    assert len({captions[i] for i in first}) == 7


def test_every_right_caption_gets_its_turn():
    order = Order((("a", "b", "c"),) * 4, 4, 0)
    chosen = {c for step in range(20) for c in order.chosen(step, order.indices(step))}
    assert chosen == {"a", "b", "c"}


def test_new_folder_never_takes_an_old_one(tmp_path):
    names = [new_folder(tmp_path, "shapes").name for _ in range(3)]
    assert names == ["shapes", "shapes-2", "shapes-3"]


def test_results_hold_what_they_should(tmp_path):
    results = silent(short(), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    for split in ("held_out", "compositional"):
        for key in (
            "caption_exact", "image_to_text_r1", "text_to_image_r1", "zero_shot_top1",
            "zero_shot_top5",
        ):  # fmt: skip
            assert 0 <= saved[split][key] <= 1 and results[split][key] == saved[split][key]
    for key in (
        "train_seconds", "steps", "images_per_second", "parameters", "preset", "seed", "command",
        "machine",
    ):  # fmt: skip
        assert key in saved
    assert saved["parameters"] == params.count(tensors(tmp_path / "run", "model.safetensors"))
    assert read_config(tmp_path / "run").vocabulary < 64
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "config.json", "tokenizer.model", "metrics.jsonl", "resume.safetensors",
        "model.safetensors", "results.json", "README.md", "held_out.png", "compositional.png",
    }  # fmt: skip


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path):
    silent(short(steps=2), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    content = path.read_bytes()
    edited(tmp_path / "run", image_hidden=128)
    with pytest.raises(ValueError, match="mlp.down.weight has shape .* expected"):
        load_model(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"broken")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable safetensors"):
        load_model(tmp_path / "run")
