"""What is asked about drawn shapes. Every row has one right answer, and takes its picture to tell.

questions    what colour is the star                              shapes.questions
pairs        is there the same shape in both                      yes, no
entailment   there is a red star            yes, no, cannot be told (a cover may hide one)
dialogue     is there any red star ? no . is there a blue one     yes, no, a size, a direction
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

import numpy as np

from minicoca.data import shapes
from minicoca.data.pairs import Dataset
from minicoca.data.questions import Questions
from minicoca.data.shapes import Question, Scene, Thing

TRIES = 400  # partners that are looked at
SAME = {  # what two pictures may share
    "is there the same shape in both": lambda scene: {thing.shape for thing in scene.things},
    "is there the same colour in both": lambda scene: {thing.colour for thing in scene.things},
    "are there as many things in both": lambda scene: {len(scene.things)},
}
HALVES = {"top": (0, 0), "bottom": (0, 1), "left": (1, 0), "right": (1, 1)}  # axis, which half
MORE = {  # of what takes longest to learn, training asks more
    "questions": {"exists": 2, "where": 4},
    "pairs": {},
    "entailment": {"exists": 2, "where": 4},
    "dialogue": {"where": 4},
}
COVER = 150  # its grey
UNKNOWN = "cannot be told"


class Row(NamedTuple):
    """A question about one picture of a split, or two, of which half of one may be covered."""

    about: int | tuple[int, int]
    question: Question
    cover: str = ""


def of_shapes(
    task: str, seed: int, side: int, hide: str = "none", train: int = 60_000
) -> Dataset:  # fmt: skip
    """What a task asks about the scenes of `shapes`, in its splits."""
    drawn = shapes.load(seed, side, train)

    def split(name, pictures):
        scenes = shapes.scenes(name, len(pictures), seed)
        return Covered(pictures, rows_of(task, scenes, MORE[task] if name == "train" else {}), hide)

    return Dataset(
        name="shapes",
        train=split("train", drawn.train),
        validation=split("validation", drawn.validation),
        evaluations={name: split(name, pairs) for name, pairs in drawn.evaluations.items()},
        mean=drawn.mean,
        std=drawn.std,
        notes=drawn.notes,
    )


def rows_of(task: str, scenes: list[Scene], most: Mapping[str, int] = {}) -> list[Row]:
    """All that a task asks about the scenes of a split. most: as `some` takes it."""
    if task == "pairs":
        return list(pairs(scenes))
    of = {"questions": some, "entailment": entailment, "dialogue": dialogue}[task]
    return [Row(row, *asked) for row, scene in enumerate(scenes) for asked in of(scene, most)]


class Covered(Questions):
    """Questions about drawn pictures, some of which are half covered."""

    def __init__(self, pictures, rows: list[Row], hide: str):
        about, asked, self.covers = zip(*rows, strict=True)
        kinds, texts, answers = zip(*asked, strict=True)
        super().__init__(pictures, about, texts, [(one,) for one in answers], kinds, hide)

    def key(self, row: int) -> tuple:
        return (*super().key(row), self.covers[row])

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        images = super().batch(indices)
        for place, row in enumerate(indices if self.hide != "image" else ()):
            if self.covers[row]:
                images[place] = cover(images[place], self.covers[row])
        return images


def some(scene: Scene, most: Mapping[str, int] = {}) -> Iterator[tuple[Question, str]]:
    """One question of every kind that a scene has, or `most` of a kind, drawn by the scene, so that
    no kind weighs more for having more to ask."""
    random = Random(f"questions {scene!r}").random
    by_kind: dict[str, list[Question]] = {}
    for question in shapes.questions(scene):
        by_kind.setdefault(question.kind, []).append(question)
    for kind, own in by_kind.items():
        for _ in range(min(most.get(kind, 1), len(own))):
            yield own.pop(int(len(own) * random())), ""


def cover(image: np.ndarray, half: str) -> np.ndarray:
    """A picture [side, side, 3] of which one half is grey."""
    axis, second = HALVES[half]
    middle, covered = image.shape[0] // 2, image.copy()
    part = slice(middle, None) if second else slice(0, middle)
    covered[(part, slice(None)) if axis == 0 else (slice(None), part)] = COVER
    return covered


def pairs(scenes: list[Scene]) -> Iterator[Row]:
    """Of each scene with a partner for which the answers are as drawn before: so neither picture by
    itself tells them, nor does one answer tell another."""
    shown = [[of(scene) for of in SAME.values()] for scene in scenes]
    for row, own in enumerate(shown):
        random = Random(f"pairs {row} {scenes[row]!r}").random
        wanted = [random() < 0.5 for _ in SAME]
        for _ in range(TRIES):
            other = int(len(scenes) * random())
            same = [not a.isdisjoint(b) for a, b in zip(own, shown[other], strict=True)]
            if other != row and same == wanted:
                for text, answer in zip(SAME, wanted, strict=True):
                    kind = text.split()[4 if "same" in text else 3].removesuffix("s")
                    yield Row((row, other), Question(kind, text, ("no", "yes")[answer]))
                break


def covered(scene: Scene, half: str) -> list[Thing] | None:
    """The things that a cover leaves to be seen; None where it would cut through one."""
    axis, second = HALVES[half]
    seen = []
    for thing in scene.things:
        place = (thing.row, thing.column)[axis]
        if abs(place - 0.5) < thing.radius:
            return None
        if (place > 0.5) != bool(second):
            seen.append(thing)
    return seen


def entailment(scene: Scene, most: Mapping[str, int] = {}) -> Iterator[tuple[Question, str]]:
    """Sentences about a scene, of which half may be covered: that a thing is there, and how two
    stand: one of each, or `most`. What is not seen may stand under the cover, if there is one."""
    random = Random(f"entailment {scene!r}").random
    halves = {half: seen for half in HALVES if (seen := covered(scene, half)) is not None}
    half = _pick(["", *halves], random) if random() < 0.7 else ""
    things, said = halves.get(half, scene.things), set()
    seen, unseen = [thing.pair for thing in things], UNKNOWN if half else "no"
    for _ in range(most.get("exists", 1)):
        there = seen and random() < 0.4
        pair = _pick(seen, random) if there else _lure(scene, seen, random)
        if pair not in said:
            said.add(pair)
            yield (
                Question("exists", "there is a {} {}".format(*pair), "yes" if there else unseen),
                half,
            )
    near = _neighbours(things) if len(set(seen)) == len(seen) else []
    for _ in range(min(most.get("where", 1), len(near))):
        one, other = near.pop(int(len(near) * random()))
        told = shapes._relation(one, other)
        text = _pick([told, shapes._relation(other, one)], random)
        sentence = f"a {one.colour} {one.shape} is {text} a {other.colour} {other.shape}"
        yield Question("where", sentence, "yes" if text == told else unseen), half


def dialogue(scene: Scene, most: Mapping[str, int] = {}) -> Iterator[tuple[Question, str]]:
    """What is asked of what was spoken of: its size, where it is (once, or `most`), and another one
    of its shape."""
    random = Random(f"dialogue {scene!r}").random
    spoken = [q for q in shapes.questions(scene) if q.kind in ("colour", "shape")]
    spoken += [q for q in shapes.questions(scene) if q.kind == "exists" and q.answer == "yes"]
    turns = [(first, thing) for first in spoken if (thing := _meant(scene, first))]
    if turns:
        first, thing = _pick(turns, random)
        yield Question("size", f"{_said(first)} what size is it", thing.size), ""
    near = [
        (first, thing, other)
        for first, thing in turns
        for one, other in _neighbours(scene.things)
        if one is thing and sum(t.pair == other.pair for t in scene.things) == 1
    ]
    for _ in range(min(most.get("where", 1), len(near))):
        first, thing, other = near.pop(int(len(near) * random()))
        text = f"{_said(first)} where is it seen from the {other.colour} {other.shape}"
        yield Question("where", text, shapes._relation(thing, other).split()[0]), ""
    asked = [q for q in shapes.questions(scene) if q.kind == "exists"]
    first, answer = _pick(asked, random), _pick(["yes", "no"], random)
    colour, shape = first.text.split()[-2:]
    there = {thing.colour for thing in scene.things if thing.shape == shape} - {colour}
    free = {other for other, own in _nameable(scene) if own == shape} - there - {colour}
    if there:  # else the answer could only be no, whatever is shown
        other = _pick(sorted(there if answer == "yes" else free), random)
        yield Question("one", f"{_said(first)} is there a {other} one", answer), ""


def _said(question: Question) -> str:
    return f"{question.text} ? {question.answer} ."


def _meant(scene: Scene, question: Question) -> Thing | None:
    """The one thing that a question and its answer speak of; None where several are meant."""
    words = {*question.text.split(), question.answer}
    found = [t for t in scene.things if t.shape in words and t.colour in words]
    return found[0] if len(found) == 1 else None


def _neighbours(things) -> list[tuple[Thing, Thing]]:
    """Ordered pairs of which it is plain how one stands to the other."""
    both = itertools.permutations(things, 2)
    return [(a, b) for a, b in both if shapes._distance(a, b) < 0.75 and a.pair != b.pair]


def _nameable(scene: Scene) -> tuple:
    """The kinds that may be asked about: kept ones only where there is one, as shapes.questions."""
    present = {thing.pair for thing in scene.things}
    return shapes.PAIRS if present & {*shapes.KEPT_PAIRS} else shapes.SEEN_PAIRS


def _lure(scene: Scene, seen, random) -> tuple[str, str]:
    """A kind of thing that is not seen; of five, four differ in one word from one that is."""
    absent = [pair for pair in _nameable(scene) if pair not in seen]
    near = [a for a in absent if any((a[0] == p[0]) != (a[1] == p[1]) for p in seen)]
    return _pick(near if near and random() < 0.8 else absent, random)


_pick = shapes._pick
