"""Lists of the newer kinds that no one wishes to read: (name, bytes, right captions or None)."""

import io
import json
import tarfile

from hostile_lists import RIGHT, ROWS, VALUES, table

KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filename": name, "filepath": "", "split": "train", "sentences": [{"raw": text}]}
        for name, text in ROWS
    ],
}


def of_karpathy():
    yield "karpathy.json", json.dumps(KARPATHY).encode(), RIGHT
    for number, value in enumerate(VALUES):
        for field in ("filename", "filepath", "split", "sentences"):
            other = json.loads(json.dumps(KARPATHY))
            other["images"][1][field] = value
            yield f"karpathy_{field}_{number}.json", json.dumps(other).encode(), None
            del other["images"][1][field]
            yield f"karpathy_without_{field}_{number}.json", json.dumps(other).encode(), None
        other = json.loads(json.dumps(KARPATHY))
        other["images"][1]["sentences"] = [value]
        yield f"karpathy_sentence_{number}.json", json.dumps(other).encode(), None
        other["images"][1]["sentences"] = [{"raw": value}]
        yield f"karpathy_raw_{number}.json", json.dumps(other).encode(), None
        other["images"][1] = value
        yield f"karpathy_image_{number}.json", json.dumps(other).encode(), None


def of_files():
    """{file: captions}."""
    yield "by_file.json", json.dumps({"a.png": "a cat", "b.png": ["two dogs"]}).encode(), RIGHT
    for number, value in enumerate(VALUES):
        yield f"by_file_{number}.json", json.dumps({"a.png": value, "b.png": "x"}).encode(), None
    many = {f"{number}.png": "a cat" for number in range(100_000)}
    whole = {name: (text,) for name, text in many.items()}
    yield "by_file_many.json", json.dumps(many).encode(), whole
    yield "by_file_twice.json", b'{"a.png": "x", "a.png": "y"}', None
    yield "by_file_none.json", b"{}", None


def of_flickr():
    token = "".join(f"{name}#0\t{text}\n" for name, text in ROWS)
    yield "results.token", token.encode(), RIGHT
    yield "captions.txt", table(ROWS).encode(), RIGHT
    bars = "image_name| comment_number| comment\n"
    bars += "".join(f"{name}| 0| {text}\n" for name, text in ROWS)
    yield "results.csv", bars.encode(), RIGHT
    for number, row in enumerate(
        ["a.png", "a.png\tx", "#0\tx", "a#1#2\tx", "a#x\ty", '"', "\0", "|"]
    ):
        for name, text in (("token", token), ("bars.csv", bars), ("captions.txt", table(ROWS))):
            yield f"row_{number}_{name}", f"{text}{row}\n".encode(), None
    for kind in ("latin-1", "utf-16", "utf-32"):
        yield f"{kind}.token", token.replace("cat", "caf\u00e9").encode(kind), None
        yield f"{kind}_bars.csv", bars.replace("cat", "caf\u00e9").encode(kind), None
    yield "no_end.token", b"x" * 5_000_000, None
    yield "no_end.txt", b"a,b" * 2_000_000, None
    yield "bars_wide.csv", (bars + "a.png|" * 1_000_000).encode(), None
    split = "image,caption,split\na.png,a cat,train\nb.png,two dogs,%s\n"
    for number, value in enumerate(["", "TEST ", "fold", "x" * 90_000, "\u200b"]):
        right = RIGHT if number < 2 else None
        yield f"split_{number}.csv", (split % value).encode(), right


def shard(members=(("a.png", b"x"), ("a.txt", b"a cat")), form=tarfile.PAX_FORMAT, **fields):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), fields
            made.addfile(info, io.BytesIO(content))
    return file.getvalue()


def summed(header: bytes) -> bytes:
    """A header with its right checksum."""
    total = sum(header) - sum(header[148:156]) + 256
    return header[:148] + b"%06o\0 " % total + header[156:]


def with_size(whole: bytes, field: bytes) -> bytes:
    return summed(whole[:124] + field.ljust(12, b"\0")[:12] + whole[136:512]) + whole[512:]


def of_shards():
    whole = shard()
    read = {"shard.tar/a.png": ("a cat",)}
    yield "shard.tar", whole, read
    yield "nothing.tar", b"", None
    for cut in (1, 100, 511, 512, 513, 1024, 1500, 2048):
        yield f"cut_{cut}.tar", whole[:cut], None
    sizes = [b"77777777777", b"-1", b"x", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"9", b"", b" 1 "]
    for number, field in enumerate(sizes):
        yield f"size_{number}.tar", with_size(whole, field), None
    for kind in b"xgLKSVM1234567D\0\xff":
        header = summed(whole[:156] + bytes([kind]) + whole[157:512])
        yield f"kind_{kind}.tar", header + whole[512:], None
        yield f"kind_{kind}_large.tar", with_size(header + whole[512:], b"7777777"), None
    for number, content in enumerate(
        [b"", b"5 path=x\n", b"99999999999 path=a\n", b"9 size=-1\n", b"19 size=9999999999\n", b"x"]
    ):
        yield f"pax_{number}.tar", pax(content) + whole, None
    yield "pax_long.tar", pax(b"x" * 3_000_000) + whole, None
    yield "pax_many.tar", pax(b"11 path=ab\n") * 20_000 + whole, None
    for number, name in enumerate(
        ["../a.png", "/a.png", "a" * 250 + ".png", "\u200b.png", "a\n.png"]
    ):
        text = name[:-4] + ".txt"
        yield f"name_{number}.tar", shard([(name, b"x"), (text, b"a cat")]), None
    bad = [b"\xff", b"\0", b"", b"x" * (2**20 + 1), b"[" * 100_000, b'{"caption": 5}', b"null"]
    for number, content in enumerate(bad):
        for kind in ("txt", "json"):
            yield (
                f"text_{number}_{kind}.tar",
                shard([("a.png", b"x"), (f"a.{kind}", content)]),
                None,
            )
    yield "many.tar", shard([(f"{n}.png", b"") for n in range(20_000)], tarfile.USTAR_FORMAT), {}
    yield "zeros.tar", bytes(2**20), None
    yield "sparse.tar", shard(**{"GNU.sparse.major": "1"}), {}
    yield "gzip.tar", b"\x1f\x8b\x08" + whole, None
    yield "parquet.parquet", b"PAR1" + whole, None


def pax(content: bytes) -> bytes:
    header = bytearray(shard([("p", content)], tarfile.USTAR_FORMAT)[:512])
    header[156:157] = b"x"
    return summed(bytes(header)) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def damaged(whole, rng, headers=()):
    """The same bytes with a few others among them; in a header with its sum made right."""
    found = bytearray(whole)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.choice(headers)) if len(headers) and rng.random() < 0.8 else None
        begin = int(rng.integers(len(found))) if at is None else at + int(rng.integers(512))
        count = min(int(rng.integers(1, 9)), len(found) - begin)
        found[begin : begin + count] = rng.bytes(1) * count if rng.random() < 0.5 else bytes(count)
        if at is not None:
            found[at : at + 512] = summed(bytes(found[at : at + 512]))
    return bytes(found[: rng.integers(len(found))] if rng.random() < 0.1 else found)


def damaged_tars(rng, count):
    members = [(f"{n}.{kind}", b"a cat") for n in range(4) for kind in ("png", "txt")]
    whole = shard(members)
    yield from (damaged(whole, rng, range(0, 1024 * 8, 512)) for _ in range(count))


def damaged_parquet(rng, count):
    """Of a table whose texts are in a dictionary, compressed, and plain."""
    import pyarrow
    import pyarrow.parquet

    texts = [f"a cat of {n} days" for n in range(999)]
    table = pyarrow.table({"image": [f"{n}.png" for n in range(999)], "text": texts})
    for number in range(count):
        file = io.BytesIO()
        how = ("none", "snappy", "gzip", "zstd")[number % 4]
        pyarrow.parquet.write_table(table, file, compression=how, use_dictionary=number % 3 > 0)
        yield damaged(file.getvalue(), rng)


def all_of_them():
    for made in (of_karpathy, of_files, of_flickr, of_shards):
        yield from made()
