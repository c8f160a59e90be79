"""Your own images and captions: a CSV, TSV or JSONL list, COCO captions, or a folder of both.

- CSV, TSV, JSONL (one object a line): an image column (image, path, filepath, file, filename or
  image_path) and a caption column (caption, captions, text or title). In JSONL a caption may be a
  list of them; in all three an image with several captions may also come several times.
- JSON: COCO captions ("images" and "annotations"), or a list of objects as in JSONL.
- A folder: every image with a text file of the same name beside it, one caption a line.

A mistake in a list stops at once with the line to mend. An image that is missing or damaged does
not: it is left out and counted.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minicoca.data.pairs import Dataset, ZeroShot
from minicoca.images import IMAGE_SUFFIXES, WHITE, ImageError, check, load_image

IMAGE_COLUMNS = ("image", "path", "filepath", "file", "filename", "image_path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")
EXAMPLES = 5  # of each kind of trouble, quoted in a report
SAMPLE = 256  # images from which the mean and std of pixels are taken

Record = tuple[str, object, str]  # image path as written, caption(s), where it was written


@dataclass
class Report:
    """What was left out or replaced, by the reason."""

    named: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, what: str) -> None:
        self.named[reason].append(what)

    def whole(self, most: int | None = None) -> str:
        """Every name, or the first `most` of each reason."""
        lines = []
        for reason, names in self.named.items():
            lines.append(f"{len(names)} {reason}:")
            lines.extend(f"  {name}" for name in names[:most])
            if most and len(names) > most:
                lines.append(f"  ... and {len(names) - most} more")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.whole(EXAMPLES)


class FolderPairs:
    """One split whose images are decoded when asked for, by `workers` threads; stands in for Pairs.

    A file that turns out to be damaged only then is replaced for good by the next good image of
    the split, captions and all: take `captions` after `batch`. Images are kept once decoded if all
    of them fit into `cache_bytes`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        captions: Sequence[tuple[str, ...]],
        side: int,
        *,
        background: tuple[int, int, int] = WHITE,
        workers: int = 4,
        cache_bytes: int = 256 * 2**20,
    ):
        self.paths = list(paths)
        self.captions = list(captions)
        self.zero_shot: ZeroShot | None = None
        self.trouble = Report()
        self._side, self._background = side, background
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        shape = (len(self.paths), side, side, 3)
        # np.empty takes real memory only as images are written into it
        self._kept = np.empty(shape, np.uint8) if np.prod(shape) <= cache_bytes else None
        self._is_kept = np.zeros(len(self.paths), dtype=bool)

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images at `indices` [B] as a new uint8 array [B, side, side, 3].

        Raises ValueError if no image of the split can be decoded any more.
        """
        wanted = range(len(self))
        rows = [wanted[int(index)] for index in indices]  # negative ones count from the end
        images = dict(zip(rows, self._pool.map(self._image_or_error, rows), strict=True))
        for row, image in images.items():
            if isinstance(image, ImageError):
                images[row] = self._replace(row, image)
        return np.stack([images[row] for row in rows])

    def report(self, most: int | None = EXAMPLES) -> str:
        """Which images were replaced so far, and why, at `most` so many by name; empty if none."""
        return self.trouble.whole(most)

    def _image_or_error(self, row: int) -> np.ndarray | ImageError:
        if self._is_kept[row]:
            return self._kept[row]
        try:
            image = load_image(self.paths[row], self._side, background=self._background)
        except ImageError as error:
            return error
        if self._kept is not None:
            self._kept[row] = image
            self._is_kept[row] = True
        return image

    def _replace(self, row: int, error: ImageError) -> np.ndarray:
        self.trouble.add("damaged images replaced by another", str(error))
        for step in range(1, len(self)):
            other = (row + step) % len(self)
            image = self._image_or_error(other)
            if not isinstance(image, ImageError):
                self.paths[row], self.captions[row] = self.paths[other], self.captions[other]
                return image
        raise ValueError(f"none of the {len(self)} images can be decoded; the last: {error}")


def load(
    source: str | os.PathLike,
    side: int,
    *,
    seed: int = 0,
    held_out: float = 0.05,
    image_root: str | os.PathLike | None = None,
    background: tuple[int, int, int] = WHITE,
    workers: int = 4,
) -> Dataset:
    """Images of `side` x `side` pixels with their captions, from a list or a folder.

    held_out: this part of the images becomes `validation` and as many again the evaluation
        "held_out". An image's path (as written) and `seed` alone decide where it goes, so more
        images do not move the ones already there.
    image_root: what paths in a list are relative to; by default the list's own folder.

    Raises ValueError if the source cannot be understood (naming the line) or no usable image
    remains. Images left out are counted in the data set's `notes`.
    """
    source = Path(source)
    if not 0 <= held_out < 0.5:
        raise ValueError(f"held_out={held_out} is not from 0 to just under 0.5")
    report = Report()
    captions = read_captions(source, report)
    root = Path(image_root) if image_root else source if source.is_dir() else source.parent
    with ThreadPoolExecutor(workers) as pool:
        usable = pool.map(lambda name: usable_or_error(root / name), captions)
        for name, error in zip(list(captions), usable, strict=True):
            if error:
                report.add("images left out", error)
                del captions[name]

    parts: dict[str, list[str]] = {"train": [], "validation": [], "held_out": []}
    for name in captions:
        parts[part_of(name, seed, held_out)].append(name)
    if not parts["train"]:
        lost = "; ".join(f"{len(them)} {why}, as {them[0]}" for why, them in report.named.items())
        raise ValueError(
            f"{source}: no image is left to train on; paths begin in {root} (--image-root)"
            + (f". {lost}" if lost else "")
        )

    def split(part: str) -> FolderPairs:
        names = parts[part]
        return FolderPairs(
            [root / name for name in names],
            [captions[name] for name in names],
            side,
            background=background,
            workers=workers,
        )

    train = split("train")
    mean, std = pixel_statistics(train)
    sizes = ", ".join(f"{part} {len(names)}" for part, names in parts.items())
    return Dataset(
        name=source.stem,
        train=train,
        validation=split("validation") if parts["validation"] else None,
        evaluations={"held_out": split("held_out")} if parts["held_out"] else {},
        mean=mean,
        std=std,
        notes=f"{source}: {sizes}\n{report}".rstrip(),
        left_out=report.whole(),
    )


def usable_or_error(path: Path) -> str:
    try:
        check(path)
    except ImageError as error:
        return str(error)
    return ""


def part_of(name: str, seed: int, held_out: float) -> str:
    """ "train", "validation" or "held_out", the same for this image in every list it is in."""
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()
    place = int.from_bytes(digest[:6], "big") / 2**48  # even over 0..1
    return "held_out" if place < held_out else "validation" if place < 2 * held_out else "train"


def pixel_statistics(split: FolderPairs) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel of pixels in 0..1, over up to SAMPLE images spread evenly."""
    rows = np.unique(np.linspace(0, len(split) - 1, SAMPLE).astype(np.int64))
    pixels = split.batch(rows).reshape(-1, 3) / 255
    return tuple(pixels.mean(0).tolist()), tuple(np.maximum(pixels.std(0), 1 / 255).tolist())


def read_captions(source: Path, report: Report) -> dict[str, tuple[str, ...]]:
    """Image path as written -> its captions, cleaned and each once; empty ones go to `report`.

    Raises ValueError if the source is missing, is of an unknown kind or breaks its own rules.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist")
    readers = {
        ".csv": lambda path: read_table(path, ","),
        ".tsv": lambda path: read_table(path, "\t"),
        ".jsonl": read_jsonl,
        ".json": read_json,
    }
    reader = read_folder if source.is_dir() else readers.get(source.suffix.lower())
    if reader is None:
        kinds = ", ".join(readers)
        raise ValueError(f"{source} is neither a folder nor one of {kinds}; rename or convert it")

    captions: dict[str, dict[str, None]] = {}  # the inner dict is a set that keeps its order
    try:
        for name, texts, where in reader(source):
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{where}: a caption must be text or a list of texts: {texts!r}")
            cleaned = [text for text in map(clean, texts) if text]
            if cleaned and len(cleaned) < len(texts):
                report.add("rows with an empty caption beside others", where)
            if not name:
                report.add("rows without an image left out", where)
            elif not cleaned:
                report.add("rows without a caption left out", where)
            else:
                captions.setdefault(name, {}).update(dict.fromkeys(cleaned))
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 ({error}); convert it and try again") from error
    return {name: tuple(texts) for name, texts in captions.items()}


def clean(text: str) -> str:
    """One way to write what looks the same: Unicode NFC, single spaces, none at the ends; empty if
    nothing can be seen. Halves of surrogate pairs, which are no text, are dropped."""
    text = unicodedata.normalize("NFC", text.encode(errors="ignore").decode())
    words = [word for word in text.split() if any(map(str.isprintable, word))]
    return " ".join(words)


def read_table(path: Path, delimiter: str) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
            image = pick(columns, IMAGE_COLUMNS, f"{path}, line 1")
            caption = pick(columns, CAPTION_COLUMNS, f"{path}, line 1")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row:
                    raise ValueError(
                        f"{where}: more fields than the {len(columns)} columns; "
                        f"put a field that holds {delimiter!r} between double quotes"
                    )
                yield (row[columns[image]] or "").strip(), row[columns[caption]] or "", where
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {reader.reader.line_num}: {error}; mend the quotes"
            ) from error


def pick(columns: Sequence[str] | dict, wanted: Sequence[str], where: str) -> str:
    for name in wanted:
        if name in columns:
            return name
    names, given = ", ".join(wanted), ", ".join(columns) or "nothing"
    raise ValueError(f"{where}: has {given}, but one must be called {names}")


def read_jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if line.strip():
                yield record_of(parse(line, where), where)


def read_json(path: Path) -> Iterator[Record]:
    content = parse(path.read_text("utf-8-sig"), str(path))
    if isinstance(content, list):
        for number, entry in enumerate(content, 1):
            yield record_of(entry, f"{path}, entry {number}")
        return
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for number, note in enumerate(content["annotations"], 1):
            where = f"{path}, annotation {number}"
            if note["image_id"] not in names:
                raise ValueError(f"{where}: no image has the id {note['image_id']!r}")
            name = names[note["image_id"]]
            if not isinstance(name, str):
                raise ValueError(f"{where}: its image's file_name must be a path: {name!r}")
            yield name, note["caption"], where
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not COCO captions: {error!r} is missing or wrong") from error


def parse(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); mend or remove it") from error


def record_of(entry: object, where: str) -> Record:
    if not isinstance(entry, dict):
        raise ValueError(f'{where}: not an object such as {{"image": "a.png", "caption": "a cat"}}')
    image, caption = (pick(entry, names, where) for names in (IMAGE_COLUMNS, CAPTION_COLUMNS))
    if not isinstance(entry[image], str):
        raise ValueError(f"{where}: {image} must be a path: {entry[image]!r}")
    return entry[image], entry[caption], where


def read_folder(folder: Path) -> Iterator[Record]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            text = path.with_suffix(".txt")
            lines = text.read_text("utf-8-sig").splitlines() if text.exists() else []
            captions = [line for line in lines if line.strip()]
            yield path.relative_to(folder).as_posix(), captions, f"{text} (missing or empty)"
