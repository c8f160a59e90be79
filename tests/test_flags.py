"""Every flag of every command reaches what it names: two values, two effects."""

import argparse
import contextlib
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from downloads import LEARNED, downloaded
from flag_table import FILES, FLAGS
from PIL import Image
from settings_trace import places, small_data
from test_settings import FIELDS, ROWS, placed

from minicoca import __main__ as cli
from minicoca import bench, bench_data, bench_generate, data, params
from minicoca.commands import COMMANDS, build_parser
from minicoca.commands import export as export_command
from minicoca.commands import imports as imports_command
from minicoca.commands import train as train_command
from minicoca.commands.data import SETTINGS
from minicoca.config import DATA_FIELDS
from minicoca.data import packing
from minicoca.engine import generate as engine_generate
from minicoca.engine import ops
from minicoca.family import table as family_table
from minicoca.reference import generate as reference_generate
from minicoca.tasks import explain as explain_task
from minicoca.tasks import zero_shot
from minicoca.training.checkpoint import read_own
from minicoca.training.log import Log


class Untrained:
    """A table of no rows."""

    pace, rates = {"seconds": {}}, {}

    def run(self):
        return []


OF_DATA = "data", "evaluate", "probe", "filter", "shards"
ALL = [(name, given, *row) for name, (given, rows) in FLAGS.items() for row in rows]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = places(tmp_path_factory.mktemp("places"))
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for seed, name in enumerate(("first_clip", "second_clip")):
        downloaded(folder / name, seed)
    (folder / "merges").write_text("\n".join(["a b", *LEARNED]))
    newest = folder / "runs" / "newest"
    newest.parent.mkdir()
    newest.symlink_to(folder / "first")
    for many, name in enumerate(("logged", "other"), 3):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
        log = Log(folder / name / "metrics.jsonl", 0)
        for step in range(10, 10 * many, 10):
            log.write({"step": step, "seconds": step / 3, "learning_rate": 1 / step})
    wide = Image.linear_gradient("L").resize((40, 20))
    Image.merge("RGB", [wide, wide.rotate(180), wide]).save(folder / "wide.jpg")
    for tint in ("red", "blue"):
        made = ["embed", f"{folder}/{tint}", "--index", f"{folder}/{tint} index"]
        assert cli.main([*made, "--run", str(folder / "first")]) == 0
        (folder / "clips" / tint).mkdir(parents=True)
        pictures = [Image.open(folder / tint / f"{i}.png") for i in range(12)]
        for i in range(6):
            first, second = pictures[2 * i : 2 * i + 2]
            to = folder / "clips" / tint / f"{i}.gif"
            first.save(to, save_all=True, append_images=[second])
    for shots in "12":
        made = ["probe", "--data", f"{folder}/kinds.csv", "--by", "linear", "--shots", shots]
        made += ["--save", f"{folder}/{shots}.safetensors", "--run", str(folder / "first")]
        assert cli.main(made) == 0
    return folder


@pytest.fixture(autouse=True)
def seen(here, tmp_path, monkeypatch):
    """What stands behind the commands, and writes down what it was asked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(here / "runs")
    seen = {name: [] for name in ("model", "who", "kernels", "device", "asked", "timed", "trained")}

    def watch(module, name):
        original = getattr(module.CoCa, name)

        def watched(self, given, *more, **how):
            seen["who"].append(module.__name__)
            seen["model"].append(np.asarray(self.params["text"]["token"]).tolist())
            seen["asked"].append((repr(given), repr(more), how))
            return original(self, given, *more, **how)

        monkeypatch.setattr(module.CoCa, name, watched)

    for module in (engine_generate, reference_generate):
        known = ("features", "embed_images", "embed_texts", "generate", "beam_search", "answer")
        for name in known:
            watch(module, name)
    explained = explain_task.explain
    put = lambda *given: seen["asked"].append(given[3:]) or explained(*given)  # noqa: E731
    monkeypatch.setattr(explain_task, "explain", put)
    make = zero_shot.Judge.__init__

    def judge(self, model, tokenizer, prompts, *how):
        seen["asked"].append(how)
        make(self, model, tokenizer, prompts, *how)

    monkeypatch.setattr(zero_shot.Judge, "__init__", judge)
    pick = engine_generate.pick_device
    device = lambda name: seen["device"].append(name) or pick(name)  # noqa: E731
    monkeypatch.setattr(engine_generate, "pick_device", device)
    timed = (bench, "step"), (bench, "kernels"), (bench_generate, "generate"), (bench_data, "data")
    for module, name in timed:
        put = lambda name=name, **how: seen["timed"].append((name, how))  # noqa: E731
        monkeypatch.setattr(module, name, put)
    write = packing.write_shards
    put = lambda *given: seen["asked"].append(given[2:]) or write(*given)  # noqa: E731
    monkeypatch.setattr(packing, "write_shards", put)
    train = lambda *given, say, **how: seen["trained"].append((given, how)) or {}  # noqa: E731
    monkeypatch.setattr(train_command, "train", train)
    monkeypatch.setattr(train_command.track, "check", lambda name: None)
    put = lambda *given: seen["timed"].append(given[:-1]) or Untrained()  # noqa: E731
    monkeypatch.setattr(family_table, "Table", put)
    for name in export_command.FORMS:
        put = lambda *given, name=name: seen["trained"].append((name, given))  # noqa: E731
        monkeypatch.setitem(export_command.FORMS, name, (put, name))
    monkeypatch.setattr(
        imports_command, "write", lambda *given, **kept: train(as_text(*given), say=0)
    )
    # None: torch computes, since Triton's interpreter takes seconds.
    note = lambda x, *size: seen["kernels"].append(ops.implementations()["attention"])  # noqa: E731
    monkeypatch.setattr(ops, "has_kernels", note)
    with small_data():
        yield seen


def as_text(folder, weights, config, tokenizer):
    """What a run is to hold, to be compared."""
    return str(folder), weights["text"]["token"].tolist(), config, tokenizer.serialised()


def call(here, *arguments):
    """What a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main([argument.replace("HERE", str(here)) for argument in arguments])
    assert code == 0, arguments
    return out.getvalue()


def outcome(seen, here, *arguments):
    """All that a command does: what it prints and writes, and what it asks of others."""
    for noted in seen.values():
        noted.clear()
    shutil.rmtree("own", ignore_errors=True)
    Path("own").mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(here / "red" / name, "own")
    Path("own/1.txt").write_text("one's own")
    found = {"out": call(here, *arguments)}
    tars = Path("own").rglob("*.tar")
    found["shards"] = {str(path): path.read_bytes() for path in tars}
    found["texts"] = {path.name: path.read_text() for path in Path("own").glob("*.txt")}
    files = [path for path in Path().glob("*") if path.is_file()]
    found["files"] = {path.name: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    return found | {name: list(noted) for name, noted in seen.items()}


def flags_of(command):
    """The names of a command's flags that are no settings of a run."""
    subs = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    names = {(a.option_strings or [a.dest])[0] for a in subs.choices[command]._actions}
    settings = {"--" + name.replace("_", "-") for name in FIELDS} - {"--backend", "--device"}
    if command == "train":
        settings |= {"--backend", "--device"}
    if command in ("evaluate", "probe"):
        settings -= {"--data"}
    if command == "probe":
        settings -= {"--held-out-part", "--seed"}
    return names - {"-h"} - (settings if command in (*OF_DATA, "train") else set())


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_is_listed(command):
    listed = {flag for flag, *_ in FLAGS[command][1]}
    assert flags_of(command) - {"--preset", "format"} <= listed, "a flag that nobody looks at"
    assert listed <= flags_of(command)


def test_every_command_is_listed():
    assert FLAGS.keys() == COMMANDS.keys()


@pytest.mark.parametrize(
    "command, given, flag, one, other, what", ALL, ids=[f"{row[0]} {row[2]}" for row in ALL]
)
def test_two_ways_have_two_effects(command, given, flag, one, other, what, seen, here):
    ways = [outcome(seen, here, command, *given, *way) for way in (one, one, other)]
    assert ways[0][what] == ways[1][what] != ways[2][what]
    assert ways[0][what] or ways[2][what]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_flag_of_train_is_the_setting_of_its_name(row, seen, here):
    name, *values = row[:3]
    if name in DATA_FIELDS:
        assert "--" + name.replace("_", "-") not in flags_of("train")
        return
    others = {} if name == "init" else row[4] if len(row) == 5 else {}
    for value in values:
        outcome(seen, here, "train", *as_flags({**others, name: value}))
        (settings, folder), _ = seen["trained"][0]
        assert getattr(settings, name) == placed(value, here)


def as_flags(values):
    """Settings as a person types them."""
    for name, value in values.items():
        flag = name.replace("_", "-")
        if type(value) is bool:
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield f"--{flag}"
            yield str(value).replace("{}/", "HERE/")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_flag_of_data_is_the_setting_of_its_name(name, seen, here, monkeypatch):
    rows = [row for row in ROWS if row[0] == name]
    asked, load = [], data.load
    monkeypatch.setattr(data, "load", lambda s, untrained: asked.append(s) or load(s))
    for _, *values in rows:
        for value in values[:2]:
            others = dict(values[3]) if len(values) == 4 else {}
            source = others.pop("data", "HERE/red").replace("{}/", "HERE/")
            kept = {k: v for k, v in {**others, name: value}.items() if k in SETTINGS}
            call(here, "data", source, *as_flags(kept))
            assert getattr(asked[-1], name) == placed(value, here)
            assert asked[-1].data == source.replace("HERE", str(here))


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_classify_divides_by_the_temperature_that_was_learned(sigma, here, tmp_path):
    """The probabilities of both labels, by the definition of softmax."""
    run = shutil.copytree(here / "first", tmp_path / "run")
    tree, _ = params.load(run / "model.safetensors")
    tree["log_temperature"] = np.log(np.float32(sigma))
    config, of = read_own(run)
    params.save(run / "model.safetensors", tree, config, **of.as_dict())
    labels = ["a", "the"]
    printed = call(here, "classify", "HERE/red", "--labels", *labels, "--run", str(run), "--json")
    for row in json.loads(printed)["results"]:
        e = [math.exp(row["scores"][label] / sigma) for label in labels]
        assert row["probability"] == pytest.approx(max(e) / sum(e), abs=2e-3)
        assert row["label"] == labels[e.index(max(e))]


@pytest.mark.parametrize("command", ["caption", "classify", "embed", "search"])
def test_numpy_refuses_another_device(command, seen, here, capsys):
    row = next(row for row in FLAGS[command][1] if row[0] == "--run")
    arguments = [*FLAGS[command][0], *row[1], "--backend", "numpy", "--device", "cuda"]
    assert cli.main([command, *(a.replace("HERE", str(here)) for a in arguments)]) == 1
    assert "device needs --backend torch" in capsys.readouterr().err
