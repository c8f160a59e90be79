"""How images and captions are listed, as people have them; each is read as it stands.

- Tables: CSV, TSV, open_clip's, Flickr8k's and Flickr30k's (tables.py); Parquet (parquet.py).
- JSON: lines of objects, lists, COCO, Karpathy's, captions by file (objects.py).
- Folders: Hugging Face's, texts beside images, lists, classes (folders.py).
- Shards: `.tar` files, one, a folder of them, or a pattern such as `{000..127}.tar` (shards.py).

Columns, fields and what parts them are known by name: image, path, filepath, file, filename,
image_path, file_name, image_name, image_file or img; caption, captions, text, title or comment;
split. Others can be named. A caption may be a list where JSON allows it, and an image may come
several times. A mistake in a list stops at once with the line to mend. What has no image or no
caption does not: it is left out and counted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from minicoca.data.files import Report
from minicoca.data.folders import read_folder
from minicoca.data.lists import folder_of, records, under
from minicoca.data.records import Reading, Record, gathered, not_utf8
from minicoca.data.shards import TAR, is_pattern, members_of, read_shards, shards_named
from minicoca.images import Piece, failure, name_of, status


@dataclass
class Listed:
    """What a source says of its images, by their paths below `root` or the names of pieces."""

    kind: str  # of layout, in words
    root: Path
    captions: dict[str, tuple[str, ...]]
    splits: dict[str, str] = field(default_factory=dict)  # of images whose source gives one
    pieces: dict[str, Piece] = field(default_factory=dict)  # images within other files
    classes: dict[str, str] = field(default_factory=dict)  # caption -> name of class

    def file(self, name: str) -> Path | Piece:
        """Where an image is."""
        return self.pieces.get(name) or self.root / name


def read_captions(source: Path, report: Report) -> dict[str, tuple[str, ...]]:
    """Image path as written -> its captions, cleaned and each once; see `read_listed`."""
    return read_listed(source, Reading(report)).captions


def read_listed(source: Path, reading: Reading, find: Callable | None = None) -> Listed:
    """The images, captions and splits of a source; what is left out goes to `reading.report`.

    find: what reads the source in place of `records_of`.

    Raises ValueError if the source is missing, is of an unknown kind or breaks its own rules, and
    OSError if it cannot be read.
    """
    try:
        root, prefix, found = (find or records_of)(source, reading)
        captions, splits = gathered(found, reading)
        if prefix is None:  # a list by itself, whose images are looked for
            home = folder_of(captions, root, beyond=reading.root is None)
            prefix = os.path.relpath(home, root)
            reading.kind += f", images in {prefix}" if home != root else ""
            captions = {under(prefix, name): texts for name, texts in captions.items()}
            splits = {under(prefix, name): split for name, split in splits.items()}
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(source)) from error
    except RecursionError as error:
        raise ValueError(f"{name_of(source)}: nested too deep to be a list of captions") from error
    except OSError as error:
        raise failure(name_of(source), error) if error.errno else error from error
    within_shards(captions, root, reading)
    if splits and len(splits) == len(captions) and len(set(splits.values())) == 1:
        only = next(iter(splits.values()))
        reading.report.add("splits not kept, since all images are of the one", only)
        splits = {}
    return Listed(reading.kind, root, captions, splits, reading.pieces, reading.classes)


def within_shards(names: Iterable[str], root: Path, reading: Reading) -> None:
    """Where the images lie that a list names within shards, as `000.tar/0001.png`."""
    wanted: dict[str, set[str]] = {}
    for name in names:
        shard, mark, inside = name.partition(f"{TAR}/")
        if mark and name not in reading.pieces and os.path.isfile(root / f"{shard}{TAR}"):
            wanted.setdefault(f"{shard}{TAR}", set()).add(inside)
    for shard, inside in wanted.items():
        for member in members_of(root / shard, shard, reading):
            if member.name in inside:
                name = f"{shard}/{member.name}"
                piece = Piece(root / shard, member.name, member.start, member.size)
                reading.pieces.setdefault(name, piece)


def records_of(source: Path, reading: Reading) -> tuple[Path, str | None, Iterable[Record]]:
    """(where paths begin, what stands before them, the records) of a source; None: to be found."""
    if is_pattern(source):
        shards = shards_named(str(source))
        folder = Path(os.path.commonpath([path.parent for path in shards]))
        return folder, "", read_shards(shards, folder, reading)
    if stat.S_ISDIR(status(source).st_mode):
        return reading.root or source, "", read_folder(source, reading)
    if source.suffix.lower() == TAR:
        return source.parent, "", read_shards([source], source.parent, reading)
    return reading.root or source.parent, None, records(source, reading)
