"""Images without texts, and texts without images: what is learned from one of them alone."""

from dataclasses import replace

import layouts
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import noisy_pictures, short, silent, stop_after, tensors

from minicoca import data
from minicoca.__main__ import main
from minicoca.data import shapes, unpaired
from minicoca.data.records import PLACEHOLDER
from minicoca.params import flatten
from minicoca.tokenizer import Tokenizer
from minicoca.training.checkpoint import fingerprint, load_model, read_config
from minicoca.training.loop import Stopped
from minicoca.training.run import train
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
    (photos / "3.txt").unlink()
    with pytest.raises(ValueError, match="simclr, mae and simmim .--objective. learn from images"):
        data.load(of("coca", data=str(photos)))


def test_each_learns_from_a_folder(photos, tmp_path):
    for objective in OF_IMAGES:
        results = silent(of(objective, data=str(photos), steps=2), tmp_path / objective)
        assert np.isfinite(results["held_out"]["loss"] if "held_out" in results else 1.0)


def pictures(folder, names):
    """Pictures of these paths, no two alike."""
    rng = np.random.default_rng(len(names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)


def many(*places, count=8):
    return [f"{place}{i}.png" for place in places for i in range(count)]


def listed(folder, names, splits=()):
    rows = ["image,caption,split" if splits else "image,caption"]
    for i, name in enumerate(names):
        rows.append(f"{name},number {i}" + (f",{splits[i % len(splits)]}" if splits else ""))
    (folder / "captions.csv").write_text("\n".join(rows))


def loose(folder):
    pictures(folder, [*many("train/a", "train/b/", "test/a/", "test/b/"), "logo.png"])


def list_with_splits(folder):
    pictures(folder, many(""))
    listed(folder, many("", count=6), ("train", "test", "validation"))


def imagefolder(folder):
    for part in ("train", "test"):
        pictures(folder / "data" / part, many(""))
        rows = [f"{name},one of {part}" for name in many("", count=6)]
        (folder / "data" / part / "metadata.csv").write_text("file_name,text\n" + "\n".join(rows))


def list_beside(folder):
    pictures(folder, many("", "deep/", count=20))
    listed(folder, many("", "deep/", count=15))


def class_called_train(folder):
    pictures(folder, many("train/", "car/", "boat/", count=12))


def texts_beside(folder):
    """Folders are splits; two pictures are in neither."""
    names = [*many("train/", count=20), *many("test/", count=8), *many("", count=2)]
    pictures(folder, names)
    for name in names:
        (folder / name).with_suffix(".txt").write_text(f"one of {name}")


FOLDERS = [
    loose, list_with_splits, imagefolder, list_beside, class_called_train, texts_beside
]  # fmt: skip


@pytest.mark.parametrize("make", FOLDERS)
def test_what_a_coca_is_tested_on_no_tower_has_learned_from(tmp_path, make):
    """Of one folder, or of a list in it, however it is divided."""
    folder = tmp_path / "d"
    make(folder)
    how = dict(validation_part=0.2, held_out_part=0.2)
    alone = data.load(of("mae", data=str(folder), **how))
    listing = folder / "captions.csv"
    for source in (folder, listing) if listing.exists() else (folder,):
        found = data.load(of("coca", data=str(source), **how))
        tested = [path for part in found.evaluations.values() for path in part.paths]
        tested += found.validation.paths if found.validation else []
        assert len(tested) > 2 and not {*tested} & {*alone.train.paths}
    assert len(alone.train) > 3


def test_folders_of_images_alone_may_name_splits(tmp_path):
    pictures(tmp_path, many("train2017/", "val2017/", "unlabeled2017/"))
    found = data.load(of("mae", data=str(tmp_path)))
    assert {path.parent.name for path in found.train.paths} == {"train2017", "unlabeled2017"}
    assert {path.parent.name for path in found.validation.paths} == {"val2017"}
    assert "8 files trained on, since others alone name a split" in found.notes


def test_a_split_that_folders_give_is_kept_and_classes_are_not_captions(tmp_path):
    noisy_pictures(tmp_path / "all", 9)
    for i in (0, *range(2, 9)):
        place = tmp_path / "d" / ("train/cats", "train/dogs", "test/cats")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / f"{i}.png").rename(place / f"{i}.png")
    found = data.load(of("mae", data=str(tmp_path / "d")))
    names = [path.name for path in found.evaluations["held_out"].paths]
    assert names == ["2.png", "5.png", "8.png"] and not found.validation
    assert len(found.train) == 5 and {own[0] for own in found.train.captions} == {PLACEHOLDER}


def test_a_list_says_which_images_and_shards_theirs(photos, tmp_path):
    """With captions, which are not read, or without."""
    for head, end in (("image,caption", ",one"), ("image", ""), ("image,caption", ",")):
        rows = [f"{name}.png{end}" for name in (0, 2, 4)]
        (photos / "list.csv").write_text("\n".join([head, *rows]))
        found = data.load(of("mae", data=str(photos / "list.csv")))
        parts = (found.train, *found.evaluations.values())
        assert {p.name for part in parts for p in part.paths} == {"0.png", "2.png", "4.png"}
    (photos / "list.csv").unlink()
    members = [(f"{i}.png", (photos / f"{i}.png").read_bytes()) for i in (0, 2, 4, 5)]
    (tmp_path / "s").mkdir()
    layouts.tar(tmp_path / "s" / "0.tar", members)
    for source in (tmp_path / "s", tmp_path / "s" / "0.tar"):
        found = data.load(of("mae", data=str(source)))
        assert sum(map(len, (found.train, *found.evaluations.values()))) == 4
    given = of("mae", data=str(photos), image_root=str(tmp_path))
    assert len(data.load(given).train) > 10


def test_other_pictures_are_noticed(tmp_path, monkeypatch):
    """Though they say the same, and their files are as large."""
    for seed, name in enumerate(("a", "b")):
        rng = np.random.default_rng(seed)
        for i in range(8):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.bmp")
    marks = [fingerprint(data.load(of("mae", data=str(tmp_path / name)))) for name in "ab"]
    assert marks[0] != marks[1]


@pytest.mark.parametrize("vocabulary", [None, 60])
@pytest.mark.parametrize("source", ["photos", "shapes"])
def test_a_new_tokenizer_holds_as_many_words_as_it_is_let(
    photos, tmp_path, monkeypatch, vocabulary, source
):
    load = shapes.load
    monkeypatch.setattr(shapes, "load", lambda seed, side, *_: load(seed, side, 40, 8))
    first = str(photos) if source == "photos" else "shapes"
    silent(of("mae", data=first, steps=1), tmp_path / "mae")
    listed(photos, [f"{i}.png" for i in (0, *range(2, 12))])
    before, heard = read_config(tmp_path / "mae"), []
    given = {"vocabulary": vocabulary or before.vocabulary, "tokenizer": "word"}
    config = of("coca", data=str(photos / "captions.csv"), init=str(tmp_path / "mae"), **given)
    train(replace(config, steps=1), tmp_path / "coca", say=heard.append, command="")
    assert not [line for line in heard if "unknown" in line]
    assert read_config(tmp_path / "coca").vocabulary > 12


def test_texts_alone_are_no_lists_of_captions(tmp_path):
    for name, text in (
        ("flickr.token.txt", "a.jpg#0\tA child\n"),
        ("captions.txt", "image,caption\n"),
    ):
        (tmp_path / name).write_text(text)
        assert not unpaired.is_texts(str(tmp_path / name))
    (tmp_path / "t.txt").write_text("an image, a caption\n")
    (tmp_path / "d.txt").mkdir()
    assert unpaired.is_texts(str(tmp_path / "t.txt")) and not unpaired.is_texts(
        str(tmp_path / "d.txt")
    )


def test_texts_alone_are_not_said_to_be_equal_pictures_and_may_be_called_anything(tmp_path):
    lines = [
        f"the {a} {b} is {c}" for a in "abcdefgh" for b in ("cat", "dog") for c in ("in", "out")
    ]
    (tmp_path / "emoji.txt").write_text("\n".join(lines))
    config = of("gpt", data=str(tmp_path / "emoji.txt"), steps=120, batch_size=16)
    results = silent(config, tmp_path / "run")
    assert not [text for text in results["advice"] if "picture" in text]


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
            unpaired.texts(path, 8, held_out=0.2, validation=0.2)
        return
    found = unpaired.texts(path, 8, seed=seed, held_out=0.2, validation=0.2)
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
