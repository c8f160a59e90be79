"""Lists that no one would wish to read: (name, bytes, right captions or None), seeded."""

import itertools
import json
import random

ROWS = [("a.png", "a cat"), ("b.png", "two dogs")]
RIGHT = {"a.png": ("a cat",), "b.png": ("two dogs",)}
COCO = {
    "images": [{"id": number, "file_name": name} for number, (name, _) in enumerate(ROWS)],
    "annotations": [{"image_id": number, "caption": text} for number, (_, text) in enumerate(ROWS)],
}
VALUES = [
    None, True, 3, -1.5, 1e308, "", "x", "\ud800", "\0", "../..", "x" * 5000, [], ["x"], [3], [[]],
    {}, {"id": 1}, [None, "x"], ["x" * 300] * 300,
]  # fmt: skip
HASH = 2**61 - 1  # of whole numbers that differ by a multiple of it Python's hashes are equal


def table(rows, comma=",", head=("image", "caption")):
    return "".join(comma.join(row) + "\n" for row in (head, *rows))


def lines(rows):
    return "".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in rows)


def digits(count):
    return "9" * count


def of_encodings():
    forms = {"csv": table(ROWS), "tsv": table(ROWS, "\t"), "jsonl": lines(ROWS)}
    forms["json"] = json.dumps(COCO)
    for kind, text in forms.items():
        for encoding in ("utf-8", "utf-8-sig"):
            yield f"{encoding}.{kind}", text.encode(encoding), RIGHT
        for encoding in ("utf-16", "utf-32", "utf-16-le"):
            yield f"{encoding}.{kind}", text.encode(encoding), None
        for encoding in ("latin-1", "cp1252", "shift-jis"):
            word = "\u732b" if encoding == "shift-jis" else "caf\u00e9"
            yield f"{encoding}.{kind}", text.replace("cat", word).encode(encoding), None
            if kind == "json":
                break
        for end in ("\r\n", "\r"):
            yield f"end{len(end)}.{kind}", text.replace("\n", end).encode(), RIGHT
        yield f"cut.{kind}", text.encode()[:-9], None
        yield f"nul.{kind}", text.replace("cat", "c\0t").encode(), None
        yield f"nothing.{kind}", b"", None


def of_tables():
    many = [f"c{number}" for number in range(100_000)]
    wide = ",".join(["image", "caption", *many])
    yield "wide.csv", f"{wide}\na.png,a cat\n".encode(), {"a.png": ("a cat",)}
    yield "wide_unknown.csv", (",".join(many) + "\n").encode(), None
    yield "wide_twice.csv", (wide + ",C5\n").encode(), None
    yield "wide_rows.csv", ("image,caption\n" + "x," * 100_000 + "\n").encode(), None
    long = "word " * 60_000
    yield "long.csv", table([("a.png", long)]).encode(), {"a.png": (long.strip(),)}
    yield "longer.csv", table([("a.png", "x" * (2**24 + 1))]).encode(), None
    yield "named.csv", table([("x" * 100_000, "a cat")]).encode(), {"x" * 100_000: ("a cat",)}
    for number, row in enumerate(
        ['a.png,"a" cat', 'a.png,"a cat', '"a.png', "a.png,a,b", "a.png", ",", '"""', "\0", "\x1a"]
    ):
        yield f"row_{number}.csv", table([(row,)]).encode(), None
        yield f"row_{number}_of_many.csv", table([*ROWS * 50, (row,), *ROWS]).encode(), None
    for number, head in enumerate(
        [("image",), ("Image", "IMAGE", "caption"), ("", ""), ("image", "caption", "caption"),
         ("\0", "\0"), ("image;caption",), ("x" * 50_000, "caption")]
    ):  # fmt: skip
        yield f"head_{number}.csv", table(ROWS, head=head).encode(), None


def of_json():
    for number, value in enumerate(VALUES):
        text = json.dumps(value)
        yield f"top_{number}.json", text.encode(), None
        yield f"line_{number}.jsonl", f"{lines(ROWS)}{text}\n".encode(), None
        yield f"entries_{number}.json", json.dumps([value, value]).encode(), None
        for field in ("image", "caption"):
            record = {"image": "a.png", "caption": "a cat"} | {field: value}
            yield f"{field}_{number}.jsonl", json.dumps(record).encode(), None
        for part, field in itertools.product(COCO, ("id", "file_name", "image_id", "caption")):
            if field in COCO[part][0]:
                other = json.loads(json.dumps(COCO))
                other[part][0][field] = value
                yield f"{part}_{field}_{number}.json", json.dumps(other).encode(), None
        for part in COCO:
            yield f"{part}_{number}.json", json.dumps(COCO | {part: value}).encode(), None
    for count in (100, 1100, 100_000):
        deep = "[" * count + "]" * count
        yield f"deep_{count}.json", deep.encode(), None
        for field in ("image", "caption"):
            record = f'{{"image": "a.png", "caption": "a cat", "{field}": {deep}}}'
            yield f"deep_{field}_{count}.jsonl", record.encode(), None
        objects = '{"a":' * count + "1" + "}" * count
        yield f"deep_objects_{count}.json", objects.encode(), None
        image = f'{{"images": [{{"id": {deep}, "file_name": {deep}}}], "annotations": []}}'
        yield f"deep_coco_{count}.json", image.encode(), None
        twice = f'{{"id": 1, "file_name": {deep}}}'
        yield (
            f"deep_twice_{count}.json",
            f'{{"images": [{twice}, {twice}], "annotations": []}}'.encode(),
            None,
        )


def of_numbers():
    record = '{"image": "a.png", "caption": "a cat", "size": %s}\n'
    for number in (digits(5000), "-" + digits(100_000), "1e999", "NaN", "-Infinity", digits(999)):
        yield f"number_{len(number)}.jsonl", (record % number).encode() * 2, {"a.png": ("a cat",)}
    coco = '{"images": [{"id": %s, "file_name": "a.png"}], "annotations": '
    coco += '[{"image_id": %s, "caption": "a cat"}]}'
    for number in (digits(5000), "1.0", "1e3", '"x"', "0.5"):
        yield (
            f"id_{number[:4]}_{len(number)}.json",
            (coco % (number, number)).encode(),
            {"a.png": ("a cat",)},
        )
    yield "id_whole.json", (coco % ("1", "1.0")).encode(), {"a.png": ("a cat",)}
    yield "path.jsonl", f'{{"image": {digits(5000)}, "caption": "a"}}\n'.encode(), None
    images = [{"id": HASH * number, "file_name": f"{number}.png"} for number in range(30_000)]
    notes = [{"image_id": image["id"], "caption": "a cat"} for image in images]
    whole = {image["file_name"]: ("a cat",) for image in images}
    yield "equal_hashes.json", json.dumps({"images": images, "annotations": notes}).encode(), whole
    fields = ", ".join(f'"f{number}": 1' for number in range(100_000))
    yield (
        "wide.jsonl",
        f'{{"image": "a.png", "caption": "a cat", {fields}}}'.encode(),
        {"a.png": ("a cat",)},
    )
    yield "wide_twice.jsonl", f'{{"f5": 1, {fields}, "f7": 2}}'.encode(), None
    yield "wide_unknown.jsonl", f"{{{fields}}}".encode(), None
    yield "twice.json", b'[{"image": "a.png", "image": "b.png", "caption": "a"}]', None
    halves = b'{"image": "\\ud83d.png", "caption": "a \\ude00 cat"}'
    yield "halves.jsonl", halves, {"\ud83d.png": ("a cat",)}


def damaged(rng, forms):
    for number, (kind, text) in enumerate(forms * 12):
        content = bytearray(text)
        for _ in range(3):
            place = rng.randrange(len(content))
            content[place : place + rng.randrange(2)] = rng.choice(
                [b'"', b"\0", b",", b"\xff", b"{"]
            )
        yield f"damaged_{number}.{kind}", bytes(content), None


def all_of_them(seed=0):
    yield from of_encodings()
    yield from of_tables()
    yield from of_json()
    yield from of_numbers()
    forms = [("csv", table(ROWS * 9)), ("jsonl", lines(ROWS * 9)), ("json", json.dumps(COCO))]
    forms = [(kind, text.encode()) for kind, text in forms]
    yield from damaged(random.Random(seed), forms)
