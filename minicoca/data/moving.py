"""Videos drawn on the spot: one thing that moves left, right, up or down. Which way?

To the left is to the right run backwards, and a clip's way is drawn apart from all else: the same
frames in another order are as likely. So no frame by itself, and no set of frames without their
order, tells left from right or up from down; the axis it does tell.

Clip `index` of a split is a function of (seed, split, index) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np

from minicoca.data.labelled import Labelled, Part
from minicoca.data.shapes import COLOURS, REACH, SHAPES, SIZES, TINT, Scene, Thing, draw

WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # of row, of column
FRAMES = 8
SPLITS = ("train", "held_out")
SHORTEST, LONGEST = 0.25, 0.5  # of a path, from first to last centre; the picture's side is 1
TRAIN, TEST = 800, 400  # clips


def clip(split: str, index: int, seed: int = 0) -> tuple[list[Scene], str]:
    """(its frames, which way the thing goes). Raises ValueError for a split that there is not."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    random = Random(f"moving {seed} {split} {index}").random  # as in shapes.py
    pick = lambda options: [*options][int(len(options) * random())]  # noqa: E731
    way, size, colour, shape = pick(WAYS), pick(SIZES), pick(COLOURS), pick(SHAPES)
    lowest, highest = SIZES[size]
    radius = lowest + (highest - lowest) * random()
    length = SHORTEST + (LONGEST - SHORTEST) * random()
    room = 1 - 2 * REACH  # where centres may be
    first = REACH + (room - length) * random()
    beside = REACH + room * random()
    tint = tuple(c - TINT + int((2 * TINT + 1) * random()) for c in COLOURS[colour])
    ground = tuple(225 + int(26 * random()) for _ in range(3))
    along = first + length * np.linspace(0, 1, FRAMES)
    along = along if sum(WAYS[way]) > 0 else along[::-1]
    centres = [(a, beside) if WAYS[way][0] else (beside, a) for a in along.tolist()]
    things = [Thing(size, colour, shape, row, column, radius, tint) for row, column in centres]
    return [Scene((thing,), ground) for thing in things], way


class Clips:
    """Clips of one split, drawn when asked for; stands in for Pairs where videos are taken."""

    def __init__(self, split: str, count: int, side: int, seed: int) -> None:
        self.split, self.count, self.side, self.seed = split, count, side, seed

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [B, FRAMES, side, side, 3]."""
        scenes = [clip(self.split, int(i), self.seed)[0] for i in indices]
        return np.stack([np.stack([draw(one, self.side) for one in own]) for own in scenes])

    def shown(self, indices: np.ndarray) -> np.ndarray:
        return indices


def load(seed: int, side: int, train: int = TRAIN, test: int = TEST) -> Labelled:
    """Clips to learn from and to test, by which way the thing goes."""
    parts = []
    for split, count in zip(SPLITS, (train, test), strict=True):
        labels = [[*WAYS].index(clip(split, i, seed)[1]) for i in range(count)]
        own = np.array(labels, np.int64)
        parts.append(Part(Clips(split, count, side, seed), np.arange(count), own))
    notes = f"{train} clips of {FRAMES} frames, drawn by minicoca.data.moving; {test} to test"
    return Labelled("moving", tuple(WAYS), *parts, notes=notes)
