"""Your own images and captions, from a list or a folder of both (layouts.py says how written).

An image is a file, whatever it is called: other spellings of its path and links to it are the same
image, and byte-equal copies go where the first of them goes. An image that is missing or damaged is
left out and counted; one that cannot be *read* stops the run, which can then be resumed. So does
another picture under the name of one that was there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from minicoca.data.files import BEGINNING, EXAMPLES, Report, beginning, equal_bytes, in_threads
from minicoca.data.layouts import Listed, read_listed
from minicoca.data.layouts import read_captions as read_captions  # here too: it once stood here
from minicoca.data.pairs import Dataset, ZeroShot
from minicoca.data.records import LABELS, Reading
from minicoca.data.splits import first_in, one_file_once, split_names
from minicoca.data.splits import part_of as part_of
from minicoca.data.splits import place_of as place_of
from minicoca.images import (
    WHITE,
    ChangedError,
    ImageError,
    NoFileError,
    Piece,
    ReadError,
    check,
    load_image,
    name_of,
    open_file,
    patiently,
    read,
)
from minicoca.words import clean as clean  # what `read_listed` makes of a caption
from minicoca.words import clip

SAMPLE = 256  # images from which the mean and std of pixels are taken
WORKERS = min(16, max(4, os.cpu_count() or 1))  # threads: Pillow decodes beside Python


class FolderPairs:
    """One split whose images are decoded when asked for, by `workers` threads; stands in for Pairs.

    A file that turns out to be damaged only then is replaced by the next good image of the split,
    captions and all, which depends on the files alone: take `captions` after `batch`. A file that
    cannot be read is not damaged, and never replaced. Images are kept once decoded if all of them
    fit into `cache_bytes`.

    beginnings: the digest of each file's first bytes as the data set was opened. One that begins
    otherwise when it is read, or holds other bytes when it is read again, is another picture.
    """

    def __init__(
        self,
        paths: Sequence[Path | Piece],
        captions: Sequence[tuple[str, ...]],
        side: int,
        *,
        copies: Mapping[int, int] | None = None,
        beginnings: Mapping[int, bytes] | None = None,
        background: tuple[int, int, int] = WHITE,
        workers: int = WORKERS,
        cache_bytes: int = 256 * 2**20,
    ):
        self.paths = list(paths)
        self.captions = list(captions)
        self.zero_shot: ZeroShot | None = None
        self.trouble = Report()
        self.same = np.arange(len(self.paths))  # the first row that shows the same image
        for row, first in (copies or {}).items():
            self.same[row] = first
        self._beginnings, self._digests = dict(beginnings or {}), {}
        self._shown = np.arange(len(self.paths))
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

        Raises ValueError if no image of the split can be decoded, ReadError if one that is needed
        cannot be read, or is another than it was.
        """
        wanted = range(len(self))
        rows = [wanted[int(index)] for index in indices]  # negative ones count from the end
        images = dict(zip(rows, in_threads(self._pool, self._image_or_error, rows), strict=True))
        for row, image in images.items():
            if isinstance(image, ImageError):
                images[row] = self._replace(row, image)
        return np.stack([images[row] for row in rows])

    def shown(self, indices: np.ndarray) -> np.ndarray:
        """After `batch`: the rows whose images were given, others where these are damaged."""
        return self._shown[indices]

    def beginning(self, row: int) -> bytes:
        """The digest of how the file of an image began as the data set was opened."""
        return self._beginnings.get(row, b"")

    def content(self, row: int) -> bytes:
        """The bytes of an image's file. Raises ReadError as `batch`, and ImageError for more bytes
        than bounds.py allows."""
        path = self.paths[row]

        def whole() -> bytes:
            with open_file(path) as file:
                return read(file, path)

        try:
            found = patiently(whole, (OSError, NoFileError))
        except NoFileError as error:  # it was there when the data set was opened
            raise ReadError(str(error)) from error
        self._is_the_same(row)(found)
        return found

    def report(self, most: int | None = EXAMPLES) -> str:
        """Which images were replaced so far, and why, at `most` so many by name; empty if none."""
        return self.trouble.whole(most)

    def _image_or_error(self, row: int) -> np.ndarray | ImageError:
        row = int(self._shown[row])
        if self._is_kept[row]:
            return self._kept[row]
        how = {"background": self._background, "seen": self._is_the_same(row)}

        def load() -> np.ndarray:
            return load_image(self.paths[row], self._side, **how)

        try:
            image = patiently(load, (OSError, NoFileError))
        except NoFileError as error:  # it was there when the data set was opened
            raise ReadError(str(error)) from error
        except ImageError as error:
            return error
        if self._kept is not None:
            self._kept[row] = image
            self._is_kept[row] = True
        return image

    def _is_the_same(self, row: int) -> Callable[[bytes], None]:
        def look(content: bytes) -> None:
            begins = hashlib.sha256(content[:BEGINNING]).digest()
            whole = hashlib.sha256(content).digest()
            same = begins == self._beginnings.setdefault(row, begins)
            if not same or whole != self._digests.setdefault(row, whole):
                raise ChangedError(
                    f"{name_of(self.paths[row])} is another picture than when the data set was "
                    "opened; put the first one back, or begin a new run"
                )

        return look

    def _replace(self, row: int, error: ImageError) -> np.ndarray:
        self.trouble.add("damaged images replaced by another", str(error))
        for step in range(1, len(self)):
            other = (row + step) % len(self)
            image = self._image_or_error(other)
            if not isinstance(image, ImageError):
                self._shown[row], self.captions[row] = self._shown[other], self.captions[other]
                return image
        raise ValueError(f"none of the {len(self)} images can be decoded; the last: {error}")


def of(config, column: str, **how) -> Dataset:
    """`load` of what a config names; column: of what stands beside an image."""
    return load(
        config.data,
        config.image_size,
        seed=config.seed,
        held_out=config.held_out_part,
        validation=config.validation_part,
        keep_copies=config.keep_copies,
        image_root=config.image_root or None,
        columns=(config.image_column, column, config.split_column),
        **how,
    )


def load(
    source: str | os.PathLike,
    side: int,
    *,
    seed: int = 0,
    held_out: float = 0.05,
    validation: float | None = None,
    keep_copies: bool = False,
    image_root: str | os.PathLike | None = None,
    columns: Sequence[str] = ("", "", ""),
    template: str = "a photo of a {}",
    labels: bool = False,
    find: Callable | None = None,
    untrained: bool = False,
    background: tuple[int, int, int] = WHITE,
    workers: int = WORKERS,
) -> Dataset:
    """Images of `side` x `side` pixels with their captions, from a list, a folder or shards.

    held_out, validation: the parts of the images that become the evaluation "held_out" and
        `validation` (None: as large), where the source gives an image no split. An image's place
        below the root and `seed` alone decide where it goes, so more images do not move the ones
        already there; where that would leave nothing to train on, the image nearest to training is
        trained on.
    untrained: there need be no image to train on, where the source gives each another split.
    keep_copies: byte-equal copies go where their own names send them, not all where the first goes.
    image_root: what paths in a list are relative to; by default the list's own folder, or the one
        near it that holds the first of them.
    columns: what the columns of images, captions and splits are called; empty where known by name.
    template: the caption of an image whose folder is its class; {} stands for the class.
    labels: classes are read in the place of captions (`Reading`).
    find: what reads the source, as `read_listed` takes it.

    Raises ValueError if the source cannot be understood (naming the line) or no usable image
    remains, OSError if it cannot be read. What is left out is counted in the data set's `notes`.
    """
    source = Path(source)
    validation = held_out if validation is None else validation
    if not (min(held_out, validation) >= 0 and held_out + validation < 1):
        raise ValueError(f"held_out={held_out} and validation={validation} leave no part of 1")
    report = Report()
    root = Path(image_root) if image_root else None
    image, caption, given = columns
    how = Reading(report, image, caption, given, template, root, **LABELS if labels else {})
    listed = read_listed(source, how, find)
    captions, places = one_file_once(listed, report)
    with ThreadPoolExecutor(workers) as pool:
        begins, left_out = leave_out_unusable(captions, listed, pool, report)
        if not captions:
            raise ValueError(nothing_left(source, listed.root, left_out, how))
        names = list(captions)
        copies = {} if keep_copies else equal_bytes([*map(listed.file, names)], pool)
    for row, first in copies.items():
        report.add(
            "byte-equal copies, in the split of the first", f"{names[row]} is {names[first]}"
        )
    parts = split_names(names, copies, places, listed.splits, seed, held_out, validation, report)
    sizes = ", ".join(f"{part} {len(rows)}" for part, rows in parts.items())
    if not parts["train"] and not untrained:
        raise ValueError(f"{source}: nothing to train on, all of it is of other splits ({sizes})")

    def split(part: str) -> FolderPairs:
        rows = parts[part]
        pairs = FolderPairs(
            [listed.file(names[row]) for row in rows],
            [captions[names[row]] for row in rows],
            side,
            copies=first_in(rows, copies),
            beginnings={place: begins[names[row]] for place, row in enumerate(rows)},
            background=background,
            workers=workers,
        )
        pairs.zero_shot = classes_of(listed, pairs) if part != "train" else None
        return pairs

    found = {part: split(part) for part, rows in parts.items() if rows or part == "train"}
    mean, std = pixel_statistics(next(pairs for pairs in found.values() if len(pairs)))
    return Dataset(
        name=source.stem,
        train=found["train"],
        validation=found.get("validation"),
        evaluations={"held_out": found["held_out"]} if "held_out" in found else {},
        mean=mean,
        std=std,
        notes=f"{source} ({listed.kind}): {sizes}\n{report}".rstrip(),
        left_out=report.whole(),
    )


def classes_of(listed: Listed, pairs: FolderPairs) -> ZeroShot | None:
    """The classes of class folders, to be told apart in a split; None where there are none, or no
    image of the split is of one alone."""
    labels = {caption: number for number, caption in enumerate(listed.classes)}
    own = [labels.get(texts[0]) if len(texts) == 1 else None for texts in pairs.captions]
    rows = np.array([row for row, label in enumerate(own) if label is not None], np.int64)
    if not len(rows):
        return None
    prompts = tuple((caption,) for caption in listed.classes)
    return ZeroShot(
        tuple(listed.classes.values()),
        prompts,
        rows,
        np.array([own[row] for row in rows], np.int64),
    )


def leave_out_unusable(
    captions: dict[str, tuple[str, ...]],
    listed: Listed,
    pool: Executor,
    report: Report,
) -> tuple[dict[str, bytes], list[ImageError]]:
    """Takes images that are missing or damaged out of `captions`, or take more than bounds.py
    allows; returns how the others begin, and what is wrong."""
    reduced: set[str] = set()  # a file is perhaps looked at more than once

    def look(name: str) -> bytes | ImageError:
        def begins() -> bytes:
            check(listed.file(name), reduced.add)
            return beginning(listed.file(name))

        try:
            return patiently(begins)
        except ImageError as error:
            return error

    found = dict(zip(list(captions), in_threads(pool, look, captions), strict=True))
    errors = {name: error for name, error in found.items() if isinstance(error, ImageError)}
    for name, error in errors.items():
        report.add("images left out", str(error))
        del captions[name], found[name]
    for line in sorted(reduced):
        report.add("images decoded smaller than they are", line)
    return found, list(errors.values())


def nothing_left(source: Path, root: Path, errors: list[ImageError], how: Reading) -> str:
    """Why there is nothing to train on, in words."""
    report = how.report
    missing = any(isinstance(error, NoFileError) for error in errors) and not source.is_dir()
    where = f"; paths begin in {root} (--image-root)" if missing else ""
    often = sorted(report.named.items(), key=lambda item: -len(item[1]))[:2]
    lost = "; ".join(f"{len(them)} {reason}, as {clip(them[0], 120)}" for reason, them in often)
    beside = f" with a {how.what}" if how.what else ""
    bare = "rows without a caption left out" in report.named and not errors
    return (
        f"{clip(str(source))}: no image{beside} can be used{where}"
        + (lost and f". {lost}")
        + ("; simclr, mae and simmim (--objective) learn from images alone" if bare else "")
    )


def pixel_statistics(split: FolderPairs) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel of pixels in 0..1, over up to SAMPLE images spread evenly."""
    rows = np.unique(np.linspace(0, len(split) - 1, SAMPLE).astype(np.int64))
    counts = np.zeros((3, 256), np.int64)  # of each value of each channel
    for some in np.split(rows, range(16, len(rows), 16)):  # all, as floats, can be gigabytes
        pixels = split.batch(some).reshape(-1, 3)
        counts += [np.bincount(channel, minlength=256) for channel in pixels.T]
    share, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())
