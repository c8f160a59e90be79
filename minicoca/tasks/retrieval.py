"""Find images by a sentence or by another image (paper section 4.2.2)."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..images import load_image

CELL, EDGE, LINE, LETTERS, LINES = 128, 4, 12, 20, 5  # pixels; of a label
BLOCK = 2**15  # vectors that are looked at at once: 64 MB of width 512


class Found(NamedTuple):
    """What was looked at (its place among all of it, and itself), how near it is, and where it was
    ranked by that log p(query | image) per token, or the log-odds that they belong together."""

    place: int
    image: Any
    cosine: float
    likelihood: float | None = None
    log_odds: float | None = None


def best(queries: np.ndarray, parts: Sequence[tuple[Sequence, np.ndarray]], k: int) -> list[list]:
    """Per query [queries, E], the k Found of highest cosine, of what (things, vectors) of batches
    hold."""
    if not parts:
        return [[] for _ in queries]
    things = [thing for own, _ in parts for thing in own]
    order, cosines = nearest(queries, np.concatenate([v for _, v in parts]), k)
    return [
        [Found(int(i), things[i], float(c)) for i, c in zip(*row, strict=True)]
        for row in zip(order, cosines, strict=True)
    ]


def nearest(
    query_vectors: np.ndarray, vectors: np.ndarray, k: int, left_out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices [queries, k] and cosines of the k vectors nearest each query, best first; of equal
    ones the first in order. Fewer where there are fewer.

    vectors: [N, E], perhaps in a file: BLOCK of them are looked at at once. left_out: indices, in
        order, of those that are not to be found.
    """
    found = [Best(k) for _ in query_vectors]
    left_out = np.zeros(0, np.int64) if left_out is None else left_out
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK])
        cosines = block @ query_vectors.T
        first, end = np.searchsorted(left_out, (start, start + len(block)))
        cosines[left_out[first:end] - start] = -np.inf
        for best_of, own in zip(found, cosines.T, strict=True):
            best_of.look(own, start)
    shape, kind = (len(found), -1), np.result_type(query_vectors, vectors)
    if not found:
        shape = 0, 0
    order = np.array([best_of.indices for best_of in found], np.int64).reshape(shape)
    return order, np.array([best_of.cosines for best_of in found], kind).reshape(shape)


class Best:
    """The k highest of what it was shown: their cosines, falling, and indices; of equal ones those
    shown first."""

    def __init__(self, k: int) -> None:
        self.k, self.indices, self.cosines = k, np.zeros(0, np.int64), np.zeros(0, np.float32)

    def look(self, cosines: np.ndarray, start: int) -> None:
        """Cosines [b], of the indices from `start` on; -inf is none."""
        full = len(self.indices) == self.k
        new = np.flatnonzero(cosines > (self.cosines[-1] if full else -np.inf))
        if len(new) > self.k:  # all above the kth highest, and of those equal to it the first
            own = cosines[new]
            kth = np.partition(own, -self.k)[-self.k]
            above = own > kth
            equal = np.flatnonzero(own == kth)[: self.k - above.sum()]
            above[equal] = True
            new = new[above]
        if len(new):
            indices = np.concatenate([self.indices, new + start])
            every = np.concatenate([self.cosines, cosines[new]])
            order = np.argsort(-every, kind="stable")[: self.k]
            self.indices, self.cosines = indices[order], every[order]


def thumbnail(path: str | os.PathLike) -> Image.Image:
    """The whole of a file's picture as it stands on a contact sheet. Raises as `load_image`."""
    return Image.fromarray(load_image(path, CELL - 2 * EDGE, fit="squash", roughly=True))


def contact_sheet(
    images: Sequence[Image.Image], labels: Sequence[str], columns: int = 6
) -> Image.Image:
    """PIL images with a label under each, in rows, as one picture."""
    texts = [textwrap.wrap(label, LETTERS)[:LINES] for label in labels]
    high = CELL + LINE * (max(map(len, texts), default=0) + 1)
    width, rows = min(columns, len(images)) * CELL, -(-len(images) // columns)
    sheet = Image.new("RGB", (width, rows * high), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, lines) in enumerate(zip(images, texts, strict=True)):
        x, y = i % columns * CELL, i // columns * high
        enlarged = image.resize((CELL - 2 * EDGE, CELL - 2 * EDGE), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (x + EDGE, y + EDGE))
        draw.text((x + EDGE, y + CELL), "\n".join(lines), fill="black", spacing=1)
    return sheet
