"""Which part of the model the gradient is in: as the gradients say, the same in both trainers, and
nothing that a run learns depends on it."""

import numpy as np
import pytest
from oracles import planted
from runs import TRAINERS, few_shapes, metrics, short, silent, tensors  # noqa: F401 - a fixture
from test_run import some_pairs

from minicoca import tuning
from minicoca.params import flatten, initialise
from minicoca.training.loop import LOG_EVERY
from minicoca.training.run import make_trainer

BRANCHES = {"image", "pooler", "text", "decoder", "rest"}


def stepped(backend, **settings):
    config = short(backend=backend, **settings)
    trainer = make_trainer(initialise(config), config)
    trainer.step(0, *some_pairs())
    return trainer


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "muon", "clip_norm": 0.01}, {"freeze": "image,text.token"}],
    ids=["adamw", "muon", "frozen"],
)
def test_both_trainers_say_what_their_gradients_are(settings):
    engine, reference = (stepped(backend, **settings) for backend in ("torch", "numpy"))
    ours, theirs = engine.gradient_shares(), reference.gradient_shares()
    assert ours.keys() == theirs.keys() == BRANCHES
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    assert sum(ours.values()) == pytest.approx(1)
    squares = {}
    for name, leaf in engine.leaves.items():
        if leaf.grad is not None:
            branch = name.split(".")[0]
            branch = branch if branch in BRANCHES else "rest"
            squares[branch] = squares.get(branch, 0.0) + float((leaf.grad.double() ** 2).sum())
    whole = sum(squares.values())
    assert ours == pytest.approx({b: squares.get(b, 0.0) / whole for b in BRANCHES}, rel=1e-5)
    assert (ours["image"] == 0) == ("freeze" in settings)
    assert min(ours[b] for b in ("pooler", "text", "decoder")) > 0


def check_shares():
    squares = {"image.a": 1.0, "image.b.c": 2.0, "text.cls": 3.0, "log_temperature": 2.0}
    squares["image_projection.weight"] = 2.0
    want = {"image": 0.3, "pooler": 0.0, "text": 0.3, "decoder": 0.0, "rest": 0.4}
    assert tuning.shares(squares) == pytest.approx(want)
    assert tuning.shares({"image.a": 0.0}) == tuning.shares({}) == dict.fromkeys(want, 0.0)


def test_shares_of_squares():
    check_shares()


@pytest.mark.parametrize(
    "old, new",
    [('name.split(".")[0]\n        found', "name\n        found"), ("+= square\n", "= square\n")],
)
def test_a_planted_bug_is_seen(old, new):
    with planted(tuning, old, new), pytest.raises((AssertionError, KeyError)):
        check_shares()


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_they_are_logged_and_change_no_weight(tmp_path, backend, monkeypatch):
    config = short(backend=backend, steps=2 * LOG_EVERY + 1, evaluate_every=0)
    silent(config, tmp_path / "one")
    logged = [r for r in metrics(tmp_path / "one") if "loss" in r]
    assert [r["step"] for r in logged] == [LOG_EVERY, 2 * LOG_EVERY, config.steps]
    assert all(r["gradient_shares"].keys() == BRANCHES for r in logged)
    monkeypatch.setattr(TRAINERS[backend], "gradient_shares", lambda self: {})
    silent(config, tmp_path / "two")
    one, two = (flatten(tensors(tmp_path / name, "model.safetensors")) for name in ("one", "two"))
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])
