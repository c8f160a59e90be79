"""What every list of captions comes to, however it is written: records, each from its own place."""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

from minicoca.data.files import Report
from minicoca.images import Piece, name_of, open_file
from minicoca.words import clean, clip

IMAGE_COLUMNS = (
    *("image", "path", "filepath", "file", "filename", "image_path"),
    *("file_name", "image_name", "image_file", "img"),
)
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "comment")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category")
LABELS = {"what": "label", "known": LABEL_COLUMNS}  # of a Reading: classes in place of captions
SPLIT_COLUMNS = ("split",)
SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),  # restval: Karpathy's, of COCO
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("held_out", "test", "testing"), "held_out"),
}
PLACEHOLDER = "picture"  # the caption of every image, where none is asked for
MOST_DIGITS = 1000  # of an integer; what has more is kept as it is written


class Record(NamedTuple):
    """One entry of a list, not yet looked into."""

    image: object  # its path as written
    captions: object  # one or several
    where: str  # it was written
    split: object = None


@dataclass
class Reading:
    """How a source is to be read, and what was found besides its records.

    image, caption, split: the columns, or fields, to read; empty: those that are known by name.
    template: of a class folder's caption, with {} for the name of the class.
    root: what paths are relative to; None: the list's own folder.
    what, known: what stands beside an image, and the names by which its column is known. Of labels,
        whole numbers may be names. what None: nothing is asked for beside it.
    """

    report: Report
    image: str = ""
    caption: str = ""
    split: str = ""
    template: str = "a photo of a {}"
    root: Path | None = None
    kind: str = ""  # the layout, in words
    pieces: dict[str, Piece] = field(default_factory=dict)  # images that lie within other files
    classes: dict[str, str] = field(default_factory=dict)  # the caption of a class -> its name
    what: str | None = "caption"
    known: tuple[str, ...] = CAPTION_COLUMNS

    @property
    def labels(self) -> bool:
        """Whether classes are read in the place of captions."""
        return self.what == "label"

    def columns(self, names: Sequence[str] | dict, where: str) -> tuple[str, str, str]:
        """The names of the columns of images, captions and splits; the last may be empty. Where no
        captions are asked for the second is the first. Raises ValueError where one is missing."""
        image = pick(names, IMAGE_COLUMNS, self.image, "image", where, self.report)
        caption, split = self.said_of(names, where)
        return image, caption or image, split

    def said_of(self, names: Sequence[str] | dict, where: str) -> tuple[str, str]:
        """`columns`, but that of images."""
        caption = ""
        if self.what:
            caption = pick(names, self.known, self.caption, self.what, where, self.report)
        known = [name for name in SPLIT_COLUMNS if name in names and not self.split]
        split = pick(names, (), self.split, "split", where, self.report) if self.split else ""
        return caption, split or "".join(known[:1])

    def record(self, entry: object, where: str) -> Record:
        """The record of a JSON object. Raises ValueError for what is none."""
        fields = is_object(entry, where, '{"image": "a.png", "caption": "a cat"}')
        image, caption, split = self.columns(fields, where)
        return Record(fields[image], fields[caption], where, fields[split] if split else None)

    def said(self, entry: object, where: str) -> tuple[object, object]:
        """(captions, split) of a JSON object that belongs to an image. Raises ValueError."""
        fields = is_object(entry, where, '{"caption": "a cat"}')
        caption, split = self.said_of(fields, where)
        return fields[caption] if caption else "", fields[split] if split else None


def is_object(entry: object, where: str, example: str) -> dict:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: not an object such as {example}")
    return entry


def pick(
    names: Sequence[str] | dict,
    known: Sequence[str],
    wanted: str,
    what: str,
    where: str,
    report: Report,
) -> str:
    """The wanted name, or else the first known one that there is; others that would do are not
    read, which is said. Raises ValueError where there is none."""
    there = [name for name in ((wanted,) if wanted else known) if name in names]
    if not there:
        given = clip(", ".join(names), 60) if len(names) < 10 else f"{len(names):,} names"
        if wanted:
            what = f"none is called {clip(wanted, 40)} (--{what}-column)"
        else:
            what = f"one must be called {', '.join(known)} (or name it: --{what}-column)"
        raise ValueError(f"{where}: has {given or 'nothing'}, but {what}")
    if there[1:]:
        report.add(f"rows or tables read for {there[0]} alone", f"{where}: {', '.join(there[1:])}")
    return there[0]


def gathered(
    records: Iterable[Record], reading: Reading
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """(image path as written -> its captions, cleaned and each once; -> its split, where it is
    given). What has no image, no caption, or a split of an unknown name goes to the report.
    Raises ValueError for what can be neither."""
    report = reading.report
    captions: dict[str, dict[str, None]] = {}  # the inner dict is a set that keeps its order
    splits: dict[str, str] = {}
    for name, texts, where, split in records:
        if reading.labels and type(texts) is int:
            texts = str(texts)
        cleaned = clean_all(texts, where, report) if reading.what else [PLACEHOLDER]
        if not isinstance(name, str | None):
            raise ValueError(f"{where}: image must be a path: {brief(name)}")
        if not isinstance(split, str | None):
            raise ValueError(f"{where}: split must be a word such as train: {brief(split)}")
        part = SPLITS.get((split or "").strip().lower(), "")
        if not name:
            report.add("rows without an image left out", where)
        elif not cleaned:
            report.add(f"rows without a {reading.what} left out", where)
        elif (split or "").strip() and not part:
            reason = "rows of a split that is none of train, validation, test left out"
            report.add(reason, f"{where}: {brief(split)}")
        else:
            captions.setdefault(name, {}).update(dict.fromkeys(cleaned))
            if part and splits.setdefault(name, part) != part:
                report.add("images given to two splits, kept in the first", f"{where}: {name}")
    return {name: tuple(texts) for name, texts in captions.items()}, splits


def split_in(name: str) -> str | None:
    """The split that a file or folder says by its name, as captions_val2017 does; None: no one."""
    found = {SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def splits_of(
    folder: Path, paths: Iterable[Path], report: Report, by_name: bool = False
) -> dict[Path, str]:
    """The split of each file below a folder by what the folders above it are called (by_name: or
    first it itself), where they name several; those of none are trained on then, which is said.
    Empty where they do not."""
    found = {
        path: (by_name and split_in(path.stem))
        or split_in(path.relative_to(folder).parent.as_posix())
        for path in paths
    }
    return or_train(found, report) if len({*found.values()} - {None}) > 1 else {}


def or_train(found: Mapping[Path, str | None], report: Report) -> dict[Path, str]:
    """The split of each file; those of none are trained on, which is said."""
    for path in (path for path, part in found.items() if not part):
        report.add("files trained on, since others alone name a split", str(path))
    return {path: part or "train" for path, part in found.items()}


def opened(path: Path) -> TextIOWrapper:
    """A list as text, its ends of lines as they are. Raises NoFileError where there is no file."""
    return TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="")


def brief(value: object) -> str:
    """A value for a message, however large it is."""
    return clip(reprlib.repr(value), 60)


def clean_all(texts: object, where: str, report: Report) -> list[str]:
    """The captions of a record that can be seen; raises ValueError for what is no text."""
    texts = texts if isinstance(texts, list) else [texts]
    if not all(isinstance(text, str | None) for text in texts):
        raise ValueError(f"{where}: a caption must be text or a list of texts: {brief(texts)}")
    cleaned = [text for text in map(clean, filter(None, texts)) if text]
    if cleaned and len(cleaned) < len(texts):
        report.add("rows with an empty caption beside others", where)
    return cleaned


def not_utf8(path: Path) -> str:
    """Where a file is not UTF-8, in words."""
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = f"byte {error.start + 1} of line {number} is 0x{line[error.start]:02x}"
                return f"{name_of(path)} is not UTF-8 ({byte}); save it as UTF-8"
    return f"{name_of(path)} was not UTF-8 when it was read"


def refuse_twice(names: Sequence[str], where: str, what: str) -> None:
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise ValueError(f"{where}: two {what} are called {clip(twice[0])}; rename or join them")


def integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= MOST_DIGITS else digits


def parse(text: str, where: str) -> object:
    """JSON. Raises ValueError for what is none, and for two fields of one name."""

    def once(fields: list[tuple[str, object]]) -> dict:
        found = dict(fields)
        if len(found) < len(fields):
            refuse_twice([name for name, _ in fields], where, "fields of an object")
        return found

    try:
        return json.loads(text, object_pairs_hook=once, parse_int=integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({clip(str(error))}); mend or remove it") from error
    except RecursionError as error:
        raise ValueError(f"{where}: not JSON (nested too deep); mend or remove it") from error
