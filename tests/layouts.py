"""One data set, written in every layout that people have: (folder, captions, splits) -> what to
read. captions: name -> texts; splits: name -> train, validation or held_out."""

import csv
import io
import json
import tarfile

SPOKEN = {"train": "train", "validation": "val", "held_out": "test"}


def content(name):
    """Bytes of its own for each image; a test that looks at pictures puts some in their place."""
    return f"bytes of {name}".encode()


def put(folder, names):
    """Files called as images, each with its own bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(content(name))


def table(path, rows, separator=",", **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator, **how).writerows(rows)
    return path


def each(captions):
    return [(name, text) for name, texts in captions.items() for text in texts]


def by_split(captions, splits):
    parts = {}
    for name, texts in captions.items():
        parts.setdefault(splits[name], {})[name] = texts
    return parts


def hf_lines(folder, captions, splits):
    for part, own in by_split(captions, splits).items():
        put(folder / SPOKEN[part], own)
        lines = [{"file_name": name, "text": texts} for name, texts in own.items()]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / SPOKEN[part] / "metadata.jsonl").write_text(text)
    return folder


def hf_table(folder, captions, splits):
    for part, own in by_split(captions, splits).items():
        put(folder / "data" / part.replace("held_out", "test"), own)
        rows = [("file_name", "text"), *each(own)]
        table(folder / "data" / part.replace("held_out", "test") / "metadata.csv", rows)
    return folder


def open_clip(folder, captions, splits):
    put(folder / "Images", captions)
    return table(folder / "list.csv", [("filepath", "title"), *each(captions)], "\t")


def split_column(folder, captions, splits):
    put(folder, captions)
    rows = [(name, text, SPOKEN[splits[name]].upper()) for name, text in each(captions)]
    return table(folder / "list.csv", [("image", "caption", "split"), *rows], ";")


def flickr8k(folder, captions, splits):
    put(folder / "Images", captions)
    table(folder / "captions.txt", [("image", "caption"), *each(captions)])
    return folder


def flickr30k(folder, captions, splits):
    put(folder / "flickr30k_images", captions)
    rows = [f"{n}| {k}| {t}" for n, ts in captions.items() for k, t in enumerate(ts)]
    text = "\n".join(["image_name| comment_number| comment", *rows, ""])
    (folder / "results.csv").write_text(text, encoding="utf-8")
    return folder


def token(folder, captions, splits):
    put(folder / "deep" / "er", captions)
    rows = [f"{n}#{k}\t{t}\n" for n, ts in captions.items() for k, t in enumerate(ts)]
    (folder / "results_20130124.token").write_text("".join(rows), encoding="utf-8")
    return folder


def karpathy(folder, captions, splits):
    put(folder / "val2014", captions)
    words = SPOKEN | {"train": "restval"}
    images = [
        {
            "filepath": "val2014",
            "filename": name,
            "split": words[splits[name]],
            "sentences": [{"raw": text, "tokens": text.split()} for text in texts],
        }
        for name, texts in captions.items()
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    return folder / "dataset_coco.json"


def coco_of(captions):
    images = [{"id": n, "file_name": name} for n, name in enumerate(captions)]
    notes = [
        {"id": k, "image_id": image["id"], "caption": text}
        for image in images
        for k, text in enumerate(captions[image["file_name"]])
    ]
    notes.sort(key=lambda note: note["id"])  # of several images in turn
    return json.dumps({"images": images, "annotations": notes})


def coco(folder, captions, splits):
    put(folder / "val2017", captions)
    (folder / "annotations").mkdir()
    listed = folder / "annotations" / "captions_val2017.json"
    listed.write_text(coco_of(captions))
    return listed


def coco_by_files(folder, captions, splits):
    (folder / "annotations").mkdir()
    for part, own in by_split(captions, splits).items():
        put(folder / f"{SPOKEN[part]}2017", own)
        (folder / "annotations" / f"captions_{SPOKEN[part]}2017.json").write_text(coco_of(own))
        (folder / "annotations" / f"instances_{SPOKEN[part]}2017.json").write_text("{}")
    return folder


def json_lines(folder, captions, splits):
    put(folder, captions)
    lines = [{"path": n, "caption": t, "split": splits[n]} for n, t in each(captions)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "whatever.data").write_text(text + "\n", encoding="utf-8")
    return folder / "whatever.data"


def by_file(folder, captions, splits):
    put(folder / "pictures", captions)
    found = {name: texts[0] if len(texts) == 1 else texts for name, texts in captions.items()}
    (folder / "captions.json").write_text(json.dumps(found))
    return folder


def texts_beside(folder, captions, splits):
    put(folder, captions)
    for name, texts in captions.items():
        text = "\n".join(texts)
        (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    return folder


def texts_by_folder(folder, captions, splits):
    for part, own in by_split(captions, splits).items():
        texts_beside(folder / f"{SPOKEN[part]}2017", own, splits)
    return folder


def tar(path, members, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def webdataset(folder, captions, splits, named="{}-0000.tar"):
    for part, own in by_split(captions, splits).items():
        members = []
        for name, texts in own.items():
            stem = name.rpartition(".")[0]
            members.append((f"{stem}.txt", "\n".join(texts).encode()))
            members.append((name, content(name)))
        path = folder / named.format(SPOKEN[part])
        path.parent.mkdir(parents=True, exist_ok=True)
        tar(path, members, tarfile.GNU_FORMAT)
    return folder


def shards_by_folder(folder, captions, splits):
    return webdataset(folder, captions, splits, "{}/0000.tar")


def img2dataset(folder, captions, splits):
    """Shards of one kind, named by a pattern."""
    names = list(captions)
    for number in range(2):
        members = []
        for name in names[number::2]:
            fields = {"caption": captions[name], "url": "u", "split": splits[name]}
            stem = name.rpartition(".")[0]
            members.append((name, content(name)))
            members.append((f"{stem}.json", json.dumps(fields).encode()))
        tar(folder / f"0000{number}.tar", members)
        (folder / f"0000{number}_stats.json").write_text("{}")
        (folder / f"0000{number}.parquet").write_bytes(b"PAR1")
    return folder / "{00000..00001}.tar"


WITHOUT = (open_clip, flickr8k, flickr30k, token, coco, by_file, texts_beside)
WITH = (
    hf_lines, hf_table, split_column, karpathy, coco_by_files, json_lines, webdataset, img2dataset,
    texts_by_folder, shards_by_folder,
)  # fmt: skip
