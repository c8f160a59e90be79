"""Nothing that a file of a run says can be changed without its seal, and rights are kept."""

import os
import stat

import numpy as np
import pytest
from runs import untrained
from safetensors.numpy import save_file

from minicoca import files, params
from minicoca.config import preset
from minicoca.files import Damaged, write_atomically
from minicoca.training import owner
from minicoca.training.checkpoint import WEIGHTS, read_config, read_weights
from minicoca.training.owner import LostError, owned
from minicoca.training.run import train

CONFIG = preset("tiny")
CHANGES = {
    "a step": lambda flat, said: said.update(step="2"),
    "a config": lambda flat, said: said.update(config=said["config"].replace("tiny", "base")),
    "more": lambda flat, said: said.update(more="1"),
    "less": lambda flat, said: said.pop("step"),
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
    params.save(tmp_path / "w", params.unflatten(flat), CONFIG, step=3)
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
