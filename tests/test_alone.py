"""Images without texts, and texts without images: what is learned from one of them alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import noisy_pictures, short, silent, stop_after, tensors

from minicoca import data
from minicoca.__main__ import main
from minicoca.data import alone
from minicoca.params import flatten
from minicoca.tokenizer import Tokenizer
from minicoca.training.checkpoint import load_model, read_config
from minicoca.training.loop import Stopped
from minicoca.words import clean

OF_IMAGES = ("mae", "simmim", "simclr")
LINES = st.lists(st.sampled_from(["", " ", "a", "a b", "b a", "a  b", "c\t", "d"]), max_size=30)


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures as a camera leaves it: in folders, one damaged, a note, no captions."""
    folder = tmp_path / "photos"
    noisy_pictures(folder, 24)
    (folder / "2025").mkdir()
    for i in range(12, 24):
        (folder / f"{i}.png").rename(folder / "2025" / f"{i}.png")
    (folder / "note.txt").write_text("not a caption of anything")
    (folder / "3.txt").write_text("a caption, which is not asked for")
    return folder


def test_who_reads_what():
    assert {name for name in OF_IMAGES if not of(name).reads} == {*OF_IMAGES}
    assert of("gpt").reads and of("coca").reads and of("vlmo").reads and of("cappa").reads


def of(objective, **more):
    return short(objective=objective, evaluate_every=0, **more)


@pytest.mark.parametrize("objective", OF_IMAGES)
def test_images_alone_are_learned_from(photos, tmp_path, objective):
    found = data.load(of(objective, data=str(photos)))
    parts = (found.train, found.validation, *found.evaluations.values())
    names = [path.name for part in parts if part for path in part.paths]
    assert sorted(names) == sorted(f"{i}.png" for i in range(24) if i != 1)
    assert "images alone" in found.notes and "1.png: not an image" in found.notes
    with pytest.raises(ValueError, match="without captions, --objective mae, simmim and simclr"):
        (photos / "3.txt").unlink()
        data.load(of("coca", data=str(photos)))


def test_a_split_that_folders_give_is_kept_and_classes_are_not_captions(tmp_path):
    noisy_pictures(tmp_path / "all", 9)
    for i in (0, *range(2, 9)):
        place = tmp_path / "d" / ("train/cats", "train/dogs", "test/cats")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / f"{i}.png").rename(place / f"{i}.png")
    found = data.load(of("mae", data=str(tmp_path / "d")))
    names = [path.name for path in found.evaluations["held_out"].paths]
    assert names == ["2.png", "5.png", "8.png"] and not found.validation
    assert len(found.train) == 5 and {own[0] for own in found.train.captions} == {alone.WORD}


def test_a_list_says_which_images(photos):
    (photos / "list.csv").write_text("image,caption\n0.png,one\n2.png,two\n4.png,three\n")
    found = data.load(of("mae", data=str(photos / "list.csv")))
    names = {
        path.name for part in (found.train, *found.evaluations.values()) for path in part.paths
    }
    assert names == {"0.png", "2.png", "4.png"}


def test_nothing_there_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    for words, said in (
        (["--objective", "mae", "--data", "empty"], "empty: no image can be used"),
        (["--objective", "gpt", "--data", "empty.txt"], "empty.txt: no line of it holds a text"),
        (["--objective", "gpt", "--data", "none.txt"], "none.txt: no such file"),
        (["--data", "empty.txt"], "a text a line is what --objective gpt learns from"),
    ):
        assert main(["train", *words]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() or not [*(tmp_path / "runs").iterdir()]


def test_a_tower_of_images_alone_goes_on_into_a_coca_with_words(photos, tmp_path):
    """Whose tokenizer is of the words that there now are."""
    silent(of("mae", data=str(photos), steps=2), tmp_path / "mae")
    rows = [f"{i}.png,the number {i} of many" for i in (0, 2, 3, 4, 5, 6, 7, 8)]
    (photos / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    more = dict(data=str(photos / "captions.csv"), init=str(tmp_path / "mae"), steps=2)
    before = read_config(tmp_path / "mae")
    silent(of("coca", vocabulary=before.vocabulary, **more), tmp_path / "coca")
    tokenizer = Tokenizer.load(tmp_path / "coca" / "tokenizer.model")
    assert tokenizer.decode(tokenizer.encode(["the number 4 of many"], 12)[0]).startswith("the num")
    first = flatten(tensors(tmp_path / "mae", "model.safetensors"))
    second = flatten(tensors(tmp_path / "coca", "model.safetensors"))
    name = "image.blocks.0.mlp.up.weight"
    assert np.abs(first[name] - second[name]).max() < 0.05  # a step or two away


@given(LINES, st.integers(0, 3))
def test_a_text_is_in_one_split_and_every_line_in_one(tmp_path_factory, lines, seed):
    path = tmp_path_factory.mktemp("texts") / "t.txt"
    path.write_text("\n".join(lines))
    wanted = [text for line in lines if (text := clean(line))]
    if not wanted:
        with pytest.raises(ValueError, match="no line"):
            alone.texts(path, 8, held_out=0.2, validation=0.2)
        return
    found = alone.texts(path, 8, seed=seed, held_out=0.2, validation=0.2)
    parts = [part for part in (found.train, found.validation, *found.evaluations.values()) if part]
    held = [[own[0] for own in part.captions] for part in parts]
    assert sorted(text for own in held for text in own) == sorted(wanted) and held[0]
    for i, own in enumerate(held):
        assert not {*own} & {text for other in held[:i] for text in other}
    assert parts[0].batch([0]).shape == (1, 8, 8, 3) and not parts[0].batch([0]).any()


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_texts_alone_are_learned_and_gone_on_with_and_measured(
    tmp_path, capsys, monkeypatch, backend
):
    lines = [f"the {a} {b} is {c}" for a in "abcdef" for b in ("cat", "dog") for c in ("in", "out")]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    config = of("gpt", data=str(tmp_path / "t.txt"), backend=backend, steps=6, held_out_part=0.3)
    results = silent(config, tmp_path / "whole")
    assert results["held_out"]["perplexity"] > 1
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, backend, 3)
        silent(config, tmp_path / "parts")
    silent(None, tmp_path / "parts", taking_up=True)
    for name in ("model.safetensors", "resume.safetensors"):
        one, other = (flatten(tensors(tmp_path / run, name)) for run in ("whole", "parts"))
        assert all(np.array_equal(one[key], other[key]) for key in one)
    model, tokenizer = load_model(tmp_path / "whole")
    assert tokenizer.decode(tokenizer.encode([lines[0]], 16)[0]) == lines[0]
    (tmp_path / "other.txt").write_text("the a cat is in\nthe b dog is out\n")
    given = ["evaluate", str(tmp_path / "whole"), "--data", str(tmp_path / "other.txt")]
    assert main(given) == 0
    assert "perplexity a token" in capsys.readouterr().out
