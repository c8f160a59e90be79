"""`minicoca evaluate`: which data, which splits, and figures that are those of `evaluate`."""

import json
import re
from pathlib import Path

import pytest
from settings_trace import few_shapes, places, small_data
from test_flags import as_flags
from test_settings import ROWS, placed

from minicoca import __main__ as cli
from minicoca import data
from minicoca.commands.evaluate import NUMBERS, SETTINGS, SHARES
from minicoca.config import Config
from minicoca.evaluate import CLIP_BENCHMARK, evaluate
from minicoca.report import ROWS as SHOWN
from minicoca.tasks.zero_shot import BY
from minicoca.training.checkpoint import load_model
from minicoca.training.run import GALLERY


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return places(tmp_path_factory.mktemp("places"))


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)
    with small_data():
        yield


def call(capsys, *arguments):
    code = cli.main(["evaluate", *map(str, arguments)])
    return code, *capsys.readouterr()


def rows_of(capsys, *arguments):
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)["results"]


def test_figures_are_those_of_training_by_clip_benchmarks_names(capsys):
    (row,) = [r for r in rows_of(capsys, "first") if r["split"] == "held_out"]
    model, tokenizer = load_model("first")
    dataset = few_shapes(0, model.config.image_size)
    known = {text for own in dataset.train.captions for text in own}
    pairs = dataset.evaluations["held_out"]
    want, _ = evaluate(model, tokenizer, pairs, GALLERY["shapes"], known)
    ends = want.pop("intervals")
    assert (row["run"], row["data"], row["images"]) == ("first", "shapes", len(pairs))
    for name, value in want.items():
        if name in row:
            assert row[name] == value
        else:
            assert row["metrics"][CLIP_BENCHMARK.get(name, name)] == value
    assert row["intervals"] == {CLIP_BENCHMARK.get(n, n): pair for n, pair in ends.items()}
    assert {
        "text_retrieval_recall@5",
        "image_retrieval_recall@5",
        "acc1",
        "acc5",
    } <= ends.keys() | row["metrics"].keys()


def test_other_data_without_splits_are_measured_whole(capsys):
    (row,) = rows_of(capsys, "first", "--data", "red")
    assert (row["split"], row["images"]) == ("all", 12) and row["data"].endswith("/red")
    assert row["gallery"] == 12 and "caption_novel" not in row["metrics"]
    (row,) = rows_of(capsys, "first", "--data", "red", "--held-out-part", 0.3, "--gallery", 2)
    assert row["split"] == "held_out" and row["images"] < 12 and row["gallery"] == 2


def test_splits_that_the_data_give_are_kept(capsys):
    how = ["first", "--data", "columns.csv", "--image-root", "red", "--image-column", "one"]
    how += ["--caption-column", "said", "--split-column", "left"]
    names = [line.split(",")[7] for line in Path("columns.csv").read_text().splitlines()[1:]]
    assert names.count("test") == 4
    assert [(r["split"], r["images"]) for r in rows_of(capsys, *how)] == [("held_out", 4)]
    found = rows_of(capsys, *how, "--split", "validation", "train")
    assert [(r["split"], r["images"]) for r in found] == [("validation", 4), ("train", 4)]


def test_the_table_is_aligned_and_says_among_what(capsys):
    more = ["--by", *BY[1:], "--word-order"]
    code, out, err = call(capsys, "first", "--split", "held_out", "--gallery", 3, *more)
    assert code == 0 and "shapes: Drawn" in err
    lines = out.rstrip().split("\n")
    assert lines[0].startswith("held out, 6 images") and lines[0].endswith("95 % interval")
    body = [line for line in lines[1:] if not line.startswith("(")]
    others = ("reranked", "perplexity")  # which relatives alone have
    named = {k: v for k, v in (SHARES | NUMBERS).items() if not any(w in k for w in others)}
    shown, labels = {line[:32].strip() for line in body}, {*named.values()}
    # Six scenes need not have every kind of exchange.
    assert shown <= labels and all("," in label for label in labels - shown)
    assert {"colours, cosine", "zero-shot by pmi"} <= shown
    assert all(re.fullmatch(r" *[\d.]+( %)?", line[32:41]) for line in body)
    assert all(re.fullmatch(r"   [\d.]+ to [\d.]+( %)?", line[41:]) for line in body)
    assert "(retrieval among 3 images and their 3 captions)" in lines


def test_results_are_kept_as_they_come(capsys, tmp_path):
    path = tmp_path / "new" / "results.json"
    found = rows_of(capsys, "first", "--out", path)
    assert json.loads(path.read_text())["results"] == found and len(found) == 2
    code, _, err = call(capsys, "first", "--out", path)
    assert code == 2 and "is there already" in err


def test_what_the_trainers_table_shows_is_called_the_same():
    assert SHOWN.items() <= SHARES.items()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["first", "--split", "tests"], "--split tests: the data have train, validation, held_out"),
        (["first", "--gallery", "-1"], "--gallery -1"),
        (["first", "--limit", "0"], "--limit 0: at least 1"),
        (["first", "--rule", "ensemble", "--by", "pmi"], "leave out --by"),
        (["first", "--data", "red", "--held-out-part", "2"], "held_out_part"),
        (["first", "--data", ""], "data is empty"),
    ],
)
def test_a_wrong_command_line_gets_a_line(arguments, said, capsys):
    code, out, err = call(capsys, *arguments)
    assert code == 2 and said in err and not out


@pytest.mark.parametrize("name", SETTINGS)
def test_a_flag_is_the_setting_of_its_name(name, here, monkeypatch, capsys):
    asked = []

    def load(settings, untrained):
        asked.append(settings)
        raise ValueError("asked")

    monkeypatch.setattr(data, "load", load)
    for _, *values in [row for row in ROWS if row[0] == name]:
        for value in values[:2]:
            flags = [word.replace("HERE", str(here)) for word in as_flags({name: value})]
            assert call(capsys, "first", "--data", here / "red", *flags)[0] == 1
            assert getattr(asked[-1], name) == placed(value, here)
            assert asked[-1].data == str(here / "red")
            assert asked[-1].text_length == load_model("first")[0].config.text_length
    assert asked and Config().validation_part > 0


def test_settings_of_other_data_are_not_those_of_training(monkeypatch, capsys, here):
    asked = []
    monkeypatch.setattr(data, "load", lambda s, untrained: asked.append(s) or few_shapes(0, 16))
    assert call(capsys, "second")[0] == 0 == call(capsys, "second", "--data", "red")[0]
    assert [s.seed for s in asked] == [1, 0] and [s.validation_part for s in asked] == [0.05, 0]
