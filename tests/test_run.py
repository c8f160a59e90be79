"""Training runs: exact resume, the divergence guard, accumulation, both backends, checkpoints."""

import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from strategies import model_and_batch, small_config

from minicoca import params, run
from minicoca.config import preset
from minicoca.data import shapes
from minicoca.data.order import Order
from minicoca.engine import train as engine_train
from minicoca.params import flatten, initialise
from minicoca.reference import train as reference_train
from minicoca.run import (
    Stopped,
    asked_to_stop,
    load_model,
    make_trainer,
    new_folder,
    read_config,
    resume,
    train,
)

SHORT = dict(steps=14, checkpoint_every=5, evaluate_every=6, batch_size=8, warmup=3, image_layers=1)
TRAINERS = {"torch": engine_train.Trainer, "numpy": reference_train.Trainer}


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    """60 scenes instead of 60,000."""
    load = shapes.load
    monkeypatch.setattr(shapes, "load", lambda seed, side: load(seed, side, 60, 20))


def short(**changes):
    return preset("tiny", **{**SHORT, **changes})


def silent(config, folder, **how):
    folder.mkdir(exist_ok=True)
    return train(config, folder, say=lambda text: None, **how)


def tensors(folder, name):
    return params.load(folder / name)[0]


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("seconds", None)
    return records


def stop_after(monkeypatch, backend, step):
    """Press Ctrl-C while the given step is computed."""
    original = TRAINERS[backend].step

    def pressed(self, number, images, tokens):
        report = original(self, number, images, tokens)
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)
        return report

    monkeypatch.setattr(TRAINERS[backend], "step", pressed)


@pytest.mark.parametrize(
    ("backend", "options"),
    [("torch", {}), ("torch", dict(ema=0.9, augment=1.0, accumulate=2)), ("numpy", {})],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, backend, options):
    """To the last bit: weights, moments, averaged weights, logged losses."""
    config = short(backend=backend, **options)
    silent(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, backend, 7)  # between two checkpoints
        with pytest.raises(Stopped, match="after step 8 of 14.*--resume"):
            silent(config, tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    results = silent(None, tmp_path / "parts", taking_up=True)
    assert results["steps"] == 14
    for name in ("resume.safetensors", "model.safetensors"):
        a, b = (flatten(tensors(tmp_path / run, name)) for run in ("whole", "parts"))
        assert a.keys() == b.keys()
        for key in a:
            assert np.array_equal(a[key], b[key]), f"{name}: {key}"
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    """What was logged after the checkpoint is dropped, and logged again."""
    config = short(steps=25)
    silent(config, tmp_path / "whole")
    original = engine_train.Trainer.step

    def crash(self, number, images, tokens):
        if number == 22:
            raise MemoryError
        return original(self, number, images, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(engine_train.Trainer, "step", crash)
        with pytest.raises(MemoryError):
            silent(config, tmp_path / "parts")
    assert resume(tmp_path / "parts")[4] == 20
    silent(None, tmp_path / "parts", taking_up=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_same_seed_same_weights_other_seed_other_weights(tmp_path, backend):
    runs = []
    for n, seed in enumerate((0, 0, 1)):
        config = short(steps=4, seed=seed, backend=backend)
        silent(config, tmp_path / str(n))
        runs.append(flatten(tensors(tmp_path / str(n), "model.safetensors")))
    assert all(np.array_equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert any(not np.array_equal(runs[0][k], runs[2][k]) for k in runs[0])


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_divergence_stops_the_run_and_keeps_the_last_good_weights(tmp_path, monkeypatch, backend):
    original = TRAINERS[backend].step
    good = {}

    def poisoned(self, number, images, tokens):
        if number == 5:  # after five steps a checkpoint was written
            good.update({k: v.copy() for k, v in flatten(self.weights()).items()})
        if number == 6:
            mean = (math.nan,) * 3  # every pixel becomes NaN
            object.__setattr__(self.config, "pixel_mean", mean)
        return original(self, number, images, tokens)

    monkeypatch.setattr(TRAINERS[backend], "step", poisoned)
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(Stopped, match="nan at step 6.*--learning-rate"),
    ):
        silent(short(backend=backend), tmp_path / "run")
    kept = flatten(tensors(tmp_path / "run", "resume.safetensors")["params"])
    assert good.keys() == kept.keys()
    assert all(np.array_equal(good[name], kept[name]) for name in good)


def test_weights_that_are_no_numbers_are_never_kept(tmp_path):
    """The last step's loss and gradient were finite, what it made of the weights is not."""
    with pytest.raises(Stopped, match="a weight is nan at step 1.*--learning-rate"):
        silent(short(steps=1, warmup=0, learning_rate=1e38), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    kept = flatten(tensors(tmp_path / "run", "resume.safetensors")["params"])
    assert all(np.isfinite(x).all() for x in kept.values())


def test_a_look_that_finds_nan_leaves_the_advice_to_the_guard(tmp_path, monkeypatch):
    original = TRAINERS["torch"].step

    def poisoned(self, number, images, tokens):
        if number == 5:
            next(iter(self.leaves.values())).data.fill_(math.nan)
        return original(self, number, images, tokens)

    monkeypatch.setattr(TRAINERS["torch"], "step", poisoned)
    with pytest.raises(Stopped, match="nan at step 5.*--learning-rate"):
        silent(short(), tmp_path / "run")
    monkeypatch.setattr(TRAINERS["torch"], "step", original)

    def no_figures(*given, **named):
        raise ValueError("similarity holds NaN")

    with monkeypatch.context() as patch:
        patch.setattr(run, "evaluate", no_figures)
        silent(short(), tmp_path / "looks")  # a failed look is no reason to stop


def test_what_is_changed_on_resuming_stays_changed(tmp_path, monkeypatch):
    config = short(learning_rate=0.01, schedule="linear", final_rate=1.0)
    for step in (4, 9):
        with monkeypatch.context() as patch:
            stop_after(patch, "torch", step)
            with pytest.raises(Stopped):
                changes = {} if step == 4 else {"learning_rate": 0.001}
                silent(config, tmp_path / "run", taking_up=step > 4, changes=changes)
    silent(None, tmp_path / "run", taking_up=True)
    assert read_config(tmp_path / "run").learning_rate == 0.001
    rates = [r["learning_rate"] for r in metrics(tmp_path / "run") if "learning_rate" in r]
    assert rates == [0.001, 0.001]


def test_a_second_ctrl_c_ends_at_once():
    with pytest.raises(KeyboardInterrupt), asked_to_stop() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)


def test_data_that_has_changed_is_not_gone_on_with(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, "torch", 4)
        with pytest.raises(Stopped):
            silent(short(), tmp_path / "run")
    load = shapes.load
    monkeypatch.setattr(shapes, "load", lambda seed, side: load(seed + 1, side))
    with pytest.raises(ValueError, match="shapes has changed since .* began"):
        silent(None, tmp_path / "run", taking_up=True)


def test_accumulated_gradient_is_the_gradient():
    """Micro-batches of any number give the gradient of the whole batch, contrastive part too."""
    for options in ({}, {"contrastive_weight": 0.0}, {"caption_weight": 0.0}):
        config = small_config(**options)
        tree, _, tokens = model_and_batch(config, 0, batch=5)
        tree = params.tree_map(lambda a: a.astype(np.float32), tree)
        images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3)).astype(np.uint8)
        gradients = []
        for parts in (1, 2, 5):
            changed = {**config.to_dict(), "accumulate": parts}
            trainer = engine_train.Trainer(tree, type(config)(**changed))
            losses = trainer._gradients(trainer._images(0, images), torch.from_numpy(tokens))
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


def test_a_frozen_image_encoder_stays_as_it_is():
    config = short(freeze_image=True)
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
    silent(replace(begun, freeze_image=True), tmp_path / "second")
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
    stop_after(monkeypatch, "torch", 7)
    with pytest.raises(Stopped):
        silent(short(), tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    monkeypatch.undo()
    load = shapes.load
    monkeypatch.setattr(shapes, "load", lambda seed, side: load(seed, side, 60, 20))
    assert silent(None, tmp_path / "run", taking_up=True)["steps"] == 14


def test_what_is_not_a_checkpoint_of_this_run_is_refused(tmp_path, monkeypatch):
    stop_after(monkeypatch, "torch", 7)
    with pytest.raises(Stopped):
        silent(short(), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"text_hidden": 256', '"text_hidden": 128'))
    with pytest.raises(ValueError, match="has shape .* expected"):
        resume(tmp_path / "run")
    for broken in (
        "[]",
        "null",
        "not JSON",
        text.replace('"image_heads": 4', '"image_heads": "4"'),
    ):
        path.write_text(broken)
        with pytest.raises(ValueError, match="config.json: "):
            resume(tmp_path / "run")


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
        "model.safetensors", "results.json", "held_out.png", "compositional.png",
    }  # fmt: skip


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path):
    silent(short(steps=2), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"image_hidden": 128}))
    with pytest.raises(ValueError, match="mlp.down.weight has shape .* expected"):
        load_model(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"broken")
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not a readable safetensors"):
        load_model(tmp_path / "run")
