"""Two processes, signals at every stage, folders that vanish: one owner, and a true end."""

import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from faulty import STEPS, forked, go_on, quick, same, whole_run
from runs import few_shapes, metrics, short, silent, stop_after  # noqa: F401
from trials import trial

from minicoca import __main__ as cli
from minicoca.engine import train as engine_train
from minicoca.engine.optim import learning_rate
from minicoca.training import loop, owner
from minicoca.training import run as training_run
from minicoca.training import start as training_start
from minicoca.training.checkpoint import WEIGHTS, load_model, new_folder, read_config
from minicoca.training.loop import Stopped
from minicoca.training.owner import LostError, TakenError, owned

pytestmark = pytest.mark.slow


def test_a_folder_has_one_owner_until_its_process_ends(tmp_path):
    ready, stop = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with owned(tmp_path):
            os.write(ready[1], b".")
            os.read(stop[0], 1)
            os.kill(os.getpid(), signal.SIGKILL)
    os.read(ready[0], 1)
    with pytest.raises(TakenError, match=f"{tmp_path} is being trained by process {child} on "):
        silent(short(steps=1), tmp_path)
    assert (tmp_path / owner.LOCK).is_file()
    os.write(stop[1], b".")
    os.waitpid(child, 0)
    with owned(tmp_path):  # the killed one left its file, and no lock
        pass
    assert not (tmp_path / owner.LOCK).exists()


def test_two_runs_into_one_folder_are_one_run(tmp_path, monkeypatch):
    """Begun at once, one is refused in words, and the other is whole."""
    quick(monkeypatch)
    whole_run(tmp_path / "whole")
    for place in range(4):
        folder, children = tmp_path / str(place), []
        for _ in range(3):
            child = os.fork()
            if not child:
                code = 9
                try:
                    silent(short(**STEPS), folder)
                    code = 0
                except (TakenError, ValueError):
                    code = 2
                finally:
                    os._exit(code)
            children.append(child)
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children)
        assert codes == [0, 2, 2]
        trial("processes at once in one folder", 3)
        assert same(tmp_path / "whole", folder)


def test_runs_without_a_name_take_a_folder_each(tmp_path):
    def take():
        new_folder(tmp_path, "shapes")

    children = []
    for _ in range(5):
        child = os.fork()
        if not child:
            take()
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert len(list(tmp_path.iterdir())) == 5


def vanish(folder):
    shutil.rmtree(folder)


def replaced(folder):
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()


def taken_over(folder):
    folder.rename(folder.with_name("elsewhere"))
    shutil.copytree(folder.with_name("elsewhere"), folder)


@pytest.mark.parametrize("change", [vanish, replaced, taken_over])
@pytest.mark.parametrize("place", ["step", "evaluate", "make_picture", "table"])
def test_a_folder_that_is_gone_is_an_error(tmp_path, monkeypatch, change, place):
    folder, done = tmp_path / "run", []

    def once(function):
        def call(*given, **named):
            if not done:
                done.append(1)
                change(folder)
            return function(*given, **named)

        return call

    if place == "step":
        monkeypatch.setattr(engine_train.Trainer, "step", once(engine_train.Trainer.step))
    else:
        monkeypatch.setattr(training_run, place, once(getattr(training_run, place)))
    with pytest.raises((LostError, OSError, Stopped, ValueError), match="run"):
        silent(short(**STEPS), folder)
    assert done
    trial("folders removed or replaced in the middle")


def stages(monkeypatch):
    """{a name: what is called there once}: every stage of a run."""
    from minicoca import data
    from minicoca.tokenizer import Tokenizer

    return {
        "reading": (data, "load"),
        "words": (Tokenizer, "save"),
        "first weights": (training_start, "make_trainer"),
        "first save": (training_run.params, "save"),
        "step": (engine_train.Trainer, "step"),
        "look": (loop, "evaluate"),
        "evaluation": (training_run, "evaluate"),
        "picture": (training_run, "make_picture"),
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_stage_is_one_line_and_nothing_is_lost(
    tmp_path, monkeypatch, capfd, number
):
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", "6", "--checkpoint-every", "3", "--evaluate-every", "4"]
    flags += ["--batch-size", "8", "--warmup", "3", "--image-layers", "1"]
    assert cli.main(["train", *flags, "--run", "whole"]) == 0
    for stage, (where, name) in stages(monkeypatch).items():
        original, run = getattr(where, name), Path(f"{number}-{stage.replace(' ', '-')}")

        def struck(*given, original=original, **named):
            os.kill(os.getpid(), number)
            time.sleep(0.001)
            return original(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(where, name, struck)
            capfd.readouterr()
            code = forked_main(["train", *flags, "--run", str(run)])
        assert code == 1, stage
        trial("signals at a stage of a run")
        if not (run / WEIGHTS).exists() and not (run / "resume.safetensors").exists():
            assert cli.main(["train", *flags, "--run", str(run)]) == 0, stage
        else:
            assert cli.main(["train", "--resume", str(run)]) == 0, stage
        assert same(Path("whole"), run), stage


def forked_main(argv):
    return forked(lambda: cli.main(argv))


def test_a_stopped_run_can_be_used_and_ended_and_gone_on_with(tmp_path, monkeypatch):
    quick(monkeypatch)
    folder, said = tmp_path / "run", []
    with monkeypatch.context() as patch:
        stop_after(patch, "torch", 7)
        with pytest.raises(Stopped):
            silent(short(), folder)
    load_model(folder, "numpy", say=said.append)
    assert len(said) == 1 and re.search("stopped at step 8 of 14.*--resume", said[0])
    begun = replace(read_config(folder), init=str(folder), steps=1)
    silent(begun, tmp_path / "next")
    with pytest.raises(ValueError, match="step 8 already; --steps 7"):
        silent(None, folder, taking_up=True, changes={"steps": 7})
    silent(None, folder, taking_up=True, changes={"steps": 8})
    assert silent(None, folder, taking_up=True, changes={"steps": 20})["steps"] == 20
    rates = {r["step"]: r["learning_rate"] for r in metrics(folder) if "learning_rate" in r}
    planned = {step: learning_rate(step - 1, short(steps=20)) for step in rates if step > 8}
    assert planned and all(rates[step] == planned[step] for step in planned)


def test_what_came_to_no_checkpoint_is_begun_again_by_either(tmp_path, monkeypatch):
    quick(monkeypatch)
    whole_run(tmp_path / "whole")
    for taking_up in (True, False):
        folder = tmp_path / f"run {taking_up}"

        def killed(folder=folder):
            def die(*given, **named):
                os.kill(os.getpid(), signal.SIGKILL)

            training_run.params.save = die
            silent(short(**STEPS), folder)

        assert forked(killed) == -9
        assert {p.name for p in folder.iterdir()} >= {"config.json", "tokenizer.model"}
        silent(None if taking_up else short(**STEPS), folder, taking_up=taking_up)
        assert same(tmp_path / "whole", folder)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text('{"precious": 1}')
    with pytest.raises(ValueError, match="not empty"):
        silent(short(**STEPS), mine)
    assert (mine / "config.json").read_text() == '{"precious": 1}'


def test_a_run_goes_on_to_the_last_bit_as_before(tmp_path, monkeypatch):
    quick(monkeypatch)
    whole_run(tmp_path / "whole", ema=0.9, augment=1.0)

    def killed():
        step = engine_train.Trainer.step

        def die(self, number, *given):
            if number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, number, *given)

        engine_train.Trainer.step = die
        silent(short(**STEPS, ema=0.9, augment=1.0), tmp_path / "parts")

    assert forked(killed) == -9
    go_on(tmp_path / "parts", None)
    assert same(tmp_path / "whole", tmp_path / "parts")
