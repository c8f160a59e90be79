"""Which captions fit their pictures, by the vectors of a CoCa; and captions in place of the others.

LAION kept the pairs whose cosine by CLIP's B/32 was at least 0.3 (Schuhmann et al. 2021, 400 M
pairs), later 0.28 (Schuhmann et al. 2022, 5 B). Cosines of one model say nothing of another's, so
here the least may follow from the data: of captions of *other* pictures a given share would pass.
BLIP's CapFilt (Li et al. 2022, section 3.3) also lets its captioner write of every picture, and
keeps of both texts what passes; here it writes where no caption of the picture's own did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from . import demand_vectors, embed_texts
from .captioning import caption

PASSING = 0.01  # of captions of other pictures
SAMPLE = 10_000  # pictures, about, whose vectors are held to be compared with other captions

Batches = Iterable[tuple[Sequence[int], np.ndarray]]  # rows, and their images


class Judged(NamedTuple):
    """least: the cosine that a caption needs to be kept. own: {row: those of its captions}; a row
    whose picture could not be read is not there. written: {row: (caption, cosine)}, where none of
    its own is kept, and what the model says of the picture would be."""

    least: float
    own: dict[int, np.ndarray]
    written: dict[int, tuple[str, float]]


def judged(
    model,
    tokenizer,
    look: Callable[[Sequence[int]], Batches],
    captions: Mapping[int, Sequence[str]],
    *,
    min_cosine: float | None = None,
    keep: float | None = None,
    passing: float = PASSING,
    replace: Iterable[int] = (),
) -> Judged:
    """The captions {row: captions} by the model's cosines, with `least_of` or `min_cosine`.

    look: the images of rows, in batches. replace: rows that the model may write of. Raises
    ValueError for a model that was not trained for what is asked, and as `least_of`.
    """
    own, others = cosines(model, tokenizer, look(sorted(captions)), captions)
    least = least_of(own, others, keep, passing) if min_cosine is None else min_cosine
    lost = [row for row in replace if row not in own or max(own[row]) < least]
    said = written(model, tokenizer, look(lost)) if lost else {}
    return Judged(least, own, {row: one for row, one in said.items() if one[1] >= least})


def cosines(
    model, tokenizer, batches: Batches, captions: Mapping[int, Sequence[str]] | Sequence
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """({row: the cosines of its captions with its picture}, cosines of captions with pictures that
    are not theirs, drawn from about SAMPLE of the rows). Raises ValueError for a model that was not
    trained to match images and texts."""
    demand_vectors(model)
    own: dict[int, np.ndarray] = {}
    drawn, every = [], -(-len(captions) // SAMPLE)
    for rows, images in batches:
        texts = embed_texts(model, tokenizer, [text for row in rows for text in captions[row]])
        ends = np.cumsum([len(captions[row]) for row in rows])[:-1]
        for row, image, said in zip(
            rows, model.embed_images(images), np.split(texts, ends), strict=True
        ):
            if len(own) % every == 0:
                drawn.append((row, image, said[0]))
            own[row] = said @ image
    others = np.random.default_rng(len(drawn)).permutation(len(drawn))
    pairs = [(*drawn[i][:2], drawn[j][0], drawn[j][2]) for i, j in enumerate(others)]
    apart = [image @ said for row, image, j, said in pairs if captions[j][0] not in captions[row]]
    return own, np.array(apart, np.float32)


def least_of(
    own: Mapping[int, np.ndarray], others: np.ndarray, keep: float | None, passing: float
) -> float:
    """The least cosine of a caption that is kept: so that the share `keep` of all captions is; or
    (None) so that at most the share `passing` of captions of other pictures would be. Raises
    ValueError where there are none of these."""
    if keep is not None:
        ordered = np.sort(np.concatenate([np.zeros(0), *own.values()]))[::-1]
        kept = max(1, round(keep * len(ordered)))
        return float(ordered[kept - 1]) if len(ordered) else -2.0
    if not len(others):
        raise ValueError("all captions are the same: none is of another picture, to compare with")
    below = np.sort(others)[::-1][int(passing * len(others)) :]
    return float(np.nextafter(below[0], np.float32(2))) if len(below) else -2.0


def written(model, tokenizer, batches: Batches) -> dict[int, tuple[str, float]]:
    """{row: what the model says of the picture, greedily, and the cosine of that}."""
    found = {}
    for rows, images in batches:
        texts = caption(model, tokenizer, images)
        near = (model.embed_images(images) * embed_texts(model, tokenizer, texts)).sum(1)
        found |= dict(zip(rows, zip(texts, map(float, near), strict=True), strict=True))
    return found
