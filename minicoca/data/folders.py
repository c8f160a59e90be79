"""Folders of images and captions: Hugging Face's, one with a list in it, texts beside the images,
shards, or classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from minicoca.data.checksums import CHECKSUMS, compare
from minicoca.data.files import TEXT_SUFFIX, files_below, is_image
from minicoca.data.lists import LISTS, folder_of, records, under
from minicoca.data.records import SPLITS, Reading, Record, not_utf8, split_in, splits_of
from minicoca.data.shards import TAR, read_shards
from minicoca.data.tables import TABLES, is_table, is_token_list
from minicoca.images import open_file, patiently, read
from minicoca.words import clean, clip

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTIONS = ("captions", "dataset", "results")  # what lists of captions are called, beside others


def read_folder(folder: Path, reading: Reading) -> Iterator[Record]:
    """The records of a folder: of the first of these that it is.

    - Hugging Face's imagefolder: `metadata.jsonl` or `metadata.csv`, here or in folders below, each
      of the images beside it. A folder called train, validation or test is that split.
    - Texts: an image with a text file of the same name beside it, one caption a line.
    - Shards: `.tar` files, and no images beside them.
    - A list of any kind in the folder, or several that are called after splits.
    - Classes: every image in a folder that is called after what it shows.
    """
    files = files_below(folder, reading.report)
    images = [path for path in files if is_image(path)]
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == TEXT_SUFFIX}
    texts |= {path.with_suffix(""): path for path in files if path.suffix == TEXT_SUFFIX}
    if tables := [path for path in files if path.name.lower() in METADATA]:
        reading.kind = "Hugging Face's imagefolder"
        return read_lists(folder, tables, images, reading, beside=True)
    if any(path.with_suffix("") in texts for path in images):
        return read_texts(folder, files, images, texts, reading)
    if (shards := [path for path in files if path.suffix.lower() == TAR]) and not images:
        for home in dict.fromkeys(path.parent for path in files if path.name == CHECKSUMS):
            compare(home, reading.report)
        return read_shards(shards, folder, reading)
    classes = classes_of(folder, images)
    if lists := lists_among(files, reading, bool(classes)):
        return read_lists(folder, chosen(folder, lists), images, reading)
    if classes:
        return read_classes(folder, images, reading)
    return read_texts(folder, files, images, texts, reading)


def lists_among(files: list[Path], reading: Reading, classes: bool) -> list[Path]:
    """The files that are lists by their name, or by how a text begins. Where there are class
    folders too, a table that names no columns of ours is none, which is said."""
    found = [path for path in files if path.suffix.lower() in LISTS]
    for path in files:
        if path.suffix.lower() == TEXT_SUFFIX and (is_token_list(path) or is_table(path, reading)):
            found.append(path)
    for path in list(found) if classes else ():
        if path.suffix.lower() in TABLES and not is_table(path, reading):
            reading.report.add("tables without images and captions left alone", str(path))
            found.remove(path)
    known = [path for path in found if path.name.lower().startswith(CAPTIONS)]
    return known or found


def chosen(folder: Path, lists: list[Path]) -> list[Path]:
    """The list to read, or those of different splits. Raises ValueError where there is a choice."""
    if len(lists) > 1:
        parts = [split_in(path.stem) for path in lists]
        if None in parts or len(set(parts)) < len(parts):
            said = ", ".join(clip(str(path.relative_to(folder)), 40) for path in lists[:3])
            raise ValueError(
                f"{clip(str(folder), 100)} holds {len(lists)} lists ({said}); give the one to read"
            )
    return lists


def read_lists(
    folder: Path, lists: list[Path], images: list[Path], reading: Reading, beside: bool = False
) -> Iterator[Record]:
    """Records of lists in a folder, their paths as seen from it. beside: each list's images are in
    its own folder."""
    kind, several, named = reading.kind, len(lists) > 1, set()
    for path in lists:
        inside = path.parent.relative_to(folder)
        part = split_in(path.stem) if several and not beside else split_in(inside.as_posix())
        found = list(records(path, reading))
        home = path.parent
        if not beside:
            names = (record.image for record in found if isinstance(record.image, str))
            home = folder_of(names, reading.root or home, beyond=home != folder)
        prefix = os.path.relpath(home, reading.root or folder)
        for record in found:
            if isinstance(record.image, str) and record.image:
                record = record._replace(image=under(prefix, record.image))
                named.add(os.path.normpath(record.image))
            yield record if record.split else record._replace(split=part)
    reading.kind = kind or reading.kind
    for path in images if reading.root is None else ():
        if path.relative_to(folder).as_posix() not in named:
            reading.report.add("images that no list names left out", str(path))


def read_texts(
    folder: Path,
    files: list[Path],
    images: list[Path],
    texts: dict[Path, Path],
    reading: Reading,
) -> Iterator[Record]:
    """Every image below `folder` with the lines of its text file. Folders called after splits are
    these."""
    reading.kind, report = "texts beside the images", reading.report
    splits = splits_of(folder, images, report)
    for path in images:
        text = texts.get(path.with_suffix(""), path.with_suffix(TEXT_SUFFIX))
        try:
            lines = lines_of(text) if path.with_suffix("") in texts else []
        except ValueError as error:
            report.add("caption files that cannot be read left out, with their images", str(error))
        else:
            where = f"{text} (missing or empty)"
            yield Record(path.relative_to(folder).as_posix(), lines, where, splits.get(path))
    described = {texts.get(path.with_suffix("")) for path in images}
    for path in files:
        if path.suffix.lower() == TEXT_SUFFIX and path not in described:
            report.add("caption files without a picture", str(path))


def lines_of(text: Path) -> list[str]:
    """The lines of a caption file. Raises ValueError if it is not UTF-8 or may not be read."""

    def content() -> bytes:
        with open_file(text) as file:
            return read(file, text)

    try:
        whole = patiently(content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(text)) from error
    return [line for line in StringIO(whole, newline=None) if line.strip()]


def classes_of(folder: Path, images: list[Path]) -> dict[str, list[tuple[Path, str | None]]]:
    """The name of each class, cleaned -> its images and their splits, where the folders above the
    classes are called after splits. Images in no class's folder are under ""."""
    parts = {path: path.relative_to(folder).parts[:-1] for path in images}
    tops = {own[0].lower() for own in parts.values() if own}
    divided = bool(tops) and tops <= SPLITS.keys()
    classes: dict[str, list[tuple[Path, str | None]]] = {}
    for path, own in parts.items():
        split, inner = (own[0], own[1:]) if divided and own else (None, own)
        name = clean(inner[0].replace("_", " ")) if inner else ""
        classes.setdefault(name, []).append((path, split))
    if not classes.get(""):
        classes.pop("", None)
    return classes if len(classes.keys() - {""}) > 1 else {}


def read_classes(folder: Path, images: list[Path], reading: Reading) -> Iterator[Record]:
    """Images whose folder says what they show, in the words of the template."""
    classes = classes_of(folder, images)
    for path, _ in classes.pop("", ()):
        reading.report.add("images in no class's folder left out", str(path))
    made = "" if reading.labels else f", captions made by {reading.template!r}"
    reading.kind = f"{len(classes)} class folders{made}"
    for name, own in classes.items():
        caption = clean(reading.template.replace("{}", name))
        reading.classes[caption] = name
        for path, split in own:
            yield Record(path.relative_to(folder).as_posix(), caption, str(path), split)
