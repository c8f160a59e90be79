"""Data with labels: class folders, lists of labels, and the classes of what is drawn."""

import csv
import json

import pytest
from PIL import Image

from minicoca.data import labelled, shapes


def pictures(folder, names):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (8, 8), "red" if "red" in name else "blue")
        image.putpixel((i % 8, i // 8 % 8), (i, 250, 0))
        image.save(path)


def table(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def labels_of(part, data):
    return [data.classes[i] for i in part.labels]


def test_class_folders_with_splits(tmp_path):
    names = [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in ("red", "blue") for i in "012"]
    pictures(tmp_path, [*names, "test/green/9.png"])
    data = labelled.load(tmp_path, 8)
    assert data.classes == ("blue", "red")
    assert (len(data.train), len(data.test)) == (6, 6)
    assert "1 test images of classes never trained left out" in data.notes
    for part in (data.train, data.test):
        for image, label in zip(part.pairs.batch(part.rows), labels_of(part, data), strict=True):
            assert tuple(image[7, 7]) == ((255, 0, 0) if label == "red" else (0, 0, 255))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_lists_with_labels(tmp_path, form):
    names = [f"{'red' if i % 2 else 'blue'}{i}.png" for i in range(20)]
    pictures(tmp_path, names)
    rows = [(name, i % 2, "test" if i < 6 else "train") for i, name in enumerate(names)]
    rows.append((names[7], 0, "train"))  # it has two labels now
    if form == "csv":
        table(tmp_path / "list.csv", [("image", "label", "split"), *rows])
    else:
        lines = [
            json.dumps(dict(zip(("image", "label", "split"), row, strict=True))) for row in rows
        ]
        (tmp_path / "list.jsonl").write_text("\n".join(lines))
    data = labelled.load(tmp_path / f"list.{form}", 8)
    assert data.classes == ("0", "1")
    assert (len(data.train), len(data.test)) == (13, 6)
    assert "1 train images of several labels left out" in data.notes


def test_a_column_of_another_name_and_what_is_wrong_with_labels(tmp_path):
    names = [f"{i}.png" for i in range(12)]
    pictures(tmp_path, names)
    own = [
        ("image", "caption", "kind"),
        *((n, f"picture {n}", f"k{i % 3}") for i, n in enumerate(names)),
    ]
    table(tmp_path / "list.csv", own)
    source = tmp_path / "list.csv"
    with pytest.raises(ValueError, match="one must be called label, .*--label-column"):
        labelled.load(source, 8)
    assert labelled.load(source, 8, columns=("", "kind", ""), held_out=0.4).classes == (
        "k0",
        "k1",
        "k2",
    )
    with pytest.raises(ValueError, match="a label of its own"):
        labelled.load(source, 8, columns=("", "caption", ""), held_out=0.4)
    with pytest.raises(ValueError, match="nothing is held out.*--held-out-part"):
        labelled.load(source, 8, columns=("", "kind", ""), held_out=0.0)
    table(source, [("image", "label"), *((n, "one") for n in names)])
    with pytest.raises(ValueError, match="one class, 'one' to learn; probes need two"):
        labelled.load(source, 8, held_out=0.4)


def test_validation_is_tested_where_nothing_else_is(tmp_path):
    names = [f"{c}{i}.png" for c in "ab" for i in range(6)]
    pictures(tmp_path, names)
    splits = ["train", "train", "train", "val", "val", "test"] * 2
    rows = [(n, n[0], s) for n, s in zip(names, splits, strict=True)]
    table(tmp_path / "l.csv", [("image", "label", "split"), *rows])
    data = labelled.load(tmp_path / "l.csv", 8)
    assert (len(data.train), len(data.test)) == (6, 2)
    assert "4 validation images left out" in data.notes
    table(tmp_path / "l.csv", [("image", "label", "split"), *(r for r in rows if r[2] != "test")])
    assert len(labelled.load(tmp_path / "l.csv", 8).test) == 4


def test_drawn_shapes_by_their_zero_shot_classes():
    dataset = shapes.load(0, 16, train=0, evaluation=60)
    data = labelled.of_prompts(dataset, dataset.validation)
    for split, part in (("validation", data.train), ("held_out", data.test)):
        for row, label in zip(part.rows, labels_of(part, data), strict=True):
            (thing,) = shapes.scene(split, int(row)).things
            assert label == " ".join(thing.pair)
    singles = sum(len(shapes.scene("held_out", i).things) == 1 for i in range(60))
    lost = singles - len(data.test)
    assert lost and f"{lost} test images of classes never trained left out" in data.notes
