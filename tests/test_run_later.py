"""What a person meets later: the advice of a stopped run, another folder, weights begun with."""

import os
import shlex
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import few_shapes, load, short, silent, stop_after, untrained  # noqa: F401

from minicoca import __main__ as cli
from minicoca import params
from minicoca.commands import build_parser
from minicoca.commands import train as train_command
from minicoca.config import preset
from minicoca.data import shapes
from minicoca.engine.train import Trainer
from minicoca.files import append
from minicoca.training import run as training_run
from minicoca.training.checkpoint import load_model, read_config, save_config
from minicoca.training.log import Log
from minicoca.training.loop import Stopped, diverged

NAMES = st.text(" '\"$;&|*?~#!\\()`-=aé\n", min_size=1, max_size=8).filter(lambda n: n.strip())
ODD = 'it\'s a "run" $HOME'


def advised(message):
    """The flags of the command that ends a message, as a shell would hand them over."""
    command = message[message.index("minicoca train ") :]
    return build_parser().parse_args(shlex.split(command)[1:])


@given(NAMES)
def test_advice_can_be_copied_whatever_a_folder_is_called(tmp_path, name):
    """A space, a quote, a dash in front: what the shell makes of it is the folder itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for folder in (Path(name), tmp_path / name):
            folder.mkdir(exist_ok=True)
            config = short(learning_rate=0.003)
            save_config(config, folder)
            messages = [diverged(3, {"loss": float("nan")}, folder, config)]
            assert advised(messages[0]).learning_rate == pytest.approx(0.001)
            with pytest.raises(ValueError) as unfinished:
                load_model(folder)
            begin = ["train"] + ([f"--run={folder}"])
            with pytest.raises(ValueError) as taken:
                train_command.run(build_parser().parse_args(begin))
            for message in (*messages, str(unfinished.value), str(taken.value)):
                assert advised(message).resume.samefile(folder), message


@pytest.mark.parametrize("end", ["stop", "full disk", "twice"])
def test_advice_of_a_run_that_ended_early(tmp_path, monkeypatch, end):
    """Followed to the letter, it goes on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_run, "finish", lambda *given: {"done": True})
    act = {
        "stop": lambda: os.kill(os.getpid(), 2),
        "full disk": lambda: no_space(),
        "twice": lambda: [os.kill(os.getpid(), 2) for _ in range(2)],
    }[end]
    step = Trainer.step

    def acting(self, number, *given):
        if number == 7:
            act()
        return step(self, number, *given)

    def no_space():
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", acting)
        with pytest.raises(Stopped) as stopped:
            silent(short(), Path(ODD))
    arguments = advised(str(stopped.value))
    assert arguments.resume.samefile(ODD)
    assert train_command._resume(arguments, lambda text: None)["done"]


def test_pixels_stay_what_the_weights_know(tmp_path, monkeypatch):
    """A run begun with weights takes their mean and spread, whatever the new pictures' are."""
    untrained(tmp_path / "first")
    first = replace(
        read_config(tmp_path / "first"), pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4,) * 3
    )
    save_config(first, tmp_path / "first")
    params.save(tmp_path / "first" / "model.safetensors", params.initialise(first), first)
    monkeypatch.setattr(training_run, "finish", lambda *given: {})
    flags = ["train", "--init", str(tmp_path / "first"), "--steps", "1", "--run", "x"]
    from_flags = train_command._settings(build_parser().parse_args(flags))
    from_python = short(steps=1, init=str(tmp_path / "first"), vocabulary=first.vocabulary)
    for name, config in (("flags", from_flags), ("python", from_python)):
        silent(config, tmp_path / name)
        kept = read_config(tmp_path / name)
        assert (kept.pixel_mean, kept.pixel_std) == (first.pixel_mean, first.pixel_std)
        model, _ = load_model(tmp_path / name)
        images = np.full((1, 32, 32, 3), 51, np.uint8)  # the mean of green: 0.2
        assert np.allclose(model._normalised(images)[..., 1], 0, atol=1e-6)
    dataset = load(0, 32, 60, 20)
    assert dataset.mean != first.pixel_mean and dataset.std != first.pixel_std


def test_nothing_but_validation_data_is_looked_at_before_the_end(tmp_path, monkeypatch):
    """Every use of an evaluation is watched; checkpoints, looks and the log come and go."""
    ended, looks, early = [], [], []

    class Watched:
        def __init__(self, pairs, uses):
            self.pairs, self.uses = pairs, uses

        def __len__(self):
            return self.note() or len(self.pairs)

        def __getattr__(self, name):
            return self.note() or getattr(self.pairs, name)

        def note(self):
            if not ended:
                self.uses.append("used")

    whole = load(0, 32, 60, 20)
    evaluations = {name: Watched(pairs, early) for name, pairs in whole.evaluations.items()}
    validation = Watched(whole.validation, looks)
    dataset = replace(whole, evaluations=evaluations, validation=validation)
    monkeypatch.setattr(shapes, "load", lambda seed, side, *_: dataset)
    step = Trainer.step

    def counting(self, number, *given):
        report = step(self, number, *given)
        ended.extend([number] if number == 5 else [])
        return report

    monkeypatch.setattr(Trainer, "step", counting)
    results = silent(short(steps=6, evaluate_every=2, checkpoint_every=2), tmp_path / "run")
    assert not early and len(looks) >= 2 and results["held_out"]["images"] == 20


def test_seconds_add_up_over_resumes(tmp_path, monkeypatch):
    """A clock that a step moves by a second: 14 steps took 14, in however many parts; what was
    lost with a kill is not counted, and neither is the time between."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    took = []
    monkeypatch.setattr(training_run, "finish", lambda *given: took.append(given[5]) or {})
    step = Trainer.step

    def ticking(self, number, *given):
        now[0] += 1
        if number == crash:
            raise MemoryError
        return step(self, number, *given)

    monkeypatch.setattr(Trainer, "step", ticking)
    for crash, stop in ((None, 3), (12, None), (None, None)):  # noqa: B007
        with monkeypatch.context() as patch:
            if stop:
                stop_after(patch, "torch", stop)
            try:
                silent(short(), tmp_path / "run", taking_up=(tmp_path / "run").exists())
            except (Stopped, MemoryError):
                now[0] += 1000
    assert took == [14.0]
    records = [r for r in Log.read(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert [(r["step"], r["seconds"]) for r in records] == [(10, 10.0), (14, 14.0)]


def test_a_run_goes_on_from_another_working_directory(tmp_path, monkeypatch):
    """Data, pictures and everything else that was named in one place is found from any other."""
    (tmp_path / "here" / "pictures").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    rows = ["image,caption", *(f"{i}.png,a thing {i}" for i in range(30))]
    (tmp_path / "here" / "l.csv").write_text("\n".join(rows))
    for i in range(30):
        Image.new("RGB", (32, 32), (8 * i, 0, 99)).save(tmp_path / f"here/pictures/{i}.png")
    monkeypatch.setattr(training_run, "finish", lambda *given: {"done": True})
    monkeypatch.chdir(tmp_path / "here")
    flags = ["train", "--data", "l.csv", "--image-root", "pictures", "--image-layers", "1"]
    with monkeypatch.context() as patch:
        stop_after(patch, "torch", 2)
        assert cli.main([*flags, "--steps", "6", "--batch-size", "4"]) == 1
    monkeypatch.chdir(tmp_path / "there")
    assert cli.main(["train", "--resume", "../here/runs/l"]) == 0
    assert (tmp_path / "here/runs/l/model.safetensors").is_file() and not os.listdir(".")


def test_every_path_of_a_run_is_whole(tmp_path, monkeypatch):
    for cwd, whole in (("plain", True), ("a, b", False)):  # a comma parts sources from each other
        (tmp_path / cwd).mkdir()
        monkeypatch.chdir(tmp_path / cwd)
        untrained(Path("first"))
        flags = ["train", "--data", "emoji", "--emoji-source", "noto=x,twemoji=/y"]
        emoji = train_command._settings(build_parser().parse_args(flags))
        x = f"{tmp_path / cwd}/x" if whole else "x"
        assert emoji.emoji_sources == {"noto": x, "twemoji": "/y"} and emoji.data == "emoji"
        flags = ["train", "--data", "l.csv", "--image-root", "p", "--init", "first"]
        own = train_command._settings(build_parser().parse_args(flags))
        for name, path in (("data", "l.csv"), ("image_root", "p"), ("init", "first")):
            assert getattr(own, name) == str(tmp_path / cwd / path)
    assert train_command._settings(build_parser().parse_args(["train"])) == preset("tiny")


def test_a_log_grows_by_whole_lines(tmp_path):
    log = Log(tmp_path / "log", 0)
    for n in range(3):
        log.write({"step": n})
    append(tmp_path / "log", b'{"step": 3, "cut')
    assert [r["step"] for r in Log.read(tmp_path / "log")] == [0, 1, 2]
    assert [r["step"] for r in Log.read(Log(tmp_path / "log", 1).path)] == [0, 1]


def test_a_damaged_line_of_a_log_costs_itself(tmp_path):
    log = Log(tmp_path / "log", 0)
    for n in range(4):
        log.write({"step": n})
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"1", b"7", 1)
    (tmp_path / "log").write_bytes(b"".join(lines))
    assert [r["step"] for r in Log.read(tmp_path / "log")] == [0, 2, 3]
    assert Log(tmp_path / "log", 9).lost == 1


def test_progress_is_counted_in_steps(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(training_run, "finish", lambda *given: {})
    silent(short(), tmp_path / "run")
    shown = capfd.readouterr().err
    assert "0/14" in shown and "14/14" in shown
