"""Lists and folders of captions: whatever is there is read, or counted and named; mistakes stop."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minicoca.data.files import Report
from minicoca.data.layouts import read_captions


def make_image(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10)).save(path)


def write(path, text: str, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


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
        make_image(tmp_path / f"{name}.jpg")
        write(tmp_path / f"{name}.txt", text)
    make_image(tmp_path / "lonely.png")
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
        ("x.data", "", r"neither a folder nor"),
    ],
)
def test_mistakes_are_named(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_captions(write(tmp_path / name, text), Report())


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


def counts(report) -> dict[str, int]:
    return {reason: len(names) for reason, names in report.named.items()}


RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["a.png", "b.png", "c.png"]),
        st.sampled_from(["a cat", "two dogs", "", "  ", "\u200b", None]),
    ),
    max_size=8,
)


@given(RECORDS)
def test_every_record_is_used_or_counted_in_every_layout(tmp_path_factory, records):
    """Null and empty captions are left out and counted alike, however they are written down."""
    folder = tmp_path_factory.mktemp("lists")
    objects = [{"image": name, "caption": text} for name, text in records]
    names = sorted({name for name, _ in records})
    notes = [{"image_id": names.index(n), "caption": text} for n, text in records]
    coco = {"images": [{"id": i, "file_name": n} for i, n in enumerate(names)]}
    rows = [f'{name},"{text or ""}"\n' for name, text in records]
    layouts = {
        "x.csv": "image,caption\n" + "".join(rows),
        "x.jsonl": "".join(json.dumps(entry) + "\n" for entry in objects),
        "list.json": json.dumps(objects),
        "coco.json": json.dumps(coco | {"annotations": notes}),
    }
    expected, empty = {}, 0
    for name, text in records:
        if text in ("a cat", "two dogs"):
            expected.setdefault(name, dict.fromkeys(())).update({text: None})
        else:
            empty += 1
    for name, text in layouts.items():
        report = Report()
        found = read_captions(write(folder / name, text), report)
        assert found == {image: tuple(texts) for image, texts in expected.items()}, name
        left_out = {"rows without a caption left out": empty} if empty else {}
        assert counts(report) == left_out, name


def test_null_and_missing_are_counted_one_by_one(tmp_path):
    lines = [
        {"image": "a.png", "caption": [None, "a cat", ""]},
        {"image": None, "caption": "lost"},
        {"image": "b.png", "caption": []},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    report = Report()
    assert read_captions(write(tmp_path / "x.jsonl", text), report) == {"a.png": ("a cat",)}
    assert counts(report) == {
        "rows with an empty caption beside others": 1,
        "rows without an image left out": 1,
        "rows without a caption left out": 1,
    }


def test_an_image_of_coco_without_annotation_is_counted(tmp_path):
    content = {"images": [*COCO["images"], {"id": 5, "file_name": "c.png"}]}
    content |= {"annotations": COCO["annotations"]}
    report = Report()
    assert read_captions(write(tmp_path / "x.json", json.dumps(content)), report) == EXPECTED
    assert counts(report) == {"rows without a caption left out": 1} and "c.png" in str(report)


def test_repeated_ids_of_coco(tmp_path):
    """Two lists joined by hand. The same image under the same id is no mistake."""
    other = [{"id": 9, "file_name": "z.png"}, {"id": 4, "file_name": "b.png"}]
    twice = COCO | {"images": COCO["images"] + other}
    with pytest.raises(ValueError, match=r"1 image ids belong to two files.*9 \(a.png and z.png\)"):
        read_captions(write(tmp_path / "x.json", json.dumps(twice)), Report())
    again = COCO | {"images": COCO["images"] * 2}
    assert read_captions(write(tmp_path / "y.json", json.dumps(again)), Report()) == EXPECTED


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.ndjson", "x.txt", "x", "x.JSON"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_lines_are_read_whatever_they_are_called(tmp_path, name, encoding):
    lines = ['{"image": "a.png", "text": ["a cat", "one cat"]}', '{"path": "b.png", "text": "x"}']
    expected = {"a.png": ("a cat", "one cat"), "b.png": ("x",)}
    for ends in ("\n", "\r\n", "\n\n"):
        listed = write(tmp_path / name, ends.join([*lines, ""]), encoding)
        assert read_captions(listed, Report()) == expected
    one = write(tmp_path / name, lines[0], encoding)
    assert read_captions(one, Report()) == {"a.png": ("a cat", "one cat")}
    with pytest.raises(ValueError, match=r"line 2: not JSON"):
        read_captions(write(tmp_path / name, lines[0] + "\n{", encoding), Report())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "image,caption,caption\na.png,a,b\n", "line 1: two columns are called caption"),
        ("x.csv", "image,caption, Image \na.png,a,b\n", "line 1: two columns are called image"),
        ("x.tsv", "image\tcaption\tid\tid\n", "line 1: two columns are called id"),
        ("x.jsonl", '{"image": "a", "text": "b", "text": "c"}', "line 1: two fields.*called text"),
        ("x.json", '[{"image": "a", "image": "b", "text": "c"}]', "two fields.*called image"),
    ],
)
def test_two_columns_of_one_name_are_an_error(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_captions(write(tmp_path / name, text), Report())


def test_columns_that_are_not_read_are_said(tmp_path):
    report = Report()
    text = "image,title,caption,,\na.png,ignored,a cat,,\n"
    assert read_captions(write(tmp_path / "x.csv", text), report) == {"a.png": ("a cat",)}
    assert "x.csv, line 1: title" in str(report)


@given(st.integers(0, 30), st.text("ab\u00e9\u4eac", max_size=9), st.sampled_from(["csv", "txt"]))
def test_a_file_that_is_not_utf8_is_named_with_the_place(tmp_path_factory, lines, before, kind):
    folder = tmp_path_factory.mktemp("broken")
    ahead = "".join(f"{number}.png,a\n" for number in range(lines)).encode()
    if kind == "csv":
        path = folder / "x.csv"
        ahead = b"image,caption\n" + ahead
    else:
        make_image(folder / "x.png")
        path = folder / "x.txt"
    path.write_bytes(ahead + before.encode() + b"\xe9 un\nmore\n")
    place = f"byte {len(before.encode()) + 1} of line {ahead.count(10) + 1} is 0xe9"
    report = Report()
    if kind == "csv":
        with pytest.raises(ValueError, match=f"x.csv is not UTF-8 .{place}"):
            read_captions(path, report)
    else:
        assert read_captions(folder, report) == {}
        assert f"{path} is not UTF-8 ({place})" in str(report)


def test_one_bad_caption_file_does_not_stop_the_others(tmp_path):
    bad = {3: "un carr\u00e9".encode("latin-1"), 5: "a square".encode("utf-16")}
    for number in range(8):
        make_image(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_bytes(bad.get(number, b"a square"))
    (tmp_path / "._1.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "._1.txt").write_bytes(b"\0\5\x16\7\xb0\xff")
    report = Report()
    found = read_captions(tmp_path, report)
    assert found == {f"{n}.png": ("a square",) for n in range(8) if n not in bad}
    assert counts(report) == {
        "left alone as hidden": 2,
        "caption files that cannot be read left out, with their images": 2,
    }


def test_captions_are_found_beside_their_images_whatever_the_case(tmp_path):
    for name, text in {"A.PNG": "A.TXT", "b.Jpg": "b.txt", "c.v1.png": "c.v1.txt"}.items():
        make_image(tmp_path / name)
        write(tmp_path / text, f"of {name}\r\nline \u2028 two\r\n")
    write(tmp_path / "stray.txt", "of nothing")
    report = Report()
    found = read_captions(tmp_path, report)
    assert found == {n: (f"of {n}", "line two") for n in ("A.PNG", "b.Jpg", "c.v1.png")}
    assert counts(report) == {"caption files without a picture": 1} and "stray.txt" in str(report)
