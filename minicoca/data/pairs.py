"""The one form in which training and evaluation see data, wherever it comes from.

A source that decodes its pictures when they are asked for needs no `images` array: whatever has a
length, `captions`, `zero_shot`, `same`, `batch` and `shown` can stand in for `Pairs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """Classify images by comparing them with sentences about each class.

    A class scores what its best prompt scores. Raises ValueError if the parts do not fit together.
    """

    names: tuple[str, ...]  # the classes
    prompts: tuple[tuple[str, ...], ...]  # per class, one or more captions
    images: np.ndarray  # int64 [n], which images of the split
    labels: np.ndarray  # int64 [n], the class of each

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.names) or not all(self.prompts):
            raise ValueError("every class needs a name and at least one prompt")
        if self.images.shape != self.labels.shape or self.images.ndim != 1:
            raise ValueError(f"{self.images.shape} images but {self.labels.shape} labels")
        if self.labels.size and not 0 <= self.labels.min() <= self.labels.max() < len(self.names):
            raise ValueError(f"labels must be 0 to {len(self.names) - 1}")


@dataclass(frozen=True, eq=False)
class Pairs:
    """One split: images and what may rightly be said of each.

    Raises ValueError if the images are not uint8 [n, side, side, 3] or an image lacks a caption.
    """

    images: np.ndarray  # uint8 [n, side, side, 3]
    captions: tuple[tuple[str, ...], ...]  # training picks one, evaluation accepts any
    zero_shot: ZeroShot | None = None
    same: np.ndarray | None = (
        None  # int64 [n], the first row that shows the same image; None: no two
    )
    entropy: float | None = None  # of a caption, in nats, where what draws them is known

    def __post_init__(self) -> None:
        dtype, shape = self.images.dtype, self.images.shape
        if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (shape[1], shape[1], 3):
            raise ValueError(f"images are {dtype} {shape}, not uint8 [n, side, side, 3]")
        if len(self.captions) != len(self.images) or not all(self.captions):
            raise ValueError("every image needs at least one caption")

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images at `indices` [B] as a new uint8 array [B, side, side, 3]."""
        return self.images[np.asarray(indices, dtype=np.int64)]

    def shown(self, indices: np.ndarray) -> np.ndarray:
        """The rows that `batch` gave: those that were asked for."""
        return indices


@dataclass(frozen=True, eq=False)
class Dataset:
    """All splits of a data set; an evaluation's name says what it tests, e.g. "held_out"."""

    name: str
    train: Pairs
    validation: Pairs | None  # for choosing settings; the evaluations are for reporting
    evaluations: dict[str, Pairs]
    mean: tuple[float, float, float]  # of training pixels scaled to 0..1, per channel
    std: tuple[float, float, float]
    notes: str = ""  # sources and credits
    left_out: str = ""  # every file and caption that is not used, and why
