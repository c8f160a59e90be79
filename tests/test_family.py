"""The table of the family: what is run and in which order, what frozen tokens are asked, and how
figures are set beside each other."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from oracles import planted
from settings_trace import few_shapes

from minicoca import data
from minicoca.__main__ import main
from minicoca.config import preset
from minicoca.data import Pairs, shapes
from minicoca.engine.generate import CoCa
from minicoca.family import markdown, measure, probes, table
from minicoca.family.rows import FEW, ROWS
from minicoca.params import initialise
from minicoca.relatives import RELATIVES, settings_of
from minicoca.tokenizer import Tokenizer
from minicoca.training.loop import Stopped
from minicoca.tuning import factors, specs_of

SIDE = 32
TOTALS = "answers_held_out", "answers_compositional"
TRUE = {  # what a scene of one thing is, in numbers: tokens that tell all
    "colour": [*shapes.COLOURS], "shape": [*shapes.SHAPES], "place": [*shapes.PLACES],
}  # fmt: skip


def test_every_row_can_be_built_and_every_relative_has_one():
    """What a row freezes is there, its rate is that of its factor, and what it begins with is a row
    before it."""
    for name, row in ROWS.items():
        if row.flags is None:
            continue
        config = measure.settings(row, "shapes", 3, 500, 2.0)
        assert config.learning_rate == 2 * preset("tiny").learning_rate and config.seed == 3
        assert settings_of(config) and factors(specs_of(config), config)
        assert not row.begins or [*ROWS].index(row.begins) < [*ROWS].index(name)
        assert (config.scenes == FEW) == name.startswith("lit")
    shown = {dict(row.flags or {}).get("objective", "coca") for row in ROWS.values()}
    assert shown == {*RELATIVES}
    assert not table.fits("lit-none", "emoji") and not table.fits("blind", "emoji")
    assert table.fits("siglip", "emoji") and table.fits("pixels", "shapes")
    for name in ROWS:
        if ROWS[name].flags is not None and table.fits(name, "emoji"):
            assert measure.settings(ROWS[name], "emoji", 0, 500).data == "emoji"


def check_singles():
    """One thing each, in the order of the split, and as many as asked for."""
    found = probes.singles("held_out", 20, 0)
    every = [scene for scene in shapes.scenes("held_out", 500) if len(scene.things) == 1]
    assert found == every[:20]


def telling(images):
    """Tokens that tell all of scenes of one thing, from their pictures: by the nearest of all."""
    own = {}
    for scene in probes.singles("train", probes.LABELS, 0) + probes.singles("held_out", 60, 0):
        own[shapes.draw(scene, SIDE).tobytes()] = scene.things[0]
    found = np.zeros((len(images), 1, 21), np.float32)
    for row, image in zip(found, images, strict=True):
        thing, first = own[image.tobytes()], 0
        for name, values in TRUE.items():
            row[0, first + values.index(probes.ASPECTS[name](thing))] = 1
            first += len(values)
    return found


def check_labels():
    """Tokens that tell all are read nearly without a mistake, tokens that tell nothing at chance,
    and the names are of what they say."""
    found = probes.by_labels(telling, 0, SIDE)
    assert min(found.values()) > 0.95 and found.keys() == {f"probe_{name}" for name in TRUE}
    none = probes.by_labels(probes.nothing, 0, SIDE)
    assert max(none.values()) < 0.4
    places = probes.by_labels(lambda images: telling(images)[..., 16:], 0, SIDE)
    assert places["probe_place"] > 0.95 and places["probe_colour"] < 0.35


def check_nearest():
    """Of what was learned from all is known again, and of tokens that tell nothing only what the
    first picture is; classes are told apart by pictures of them alone."""
    drawn = shapes.load(0, SIDE, 40, 100)
    learned, tested = drawn.train, drawn.evaluations["held_out"]
    assert probes.by_nearest(probes.pixels, learned, replace(learned, zero_shot=None)) == {
        "exact": 1.0
    }
    first = np.mean([learned.captions[0][0] in own for own in tested.captions])
    assert probes.by_nearest(probes.nothing, learned, tested)["exact"] == first
    task = tested.zero_shot
    known = Pairs(tested.images[task.images], tuple((task.prompts[i][0],) for i in task.labels))
    other = Pairs(learned.images[::-1], (("of no class",),) * len(learned))
    mixed = Pairs(np.concatenate([other.images, known.images]), other.captions + known.captions)
    assert probes.by_nearest(probes.pixels, mixed, tested)["zero_shot"] > 0.95


def check_answers():
    """Without the picture no more than questions alone tell; with it more, after a few steps."""
    blind = probes.by_questions(probes.nothing, 0, SIDE, 60)
    seen = probes.by_questions(probes.pixels, 0, SIDE, 60)
    assert blind.keys() == seen.keys() == {*markdown.KINDS, *TOTALS}
    assert blind["answers_held_out"] < 0.36 < seen["answers_held_out"]


@pytest.fixture
def few(monkeypatch):
    """Fewer scenes: what is checked does not hang on their number."""
    monkeypatch.setattr(probes, "TESTED", 60)
    monkeypatch.setattr(probes, "ASKED", 1500)
    monkeypatch.setattr(probes, "TESTED_ON", 200)
    probes.asked.cache_clear()
    yield
    probes.asked.cache_clear()


@pytest.mark.parametrize("check", [check_singles, check_labels, check_answers, check_nearest])
def test_frozen_tokens_are_asked_what_they_tell(check, few):
    check()


def check_told():
    """A choice that follows the kind tells 1 bit, one that does not 0, however many there are of a
    kind; half of one kind alone 0.31."""
    text, image = np.array([0, 2, 2, 0]), np.array([1, 3] * 50)
    assert probes.told([text, image]) == pytest.approx(1)
    assert probes.told([text, np.tile(text, 9)]) == pytest.approx(0)
    half = probes.told([np.zeros(4, int), np.array([0, 1] * 7)])
    assert half == pytest.approx(2 - 0.75 * math.log2(3) - 0.5)


def test_what_a_choice_tells_and_a_router_is_asked():
    check_told()
    config = measure.settings(ROWS["switch"], "shapes", 0, 100)
    tokenizer = Tokenizer.train(
        [shapes.caption(s) for s in shapes.scenes("train", 300)], 64, "word"
    )
    tree = initialise(config, 0, tree=specs_of(config))
    for block in tree["blocks"].values():  # the first two numbers of a token decide
        block["routed"]["router"]["weight"][:] = 0
        block["routed"]["router"]["weight"][0, :2] = 1, -1
    found = probes.by_router(CoCa(tree, config), tokenizer, 0, 16)
    assert {*found} == {"router_0", "router_1", "load_0", "load_1"} and max(found.values()) <= 1
    tree["word_mask"], tree["text"]["token"] = tree["word_mask"] * 0, tree["text"]["token"] * 0
    tree["text"] |= {name: tree["text"][name] * 0 for name in ("position", "cls")}
    tree["text"]["position"][:, 0], tree["text"]["cls"][0] = 9, 9
    tree["image"]["position"][:, 0] = -99
    tree["image"]["class"][0] = -99
    found = probes.by_router(CoCa(tree, config), tokenizer, 0, 16)
    assert found["router_0"] > 0.99 and 0.51 < found["load_0"] < 0.9


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Trains nothing: what was asked for, in order; a loss that is least at half the rate."""
    done = []

    def trained(own, folder, say):
        if (folder / "done").is_file():
            return
        if own.init:
            assert own.init in [str(path) for path, _ in done], "it begins with what is not there"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done").touch()
        done.append((folder, own))

    def loss(folder):
        rate = dict(done)[folder].learning_rate / preset("tiny").learning_rate
        return abs(rate - 0.5)

    def measured(name, folder, of, seed, more):
        folder.mkdir(exist_ok=True)
        (folder / measure.MEASURED).write_text("{}")
        return {"row": name, "seed": seed, **more}

    monkeypatch.setattr(table, "trained", trained)
    monkeypatch.setattr(table, "validation_loss", loss)
    monkeypatch.setattr(table, "measured", measured)
    monkeypatch.setattr(table, "paces", lambda own: dict.fromkeys(own, 0.01))
    monkeypatch.setattr(measure, "read_config", lambda init: preset("tiny"))
    make = lambda **own: table.Table(  # noqa: E731
        tmp_path / "made",
        own.pop("of", "shapes"),
        own.pop("rows", ["lit-tuned", "blind"]),
        (4, 2),
        (0, 1),
        own.pop("say", print),
    )
    make.done = done
    return make


def check_jobs(made):
    """A row that begins with another's run has one of its own seed and time; rates are tried with
    another seed than what is reported; budgets are steps; what is not trained is measured once a
    seed; and a second call does nothing."""
    found = made().run()
    names = [folder.name for folder, _ in made.done]
    tried = [f"{row}-2s-seed100-rate{f}" for row in ("mae", "lit-tuned") for f in ("1", "0.5", "2")]
    assert names[:6] == tried
    assert names[6:] == [
        f"{row}-{s}s-seed{seed}" for s in (2, 4) for seed in (0, 1) for row in ("mae", "lit-tuned")
    ]
    for folder, own in made.done:
        row, seconds, seed = folder.name.split("-seed")[0].rsplit("-", 1) + [own.seed]
        assert own.steps == 100 * int(seconds[:-1]) and f"seed{seed}" in folder.name
        if row == "lit-tuned":
            first = f"mae-{seconds}-seed{seed}" + "-rate0.5" * (seed == table.TRIED)
            assert own.init == str(folder.parent / first)
        if seed != table.TRIED:
            assert own.learning_rate == preset("tiny").learning_rate / 2
    assert [(one["row"], one["seconds"]) for one in found].count(("blind", 2)) == 2
    assert "blind" not in [one["row"] for one in found if one["seconds"] == 4]
    before = len(made.done)
    assert made().run() == found and len(made.done) == before


def test_what_is_run_and_that_it_is_run_once(made):
    check_jobs(made)


def test_what_is_measured_needs_no_weights_but_for_another_to_begin_with(made):
    made().run()
    folder = made.done[0][0].parent
    for weights in folder.glob("*/done"):
        weights.unlink()
    made.done.clear()
    made().run()
    assert not made.done
    (folder / "lit-tuned-4s-seed1" / measure.MEASURED).unlink()
    made().run()
    assert [path.name for path, _ in made.done] == ["mae-4s-seed1", "lit-tuned-4s-seed1"]


def test_rates_are_tried_only_where_there_is_validation(made):
    """By no split that is reported."""
    heard = []
    made(rows=["coca"], of="emoji", say=heard.append).run()
    assert all("rate" not in folder.name for folder, _ in made.done) and len(made.done) == 4
    assert {own.learning_rate for _, own in made.done} == {preset("emoji").learning_rate}
    assert "emoji has no validation split: no rate is tried but the preset's" in heard


def test_data_without_validation(tmp_path, monkeypatch, capsys):
    """As emoji is, of which all but the tests is learned."""
    drawn = few_shapes(0, 32)
    held_out = {"held_out": drawn.evaluations["held_out"]}
    dataset = replace(drawn, validation=None, evaluations=held_out)
    monkeypatch.setattr(data, "load", lambda config: dataset)
    monkeypatch.setattr(table, "paces", lambda own: dict.fromkeys(own, 0.1))
    monkeypatch.setattr(table, "LEAST", 2)
    words = ["family", "--run", "coca", "gpt", "mae", "--data", "emoji", "--seconds", "1"]
    assert main([*words, "--seeds", "0", "--folder", str(tmp_path / "made"), "--json"]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert {own["row"]: "exact_held_out" in own for own in raw["figures"]} == {
        "coca": True, "gpt": False, "mae": False,
    }  # fmt: skip
    text = "\n".join(markdown.tables(raw["figures"], "emoji", raw["pace"]))
    assert "1 s of training: what it does" in text and "| GPT |" in text


@pytest.mark.parametrize("name", ["pace.json", "rate-mae.json"])
def test_what_was_measured_is_sealed(made, name):
    made().run()
    path = made().folder / name
    path.write_text(path.read_text().replace("0.0", "0.1"))
    with pytest.raises(ValueError, match="it is damaged"):
        made().run()


def test_a_rate_that_diverges_is_not_taken_and_an_interruption_is_none(made, monkeypatch):
    own = table.trained

    def trained(config, folder, say):
        if "rate0.5" in folder.name:
            raise Stopped("loss is nan at step 3; it keeps its last checkpoint. Begin anew")
        own(config, folder, say)

    monkeypatch.setattr(table, "trained", trained)
    heard = []
    made(rows=["mae"], say=heard.append).run()
    assert {own.learning_rate for folder, own in made.done if "rate" not in folder.name} == {
        preset("tiny").learning_rate
    }
    assert any("inf at 0.5" in text for text in heard)

    def stopped(config, folder, say):
        raise Stopped("interrupted; go on from the last checkpoint with: ...")

    monkeypatch.setattr(table, "trained", stopped)
    with pytest.raises(Stopped):
        made(rows=["gpt"]).run()


def figures(row, values, key="exact_held_out", seconds=30):
    return [
        {"row": row, "seed": i, "seconds": seconds, "steps": 5, "parameters": 7,
         "learning": 6, "learning_rate": 0.003, key: value}
        for i, value in enumerate(values)
    ]  # fmt: skip


def check_table():
    """Mean and range; bold where no row is better by more than seeds differ; "-" for what a row
    cannot, never 0."""
    found = figures("coca", [0.9, 0.92]) + figures("simvlm", [0.88, 0.9]) + figures("cappa", [0.5])
    found += figures("mae", [0.7, 0.6], "probe_shape")
    pace = {"seconds": dict.fromkeys(ROWS, 0.0314)}
    lines = list(markdown.tables(found, "shapes", pace))
    at = [place for place, line in enumerate(lines) if line.startswith("###")]
    does, knows, takes = (lines[i:j] for i, j in zip(at, [*at[1:], None], strict=True))
    assert "| CoCa | **91.0 (90.0 to 92.0)** |" in does
    assert "| SimVLM | **89.0 (88.0 to 90.0)** |" in does
    assert "| CapPa | 50.0 |" in does
    assert not any("MAE" in line for line in does)
    assert "| MAE | **65.0 (60.0 to 70.0)** |" in knows and "| chance | 12.5% |" in knows
    assert "| CoCa | 7 | 6 | 31.4 | 0.003 | 5 |" in takes
    both = found + figures("gpt", [0.1], "order_things_cosine")
    assert any("| GPT | - | **10.0** |" in line for line in markdown.tables(both, "shapes", pace))


def test_figures_beside_each_other():
    check_table()


def test_losses_are_read_from_the_log(tmp_path, monkeypatch):
    """Of the objective itself where the log tells it, else the sum as it was weighed."""
    monkeypatch.setattr(measure, "read_config", lambda folder: preset("tiny"))
    records = [
        {"step": 10, "learning_rate": 1.0, "loss": 3.0, "contrastive": 1.0},
        {"step": 10, "look": {"contrastive": 2.0, "caption": 0.5}},
    ]
    monkeypatch.setattr(measure.Log, "read", lambda path: records)
    assert measure.validation_loss(tmp_path) == 2.0 + 2 * 0.5
    assert measure._losses(tmp_path) == {"trained_contrastive": 1.0, "validation_contrastive": 2.0}
    records.append({"step": 20, "look": {"loss": 0.25}})
    assert measure.validation_loss(tmp_path) == 0.25


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "cocoa"], "--run cocoa: all, or some of pixels, random"),
        (["--run", "all", "--seconds", "30,x"], "--seconds 30,x: 'x' is no whole number"),
        (["--run", "all", "--seconds", "0"], "--seconds 0: at least 1"),
        (["--seconds", "30"], "--seconds is of a table: --run all --seconds"),
    ],
)
def test_mistakes_are_told(words, said, capsys):
    assert main(["family", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_of_real_runs(tmp_path, monkeypatch, capsys):
    """A second of training each, by the printed command; again it is read, to the same letter."""
    monkeypatch.setattr(table, "FACTORS", (1.0,))
    monkeypatch.setattr(table, "LEAST", 10)
    monkeypatch.setattr(probes, "ASKED", 500)
    words = ["family", "--run", "random", "clip", "simvlm", "lit-locked", "--seconds", "1"]
    words += ["--seeds", "0", "--folder", str(tmp_path / "made")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "1 s of training: what it does" in said and "| SimVLM |" in said
    own = json.loads((tmp_path / "made/clip-1s-seed0/family.json").read_text())
    assert math.isfinite(own["validation_contrastive"]) and 0 <= own["zero_shot_held_out"] <= 1
    assert "order_things_cosine" in own and "exact_held_out" not in own
    assert main(words) == 0 and capsys.readouterr().out == said
    assert main([*words, "--json"]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert "\n".join(markdown.tables(raw["figures"], "shapes", raw["pace"])) + "\n" == said


BUGS = [
    (probes, "if len(scene.things) == 1:", "if len(scene.things) <= 2:", "check_singles"),
    (probes, "labels, truth = (", "truth, labels = (", "check_labels"),
    (probes, 'answers = np.array([classes.index(question.answer) for question in own])',
     'answers = np.array([classes.index(own[0].answer) for question in own])', "check_answers"),
    (probes, "asked @ known.T", "asked @ -known.T", "check_nearest"),
    (probes, "known[those].T", "known[: len(those)].T", "check_nearest"),
    (table, "return replace(job, row=begins", "return replace(job, seed=0, row=begins",
     "check_jobs"),
    (table, "min(losses, key=losses.get)", "max(losses, key=losses.get)", "check_jobs"),
    (table, "job.seconds == self.seconds[0]", "True", "check_jobs"),
    (probes, "np.bincount(own, minlength=most) / len(own)",
     "np.bincount(own, minlength=most) / sum(map(len, chosen))", "check_told"),
    (markdown, "max(own) >= min(best)", "max(own) >= max(best)", "check_table"),
    (markdown, 'return "-"', 'return "0.0"', "check_table"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check, few, request):
    own = [request.getfixturevalue("made")] if check == "check_jobs" else []
    with planted(module, old, new), pytest.raises((AssertionError, ValueError, IndexError)):
        globals()[check](*own)
