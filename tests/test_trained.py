"""The models that come with minicoca: there, whole, small, and as good as their cards say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import minicoca
from minicoca import __main__ as cli
from minicoca import data
from minicoca.data import shapes
from minicoca.evaluate import evaluate
from minicoca.training import checkpoint
from minicoca.training.checkpoint import SHIPPED, TRAINED, WEIGHTS, load_model, read_results

FILES = {"README.md", "config.json", "model.safetensors", "results.json", "tokenizer.model"}
FIGURES = {"shapes": ("held_out", "compositional"), "emoji": ("held_out",)}


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """A folder without runs."""
    monkeypatch.chdir(tmp_path)


def test_they_are_small_and_whole():
    assert {path.name for path in TRAINED.iterdir()} == {*SHIPPED}
    for name in SHIPPED:
        assert {path.name for path in (TRAINED / name).iterdir()} == FILES
        assert load_model(TRAINED / name, "numpy") and read_results(TRAINED / name)
    assert sum(path.stat().st_size for path in TRAINED.rglob("*") if path.is_file()) < 8_000_000


def test_they_are_part_of_what_is_installed(tmp_path):
    """Whatever stands in the folder is in pyproject's list."""
    text = (TRAINED.parents[1] / "pyproject.toml").read_text()
    assert '"trained/*/*"' in text and TRAINED.parent == Path(minicoca.__file__).parent


@pytest.mark.parametrize("name", SHIPPED)
def test_cards_say_what_was_measured(name):
    card = (TRAINED / name / "README.md").read_text()
    results = read_results(TRAINED / name)
    assert results["command"] in card and "license:" in card.split("---")[1]
    for split in FIGURES[name]:
        for figure in ("caption_exact", "image_to_text_r1"):
            if figure in results[split]:
                assert f"{results[split][figure]:.1%}" in card, (split, figure)


@pytest.mark.parametrize("name", [*SHIPPED, "no such"])
def test_a_name_is_a_run_of_ones_own_first(name, tmp_path):
    if name == "no such":
        with pytest.raises(ValueError, match="no such is not a run folder"):
            minicoca.load(name, backend="numpy")
        return
    assert minicoca.load(name).config == checkpoint.read_config(TRAINED / name)
    (tmp_path / name).mkdir()  # a folder of pictures, say
    assert checkpoint.find_run(name) == TRAINED / name
    shutil.copytree(TRAINED / SHIPPED[0], tmp_path / "runs" / name)
    assert checkpoint.find_run(name) == Path("runs") / name
    shutil.copytree(TRAINED / SHIPPED[1], tmp_path / name, dirs_exist_ok=True)
    assert checkpoint.find_run(name) == Path(name)


def test_shapes_are_captioned_and_found():
    model = minicoca.load("shapes", backend="numpy")
    scenes = shapes.scenes("held_out", 24)
    images = [shapes.draw(scene, 32) for scene in scenes]
    truths = [shapes.caption(scene) for scene in scenes]
    right = sum(a == b for a, b in zip(model.caption(images), truths, strict=True))
    assert right >= 23
    cosines = model.embed_images(images) @ model.embed_texts(truths).T
    assert (cosines.argmax(1) == np.arange(24)).mean() > 0.9


def test_commands_use_them_where_there_is_no_run(tmp_path, capsys):
    from PIL import Image

    Image.fromarray(shapes.draw(shapes.scenes("held_out", 1)[0], 64)).save("a.png")
    for words in (["caption", "a.png"], ["classify", "a.png", "--labels", "star", "cat"],
                  ["search", ".", "a star"], ["embed", "a.png", "--out", "v.npz"]):  # fmt: skip
        assert cli.main(words) == 0
        assert f"the model {SHIPPED[0]!r} that comes with minicoca" in capsys.readouterr().err
    assert cli.main(["caption", "a.png", "--run", "shapes"]) == 0
    out, err = capsys.readouterr()
    assert shapes.caption(shapes.scenes("held_out", 1)[0]) in out and not err
    assert cli.main(["info", "--run", "shapes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["seed"] == 0


def test_one_that_is_gone_or_damaged_is_a_line(tmp_path, monkeypatch, capsys):
    shutil.copytree(TRAINED, tmp_path / "trained")
    monkeypatch.setattr(checkpoint, "TRAINED", tmp_path / "trained")
    weights = tmp_path / "trained" / "emoji" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    (tmp_path / "a.png").write_bytes(b"")
    assert cli.main(["caption", "a.png"]) == 1
    assert "emoji/model.safetensors does not hold what was written" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "trained" / "emoji")
    assert cli.main(["caption", "a.png"]) == 1
    said = capsys.readouterr().err.strip().split("\n")
    assert len(said) == 1 and said[0].endswith("install minicoca again")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("emoji", marks=pytest.mark.extras), "shapes"])
def test_figures_come_out_again(name, monkeypatch):
    """All that the card says, measured anew, on the same data."""
    monkeypatch.chdir(TRAINED.parents[1])
    model, tokenizer = load_model(TRAINED / name, "torch")
    dataset, want = data.load(model.config), read_results(TRAINED / name)
    for split, pairs in dataset.evaluations.items():
        gallery, before = 256 if name == "shapes" else 0, checkpoint.known(dataset)
        figures, _ = evaluate(model, tokenizer, pairs, gallery, before)
        assert figures["intervals"].keys() >= want[split].pop("intervals", {}).keys()
        for figure, value in want[split].items():
            assert figures[figure] == pytest.approx(value, abs=0.003), (split, figure)


def test_nothing_of_this_machine_is_in_them():
    for path in TRAINED.rglob("*.json"):
        text = path.read_text()
        assert str(Path.home()) not in text and "/tmp" not in text and "/work" not in text
    for path in TRAINED.rglob("*.safetensors"):
        assert b"/tmp" not in path.read_bytes()[: 2**16]
