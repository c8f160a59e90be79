"""`minicoca probe`: its table, its curves, what it keeps, and what it says against a mistake."""

import json

import numpy as np
import pytest
from PIL import Image

import minicoca
from minicoca import __main__ as cli
from minicoca.data import shapes

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Class folders of scenes of one thing, by its colour; every third of them to test."""
    folder = tmp_path_factory.mktemp("data") / "colours"
    many = dict.fromkeys(COLOURS, 0)
    for index in range(4000):
        scene = shapes.scene("validation", index)
        colour = scene.things[0].colour
        if len(scene.things) > 1 or many.get(colour, 30) == 30:
            continue
        part = "test" if many[colour] % 3 == 2 else "train"
        (folder / part / colour).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(shapes.draw(scene, 32))
        picture.save(folder / part / colour / f"{index}.png")
        many[colour] += 1
        if set(many.values()) == {30}:
            return folder


def call(capsys, *arguments):
    code = cli.main([*map(str, arguments)])
    return code, *capsys.readouterr()


def probed(capsys, here, *arguments):
    code, out, err = call(capsys, "probe", "--data", here, "--run", "shapes", *arguments)
    assert code == 0, err
    return out, err


def test_figures_chance_and_zero_shot(here, capsys):
    how = ["--shots", "1", "all", "--seeds", "2", "--json"]
    rows = json.loads(probed(capsys, here, *how)[0])["results"]
    assert [row["probe"] for row in rows] == ["knn", "linear", "linear-tokens", "pooler"]
    for row in rows:
        assert (row["classes"], row["train"], row["test"]) == (3, 60, 30)
        assert row["chance"] == pytest.approx(1 / 3)
        assert row["zero_shot"] > 0.6  # by words for colours alone, which no caption is
        assert [one["shots"] for one in row["shots"]] == [1, "all"]
        for one in row["shots"]:
            once = one["shots"] == "all" and row["probe"] != "pooler"
            assert len(one["runs"]) == (1 if once else 2)
            assert one["accuracy"] == pytest.approx(np.mean(one["runs"]))
            assert (one["spread"] is None) == once
            assert one["interval"][0] <= one["accuracy"] <= one["interval"][1]
        assert row["zero_shot_interval"][0] <= row["zero_shot"] <= row["zero_shot_interval"][1]
        assert row["shots"][-1]["accuracy"] > 0.9


def test_the_table_says_what_json_says(here, capsys):
    how = ["--shots", "2", "all", "--by", "linear", "knn"]
    table, _ = probed(capsys, here, *how)
    rows = json.loads(probed(capsys, here, *how, "--json")[0])["results"]
    lines = table.splitlines()
    assert len(lines) == 6 and lines[0].startswith("3 classes, 60 to learn from, 30 tested; chance")
    low, high = rows[0]["zero_shot_interval"]
    assert lines[0].endswith(f"{rows[0]['zero_shot']:.1%} ({100 * low:.1f} to {100 * high:.1f})")
    assert lines[1].split()[:3] == ["labels", "2", "all"]
    for line, ends, row in zip(lines[2::2], lines[3::2], rows, strict=True):
        few, every = row["shots"]
        said = f"{row['probe']} {100 * few['accuracy']:.1f} ± {100 * few['spread']:.1f} "
        assert " ".join(line.split()) == said + f"{100 * every['accuracy']:.1f}"
        want = [f"{100 * end:.1f}" for one in row["shots"] for end in one["interval"]]
        assert ends.replace(" to ", " ").split() == want


def test_fewer_images_than_shots_are_said(here, capsys):
    _, err = probed(capsys, here, "--by", "knn", "--shots", "20", "40")
    assert "a class has but 20 images: all of them count as its 40" in err


def test_curves_are_drawn(here, capsys, tmp_path):
    probed(capsys, here, "--by", "knn", "linear", "--out", tmp_path / "c.png")
    assert np.asarray(Image.open(tmp_path / "c.png")).std() > 10
    code, _, err = call(capsys, "probe", "--data", here, "--out", tmp_path / "c.png")
    assert code == 2 and "is there already" in err


@pytest.mark.parametrize("kind", ["linear", "linear-tokens", "pooler"])
def test_a_saved_probe_classifies(kind, here, capsys, tmp_path):
    path = tmp_path / "colours.safetensors"
    how = ["--by", kind, "--shots", "all", "--seeds", "1", "--save", path, "--json"]
    out, err = probed(capsys, here, *how)
    assert f"{path}: minicoca classify --probe" in err
    want = json.loads(out)["results"][0]["shots"][0]["accuracy"]
    asked = ["classify", here / "test", "--probe", path, "--run", "shapes"]
    code, out, err = call(capsys, *asked, "--json")
    assert code == 0, err
    rows = json.loads(out)["results"]
    assert np.mean([row["label"] in row["file"] for row in rows]) == pytest.approx(want)
    for row in rows:
        e = np.exp(np.array([*row["scores"].values()]))
        assert set(row["scores"]) == {*COLOURS}
        assert row["probability"] == pytest.approx(e.max() / e.sum(), abs=1e-3)
    printed = call(capsys, *asked)[1].splitlines()
    assert len(printed) == 30 and all(line.endswith("%)") for line in printed)
    index = ["--index", tmp_path / "index"]
    assert call(capsys, "embed", here / "test", *index, "--run", "shapes")[0] == 0
    asked = ["classify", *index, "--probe", path, "--run", "shapes", "--json"]
    code, out, err = call(capsys, *asked)
    if kind != "linear":
        assert code == 2 and "reads image tokens, and an index holds vectors" in err
        return
    again = {row["file"]: row["label"] for row in json.loads(out)["results"]}
    assert again == {row["file"]: row["label"] for row in rows}


def test_a_video_probe_asks_for_videos(capsys, tmp_path):
    path = tmp_path / "ways.safetensors"
    how = ["--by", "unordered", "--shots", "1", "--seeds", "1", "--save", path]
    code, out, err = call(capsys, "probe", "--data", "moving", "--run", "shapes", *how)
    assert code == 0, err
    assert out.startswith("4 classes, 800 to learn from, 400 tested; chance")
    frames = [
        Image.fromarray(f)
        for f in np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    ]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    code, out, err = call(
        capsys, "classify", tmp_path / "a.gif", "--probe", path, "--run", "shapes", "--json"
    )
    assert code == 0, err
    assert set(json.loads(out)["results"][0]["scores"]) == {"left", "right", "up", "down"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shots", "0"], "--shots 0: at least 1, or all"),
        (["--seeds", "0"], "--seeds 0: at least 1"),
        (["--held-out-part", "1"], "--held-out-part 1.0: at least 0 and under 1"),
        (["--save", "p.safetensors"], "--save keeps one probe: give --by linear, linear-tokens or"),
        (["--save", "p.safetensors", "--by", "knn"], "--save keeps one probe"),
        (["--save", "p.bin", "--by", "linear"], "must end in .safetensors"),
        (["--by", "unordered"], "--by unordered is of frames"),
        (["--shots", "few"], "few is neither a number of images nor all"),
        (["--out", "curves"], "the name must end as a picture's does"),
    ],
)
def test_mistakes_are_said_in_a_line(arguments, said, here, capsys):
    try:
        code = cli.main(["probe", "--data", str(here), *arguments])
    except SystemExit as stopped:
        code = stopped.code
    err = capsys.readouterr().err
    assert code == 2 and said in err and err.count("\n") == 1


def test_words_and_a_probe_do_not_go_together(here, capsys, tmp_path):
    given = ["--probe", tmp_path / "p", "--run", "shapes"]
    for flag, value in (("--template", "a {}"), ("--by", "pmi"), ("--rule", "mean")):
        code, _, err = call(capsys, "classify", here, *given, flag, value)
        assert code == 2 and f"{flag} is of classes in words" in err
    code, _, err = call(capsys, "classify", here, *given)
    assert code == 1 and "there is no such file" in err


def test_a_class_that_the_model_cannot_tell_costs_zero_shot_alone(tmp_path, capsys):
    """Two names that are one to the model: figures of probes all the same."""
    for i in range(8):
        for name in ("zyxw", "wvut"):  # words it never saw
            path = tmp_path / ("test" if i > 4 else "train") / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (10 * i, 0, 250 * (name == "zyxw"))).save(path)
    code, out, err = call(
        capsys, "probe", "--data", tmp_path, "--run", "shapes", "--by", "linear", "--json"
    )
    assert code == 0
    assert json.loads(out)["results"][0]["zero_shot"] is None
    assert "no zero-shot figure: " in err and "are one to this model" in err


def test_shapes_by_their_names_need_no_labels(capsys, monkeypatch):
    from minicoca.data import labelled

    monkeypatch.setattr(labelled, "SCENES", 150)
    assert minicoca.load("shapes")
    how = ["probe", "--data", "shapes", "--run", "shapes", "--by", "linear", "--shots", "1"]
    code, out, err = call(capsys, *how, "--json")
    assert code == 0, err
    assert json.loads(out)["results"][0]["zero_shot"] > 0.9
