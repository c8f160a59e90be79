"""Lists and folders of one's own: read right, split stably, and told apart from mistakes."""

import json

import numpy as np
import pytest
from PIL import Image

from minicoca.data import folder
from minicoca.data.folder import FolderPairs, Report, load, read_captions


def colour_of(number: int) -> tuple[int, int, int]:
    return (number * 7 % 256, number * 31 % 256, number * 97 % 256)


def make_image(path, number: int, size=(12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour_of(number)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Forty pictures, each of a colour of its own."""
    for number in range(40):
        make_image(tmp_path / f"{number}.png", number)
    return tmp_path


def write(path, text: str, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def splits(dataset) -> dict:
    found = {"train": dataset.train, "validation": dataset.validation, **dataset.evaluations}
    return {name: split for name, split in found.items() if split is not None}


EXPECTED = {"a.png": ("a cat", "one cat"), "b.png": ("two dogs",)}
COCO = {
    "images": [{"id": 9, "file_name": "a.png"}, {"id": 4, "file_name": "b.png"}],
    "annotations": [
        {"image_id": 9, "caption": "a cat"},
        {"image_id": 4, "caption": "two dogs"},
        {"image_id": 9, "caption": "one cat"},
    ],
}


@pytest.mark.parametrize(
    "name, text",
    [
        ("x.csv", "image,caption\na.png,a cat\nb.png,two dogs\na.png,one cat\n"),
        ("x.csv", 'id,Title,FilePath\n1,"a cat",a.png\n2,one cat,a.png\n3,two dogs,b.png\n'),
        ("x.tsv", "filename\ttext\na.png\ta cat\na.png\tone cat\nb.png\ttwo dogs"),
        (
            "x.jsonl",
            '{"path": "a.png", "captions": ["a cat", "one cat"]}\n\n'
            '{"file": "b.png", "caption": "two dogs"}\n',
        ),
        ("x.json", json.dumps(COCO)),
        (
            "x.json",
            '[{"image": "a.png", "text": ["a cat", "one cat"]},'
            ' {"image_path": "b.png", "text": "two dogs"}]',
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_kinds_of_lists(tmp_path, name, text, encoding):
    report = Report()
    assert read_captions(write(tmp_path / name, text, encoding), report) == EXPECTED
    assert not report.named


def test_folder_of_images_and_texts(tmp_path):
    for name, text in {"a": "a cat\none cat\n", "deep/b": "two dogs"}.items():
        make_image(tmp_path / f"{name}.jpg", 1)
        write(tmp_path / f"{name}.txt", text)
    make_image(tmp_path / "lonely.png", 1)
    report = Report()
    captions = read_captions(tmp_path, report)
    assert captions == {"a.jpg": ("a cat", "one cat"), "deep/b.jpg": ("two dogs",)}
    assert "lonely.txt" in str(report)


def test_captions_are_cleaned_and_empty_ones_reported(tmp_path):
    text = 'image,caption\na.png,"  cafe\u0301\n noir "\nb.png,"  "\n,lost\na.png,caf\u00e9 noir\n'
    report = Report()
    assert read_captions(write(tmp_path / "x.csv", text), report) == {"a.png": ("caf\u00e9 noir",)}
    assert "x.csv, line 4" in str(report) and "x.csv, line 5" in str(report)
    assert sum(map(len, report.named.values())) == 2


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("x.csv", "picture,caption\na.png,a cat\n", r"line 1: has picture, caption.*image, path"),
        ("x.csv", "image,words\na.png,a cat\n", r"line 1.*caption, captions"),
        ("x.csv", "", r"line 1: has nothing"),
        ("x.csv", "image,caption\nb.png,b\na.png,one, two\n", r"line 3: more fields"),
        ("x.csv", 'image,caption\na.png,"one" two\n', r"line 2.*quotes"),
        ("x.jsonl", '{"image": "a", "text": "b"}\n{"image": \n', r"line 2: not JSON"),
        ("x.jsonl", '["a.png"]', r"line 1: not an object"),
        ("x.jsonl", '{"image": 3, "text": "b"}', r"line 1: image must be a path"),
        ("x.jsonl", '{"image": "a", "text": 5}', r"line 1: a caption must be text.*5"),
        ("x.jsonl", '{"image": "a"}', r"line 1: has image, but"),
        ("x.json", '{"images": []}', r"not COCO captions.*annotations"),
        (
            "x.json",
            '{"images": [{"id": 1, "file_name": 5}],'
            ' "annotations": [{"image_id": 1, "caption": "a"}]}',
            "annotation 1: image must be a path: 5",
        ),
        ("x.json", "[" * 100_000, r"not JSON"),
        (
            "x.json",
            '{"images": [], "annotations": [{"image_id": 7, "caption": "a"}]}',
            r"annotation 1: no image has the id 7",
        ),
        ("x.parquet", "", r"neither a folder nor"),
    ],
)
def test_mistakes_are_named(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_captions(write(tmp_path / name, text), Report())


def test_other_mistakes(tmp_path, pictures):
    with pytest.raises(ValueError, match="nowhere.csv does not exist"):
        load(tmp_path / "nowhere.csv", 8)
    with pytest.raises(ValueError, match=r"x.csv is not UTF-8"):
        load(write(tmp_path / "x.csv", "image,caption\na.png,caf\u00e9\n", "latin-1"), 8)
    listed = write(tmp_path / "y.csv", "image,caption\n0.png,a\n")
    with pytest.raises(ValueError, match="held_out=0.7"):
        load(listed, 8, held_out=0.7)
    with pytest.raises(
        ValueError, match=r"--image-root\). 1 images left out, as .*0.png: no such file$"
    ):
        load(listed, 8, image_root=tmp_path / "elsewhere")


def list_of(pictures, numbers, name="list.csv"):
    rows = "".join(f"{n}.png,number {n}\n{n}.png,it is {n}\n" for n in numbers)
    return write(pictures / name, "image,caption\n" + rows)


def test_images_keep_their_captions_in_every_split(pictures):
    data = load(list_of(pictures, range(40)), 8, held_out=0.2)
    assert set(splits(data)) == {"train", "validation", "held_out"}
    seen = []
    for split in splits(data).values():
        images = split.batch(range(len(split)))
        assert images.shape == (len(split), 8, 8, 3) and images.dtype == np.uint8
        for image, (first, second) in zip(images, split.captions, strict=True):
            number = int(first.split()[-1])
            assert second == f"it is {number}"
            assert (image == colour_of(number)).all()
            seen.append(number)
    assert sorted(seen) == list(range(40))


def test_more_images_do_not_move_the_others(pictures):
    def places(numbers, **options):
        found = splits(load(list_of(pictures, numbers), 8, held_out=0.2, **options))
        return {texts[0]: name for name, split in found.items() for texts in split.captions}

    few, all_of_them = places(range(10, 30)), places(range(40))
    assert all(all_of_them[text] == name for text, name in few.items())
    assert places(range(40), seed=1) != all_of_them


def test_share_held_out():
    parts = [folder.part_of(f"{number}.jpg", 0, 0.05) for number in range(20_000)]
    assert abs(parts.count("held_out") - 1000) < 120
    assert abs(parts.count("validation") - 1000) < 120
    assert {folder.part_of(str(number), 0, 0.0) for number in range(1000)} == {"train"}


def test_bad_images_are_left_out_and_counted(pictures):
    (pictures / "3.png").unlink()
    (pictures / "5.png").write_bytes(b"MZ not a picture")
    data = load(list_of(pictures, range(8)), 8, held_out=0)
    assert len(data.train) == 6 and data.validation is None and data.evaluations == {}
    assert "2 images left out" in data.notes
    assert "3.png" in data.notes and "5.png" in data.notes


@pytest.fixture
def damaged(pictures):
    """Pictures whose headers are right; the pixels of two of them are not."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for number in (5, 6):
        path = pictures / f"{number}.png"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    return pictures


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_damage_found_late_is_replaced_with_its_captions(damaged, cache_bytes):
    numbers = [4, 5, 6, 7]
    paths, captions = [damaged / f"{n}.png" for n in numbers], [(f"number {n}",) for n in numbers]
    split = FolderPairs(paths, captions, 8, cache_bytes=cache_bytes)
    for _ in range(2):
        images = split.batch(np.array([1, 0, 3, 1, -2]))
        expected = [colour_of(n) for n in (7, 4, 7, 7, 7)]
        np.testing.assert_array_equal(images[:, 0, 0], expected)
        assert split.captions == [("number 4",), ("number 7",), ("number 7",), ("number 7",)]
        assert sum(map(len, split.trouble.named.values())) == 2  # each is reported once
    assert "5.png" in split.report() and "6.png" in split.report()

    hopeless = FolderPairs(paths[1:3], captions[1:3], 8)
    with pytest.raises(ValueError, match="none of the 2 images"):
        hopeless.batch([0])


def test_a_small_split_is_decoded_once(pictures, monkeypatch):
    paths = [pictures / f"{number}.png" for number in range(4)]
    kept = FolderPairs(paths, [("a",)] * 4, 8)
    again = FolderPairs(paths, [("a",)] * 4, 8, cache_bytes=10)
    first = kept.batch([2, 1])
    first[:] = 0  # a batch is the caller's to change
    again.batch([2, 1])
    monkeypatch.setattr(folder, "load_image", None)
    np.testing.assert_array_equal(kept.batch([1, 2])[:, 0, 0], [colour_of(1), colour_of(2)])
    with pytest.raises(TypeError):
        again.batch([1])
    with pytest.raises(IndexError):
        kept.batch([4])


def test_statistics_and_background(tmp_path):
    for number, alpha in enumerate([255, 0]):
        Image.new("RGBA", (4, 4), (255, 0, 0, alpha)).save(tmp_path / f"{number}.png")
    rows = "image,caption\n0.png,red\n1.png,nothing\n"
    data = load(write(tmp_path / "x.csv", rows), 4, held_out=0, background=(0, 0, 0))
    np.testing.assert_allclose(data.mean, (0.5, 0, 0))
    np.testing.assert_allclose(data.std, (0.5, 1 / 255, 1 / 255))


def test_report_quotes_only_the_first():
    report = Report()
    for number in range(12):
        report.add("bad", f"file {number}")
    assert "12 bad" in str(report) and "file 4" in str(report) and "file 5" not in str(report)
    assert "7 more" in str(report)


def test_what_cannot_be_seen_is_no_caption(tmp_path):
    text = '{"image": "a.png", "caption": ["\\u200b", "a \\ud800 cat"]}\n'
    listed = write(
        tmp_path / "x.jsonl", text + '{"image": "b.png", "caption": "\\u200b \\u2060"}\n'
    )
    report = Report()
    assert read_captions(listed, report) == {"a.png": ("a cat",)}
    assert [line.partition(":")[0] for line in report.whole().split("\n")[::2]] == [
        "1 rows with an empty caption beside others",
        "1 rows without a caption left out",
    ]
