"""The command line as a person meets it: exit codes, one-line errors, tables and JSON."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minicoca import __main__ as cli
from minicoca.commands import build_parser
from minicoca.commands.flags import from_flags
from minicoca.data import shapes
from minicoca.tasks import captioning, files
from minicoca.training import run as training_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model that has learned its sixty scenes by heart, and their pictures as files."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "pictures").mkdir()
    dataset = shapes.load(0, 32, 60, 20)
    for i in range(6):
        Image.fromarray(dataset.train.images[i]).save(folder / "pictures" / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(shapes, "load", lambda seed, side, *_: dataset)
        patch.setattr(training_run, "make_picture", lambda folder, *given: folder)
        assert (
            cli.main(
                [
                    "train",
                    "--steps",
                    "100",
                    "--warmup",
                    "20",
                    "--evaluate-every",
                    "0",
                    "--batch-size",
                    "30",
                ]
            )
            == 0
        )
    return folder, [own[0] for own in dataset.train.captions[:6]]


def call(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_caption_reads_folders_and_skips_what_is_broken(run, capsys, monkeypatch):
    folder, truths = run
    monkeypatch.chdir(folder)
    (folder / "pictures" / "6.png").write_bytes(b"no image at all")
    code, out, err = call(capsys, "caption", "pictures")
    (folder / "pictures" / "6.png").unlink()
    assert code == 0 and "skipped 1" in err and "6.png" in err
    lines = out.strip().splitlines()
    assert len(lines) == 6 and sum(t in line for t, line in zip(truths, lines, strict=True)) >= 4


def test_caption_ways_of_writing(run, capsys, monkeypatch):
    folder, truths = run
    monkeypatch.chdir(folder)
    for how in (["--beams", "3"], ["--temperature", "0.5", "--top-p", "0.9"], []):
        code, out, _ = call(capsys, "caption", "pictures/0.png", "--json", *how)
        rows = json.loads(out)["results"]
        assert code == 0 and rows[0]["file"] == "pictures/0.png" and rows[0]["caption"]
    code, out, _ = call(capsys, "caption", "pictures/0.png", "--prompt", "a large", "--json")
    assert json.loads(out)["results"][0]["caption"].startswith("a large")
    both = [call(capsys, "caption", "pictures", "--backend", b)[1] for b in ("torch", "numpy")]
    assert both[0] == both[1]


def test_a_sampled_caption_does_not_depend_on_the_batch(run, capsys, monkeypatch):
    monkeypatch.chdir(run[0])
    how = ("caption", "pictures", "--temperature", "3", "--seed", "1")
    one = call(capsys, *how)[1]
    monkeypatch.setattr(files, "BATCH", 2)
    assert call(capsys, *how)[1] == one
    assert call(capsys, *how[:-1], "2")[1] != one


def test_flags_of_caption_reach_the_search(run, capsys, monkeypatch):
    monkeypatch.chdir(run[0])
    asked = []

    def caption(model, tokenizer, images, prompt, **how):
        asked.append(how)
        return ["a star"] * len(images)

    monkeypatch.setattr(captioning, "caption", caption)
    call(capsys, "caption", "pictures", "--beams", "3")
    flags = ("--temperature", "0.5", "--top-k", "4", "--top-p", "0.9", "--seed", "7")
    call(capsys, "caption", "pictures", *flags)
    sampled = dict(temperature=0.5, top_k=4, top_p=0.9, seed=7, first_stream=0)
    assert asked == [{"beams": 3}, sampled]


def test_words_that_the_model_never_saw_are_named(run, capsys, monkeypatch):
    monkeypatch.chdir(run[0])
    _, _, err = call(capsys, "classify", "pictures", "--labels", "a zebra", "a star")
    assert "never saw a word of 'a zebra'\n" in err
    assert "'zebras'" in call(capsys, "search", "pictures", "zebras")[2]
    assert "'zebras'" in call(capsys, "caption", "pictures", "--prompt", "zebras")[2]
    assert "'zebras'" in call(capsys, "embed", "--text", "zebras", "--out", "z.npz")[2]
    newest = "minicoca: the newest run, runs/shapes (--run names another)\n"
    assert call(capsys, "search", "pictures", "a star")[2] == newest


@pytest.mark.slow
def test_a_file_whose_name_is_no_text(run, tmp_path, capsys, monkeypatch):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (tmp_path / name).write_bytes((run[0] / "pictures" / "0.png").read_bytes())
    except OSError:
        pytest.skip("this file system has no such names")
    (tmp_path / "1.png").write_bytes((run[0] / "pictures" / "1.png").read_bytes())
    monkeypatch.chdir(run[0])
    process = subprocess.run(
        [sys.executable, "-m", "minicoca", "caption", tmp_path],
        capture_output=True,
        env={
            **os.environ,
            "PYTHONIOENCODING": "utf-8:strict",
            "PYTHONPATH": str(Path(cli.__file__).parent.parent),
        },
    )
    assert process.returncode == 0 and b"caf\\udce9.png" in process.stdout, process.stderr
    for text in (name, "1.png"):
        (tmp_path / text).with_suffix(".txt").write_text("a thing")
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "train", "--data", ".", "--steps", 2)
    assert code == 0, err


def test_classify_and_search_find_the_right_one(run, capsys, monkeypatch):
    folder, truths = run
    monkeypatch.chdir(folder)
    labels = sorted(set(truths))
    code, out, _ = call(capsys, "classify", "pictures", "--labels", *labels, "--json")
    rows = json.loads(out)["results"]
    assert code == 0 and sum(r["label"] == t for r, t in zip(rows, truths, strict=True)) >= 5
    assert all(0 <= r["probability"] <= 1 for r in rows)
    templates = ("--template", "a large {}", "--template", "a small {}")
    words = ["red star", "blue ring"]
    _, out, _ = call(capsys, "classify", "pictures", "--labels", *words, "--json", *templates)
    largest = json.loads(out)["results"][0]["scores"]
    single = [f"a {size} {word}" for size in ("large", "small") for word in words]
    _, out, _ = call(capsys, "classify", "pictures", "--labels", *single, "--json")
    each = json.loads(out)["results"][0]["scores"]
    assert largest == {w: max(each[f"a large {w}"], each[f"a small {w}"]) for w in words}
    _, out, _ = call(capsys, "search", "pictures", truths[0], "--json", "-k", "3")
    assert len(json.loads(out)["results"]) == 3
    hits = 0
    for i, truth in enumerate(truths):
        code, out, _ = call(capsys, "search", "pictures", truth, "--json", "-k", "2")
        hits += truths[int(json.loads(out)["results"][0]["file"][-5])] == truths[i]
    assert hits >= 5
    code, out, _ = call(capsys, "search", "pictures", "pictures/3.png", "--sheet", "sheet.png")
    assert out.splitlines()[0].endswith("3.png")  # an image is nearest to itself
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 100


def test_embed_writes_unit_vectors(run, capsys, monkeypatch):
    folder, truths = run
    monkeypatch.chdir(folder)
    assert call(capsys, "embed", "pictures", "--out", "v.npz")[0] == 0
    saved = np.load("v.npz")
    assert saved["vectors"].shape == (6, 64) and len(saved["names"]) == 6
    np.testing.assert_allclose((saved["vectors"] ** 2).sum(1), 1, atol=1e-5)
    assert call(capsys, "embed", "--text", "a red ring", "a star", "--out", "t.npz")[0] == 0
    assert np.load("t.npz")["vectors"].shape == (2, 64)


def test_info_and_data(run, capsys, monkeypatch):
    folder, _ = run
    monkeypatch.chdir(folder)
    code, out, _ = call(capsys, "info", "--run", "runs/shapes", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["run"]["steps"] == 100 and facts["versions"]["torch"]
    code, out, _ = call(capsys, "info", "--preset", "base")
    assert code == 0 and "85,998,336" in out
    monkeypatch.setattr(shapes, "load", lambda seed, side, *_: load(seed, side, 60, 20))
    code, out, _ = call(capsys, "data", "shapes", "--sheet", "s.png")
    assert code == 0 and "60 images" in out and "near-equal" in out


load = shapes.load


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--learnin-rate", "1"], 2, "did you mean --learning-rate?"),
        (["train", "--preset", "huge"], 2, "invalid choice: 'huge'"),
        (["paint"], 2, "invalid choice: 'paint'"),
        (["train", "--image-heads", "5"], 2, "nearest image_heads: 4"),
        (["train", "--backend", "numpy", "--ema", "0.9"], 1, "ema needs --backend torch"),
        (["train", "--data", "nothing.csv"], 1, "nothing.csv"),
        (["train", "--resume", "nothing"], 1, "nothing: there is no such folder"),
        (["caption", "nothing.png"], 1, "nothing.png: no such file"),
        (["caption", "pictures", "--run", "nothing"], 1, "not a run folder"),
        (["caption", "pictures", "--beams", "2", "--temperature", "1"], 2, "exclude each other"),
        (["caption", "pictures", "--top-p", "0"], 2, "give --temperature too"),
        (["caption", "pictures", "--temperature", "nan"], 2, "not from 0.001"),
        (["caption", "pictures", "--beams", "65"], 2, "not from 0 to 64"),
        (["train", "--steps", "0"], 2, "steps=0; it must be at least 1"),
        (["train", "--ema", "nan"], 2, "ema=nan"),
        (["train", "--vocabulary", "3"], 2, "at least 5"),
        (["train", "--batch-size", "-4"], 2, "batch_size=-4"),
        (["train", "--resume", "runs/shapes", "--seed", "0"], 2, "leave out --seed"),
        (["search", "pictures", "x" * 300, "--run", "nothing"], 1, "not a run folder"),
        (["classify", "pictures", "--labels", "a", "--template", "b"], 2, "has no {}"),
        (["search", "pictures", "a", "-k", "0"], 2, "-k 0: at least 1"),
        (["search", "pictures", "7.png"], 2, "7.png: no such file; a sentence needs --text"),
        (["train", "--data", ""], 2, "data is empty"),
        (["train", "--data", "emoji", "--emoji-source", "noto"], 2, "write vendor=PATH"),
        (["bench", "step", "--repeats", "0"], 2, "--repeats 0: at least 1"),
        (["embed", "pictures", "--out", "v.txt"], 2, "must end in .npz"),
        (["caption", "pictures", "--device", "warp"], 1, "'warp' cannot be used here"),
    ],
)
def test_a_users_mistake_gets_one_line_and_no_traceback(
    run, capsys, monkeypatch, arguments, code, message
):
    monkeypatch.chdir(run[0])
    monkeypatch.setattr(shapes, "load", lambda seed, side, *_: load(seed, side, 60, 20))
    try:
        got = cli.main(arguments)
    except SystemExit as stop:
        got = stop.code
    err = capsys.readouterr().err
    assert got == code and message in err and "Traceback" not in err, err


def test_a_folder_of_ones_own_pictures(run, tmp_path, capsys, monkeypatch):
    """From a CSV to a model that knows its pictures, with one broken file among them."""
    folder, truths = run
    monkeypatch.chdir(tmp_path)
    rows = ["image,caption"]
    for i in range(24):
        Image.fromarray(load(0, 32, 60, 20).train.images[i % 6]).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{truths[i % 6]}")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but not really")
    rows.append("broken.png,a broken thing")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) * 2 // 3])  # its header is good
    rows.append("cut.png,A Large $\\frac{1} Thing")
    long = "a large red thing and " * 40
    rows += [f"{i}.png,{long}" for i in range(24)]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    code, out, err = call(capsys, "train", "--data", "mine.csv", "--steps", 12, "--warmup", 2)
    assert code == 0, err
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert results["steps"] == 12 and "broken.png" in out + err and "cut.png" in out + err
    cut = int(re.search(r"(\d+) captions are cut at 64 tokens", out)[1])
    assert cut == int(re.search(r"train (\d+)", out)[1])  # one of each training image
    left_out = (tmp_path / "runs" / "mine" / "left_out.txt").read_text()
    assert "broken.png" in left_out and "cut.png" in left_out
    code, _, err = call(capsys, "train", "--data", "mine.csv", "--init", "runs/mine", "--steps", 3)
    assert code == 0 and "unknown" not in err
    (tmp_path / "mine.csv").write_text("image,caption\n0.png,\u6771\n1.png,\u4eac\n")
    code, out, err = call(
        capsys, "train", "--data", "mine.csv", "--init", "runs/mine", "--steps", 3
    )
    assert code == 0 and "are unknown to the tokenizer; the run that --init names had others" in out


@pytest.mark.parametrize(
    "name",
    "train caption classify search embed explain evaluate page info plot data bench".split(),
)
def test_help_is_there(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0 and name in capsys.readouterr().out


def test_a_failed_command_leaves_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "train", "--data", "nothing.csv")[0] == 1
    assert list(tmp_path.glob("runs/*")) == []


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_a_run_that_can_be_taken_up(tmp_path, name):
    """A real process, a real signal."""
    import signal
    import time

    code = "import sys; from minicoca.data import shapes; load = shapes.load; "
    code += "shapes.load = lambda seed, side, *_: load(seed, side, 60, 20); "
    code += "from minicoca.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "train", "--steps", "100000", "--warmup", "5"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        env=environment, text=True,
    )  # fmt: skip
    checkpoint = tmp_path / "runs" / "shapes" / "resume.safetensors"
    while not checkpoint.is_file():  # from the first one on there is what can be taken up
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate()
    assert process.returncode == 1 and "go on with: minicoca train --resume" in err
    assert "Traceback" not in err
    assert checkpoint.is_file()


def test_what_flags_say_of_data_reaches_it(monkeypatch):
    from minicoca import config, data
    from minicoca.data import emoji, folder

    asked = []
    for module in (emoji, folder):
        monkeypatch.setattr(module, "load", lambda *given, **named: asked.append((given, named)))
    data.load(
        config.preset(
            "emoji", exclude="noto,google", unseen_names=True, emoji_source="a=x,b=y", seed=3
        )
    )
    parts = dict(held_out_part=0.2, validation_part=0.1, keep_copies=True)
    parts |= dict(image_column="picture", split_column="part", class_template="a {}")
    data.load(config.preset("tiny", data="x.csv", image_root="pictures", seed=4, **parts))
    emojis = dict(sources={"a": "x", "b": "y"}, exclude=("noto", "google"), unseen_names=True)
    assert asked[0] == ((3, 32, "twemoji"), emojis)
    assert asked[1] == (
        ("x.csv", 32),
        dict(seed=4, held_out=0.2, validation=0.1, keep_copies=True, image_root="pictures")
        | dict(columns=("picture", "", "part"), template="a {}", untrained=False),
    )


def test_own_data_has_settings_of_its_own_unless_a_preset_is_named():
    from minicoca import config

    def settings(*flags):
        return from_flags(build_parser().parse_args(["train", *flags]))

    own = settings("--data", "x.csv")
    assert (own.tokenizer, own.vocabulary, own.text_length) == ("unigram", 8000, 64)
    assert settings("--data", "x.csv", "--vocabulary", "100").vocabulary == 100
    assert settings("--data", "x.csv", "--preset", "small").vocabulary == 16_000
    assert settings("--data", "shapes") == settings() == config.preset("tiny")


def test_every_flag_of_every_command_says_what_it_is():
    parser = build_parser()
    (inside,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in inside.choices.items():
        silent = [a.dest for a in command._actions if not a.help]
        assert set(silent) <= {"backend"}, f"{name}: no help for {silent}"
