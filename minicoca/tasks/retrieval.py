"""Find images by a sentence or by another image (paper section 4.2.2)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..images import load_image

CELL, LABEL, EDGE = 128, 30, 4


class Found(NamedTuple):
    """What was looked at (its place among all of it, and itself), and how near it is."""

    place: int
    image: Any
    cosine: float


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


def nearest(query_vectors: np.ndarray, vectors: np.ndarray, k: int) -> tuple:
    """Indices [queries, k] and cosines of the k vectors nearest each query, best first."""
    similarity = query_vectors @ vectors.T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarity, order, 1)


def thumbnail(path: str | os.PathLike) -> Image.Image:
    """The whole of a file's picture as it stands on a contact sheet. Raises as `load_image`."""
    return Image.fromarray(load_image(path, CELL - 2 * EDGE, crop="squash"))


def contact_sheet(
    images: Sequence[Image.Image], labels: Sequence[str], columns: int = 6
) -> Image.Image:
    """PIL images with a label under each, in rows, as one picture."""
    rows = -(-len(images) // columns)
    width = min(columns, len(images)) * CELL
    sheet = Image.new("RGB", (width, rows * (CELL + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = i % columns * CELL, i // columns * (CELL + LABEL)
        enlarged = image.resize((CELL - 2 * EDGE, CELL - 2 * EDGE), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (x + EDGE, y + EDGE))
        draw.text((x + EDGE, y + CELL), label[:40], fill="black")
    return sheet
