"""Shards written, of pairs that were read from any layout.

A shard holds pictures of one split, which its name says, as `train-000000.tar`: of each sample
`00000012.jpg`, the bytes of its file, and `00000012.txt`, one caption a line. So webdataset and
open_clip read them too. The bytes of a shard are a function of its samples alone.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from minicoca.data.checksums import CHECKSUMS, Checksums, Written, read_checksums
from minicoca.data.files import Report, digest, is_image
from minicoca.data.pairs import Dataset
from minicoca.files import OURS, make_folder, replacing, saving, unfinished, write_all
from minicoca.images import ChangedError, ImageError, decode, name_of, open_image

NAMES = {"train": "train", "validation": "validation", "held_out": "test"}  # of shards
MEMBER = 2 * 512  # bytes of a member's header, and what may fill its last block
QUALITY = 95  # of JPEGs that are made smaller


class Sample(NamedTuple):
    number: int  # over all splits
    pairs: object  # the split
    row: int  # ... and where it is in there
    size: int  # of its file, in bytes

    @property
    def text(self) -> bytes:
        return "\n".join(self.pairs.captions[self.row]).encode()


class Shard(NamedTuple):
    name: str
    samples: list[Sample]


def plan(dataset: Dataset, most_bytes: int | None, most_samples: int | None) -> list[Shard]:
    """All shards, in order: each as many samples as fit into so many bytes, and one at least."""
    splits = {"train": dataset.train, "validation": dataset.validation, **dataset.evaluations}
    found: list[Shard] = []
    number = 0
    for split, pairs in splits.items():
        samples, full, count = [], 0, 0
        for row in range(len(pairs) if pairs is not None else 0):
            sample = Sample(number, pairs, row, pairs.paths[row].stat().st_size)
            taken, number = 2 * MEMBER + sample.size + len(sample.text), number + 1
            over = most_bytes is not None and full + taken > most_bytes
            if samples and (over or len(samples) == most_samples):
                found.append(Shard(f"{NAMES[split]}-{count:06}.tar", samples))
                samples, full, count = [], 0, count + 1
            samples.append(sample)
            full += taken
        if samples:
            found.append(Shard(f"{NAMES[split]}-{count:06}.tar", samples))
    return found


def digest_of(shards: list[Shard], side: int | None) -> str:
    """Of all that the bytes of shards depend on, as far as it is known without reading pictures
    whole."""
    sha = hashlib.sha256(f"{side}".encode())
    for name, samples in shards:
        sha.update(f"\n{name} {len(samples)}".encode())
        for sample in samples:
            sha.update(f"\n{sample.size} {len(sample.text)} ".encode())
            sha.update(sample.pairs.beginning(sample.row) + sample.text)
    return sha.hexdigest()


def write_shards(
    shards: list[Shard], folder: Path, side: int | None, report: Report, workers: int = 4
) -> Iterator[tuple[str, Written, bool]]:
    """(name, what is written, whether it was there already) of each shard as it comes.

    The folder may hold the whole shards of an interrupted call: those with right sums are kept, so
    that it ends as an uninterrupted one. side: pictures whose shorter side is longer are made so
    small. What cannot be decoded then goes to `report`. Raises ValueError where the folder holds
    anything else, OSError where it cannot be written, ReadError where a picture cannot be read, or
    is another than when the data were opened.
    """
    of = digest_of(shards, side)
    with saving(folder):
        make_folder(folder)
    for path in unfinished(folder, [CHECKSUMS, *(name for name, _ in shards)], OURS):
        path.unlink(missing_ok=True)
    done = begun(folder, of) or Checksums(of, len(shards), {})
    done.write(folder)
    stop = threading.Event()

    def settle(shard: Shard) -> tuple[str, Written, bool, list[str]]:
        path, known = folder / shard.name, done.shards.get(shard.name)
        if known and path.is_file() and digest(path).hex() == known.sha256:
            return shard.name, known, True, []
        lost: list[str] = []
        return shard.name, write_shard(path, shard.samples, side, lost, stop), False, lost

    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(settle, shard) for shard in shards]
        try:
            for future in as_completed(waiting):
                name, written, kept, lost = future.result()
                for line in lost:
                    report.add("images left out of the shards", line)
                done.shards[name] = written
                if not kept:
                    done.write(folder)
                yield name, written, kept
        finally:
            stop.set()
            for future in waiting:
                future.cancel()


def begun(folder: Path, of: str) -> Checksums | None:
    """What an earlier call wrote of the same. Raises ValueError where the folder holds others."""
    found = read_checksums(folder)
    if found and found.of == of:
        return found
    if found:
        raise ValueError(
            f"{folder} holds shards of other data, or cut in another way; give another folder"
        )
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty, and holds no {CHECKSUMS}; give another folder")
    return None


class Hashed:
    """A file that is only written, with the sum of its bytes."""

    def __init__(self, handle: int) -> None:
        self.handle, self.sha, self.size = handle, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        write_all(self.handle, data)
        self.sha.update(data)
        self.size += len(data)

    def tell(self) -> int:
        return self.size


def write_shard(
    path: Path, samples: list[Sample], side: int | None, lost: list[str], stop: threading.Event
) -> Written:
    """One shard, whole or not at all. lost: takes what cannot be decoded, line by line."""
    count = 0
    with replacing(path) as handle:
        file = Hashed(handle)
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as made:
            for sample in samples:
                if stop.is_set():
                    raise InterruptedError("another shard failed, or the work was stopped")
                try:
                    suffix, picture = picture_of(sample, side)
                except ImageError as error:
                    lost.append(str(error))
                    continue
                for kind, content in ((suffix, picture), (".txt", sample.text)):
                    member = tarfile.TarInfo(f"{sample.number:08}{kind}")  # time and owner are 0
                    member.size = len(content)
                    made.addfile(member, io.BytesIO(content))
                count += 1
    return Written(file.sha.hexdigest(), file.size, count)


def picture_of(sample: Sample, side: int | None) -> tuple[str, bytes]:
    """(ending, bytes) of a picture: those of its file, or of a smaller JPEG. Raises ImageError for
    one that is to be smaller and cannot be decoded."""
    path, content = sample.pairs.paths[sample.row], sample.pairs.content(sample.row)
    if len(content) != sample.size:
        raise ChangedError(f"{name_of(path)} is another picture than when the data set was opened")
    with open_image(io.BytesIO(content), name_of(path)) as image:
        shorter, kind = min(image.size), image.format
    if side is None or shorter <= side:
        named = Path(str(path))
        known = [suffix for suffix, name in Image.EXTENSION.items() if name == kind]
        return named.suffix.lower() if is_image(named) else max([".", *known]), content
    image = decode(path, at_least=2 * side)
    scale = side / min(image.size)
    size = [max(side, round(length * scale)) for length in image.size]
    made = io.BytesIO()
    image.resize(size).save(made, "JPEG", quality=QUALITY)
    return ".jpg", made.getvalue()
