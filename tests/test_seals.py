"""Nothing that a file of a run says can be changed without its seal, and rights are kept."""

import os
import signal
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import few_shapes, short, untrained  # noqa: F401
from safetensors.numpy import save_file

from minicoca import files, memory, params
from minicoca.config import preset
from minicoca.files import Damaged, write_atomically
from minicoca.ranks import Ranks
from minicoca.training import owner
from minicoca.training import run as training_run
from minicoca.training.checkpoint import (
    CHECKPOINT,
    CONFIG,
    LOG,
    RESULTS,
    TOKENIZER,
    WEIGHTS,
    Identity,
    load_model,
    read_checkpoint,
    read_config,
    read_results,
    read_weights,
    save_config,
)
from minicoca.training.log import Log
from minicoca.training.owner import LostError, owned
from minicoca.training.run import make_trainer, train
from minicoca.training.start import start

TINY = preset("tiny")
CHANGES = {
    "a step": lambda flat, said: said.update(step="2"),
    "a config": lambda flat, said: said.update(config=said["config"].replace("tiny", "base")),
    "more": lambda flat, said: said.update(more="1"),
    "less": lambda flat, said: said.pop("step"),
    "a name": lambda flat, said: flat.update(bb=flat.pop("b")),
    "names": lambda flat, said: flat.update(a=flat["b"], b=flat["a"]),
    "a shape": lambda flat, said: flat.update(a=flat["a"].reshape(3, 2)),
    "a type": lambda flat, said: flat.update({"c.step": flat["c.step"].view(np.float64)}),
    "the last number": lambda flat, said: flat["c.step"].__iadd__(1),
    "a tensor more": lambda flat, said: flat.update(d=np.zeros(0, np.float32)),
    "the form": lambda flat, said: said.update(minicoca="1"),
    "no seal": lambda flat, said: said.pop("sha256"),
    "no form": lambda flat, said: said.pop("minicoca"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_no_part_of_a_sealed_file_can_be_another(tmp_path, what):
    flat = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones((2, 3), np.float32),
        "c.step": np.array(3),
    }
    params.save(tmp_path / "w", params.unflatten(flat), TINY, step=3)
    tree, said = params.load(tmp_path / "w")
    assert all(np.array_equal(x, flat[name]) for name, x in params.flatten(tree).items())
    CHANGES[what](flat, said)
    save_file(flat, tmp_path / "w", metadata=said)
    with pytest.raises(Damaged, match=f"{tmp_path}/w"):
        params.load(tmp_path / "w")


def test_what_a_newer_version_wrote_is_not_called_damaged(tmp_path):
    path, form = tmp_path / "a.json", files.FORM
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FORM", form + 1)
        files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match=f"a.json was written by a newer .* form {form}") as told:
        files.read_json(path)
    assert not isinstance(told.value, Damaged)


def test_weights_that_are_whole_numbers_are_refused(tmp_path):
    config = untrained(tmp_path)
    flat = params.flatten(params.initialise(config))
    flat["text.cls"] = np.ones(config.text_width, np.int64)
    save_file(flat, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"{WEIGHTS}: text.cls holds whole numbers"):
        read_weights(tmp_path, read_config(tmp_path))


def test_a_finished_run_is_not_trained_anew_for_want_of_a_checkpoint(tmp_path):
    untrained(tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match=f"{tmp_path} has no resume.safetensors to go on from"):
        train(None, tmp_path, taking_up=True, say=print)
    assert (tmp_path / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("another", [True, False])
def test_a_lock_that_was_removed_is_noticed(tmp_path, another):
    """Also where another process has locked the folder since."""
    with owned(tmp_path) as still_ours:
        still_ours()
        (tmp_path / owner.LOCK).unlink()
        if another:
            with owned(tmp_path) as theirs, pytest.raises(LostError, match="the lock in it"):
                theirs()
                still_ours()
        else:
            with pytest.raises(LostError, match="the lock in it"):
                still_ours()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """As its owner removes it between our opening and our locking it."""
    real, done = owner._lock, []

    def late(file):
        if not done:
            done.append((tmp_path / owner.LOCK).unlink())
        return real(file)

    monkeypatch.setattr(owner, "_lock", late)
    with owned(tmp_path) as still_ours:
        still_ours()


def test_a_lock_is_removed_while_it_is_held(tmp_path, monkeypatch):
    """Else it would be another process's, who has locked it meanwhile."""
    real, free = Path.unlink, []

    def unlink(path, *given):
        with open(path, "a+") as file:
            free.append(owner._lock(file))
        real(path, *given)

    monkeypatch.setattr(Path, "unlink", unlink)
    with owned(tmp_path):
        pass
    assert free == [False]


def rights(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask, new", [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644)])
def test_the_umask_is_heard_and_rights_outlast_it(tmp_path, umask, new):
    path, before = tmp_path / "a", os.umask(umask)
    try:
        write_atomically(path, b"1")
        assert rights(path) == new
        path.chmod(0o640)
        if os.getuid() == 0:
            os.chown(path, -1, 12)
        write_atomically(path, b"2")
        files.append(tmp_path / "log", b"3")
    finally:
        os.umask(before)
    assert rights(path) == 0o640 and path.read_bytes() == b"2"
    assert os.getuid() or path.stat().st_gid == 12
    assert rights(tmp_path / "log") == new


def read_everything(folder):
    config = read_config(folder)
    read_weights(folder, config)
    read_checkpoint(folder, config)
    read_results(folder)
    Log.read(folder / LOG)


@pytest.mark.parametrize("name", [CONFIG, TOKENIZER, CHECKPOINT, RESULTS, LOG])
def test_a_pipe_among_the_files_of_a_run_is_never_waited_for(tmp_path, name):
    config = untrained(tmp_path)
    tree = make_trainer(params.initialise(config), config).state()
    params.save(tmp_path / CHECKPOINT, tree, config, step=1, seconds=1.0)
    files.write_json(tmp_path / RESULTS, {"images": 1})
    (tmp_path / LOG).write_bytes(b"")
    read_everything(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)

    def late(*given):
        raise AssertionError("waited for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        with pytest.raises(ValueError, match=f"{tmp_path}.*{name}"):
            read_everything(tmp_path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("sealed", [True, False])
def test_weights_of_ours_say_of_which_run_they_are(tmp_path, sealed):
    """Those that others made need not."""
    config = untrained(tmp_path)
    save_config(config, tmp_path, Identity("1" * 32))
    if sealed:
        with pytest.raises(ValueError, match=f"{WEIGHTS} does not say which run it is of"):
            read_weights(tmp_path, config)
    else:
        save_file(params.flatten(params.initialise(config)), tmp_path / WEIGHTS)
        read_weights(tmp_path, config)


@pytest.mark.parametrize("kept", [(CONFIG,), (TOKENIZER, LOG), (LOG,), (CONFIG, TOKENIZER, LOG)])
def test_what_a_person_keeps_in_a_folder_is_never_cleared(tmp_path, kept):
    """A config without its run's mark, as `info` is asked for; words and a log, to look at."""
    untrained(tmp_path)
    (tmp_path / LOG).write_bytes(b"{}")
    for name in {path.name for path in tmp_path.iterdir()} - {*kept}:
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{tmp_path} is not empty"):
        train(short(), tmp_path, say=print)
    assert {path.name for path in tmp_path.iterdir()} == {*kept}


def test_memory_is_asked_for_wherever_a_model_is_made(tmp_path, monkeypatch):
    """Before anything that takes much of it is begun."""

    def made(*given):
        raise AssertionError("made before the memory for it was counted")

    config = replace(untrained(tmp_path / "run"), backend="numpy")
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"not read")
    monkeypatch.setattr(training_run.params, "initialise", made)
    least = memory.needed(config, training=True, known=False)
    assert least < memory.needed(config, training=True)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda: least)
        with pytest.raises(ValueError, match="GB of memory"):
            train(config, tmp_path / "new", say=print)
    asked = []
    with monkeypatch.context() as patch:  # what FSDP2 parts is not counted
        patch.setattr(memory, "check", lambda of, training, known: asked.append(training) or made())
        for parallel in ("ddp", "fsdp"):
            with pytest.raises(AssertionError):
                start(replace(config, parallel=parallel), tmp_path, print, ranks=Ranks(0, 2))
        assert asked == [True, False]
    monkeypatch.setattr(memory, "available", lambda: 1)
    monkeypatch.setattr(training_run.data, "load", made)
    for ask in (
        lambda: train(config, tmp_path / "new", say=print),
        lambda: train(None, tmp_path / "run", taking_up=True, say=print),
        lambda: load_model(tmp_path / "run", "numpy"),
    ):
        with pytest.raises(ValueError, match="GB of memory"):
            ask()


def test_a_link_stays_a_link(tmp_path):
    """What it names is written, where it stands."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    for content in (b"one", b"two"):
        write_atomically(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "file").read_bytes() == content
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]


def test_a_resume_that_fails_removes_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="run"):
        train(None, tmp_path / "run", taking_up=True, say=lambda text: None)
    assert (tmp_path / "run").is_dir()


def test_results_of_the_same_run_before_it_went_on_are_of_other_weights(tmp_path):
    """Every other name of theirs is the same."""
    train(short(steps=1), tmp_path / "run", say=lambda text: None)
    before = (tmp_path / "run" / RESULTS).read_bytes()
    more = dict(taking_up=True, changes={"steps": 2}, say=lambda text: None)
    train(None, tmp_path / "run", **more)
    read_results(tmp_path / "run")
    (tmp_path / "run" / RESULTS).write_bytes(before)
    with pytest.raises(ValueError, match=f"{RESULTS} is of other weights than .*{WEIGHTS}"):
        read_results(tmp_path / "run")


def test_names_of_files_are_written_as_the_system_has_them():
    """... or, where Windows has half a pair of surrogates, as what stands for it."""
    assert training_run.as_written("a \udcff é") == b"a \xff \xc3\xa9\n"
    assert training_run.as_written("a \ud800") == b"a \\ud800\n"
