"""Captions made wrong on purpose, in the ways in which texts beside pictures on the web are (ALIGN,
Jia et al. 2021, is trained on such): of another picture, a file's name, what stands under pictures
everywhere, or the same few words again and again.

What becomes of a caption is a function of the seed, its row and the captions before it: more rows
change nothing of the first ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from minicoca.data.pairs import Dataset

TRIES = 20  # other pictures that are asked for a caption that is not this one's
FILES = ("IMG_{:04}.jpg", "DSC{:05}.JPG", "image{}.png", "{}.jpeg")
BOILERPLATE = (
    *("stock photo", "click to enlarge", "image may contain: indoor", "no description available"),
    *("photo for sale", "high resolution picture for free download"),
)


def exchanged(row: int, captions: Sequence[str], random) -> str:
    """The caption of a picture before it; the first, and what has no other before it, stays."""
    others = (captions[int(row * random())] for _ in range(TRIES))
    return next((text for text in others if text != captions[row]), captions[row])


def file_name(row: int, captions: Sequence[str], random) -> str:
    return _pick(FILES, random).format(int(10_000 * random()))


def boilerplate(row: int, captions: Sequence[str], random) -> str:
    return _pick(BOILERPLATE, random)


def repeated(row: int, captions: Sequence[str], random) -> str:
    """Up to three words of it in a row, two to four times."""
    words = captions[row].split()
    first = int(max(1, len(words) - 2) * random())
    return " ".join(words[first : first + 3] * (2 + int(3 * random())))


KINDS = {
    "captions of other pictures": exchanged,
    "file names": file_name,
    "boilerplate": boilerplate,
    "repeated words": repeated,
}


def noisy(
    captions: Sequence[str], part: float, seed: int, kinds: Sequence[str] = (*KINDS,)
) -> Iterator[tuple[str, str]]:
    """(caption, its kind of noise, "" where it is what it was) of each row. A caption is replaced
    with the probability `part`, by each kind as often."""
    for row, text in enumerate(captions):
        random = Random(f"noise {seed} {row}").random  # the same in every version of Python
        kind = _pick(kinds, random) if random() < part else ""
        made = KINDS[kind](row, captions, random) if kind else text
        yield made, kind if made != text else ""


def _pick(options, random):
    return options[int(len(options) * random())]


def with_noise(dataset: Dataset, part: float, seed: int) -> Dataset:
    """The same pictures, with a part of the training captions replaced, which its notes count;
    what is evaluated stays as it is. A part of 0 gives the same dataset."""
    if not part:
        return dataset
    made = list(noisy([own[0] for own in dataset.train.captions], part, seed))
    counts = Counter(kind for _, kind in made)
    told = ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS)
    notes = f"{sum(counts[kind] for kind in KINDS):,} training captions are noise: {told}."
    train = replace(dataset.train, captions=tuple((text,) for text, _ in made))
    return replace(dataset, train=train, notes=f"{dataset.notes} {notes}")
