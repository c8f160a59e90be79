"""Scenes of coloured shapes, drawn on the spot: nothing to download, and every answer is known.

A scene holds one to three things, all different from each other. The grammar gives every scene
exactly one right caption, so "the same words as the truth" is a fair test of a captioner:

    one     a small red circle at the top             (or bottom, left, right, middle)
    two     the left or upper one first:              A left of B, A above B
    three   the one in the corner first:              A right of B and below C

Eight pairs of colour and shape (each colour once, each shape once) are kept for the split
`compositional`, whose scenes hold at least one of them; a model can name them only by putting
together words that it learned apart.

Scene `index` of a split is a function of (seed, split, index) alone: a longer split begins with
the shorter one, and any part of it can be drawn anywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from random import Random
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from minicoca.data.grammar import caption_entropy
from minicoca.data.pairs import Dataset, Pairs, ZeroShot

Choice = TypeVar("Choice")


def _star(corners: int, *radii: float) -> list[tuple[float, float]]:
    """Corners (x, y) around the origin, the first at the top; their distances take turns."""
    angles = (2 * math.pi * corner / corners for corner in range(corners))
    distances = itertools.cycle(radii)
    return [
        (distance * math.sin(angle), -distance * math.cos(angle))
        for angle, distance in zip(angles, distances, strict=False)
    ]


def _heart(corners: int) -> list[tuple[float, float]]:
    """A heart from sines and cosines; y grows downwards, as in pictures."""
    points = []
    for corner in range(corners):
        t = 2 * math.pi * corner / corners
        height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -height / 17))
    return points


ARM = 0.34  # half the width of the cross's arms
SQUARE = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
CROSS = [(-ARM, -1), (ARM, -1), (ARM, -ARM), (1, -ARM), (1, ARM), (ARM, ARM)]
CROSS += [(-x, -y) for x, y in CROSS]
DIAMOND = [(0.7 * x, y) for x, y in _star(4, 1)]

COLOURS = {
    "red": (218, 40, 45),
    "orange": (240, 125, 20),
    "yellow": (240, 220, 45),
    "green": (45, 160, 70),
    "blue": (45, 90, 220),
    "purple": (125, 50, 175),
    "pink": (240, 120, 190),
    "black": (35, 35, 40),
}
# Outlines inside the square from -1 to 1; a second one is a hole.
SHAPES = {
    "circle": (_star(32, 1),),
    "square": (SQUARE,),
    "triangle": (_star(3, 1),),
    "star": (_star(10, 1, 0.42),),
    "cross": (CROSS,),
    "diamond": (DIAMOND,),
    "heart": (_heart(32),),
    "ring": (_star(32, 1), _star(32, 0.55)),
}
SIZES = {"small": (0.105, 0.12), "large": (0.19, 0.21)}  # radius: lowest, highest; 1 is the side
PLACES = {  # row, column of the centre; 1 is the side
    "at the top": (0.25, 0.5),
    "at the bottom": (0.75, 0.5),
    "on the left": (0.5, 0.25),
    "on the right": (0.5, 0.75),
    "in the middle": (0.5, 0.5),
}
TOP, BOTTOM, LEFT, RIGHT, _ = PLACES.values()
CORNERS = tuple(itertools.product((0.25, 0.75), repeat=2))
# Per number of things, every way to seat them: the order of the seats is part of the choice.
LAYOUTS = {
    1: [(place,) for place in PLACES.values()],
    2: [*itertools.permutations((LEFT, RIGHT)), *itertools.permutations((TOP, BOTTOM))],
    3: list(itertools.permutations(CORNERS, 3)),
}
# Neighbours are 0.5 apart. Moved by at most JITTER each, they stay at least 0.38 apart along their
# line and at most 0.12 beside it, so "left of" is plain to see. Kept within REACH of its seat, a
# thing never leaves the picture nor touches another.
JITTER, REACH = 0.06, 0.235
TINT = 14  # colours vary by up to this much per channel

PAIRS = tuple(itertools.product(COLOURS, SHAPES))
KEPT_PAIRS = tuple(zip(COLOURS, [*SHAPES][3:] + [*SHAPES][:3], strict=True))
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in KEPT_PAIRS)

MANY_SINGLES, FEW_SINGLES = (1, 1, 2, 2, 3), (1, 2, 2, 3, 3)  # numbers of things, equally likely
SPLITS = {
    "train": MANY_SINGLES,
    "validation": MANY_SINGLES,
    "held_out": FEW_SINGLES,
    "compositional": FEW_SINGLES,
}
OVERSAMPLING = 3  # drawn this much larger, then averaged down, for smooth edges
CHUNK = 500  # scenes drawn per job
STATISTICS = 1_000  # training images that the mean and the spread are taken from


@dataclass(frozen=True)
class Thing:
    """One drawn shape: the words for it, and its exact geometry and colour."""

    size: str
    colour: str
    shape: str
    row: float  # centre and radius; the picture's side is 1
    column: float
    radius: float
    tint: tuple[int, int, int]  # the colour as drawn

    @property
    def words(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """One to three things on a light ground. Their order means nothing."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]


class Question(NamedTuple):
    """A question about a scene with its one right answer (one word)."""

    kind: str  # "count", "exists", "colour", "size", "shape" or "where"
    text: str
    answer: str


def scene(split: str, index: int, seed: int = 0) -> Scene:
    """Scene `index` of a split. Raises ValueError for a split that does not exist."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    # Only Random.random is promised to give the same numbers in every version of Python.
    random = Random(f"shapes {seed} {split} {index}").random
    count = _pick(SPLITS[split], random)
    kept = split == "compositional"
    kinds: list[tuple[str, str, str]] = []
    while len(kinds) < count:
        pairs = SEEN_PAIRS if not kept else PAIRS if kinds else KEPT_PAIRS
        kind = (_pick([*SIZES], random), *_pick(pairs, random))
        if kind not in kinds:
            kinds.append(kind)
    seats = _pick(LAYOUTS[count], random)
    things = tuple(_thing(*kind, *seat, random) for kind, seat in zip(kinds, seats, strict=True))
    red, green, blue = (225 + int(26 * random()) for _ in range(3))
    return Scene(things, (red, green, blue))


def drawn_from(split: str) -> tuple[tuple[int, ...], int, int, dict[int, int]]:
    """What scenes of a split are drawn from, in numbers, as `grammar.caption_groups` takes it."""
    every = PAIRS if split == "compositional" else SEEN_PAIRS
    first = KEPT_PAIRS if split == "compositional" else every
    seats = {count: len(own) for count, own in LAYOUTS.items()}
    return SPLITS[split], len(SIZES) * len(first), len(SIZES) * len(every), seats


def scenes(split: str, count: int, seed: int = 0) -> list[Scene]:
    """The first `count` scenes of a split, in the order of the images that `load` gives."""
    return [scene(split, index, seed) for index in range(count)]


def _pick(options: list[Choice] | tuple[Choice, ...], random) -> Choice:
    return options[int(len(options) * random())]


def _thing(size, colour, shape, seat_row, seat_column, random) -> Thing:
    lowest, highest = SIZES[size]
    radius = lowest + (highest - lowest) * random()
    room = min(JITTER, REACH - radius)
    row = seat_row + room * (2 * random() - 1)
    column = seat_column + room * (2 * random() - 1)
    red, green, blue = (c - TINT + int((2 * TINT + 1) * random()) for c in COLOURS[colour])
    return Thing(size, colour, shape, row, column, radius, (red, green, blue))


def draw(scene: Scene, side: int = 32) -> np.ndarray:
    """The picture of a scene, uint8 [side, side, 3]."""
    scale = OVERSAMPLING * side
    canvas = Image.new("RGB", (scale, scale), scene.background)
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        # Pillow fills from the pixel that holds one edge to the pixel that holds the other.
        column, row, radius = (scale * it for it in (thing.column, thing.row, thing.radius))
        for outline, fill in zip(SHAPES[thing.shape], (thing.tint, scene.background), strict=False):
            pen.polygon([(column + radius * x, row + radius * y) for x, y in outline], fill)
    return np.asarray(canvas.reduce(OVERSAMPLING))


def caption(scene: Scene) -> str:
    """The one right caption; it does not depend on the order of the things."""
    things = scene.things
    if len(things) == 1:
        return f"a {things[0].words} {_place(things[0])}"
    if len(things) == 2:
        first, second = sorted(things, key=lambda thing: thing.row + thing.column)
        return f"a {first.words} {_relation(first, second)} a {second.words}"
    corner = min(things, key=lambda thing: sum(_distance(thing, other) for other in things))
    others = [thing for thing in things if thing is not corner]
    beside, over = sorted(others, key=lambda thing: abs(thing.row - corner.row))
    return (
        f"a {corner.words} {_relation(corner, beside)} a {beside.words}"
        f" and {_relation(corner, over)} a {over.words}"
    )


def questions(scene: Scene) -> list[Question]:
    """Everything that is asked about a scene. Whatever a question names, it names one thing only.

    Every "exists" that is true comes with one that is false and differs in the colour or in the
    shape alone. A scene without the kept pairs is never asked about them, so that training on
    questions does not teach that they do not exist.
    """
    things = scene.things
    number = ("one", "two", "three")[len(things) - 1]
    asked = [Question("count", "how many things are there", number)]
    present = list(dict.fromkeys(thing.pair for thing in things))
    nameable = PAIRS if set(present) & set(KEPT_PAIRS) else SEEN_PAIRS
    absent = [pair for pair in nameable if pair not in present]
    random = Random(repr(scene)).random  # the choice belongs to the scene, not to who asks
    for pair in present:
        near = [other for other in absent if (other[0] == pair[0]) != (other[1] == pair[1])]
        lure = _pick(near, random)
        absent.remove(lure)
        for (colour, shape), answer in ((pair, "yes"), (lure, "no")):
            asked.append(Question("exists", f"is there any {colour} {shape}", answer))
    for thing in things:
        if sum(other.shape == thing.shape for other in things) == 1:
            asked.append(Question("colour", f"what colour is the {thing.shape}", thing.colour))
        if sum(other.colour == thing.colour for other in things) == 1:
            asked.append(Question("shape", f"what shape is the {thing.colour} thing", thing.shape))
        if sum(other.pair == thing.pair for other in things) == 1:
            named = f"{thing.colour} {thing.shape}"
            asked.append(Question("size", f"what size is the {named}", thing.size))
    if len(things) == 1:
        place = _place(things[0]).split()[-1]
        asked.append(Question("where", f"where is the {things[0].words}", place))
    for one, other in itertools.permutations(things, 2):
        if _distance(one, other) < 0.75:  # neighbours; nobody can say which way the diagonal goes
            text = f"where is the {one.words} seen from the {other.words}"
            asked.append(Question("where", text, _relation(one, other).split()[0]))
    return asked


def _distance(one: Thing, other: Thing) -> float:
    return abs(one.row - other.row) + abs(one.column - other.column)


def _place(thing: Thing) -> str:
    return min(PLACES, key=lambda name: math.dist(PLACES[name], (thing.row, thing.column)))


def _relation(one: Thing, other: Thing) -> str:
    down, across = one.row - other.row, one.column - other.column
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def load(
    seed: int = 0, side: int = 32, train: int = 60_000, evaluation: int = 1_000, workers: int = 1
) -> Dataset:
    """Draw the data set: `train` training scenes and `evaluation` in each of the other splits.

    Validation is drawn as training is, from a stream of its own; `held_out` and `compositional`
    hold fewer single things. All three have a zero-shot task: which of the 64 pairs is the single
    thing? More `workers` draw in processes of their own (so a script needs its `__main__` guard),
    with the same result.
    Raises ValueError for a side below 16 or a negative number of scenes.
    """
    if side < 16 or min(train, evaluation) < 0:
        raise ValueError(f"cannot draw {train} and {evaluation} scenes of side {side}")
    counts = {split: train if split == "train" else evaluation for split in SPLITS}
    images = {split: np.empty((count, side, side, 3), np.uint8) for split, count in counts.items()}
    captions: dict[str, list[tuple[str]]] = {split: [] for split in SPLITS}
    jobs = [
        (split, start, min(start + CHUNK, count), side, seed)
        for split, count in counts.items()
        for start in range(0, count, CHUNK)
    ]
    for (split, start, stop, *_), drawn in zip(jobs, _rendered(jobs, workers), strict=True):
        images[split][start:stop], texts = drawn
        captions[split] += texts

    splits = {}
    for split, count in counts.items():
        task = None if split == "train" else _zero_shot(scenes(split, count, seed))
        splits[split] = Pairs(
            images[split], tuple(captions[split]), task, entropy=caption_entropy(*drawn_from(split))
        )
    # Always from the same images, so that a shorter training split is normalised alike.
    sample = _render(("train", 0, STATISTICS, side, seed))[0].reshape(-1, 3) / 255
    return Dataset(
        name="shapes",
        train=splits.pop("train"),
        validation=splits.pop("validation"),
        evaluations=splits,
        mean=tuple(sample.mean(axis=0).tolist()),
        std=tuple(sample.std(axis=0).tolist()),
        notes="Drawn by minicoca.data.shapes; holds nothing made by others.",
    )


def _zero_shot(drawn: list[Scene]) -> ZeroShot:
    singles = [index for index, each in enumerate(drawn) if len(each.things) == 1]
    return ZeroShot(
        names=tuple(" ".join(pair) for pair in PAIRS),
        prompts=tuple(
            tuple(f"a {size} {colour} {shape} {place}" for size in SIZES for place in PLACES)
            for colour, shape in PAIRS
        ),
        images=np.array(singles, np.int64),
        labels=np.array([PAIRS.index(drawn[index].things[0].pair) for index in singles], np.int64),
    )


def _render(job: tuple[str, int, int, int, int]) -> tuple[np.ndarray, list[tuple[str]]]:
    """Pictures [n, side, side, 3] and captions of the scenes `start` to `stop` of a split."""
    split, start, stop, side, seed = job
    drawn = [scene(split, index, seed) for index in range(start, stop)]
    return np.stack([draw(each, side) for each in drawn]), [(caption(each),) for each in drawn]


def _rendered(jobs: list[tuple], workers: int) -> Iterator:
    """`_render` of every job, in order."""
    done = 0
    if workers > 1:
        try:
            # Spawned, not forked: a fork of a process whose threads hold locks can hang.
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for result in _progress(pool.map(_render, jobs), len(jobs)):
                    yield result
                    done += 1
            return
        except (OSError, BrokenProcessPool):
            pass  # no processes to be had here, or a script that cannot be imported anew
    yield from _progress(map(_render, jobs[done:]), len(jobs) - done)


def _progress(results: Iterable, total: int) -> Iterable:
    return tqdm(results, "drawing", total, leave=False, delay=1, unit_scale=CHUNK, unit="scene")
