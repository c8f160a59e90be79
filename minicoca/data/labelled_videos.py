"""Videos with a label each, from class folders or a list: `data.labelled` of videos."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minicoca.data.files import Report
from minicoca.data.folders import classes_of
from minicoca.data.labelled import Labelled, labelled
from minicoca.data.layouts import read_listed
from minicoca.data.records import LABELS, SPLITS, Reading
from minicoca.data.splits import split_names
from minicoca.data.video import FRAMES, find_videos, load_video
from minicoca.images import ImageError, patiently, status
from minicoca.words import clip


class Videos:
    """One split, decoded when asked for; stands in for Pairs where videos are taken."""

    def __init__(self, paths: Sequence[Path], captions: Sequence[tuple[str, ...]], side: int):
        self.paths, self.captions, self.side = list(paths), tuple(captions), side

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [B, FRAMES, side, side, 3]. Raises ImageError, ReadError."""
        return np.stack([load_video(self.paths[int(i)], self.side, FRAMES) for i in indices])

    def shown(self, indices: np.ndarray) -> np.ndarray:
        return indices


def load(
    source: str | os.PathLike,
    side: int,
    *,
    seed: int = 0,
    held_out: float = 0.2,
    image_root: str | os.PathLike | None = None,
    columns: Sequence[str] = ("", "", ""),
) -> Labelled:
    """Videos (data/video.py) in folders called after their classes, or in a list with a column of
    labels; as `labelled.load` otherwise. Those that cannot be decoded are left out and counted."""
    source, report = Path(source), Report()
    root, image_root = source, Path(image_root) if image_root else None
    if stat.S_ISDIR(status(source).st_mode):
        found = classes_of(source, find_videos([source], report))
        captions, splits = {}, {}
        for label, own in found.items():
            for path, split in own:
                name = path.relative_to(source).as_posix()
                captions[name] = (label,) if label else ()
                splits |= {name: SPLITS[split.lower()]} if split else {}
    else:
        image, label, split = columns
        how = Reading(report, image, label, split, root=image_root, **LABELS)
        listed = read_listed(source, how)
        root, captions, splits = listed.root, listed.captions, listed.splits
    names = [name for name in captions if captions[name] and is_whole(root / name, report)]
    if not names:
        form = "GIFs, .npz or folders of frames, each in the folder of its class, or a list"
        raise ValueError(f"{clip(str(source))}: no video with a label; give {form}. {report}")
    places = {name: name for name in names}
    parts = split_names(names, {}, places, splits, seed, held_out, 0.0, report)

    def split_of(part: str) -> Videos:
        own = [names[row] for row in parts[part]]
        return Videos([root / name for name in own], [captions[name] for name in own], side)

    tested = "held_out" if parts["held_out"] else "validation"
    notes = ", ".join(f"{part} {len(rows)}" for part, rows in parts.items())
    if not parts[tested]:
        raise ValueError(f"{source}: nothing is held out to test on; give --held-out-part")
    notes = f"{source}: {notes}; {FRAMES} frames of each\n{report}".rstrip()
    return labelled(source.stem, split_of("train"), split_of(tested), notes)


def is_whole(path: Path, report: Report) -> bool:
    """Whether its first half can be decoded, of which one frame is."""
    try:
        patiently(lambda: load_video(path, 8, 1))
    except ImageError as error:
        report.add("videos left out", str(error))
        return False
    return True
