"""A data set is the same in whatever layout it is written: its pairs, its splits, its pictures."""

import json
import random

import layouts
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from minicoca import data
from minicoca.config import preset
from minicoca.data import folder as own
from minicoca.data.files import Report
from minicoca.data.layouts import read_captions, read_listed
from minicoca.data.records import Reading
from minicoca.images import open_file
from minicoca.words import clean

TEXTS = st.text("ab ,\"'#;\u00e9\u4eac{}", min_size=1, max_size=12).map(clean).filter(bool)
NAMES = st.sampled_from([f"{kind}_{n}.png" for kind in ("img", "o\u00e9") for n in range(4)])
PARTS = ("train", "validation", "held_out")
SETS = st.dictionaries(
    NAMES,
    st.tuples(st.lists(TEXTS, min_size=1, max_size=3, unique=True), st.sampled_from(PARTS)),
    min_size=1,
)


def read(source, **how):
    report = Report()
    return read_listed(source, Reading(report, **how)), report


@pytest.mark.parametrize("write", layouts.WITHOUT + layouts.WITH, ids=lambda f: f.__name__)
@given(SETS)
@settings(max_examples=25)
def test_a_data_set_is_the_same_in_every_layout(tmp_path_factory, write, drawn):
    folder = tmp_path_factory.mktemp("written")
    captions = {name: texts for name, (texts, _) in drawn.items()}
    splits = {name: split for name, (_, split) in drawn.items()}
    listed, report = read(write(folder, captions, splits))
    short = {name: name.rpartition("/")[2] for name in listed.captions}
    assert {short[n]: list(texts) for n, texts in listed.captions.items()} == captions
    several = write in layouts.WITH and len(set(splits.values())) > 1
    found = {short[n]: split for n, split in listed.splits.items()}
    assert found == (splits if several else {})
    for name in listed.captions:
        with open_file(listed.file(name)) as file:
            assert file.read() == f"bytes of {short[name]}".encode()
    extra = {"splits not kept, since all images are of the one", "members that are no image"}
    assert report.named.keys() <= extra, str(report)
    assert listed.kind


def classes(folder, tops=("",)):
    rng = random.Random(0)
    for top in tops:
        for name in ("red_car", "blue"):
            (folder / top / name).mkdir(parents=True)
            for number in range(6):
                picture = Image.new("RGB", (9, 9), tuple(rng.randrange(256) for _ in range(3)))
                picture.save(folder / top / name / f"{number}.png")
    return folder


def test_class_folders_have_captions_and_zero_shot_classes(tmp_path):
    Image.new("RGB", (9, 9)).save(classes(tmp_path) / "loose.png")
    config = preset(
        "tiny", data=str(tmp_path), class_template="one {}, big", held_out_part=0.4, image_size=8
    )
    found = data.load(config)
    assert "1 images in no class's folder left out" in found.notes and "2 class" in found.notes
    held = found.evaluations["held_out"]
    task = held.zero_shot
    assert task.names == ("blue", "red car") and found.train.zero_shot is None
    assert task.prompts == (("one blue, big",), ("one red car, big",))
    assert len(task.images) == len(held) > 0
    for row, label in zip(task.images, task.labels, strict=True):
        assert held.paths[row].parent.name.replace("_", " ") == task.names[label]
        assert held.captions[row] == task.prompts[label]


def test_shards_are_read_with_what_img2dataset_writes_beside_them(tmp_path):
    captions = {"a.png": ["x"], "b.png": ["y"]}
    pattern = layouts.img2dataset(tmp_path, captions, dict.fromkeys(captions, "train"))
    assert read(tmp_path)[0].captions == read(pattern)[0].captions
    assert len(read(pattern)[0].captions) == 2


def test_a_table_of_other_things_does_not_hide_classes(tmp_path):
    classes(tmp_path)
    (tmp_path / "labels.csv").write_text("number,name\n1,red\n")
    listed, report = read(tmp_path)
    assert len(listed.captions) == 12 and "labels.csv" in str(report)


def test_class_folders_below_splits(tmp_path):
    found = data.load(preset("tiny", data=str(classes(tmp_path, ("train", "val", "test")))))
    sizes = len(found.train), len(found.validation), len(found.evaluations["held_out"])
    assert sizes == (12, 12, 12)
    assert {path.parts[-3] for path in found.validation.paths} == {"val"}
    assert found.train.captions[-1] == ("a photo of a red car",)


def test_splits_of_the_data_are_kept_and_the_rest_is_divided(tmp_path):
    rows = [("image", "caption", "split")]
    for number in range(40):
        Image.new("RGB", (9, 9), (number, 5 * number, 0)).save(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", f"number {number}", ("train", "test", "", "dev")[number % 4]))
    listed = layouts.table(tmp_path / "list.csv", rows)
    found = own.load(listed, 8, held_out=0.3, validation=0.3)
    places = {"train": found.train, "validation": found.validation} | found.evaluations
    for number in range(40):
        (place,) = (p for p, pairs in places.items() if (f"number {number}",) in pairs.captions)
        drawn = own.part_of(f"{number}.png", 0, 0.3, 0.3)
        assert place == ("train", "held_out", drawn, "validation")[number % 4]


@given(st.lists(st.sampled_from(["train", "val", "test", ""]), min_size=1, max_size=6))
@settings(max_examples=40)
def test_what_the_data_give_to_another_split_is_never_trained_on(tmp_path_factory, given):
    """Even where nothing else is there to be trained on. (All of one split are divided anew.)"""
    assume(len({*given}) > 1)
    folder = tmp_path_factory.mktemp("given")
    rows = [("image", "caption", "split")]
    for number, part in enumerate(given):
        Image.new("RGB", (9, 9), (number, 5 * number, 0)).save(folder / f"{number}.png")
        rows.append((f"{number}.png", f"{number}", part))
    listed = layouts.table(folder / "list.csv", rows)
    found = own.load(listed, 8, held_out=0.5, validation=0.4, untrained=True)
    places = {"train": found.train, "val": found.validation, "test": None}
    places["test"] = found.evaluations.get("held_out")
    for number, part in enumerate(given):
        (place,) = (p for p, at in places.items() if at and (f"{number}",) in at.captions)
        assert not part or place == part
    assert len(found.train) or "" not in given
    if not len(found.train):
        with pytest.raises(ValueError, match="nothing to train on, all of it is of other splits"):
            own.load(listed, 8)


def test_a_loose_file_among_splits_is_trained_on(tmp_path):
    layouts.texts_by_folder(
        tmp_path, {"a.png": ["a"], "b.png": ["b"]}, {"a.png": "train", "b.png": "held_out"}
    )
    layouts.texts_beside(tmp_path, {"c.png": ["c"]}, {})
    listed, report = read(tmp_path)
    assert listed.splits == {
        "train2017/a.png": "train",
        "test2017/b.png": "held_out",
        "c.png": "train",
    }
    assert "1 files trained on, since others alone name a split" in str(report)
    shards = layouts.shards_by_folder(tmp_path / "s", {"a.png": ["a"]}, {"a.png": "held_out"})
    layouts.webdataset(shards, {"b.png": ["b"]}, {"b.png": "train"})
    layouts.webdataset(shards, {"c.png": ["c"]}, {"c.png": "train"}, "more.tar")
    found = read(shards)[0].splits
    assert {n.rpartition("/")[2]: s for n, s in found.items()} == {
        "a.png": "held_out",
        "b.png": "train",
        "c.png": "train",
    }


def test_copies_in_two_given_splits_stay_there_and_are_named(tmp_path):
    for number, colour in enumerate((0, 1, 1, 2, 1, 3)):
        Image.new("RGB", (9, 9), (colour, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [(f"{n}.png", f"c{n}", split) for n, split in enumerate(("train", "test") * 3)]
    listed = layouts.table(tmp_path / "list.csv", [("image", "caption", "split"), *rows])
    found = own.load(listed, 8)
    assert [path.name for path in found.train.paths] == ["0.png", "2.png", "4.png"]
    assert found.train.same.tolist() == [0, 1, 1]  # 1.png, the first of them, is in the test
    assert "2 byte-equal copies in another split than the first" in found.notes


def test_one_image_in_two_splits_is_in_the_first(tmp_path):
    rows = [("a.png", "x", "val"), ("b.png", "y", "train"), ("a.png", "z", "train")]
    table = layouts.table(tmp_path / "x.csv", [("image", "caption", "split"), *rows])
    listed, report = read(table)
    assert listed.splits == {"a.png": "validation", "b.png": "train"}
    assert "images given to two splits, kept in the first" in report.named
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert "images given to two splits" in own.load(table, 8, untrained=True).notes


def test_a_split_of_an_unknown_name_is_left_out_and_counted(tmp_path):
    rows = [("a.png", "x", "fold9"), ("b.png", "y", "train"), ("c.png", "z", "test")]
    table = layouts.table(tmp_path / "x.csv", [("image", "caption", "split"), *rows])
    listed, report = read(table)
    assert list(listed.captions) == ["b.png", "c.png"]
    assert "x.csv, line 2: 'fold9'" in str(report)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_columns_that_are_named_are_read(tmp_path, kind):
    head = ("image", "Bild", "caption", "Wort", "Teil")
    rows = [("no", "a.png", "no", "ja", "train"), ("no", "b.png", "no", "doch", "test")]
    if kind == "csv":
        path = layouts.table(tmp_path / "x.csv", [head, *rows], "|")
    else:
        path = tmp_path / "x.jsonl"
        lines = [json.dumps(dict(zip(head, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines))
    listed, _ = read(path, image="Bild", caption="Wort", split="Teil")
    assert listed.captions == {"a.png": ("ja",), "b.png": ("doch",)}
    assert listed.splits == {"a.png": "train", "b.png": "held_out"}
    for wrong in ("image", "caption", "split"):
        asked = dict(image="Bild", caption="Wort", split="Teil") | {wrong: "Foto"}
        with pytest.raises(ValueError, match=f"line 1: has .*none is called .oto .--{wrong}-c"):
            read(path, **{n: v.replace("Foto", "foto") for n, v in asked.items()})


@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt", "x"])
def test_separators_are_seen_whatever_the_file_is_called(tmp_path, mark, name):
    path = layouts.table(
        tmp_path / name, [("id", "image", "caption"), ("1", "a.png", "a cat")], mark
    )
    assert read_captions(path, Report()) == {"a.png": ("a cat",)}


def test_flickr30k_has_quotes_that_close_nothing_and_a_row_without_its_bar(tmp_path):
    text = 'image_name| comment_number| comment\na.jpg| 0| say " hi | there\nb.jpg| 4   A dog .\n'
    text += 'c.jpg|1|"ah\nc.jpg|2|oh\n'
    path = tmp_path / "results.csv"
    path.write_text(text)
    report = Report()
    assert read_captions(path, report) == {
        "a.jpg": ('say " hi | there',),
        "c.jpg": ('"ah', "oh"),
    }
    assert "results.csv, line 3" in str(report)


def test_images_are_never_taken_from_a_neighbour(tmp_path):
    """Which may hold other images of the same names; only COCO's annotations are beside theirs."""
    layouts.put(tmp_path / "other", ["a.png"])
    for name, found in (("lists", "a.png"), ("annotations", "../other/a.png")):
        table = layouts.table(tmp_path / name / "x.csv", [("image", "caption"), ("a.png", "x")])
        assert list(read_captions(table, Report())) == [found]
        listed, _ = read(table, root=tmp_path / "lists")
        assert list(listed.captions) == ["a.png"] and listed.root == tmp_path / "lists"


def test_which_of_several_lists_has_to_be_said(tmp_path):
    layouts.put(tmp_path, ["a.png"])
    for name in ("one.csv", "two.csv"):
        layouts.table(tmp_path / name, [("image", "caption"), ("a.png", name)])
    with pytest.raises(ValueError, match=r"holds 2 lists .one.csv, two.csv.; give the one to read"):
        read(tmp_path)
    (tmp_path / "one.csv").rename(tmp_path / "captions.csv")
    assert read(tmp_path)[0].captions == {"a.png": ("one.csv",)}


def test_images_that_no_list_names_are_counted(tmp_path):
    layouts.put(tmp_path / "Images", ["a.png", "b.png"])
    layouts.table(tmp_path / "captions.txt", [("image", "caption"), ("a.png", "x")])
    listed, report = read(tmp_path)
    assert listed.captions == {"Images/a.png": ("x",)}
    assert [len(v) for v in report.named.values()] == [1] and "b.png" in str(report)


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"x.parquet: reading Parquet needs pyarrow; .*parquet]"):
        read(tmp_path / "x.parquet")


@pytest.mark.extras
@given(SETS)
@settings(max_examples=25)
def test_parquet_lists(tmp_path_factory, drawn):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path_factory.mktemp("table")
    columns = {
        "image_path": list(drawn),
        "caption": [texts for texts, _ in drawn.values()],
        "split": [split for _, split in drawn.values()],
        "other": list(range(len(drawn))),
    }
    parquet.write_table(pyarrow.table(columns), folder / "x.parquet", row_group_size=2)
    listed, report = read(folder / "x.parquet")
    assert listed.captions == {name: tuple(texts) for name, (texts, _) in drawn.items()}
    splits = {name: split for name, (_, split) in drawn.items()}
    assert listed.splits == (splits if len(set(splits.values())) > 1 else {})
    how = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    one = pyarrow.table({"image": ["a.png"], "text": ["a cat"]})
    parquet.write_table(one, folder / "w.parquet", write_page_checksum=True, **how)
    other = (folder / "w.parquet").read_bytes().replace(b"a cat", b"a cut", 1)
    (folder / "w.parquet").write_bytes(other)
    with pytest.raises(ValueError, match="w.parquet: no Parquet, or damaged .*CRC checksum"):
        read(folder / "w.parquet")
    (folder / "y.parquet").write_bytes((folder / "x.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match="y.parquet: no Parquet, or damaged"):
        read(folder / "y.parquet")
    inside = pyarrow.table({"image": [{"bytes": b"x", "path": "a"}], "text": ["a"]})
    parquet.write_table(inside, folder / "z.parquet")
    with pytest.raises(ValueError, match="z.parquet, row 1: column image holds pictures, not"):
        read(folder / "z.parquet")
