"""How runs end before their end: divergence, Ctrl-C, data that has changed; and how they go on."""

import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from runs import TRAINERS, few_shapes, metrics, short, silent, stop_after, tensors  # noqa: F401

from minicoca.data import folder, shapes
from minicoca.engine import train as engine_train
from minicoca.params import flatten
from minicoca.training import loop
from minicoca.training.checkpoint import fingerprint, read_config
from minicoca.training.loop import Stopped, asked_to_stop
from minicoca.training.run import resume


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


def test_a_signal_in_the_last_step_ends_the_run_before_it_is_measured(tmp_path, monkeypatch):
    silent(short(steps=4), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, "torch", 3)
        with pytest.raises(Stopped, match="after step 4 of 4.*--resume"):
            silent(short(steps=4), tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    silent(None, tmp_path / "parts", taking_up=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert (tmp_path / "parts" / "results.json").is_file()


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
    assert resume(tmp_path / "parts", print)[-1]["step"] == 20
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


def test_weights_that_are_no_numbers_are_never_kept(tmp_path, monkeypatch):
    """The last step's loss and gradient were finite, what it made of the weights is not."""
    original = TRAINERS["torch"].step

    def poisoned(self, *given):
        report = original(self, *given)
        next(iter(self.leaves.values())).data.fill_(math.nan)
        return report

    monkeypatch.setattr(TRAINERS["torch"], "step", poisoned)
    with pytest.raises(Stopped, match="a weight is nan at step 1.*--learning-rate"):
        silent(short(steps=1, warmup=0), tmp_path / "run")
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
        patch.setattr(loop, "evaluate", no_figures)
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


def test_a_signal_as_soon_as_it_is_listened_for_is_heard(monkeypatch):
    real = signal.signal

    def struck(number, handler):
        before = real(number, handler)
        if getattr(handler, "__name__", "") == "ask":
            handler(number, None)
        return before

    before = [real(number, signal.default_int_handler) for number in loop.POLITE]  # under nohup too
    try:
        monkeypatch.setattr(loop.signal, "signal", struck)
        with loop.asked_to_stop(answer=b"") as asked:
            assert asked == loop.POLITE
        handlers = {signal.getsignal(number) for number in loop.POLITE}
        assert handlers == {signal.default_int_handler}
    finally:
        for number, handler in zip(loop.POLITE, before, strict=True):
            real(number, handler)


def test_who_may_not_listen_for_signals_goes_on_without():
    def elsewhere():
        with loop.asked_to_stop() as asked:
            return asked

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(elsewhere).result() == []


def test_data_that_has_changed_is_not_gone_on_with(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, "torch", 4)
        with pytest.raises(Stopped):
            silent(short(), tmp_path / "run")
    load = shapes.load
    monkeypatch.setattr(shapes, "load", lambda seed, side, *_: load(seed + 1, side))
    with pytest.raises(ValueError, match="shapes has changed since .* began"):
        silent(None, tmp_path / "run", taking_up=True)


def test_an_image_file_that_has_changed_is_noticed(tmp_path):
    for i in range(20):
        Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a thing")
    before = fingerprint(folder.load(tmp_path, 8))
    assert before == fingerprint(folder.load(tmp_path, 8))
    dataset = folder.load(tmp_path, 8)
    Image.new("RGB", (50, 8)).save(dataset.train.paths[0])
    assert before != fingerprint(folder.load(tmp_path, 8))
