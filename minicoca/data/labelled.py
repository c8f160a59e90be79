"""Images, or videos, of which each is of one class: what probes learn from and are tested on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicoca.data import folder
from minicoca.data.pairs import Dataset
from minicoca.words import clip

SCENES = 2500  # of drawn shapes, to learn from and to test; those of one thing are used


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a split (`Pairs`, or what stands in for them) and the class of each."""

    pairs: Any
    rows: np.ndarray  # int64 [n]
    labels: np.ndarray  # int64 [n]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Classes, what is learned from, and what is tested. prompts: of each class, where its name
    alone is not what the data say of it."""

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part
    prompts: tuple[tuple[str, ...], ...] | None = None
    notes: str = ""


def load(
    source: str | os.PathLike,
    side: int,
    *,
    seed: int = 0,
    held_out: float = 0.2,
    keep_copies: bool = False,
    image_root: str | os.PathLike | None = None,
    columns: Sequence[str] = ("", "", ""),
) -> Labelled:
    """Images of `side` x `side` pixels with one label each, from class folders, or from any list
    that `data.folder` reads, with a column of labels in the place of captions.

    held_out: the part that is tested, where the source gives no splits; the other arguments are as
        in `folder.load`. Where it gives validation but no test images, these are tested.
    Raises ValueError as `folder.load`, and for data without two classes or without a test.
    """
    dataset = folder.load(
        source, side, seed=seed, held_out=held_out, validation=0.0, keep_copies=keep_copies,
        image_root=image_root, columns=columns, template="{}", labels=True,
    )  # fmt: skip
    test, unused = dataset.evaluations.get("held_out"), dataset.validation
    if test is None:
        test, unused = unused, None
    notes = dataset.notes
    if unused is not None:
        notes += f"\n{len(unused)} validation images left out: tested are those held out"
    if test is None:
        raise ValueError(f"{source}: nothing is held out to test on; give --held-out-part")
    return labelled(dataset.name, dataset.train, test, notes)


def labelled(name: str, train: Any, test: Any, notes: str) -> Labelled:
    """Of two splits whose captions are labels. Images of several labels, and those to test of a
    class that is never trained, are left out and counted. Raises ValueError as `load`."""
    ours = [texts[0] for texts in train.captions if len(texts) == 1]
    classes = tuple(sorted(set(ours)))
    if len(classes) < 2:
        only = f"one class, {clip(classes[0], 60)!r}" if classes else "no image of one label"
        raise ValueError(f"{name}: {only} to learn; probes need two or more")
    if len(classes) == len(ours) > 2:
        raise ValueError(
            f"{name}: each of {len(ours)} images has a label of its own, such as "
            f"{clip(classes[0], 60)!r}; name the column of classes by --label-column"
        )
    places = {label: i for i, label in enumerate(classes)}
    parts = [part_of(pairs, places) for pairs in (train, test)]
    for part, what in zip(parts, ("train", "test"), strict=True):
        several = sum(len(texts) > 1 for texts in part.pairs.captions)
        unknown = len(part.pairs) - several - len(part)
        for count, why in ((several, "of several labels"), (unknown, "of classes never trained")):
            notes += f"\n{count} {what} images {why} left out" if count else ""
    if not len(parts[1]):
        raise ValueError(f"{name}: no image to test is of a class that is trained")
    return Labelled(name, classes, *parts, notes=notes)


def part_of(pairs: Any, labels: dict[str, int]) -> Part:
    """The rows of a split that have one caption, and one of `labels`."""
    own = [labels.get(texts[0]) if len(texts) == 1 else None for texts in pairs.captions]
    rows = np.array([row for row, label in enumerate(own) if label is not None], np.int64)
    return Part(pairs, rows, np.array([own[row] for row in rows], np.int64))


def of_prompts(dataset: Dataset, train: Any) -> Labelled:
    """A built-in data set, by the classes of its zero-shot task: an image is of the class among
    whose prompts its one caption is. train: the split that is learned from."""
    test = next(iter(dataset.evaluations.values()))
    task = test.zero_shot
    labels = {text: i for i, prompts in enumerate(task.prompts) for text in prompts}
    part = part_of(train, labels)
    there = np.isin(task.labels, part.labels)
    new = np.full(len(task.names), -1)
    kept = np.unique(part.labels)
    new[kept] = np.arange(len(kept))
    lost = f"\n{(~there).sum()} test images of classes never trained left out"
    return Labelled(
        dataset.name,
        tuple(task.names[i] for i in kept),
        Part(train, part.rows, new[part.labels]),
        Part(test, task.images[there], new[task.labels[there]]),
        tuple(task.prompts[i] for i in kept),
        dataset.notes + lost * bool((~there).sum()),
    )


def drawn(labels: np.ndarray, shots: int | None, rng: np.random.Generator) -> np.ndarray:
    """Places of `shots` images of each class, or of all it has where these are fewer; None: of all.
    Those of fewer shots, drawn by the same generator, are among those of more."""
    order = rng.permutation(len(labels))
    ranks, seen = np.empty(len(labels), np.int64), Counter()
    for place in order:
        ranks[place] = seen[int(labels[place])]
        seen[int(labels[place])] += 1
    return np.flatnonzero(ranks < (len(labels) if shots is None else shots))
