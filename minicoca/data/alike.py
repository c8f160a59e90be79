"""Pictures that look alike, found by a small mark of each: the same photograph scaled, or saved
again, has nearly the same mark.

The mark of a picture: it is scaled to 36 x 36 pixels and averaged over 9 x 9 cells. 64 bits say,
for the first eight rows, whether a cell is brighter by more than 2 levels than the one left of it
(so that flat parts, where only noise decides, say no). Two pictures are near-equal where at most
MOST_BITS bits differ, and the cells' colours by MOST_MEAN levels in the mean and MOST_CELL at most:
bits alone call all plain pictures the same. Mirrored, turned and cropped pictures are not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minicoca.data.files import in_threads
from minicoca.images import ImageError, load_image

SIDE, CELLS, STEP = 36, 9, 2  # pixels, cells a side, levels
MOST_BITS, MOST_MEAN, MOST_CELL = 6, 4, 24
MOST_LOOKED = 20_000  # pictures of a split
CHUNK = 2**22  # pairs that are compared at once


def cells_of(images: np.ndarray) -> np.ndarray:
    """Means over CELLS x CELLS cells of uint8 images [n, side, side, 3]: float32 [n, 9, 9, 3]."""
    edges = np.linspace(0, images.shape[1], CELLS + 1).round().astype(int)
    if images.shape[1] < CELLS:
        rows = np.arange(CELLS) * images.shape[1] // CELLS
        return images[:, rows][:, :, rows].astype(np.float32)
    down = np.add.reduceat(images.astype(np.float32), edges[:-1], axis=1)
    total = np.add.reduceat(down, edges[:-1], axis=2)
    sizes = np.diff(edges)
    return total / (sizes[:, None] * sizes)[None, :, :, None]


def bits_of(cells: np.ndarray) -> np.ndarray:
    """The 64 bits of each mark: uint64 [n]."""
    grey = cells[:, :8].mean(3)  # [n, 8, 9]
    brighter = grey[:, :, 1:] > grey[:, :, :-1] + STEP
    packed = np.packbits(brighter.reshape(len(cells), 64), axis=1)
    return np.ascontiguousarray(packed).view(np.uint64)[:, 0]


def marks(pairs, rows: Sequence[int], workers: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(the rows whose pictures can be read, the cells of each) of a split."""
    if not hasattr(pairs, "paths"):
        found = [cells_of(pairs.batch(rows[i : i + 1024])) for i in range(0, len(rows), 1024)]
        return np.asarray(rows), np.concatenate(found)

    def look(row: int) -> np.ndarray | None:
        try:
            return cells_of(load_image(pairs.paths[row], SIDE, fit="squash", roughly=True)[None])[0]
        except ImageError:
            return None

    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip(rows, in_threads(pool, look, rows), strict=True))
    found = {row: cells for row, cells in found.items() if cells is not None}
    cells = np.stack(list(found.values())) if found else np.zeros((0, CELLS, CELLS, 3), np.float32)
    return np.array(list(found), np.int64), cells


def near_equal(one: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    """The pairs (i, j) of cells one[i] and other[j] that are of near-equal pictures: for each i the
    first j alone."""
    left, right = bits_of(one), bits_of(other)
    found, height = [], max(1, CHUNK // max(1, len(right)))
    for start in range(0, len(left), height):
        part = left[start : start + height]
        near = np.bitwise_count(part[:, None] ^ right) <= MOST_BITS
        for i in np.flatnonzero(near.any(1)):
            candidates = np.flatnonzero(near[i])
            differ = np.abs(other[candidates] - one[start + i])
            close = (differ.mean((1, 2, 3)) <= MOST_MEAN) & (differ.max((1, 2, 3)) <= MOST_CELL)
            if close.any():
                found.append((int(start + i), int(candidates[close.argmax()])))
    return found


def some_of(count: int) -> np.ndarray:
    """Rows of a split, spread evenly, at most MOST_LOOKED."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_LOOKED)).astype(np.int64))
