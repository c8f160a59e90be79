"""Runs made sick on purpose are told what is wrong; runs that are well are told nothing."""

import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from oracles import planted
from runs import few_shapes, short, silent, tensors  # noqa: F401 - a fixture
from sick import Slow, Stuck, dataset, squares, trained
from test_run import some_pairs

from minicoca import survey
from minicoca.config import preset
from minicoca.params import flatten, initialise
from minicoca.training import advice, looks, loop, meter
from minicoca.training.advice import Adviser, Seen
from minicoca.training.log import Log
from minicoca.training.profiling import Watched
from minicoca.training.run import make_trainer, train

HERE = Path(__file__).parent
IMAGES, CAPTIONS = squares()
ORDER = np.random.default_rng(1).permutation(len(CAPTIONS))


def data(images=IMAGES, captions=CAPTIONS, **how):
    return dataset(images, captions, **how)


SICK = {
    "contrastive_flat": (data(captions=[CAPTIONS[i] for i in ORDER]), {}),
    "equal_captions": (data(captions=[CAPTIONS[i % 8] for i in range(len(ORDER))]), {}),
    "equal_captions all": (data(captions=CAPTIONS[:1] * len(ORDER)), {}),
    "rate_too_high": (data(), {"learning_rate": 1.0, "steps": 300}),
    "rate_too_low": (data(), {"learning_rate": 1e-5}),
    "temperature_at_limit": (
        data(), {"contrastive_weight": 5.0, "learning_rate": 0.02, "steps": 600},
    ),
    "temperature_at_limit upper": (data(), {"learning_rate": 1.0}),
    "gradient_clipped": (data(), {"contrastive_weight": 50.0}),
    "loss_starved": (data(), {"contrastive_weight": 1e-4}),
    "embeddings_collapsed": (data(np.repeat(IMAGES[:1], len(IMAGES), 0)), {}),
    "same_pictures": (data(kind=Stuck), {}),
    "same_pictures constant": (data(np.repeat(IMAGES[:1], len(IMAGES), 0)), {}),
    "captions_alike": (data(np.repeat(IMAGES[:1], len(IMAGES), 0)), {}),
    "captions_repeat": (data(captions=[CAPTIONS[i] for i in ORDER]), {"steps": 200}),
    "overfitted": (data(IMAGES[:88], CAPTIONS[:88]), {}),
    "waits_for_data": (data(kind=Slow), {}),
}  # fmt: skip


def said(records):
    """Every advice that ever stood."""
    return {name: text for r in records for name, text in r.get("advice", {}).items()}


@pytest.mark.parametrize("sickness", SICK)
def test_a_sick_run_is_told(tmp_path, sickness):
    pairs, settings = SICK[sickness]
    _, records = trained(tmp_path, pairs, **{"steps": 100, **settings})
    name = sickness.split()[0]
    assert name in said(records), said(records)
    words = {
        "all": "--caption-column", "constant": "all 16 pictures of a step", "upper": "upper limit",
    }  # fmt: skip
    assert words.get(sickness.partition(" ")[2], "") in said(records)[name]


@pytest.mark.parametrize("sickness", ["contrastive_flat", "rate_too_low", "same_pictures"])
def test_the_reference_is_told_too(tmp_path, sickness):
    pairs, settings = SICK[sickness]
    _, records = trained(tmp_path, pairs, "numpy", steps=100, **settings)
    assert sickness in said(records)


@pytest.mark.parametrize("backend, optimizer", [("torch", "adamw"), ("torch", "muon"),
                                                ("numpy", "adamw")])  # fmt: skip
def test_a_run_that_is_well_is_told_nothing(tmp_path, backend, optimizer):
    steps = 200 if backend == "torch" else 100
    standing, records = trained(tmp_path, data(), backend, optimizer=optimizer, steps=steps)
    assert not standing and not said(records)
    last = [record for record in records if "loss" in record][-1]
    assert last["loss"] < 2, "it learns"


@cache
def recorded():
    return json.loads((HERE / "healthy.json").read_text())


@pytest.mark.parametrize("name", ["tiny", "emoji"])
def test_whole_runs_of_the_presets_were_well_at_every_step(name):
    """The logs of whole runs: 1,600 steps of tiny, and the 3,700 of the model `emoji`."""
    own = dict(recorded()[name])
    pairs, config = own.pop("pairs"), preset(name, vocabulary=own.pop("vocabulary"))
    looked = {record["step"]: record for record in own.pop("looks")}
    records = []
    for values in zip(*own.values(), strict=True):
        records.append(dict(zip(own, values, strict=True)))
        records += [looked[values[0]]] if values[0] in looked else []
        assert not advice.advice(Seen(config, pairs, records)), records[-1]["step"]
    assert own["step"][-1] == config.steps and len(records) == len(own["step"]) + len(looked)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [("--evaluate-every", "200"),
              ("--data", "emoji", "--preset", "emoji", "--steps", "300")],
    ids=["tiny", "emoji"],
)  # fmt: skip
def test_presets_are_told_nothing(tmp_path, flags):
    if "emoji" in flags and not (HERE.parent / "data" / "emoji").is_dir():
        pytest.skip("there are no drawings of emoji in data/emoji")
    command = [sys.executable, "-m", "minicoca", "train", "--run", str(tmp_path / "run"), *flags]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["advice"] == [] and not said(Log.read(tmp_path / "run" / "metrics.jsonl"))


def test_it_is_said_at_the_end_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "ADVISE_EVERY", 20)
    lines, config = [], short(steps=80, learning_rate=1e-6, warmup=10, evaluate_every=0)
    (tmp_path / "run").mkdir()
    results = train(config, tmp_path / "run", say=lines.append)
    told = [line for line in lines if line.startswith("advice:")]
    assert [line.removeprefix("advice:").strip() for line in told] == results["advice"]
    assert any("ten times --learning-rate 1e-06" in line for line in told)
    kept = json.loads((tmp_path / "run" / "results.json").read_text())
    assert kept["advice"] == results["advice"]


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_looks_change_no_bit(tmp_path, backend, optimizer):
    for name, every in (("without", 0), ("with", 2)):
        config = short(backend=backend, evaluate_every=every, optimizer=optimizer, steps=9)
        silent(config, tmp_path / name)
    one, two = (flatten(tensors(tmp_path / n, "model.safetensors")) for n in ("without", "with"))
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])
    assert sum("look" in r for r in Log.read(tmp_path / "with" / "metrics.jsonl")) == 5


def step(number, **more):
    """A record of a step that says nothing bad."""
    known = dict(
        step=number, loss=100 / number, contrastive=20 / number, caption=40 / number,
        contrastive_floor=0.0, gradient_norm=1.0, temperature=0.05, learning_rate=1e-3,
        pixel_mean=100 + number / 7, pixel_spread=90.0,
    )  # fmt: skip
    return known | more


def asked(*changes, steps=30, look=None, pairs=1000, **settings):
    """The advice after so many records, the last of which are changed."""
    config = preset("tiny", warmup=50, **settings)
    records = [step(10 * (i + 1)) for i in range(steps)]
    for record, change in zip(records[-len(changes) :], changes[-steps:], strict=False):
        record.update(change)
    records += [{"step": 10 * steps, "look": look}] if look else []
    return advice.advice(Seen(config, pairs, records))


def check_limits():
    """Each question on both sides of its limit, and its words."""
    assert asked() == {} and asked(steps=1) == {}
    ten = lambda **change: [change] * 10  # noqa: E731
    ln = math.log(64)
    assert "ln 64 = 4.159" in asked(*ten(contrastive=0.98 * ln))["contrastive_flat"]
    assert not asked(*ten(contrastive=0.96 * ln))
    assert not asked(*ten(contrastive=0.98 * ln), steps=9), "warm-up is 5 records, 4 are left"
    floor = asked(*ten(contrastive=1.5, contrastive_floor=0.5))
    assert "floor of 0.500" in floor["equal_captions"] and "1.000 above" in floor["equal_captions"]
    assert not asked(*ten(contrastive=1.5, contrastive_floor=0.2))
    assert asked(*ten(contrastive=2.31, contrastive_floor=2.3)).keys() == {"equal_captions"}
    assert asked(*ten(contrastive=ln, contrastive_floor=ln)).keys() == {"equal_captions"}
    assert asked(*ten(contrastive=4.06, contrastive_floor=2.0)).keys() == {"equal_captions"}
    assert "lower limit" in asked(*ten(temperature=0.01))["temperature_at_limit"]
    assert "upper limit" in asked(*ten(temperature=1.0))["temperature_at_limit"]
    assert not asked(*ten(temperature=0.01)[1:], {"temperature": 0.011})
    look = {"gradient_contrastive": 30.0, "gradient_caption": 10.0}
    clipped = asked(*ten(gradient_norm=40.0), look=look)["gradient_clipped"]
    assert "40 times --clip-norm 1" in clipped and "contrastive 75%" in clipped
    assert not asked(*ten(gradient_norm=19.0)) and not asked(*ten(gradient_norm=40.0), clip_norm=0)
    starved = ten(contrastive=3.0)
    look = {"gradient_contrastive": 0.001, "gradient_caption": 1.0}
    assert "loss_starved" in asked(*starved, look=look, contrastive_weight=1e-3)
    assert not asked(*starved, look=look), "its gradient is small by itself"
    assert not asked(look=look, contrastive_weight=1e-3), "it has learned enough"
    look = {"looked_at": 64, "alike": 0.95, "alike_truth": 0.1}
    assert "95% of 64" in asked(look=look)["captions_alike"]
    assert not asked(look=look | {"alike_truth": 0.9}) and not asked(look=look | {"alike": 0.8})
    look = {"looked_at": 64, "looping": 0.3, "looping_truth": 0.1}
    assert "30% of 64" in asked(look=look)["captions_repeat"]
    assert not asked(look=look | {"looping_truth": 0.25})
    look = {"looked_at": 64, "image_rank": 30.0, "text_rank": 1.5}
    assert "64 text vectors lie in 1.50" in asked(look=look)["embeddings_collapsed"]
    assert not asked(look=look | {"text_rank": 2.5}) and not asked(look=look | {"looked_at": 8})
    jumps = [{"loss": 2.0 + 4 * (i % 2)} for i in range(10)]
    assert "by 4.00 at once" in asked(*jumps)["rate_too_high"]
    assert "is 11.00 and was 10.00" in asked(*ten(loss=11.0))["rate_too_high"]
    assert asked(*ten(loss=11.0)).keys() == {"rate_too_high"}, "and not too low as well"
    assert asked(*ten(loss=10.5)).keys() == {"rate_too_low"}
    assert not asked(*({"loss": 2.0 + i % 2} for i in range(10)))
    assert not asked(*({"loss": 14.0 - 1.4 * i} for i in range(10))), "falling is no jump"
    assert "was 10.00 at step 10" in asked(*ten(loss=9.8))["rate_too_low"]
    assert not asked(*ten(loss=9.3)) and not asked(*ten(loss=9.8), init="runs/x")
    assert "10 records" in asked(*ten(pixel_mean=9.0))["same_pictures"]
    assert not asked(*ten(pixel_mean=9.0), pairs=64) and not asked(*ten(pixel_mean=9.0)[1:])
    assert "all 64 pictures" in asked(*ten(pixel_spread=0.0))["same_pictures"]
    look = {"looked_at": 64, "contrastive": 4.0, "caption": 3.0, "contrastive_floor": 0.0}
    assert "10.00 in validation" in asked(look=look)["overfitted"]
    assert not asked(look=look | {"caption": 1.0, "contrastive": 1.0})
    assert not asked(look=look | {"caption": 1.1}) and asked(look=look | {"caption": 1.4})
    wait = {"images_per_second": 640.0, "decoding_per_second": 700.0, "data_ms": 50.0}
    slow = asked(*ten(throughput=wait))["waits_for_data"]
    assert "50% of the time" in slow and "take 1,280" in slow and "give 700" in slow
    assert not asked(*ten(throughput=wait | {"decoding_per_second": 2000.0}))
    assert not asked(*ten(throughput=wait | {"data_ms": 25.0}))


def test_limits():
    check_limits()


class Kept:
    """A log in memory."""

    path = None

    def __init__(self):
        self.records = []

    def read(self, path):
        return list(self.records)

    def write(self, record):
        self.records.append(record)


def check_said_once():
    """No advice twice, unless it went away and came back; a run that is taken up goes on so."""
    log, config, heard = Kept(), preset("tiny", warmup=0), []
    sick, well = dict(gradient_norm=50.0), {}
    for number in range(1, 101):
        if number in (1, 25, 60):  # begun, and taken up twice
            adviser = Adviser(config, 1000, log)
        state = well if 31 <= number <= 50 else sick
        adviser.write(step(10 * number, **state))
        if number % 10 == 0:
            heard += [(number, text) for text in adviser.news(10 * number)]
    assert [number for number, _ in heard] == [10, 60]
    changes = [(r["step"], list(r["advice"])) for r in log.records if "advice" in r]
    assert changes == [(100, ["gradient_clipped"]), (400, []), (600, ["gradient_clipped"])]
    assert list(adviser.standing) == list(Adviser(config, 1000, log).standing) != []


def test_it_is_said_once():
    check_said_once()


def check_measures():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 8))
    assert looks.effective_rank(np.outer(rng.normal(size=40), vectors[0])) == pytest.approx(1)
    assert looks.effective_rank(np.eye(8)[rng.permutation(8)]) == pytest.approx(8)
    assert looks.effective_rank(np.diag([3.0, 1.0])) == pytest.approx(  # by hand
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )
    for text, loops in (("a a a", True), ("a a b a a", False), ("x a b a b a b", True),
                        ("a b a b", False), ("a red dot and a red dot", False)):  # fmt: skip
        assert looks.loops(text) == loops, text
    tokens = np.array([[1, 5, 2], [1, 6, 2], [1, 5, 2], [1, 5, 2]])
    assert meter.floor_of(tokens) == pytest.approx(0.75 * math.log(3))
    images = rng.integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    one, other = (meter.of_batch(x, tokens) for x in (images, images[::-1].copy()))
    assert one == other and one["pixel_mean"] == pytest.approx(images.mean(), abs=10)
    red = np.zeros((2, 32, 32, 3), np.uint8)
    red[1, ..., 1] = 200
    assert meter.of_batch(red, tokens)["pixel_spread"] == pytest.approx(200 / 3, rel=0.05)
    assert (
        meter.of_batch(images[:1].repeat(3, 0), tokens)["pixel_spread"] == 0 < one["pixel_spread"]
    )


def test_what_is_measured():
    check_measures()


def test_the_floor_of_a_batch_is_on_average_that_of_the_survey():
    """The mean over batches of exact floors is the expectation that `minicoca data` gives."""
    captions, rng = [(f"word {i % 5}",) for i in range(20)], np.random.default_rng(0)
    floors = []
    for _ in range(4000):
        drawn = rng.choice(20, 6, replace=False)
        floors.append(meter.floor_of(np.array([[int(captions[i][0][5:])] for i in drawn])))
    spread = np.std(floors) / math.sqrt(len(floors))
    want = survey.floor_of_repeats(captions, 6)
    assert abs(np.mean(floors) - want) < 4 * spread < 0.05 * want


def check_norms():
    """Of each loss alone, as a Trainer says of a step with that loss alone; both trainers agree;
    and the trainer that is asked learns nothing."""
    found, held = {}, {}
    for backend in ("torch", "numpy"):
        config = short(backend=backend, contrastive_weight=0.7)
        trainer = make_trainer(initialise(config), config)
        before = flatten(trainer.weights())
        found[backend] = looks.gradient_norms(trainer, 0, *some_pairs())
        held[backend] = looks.weigher(config).losses(trainer.model(), *some_pairs())
        for name, value in flatten(trainer.weights()).items():
            np.testing.assert_array_equal(value, before[name])
        for name, other in (("contrastive", "caption"), ("caption", "contrastive")):
            alone = short(backend=backend, **{"contrastive_weight": 0.7, f"{other}_weight": 0.0})
            report = make_trainer(initialise(alone), alone).step(0, *some_pairs())
            assert found[backend][name] == pytest.approx(report["gradient_norm"], rel=1e-4)
        report = trainer.step(0, *some_pairs())
        assert held[backend] == pytest.approx({k: report[k] for k in held[backend]}, rel=1e-4)
    for theirs in (found, held):
        assert theirs["torch"] == pytest.approx(theirs["numpy"], rel=1e-3)


def test_norms_of_each_loss():
    check_norms()


def test_norms_in_micro_batches_are_those_of_the_whole():
    norms = []
    for parts in (1, 4):
        config = short(accumulate=parts)
        trainer = make_trainer(initialise(config), config)
        norms.append(looks.gradient_norms(trainer, 0, *some_pairs()))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_norms_of_a_trainer_that_is_profiled():
    config = short()
    trainer = make_trainer(initialise(config), config)
    watched = Watched(trainer, 0, print)
    want = looks.gradient_norms(trainer, 0, *some_pairs())
    assert looks.gradient_norms(watched, 0, *some_pairs()) == want
    assert trainer.config is config and want["contrastive"] != want["caption"]


BUGS = [
    (advice, "loss - floor < FLAT * (guessing - floor)", "loss < FLAT * guessing", check_limits),
    (advice, "if floor <= REPEATS * guessing", "if not floor", check_limits),
    (advice, "max(values) <= COLDEST", "min(values) <= COLDEST", check_limits),
    (advice, "own < ASIDE or", "", check_limits),
    (advice, "max(0.0, b - a)", "abs(b - a)", check_limits),
    (advice, "or seen.pairs <= _batch(seen)", "", check_limits),
    (advice, "if name not in before", "", check_said_once),
    (advice, "before.keys() != self.standing.keys()", "self.standing", check_said_once),
    (looks, "p * np.log", "values * np.log", check_measures),
    (meter, "k * math.log(k) for", "math.log(k) for", check_measures),
    (looks, "if other != kind", "", check_norms),
]


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_seen(module, old, new, check):
    with planted(module, old, new), pytest.raises((AssertionError, KeyError, ValueError)):
        check()
    check()
