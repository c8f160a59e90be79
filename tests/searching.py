"""How long exact search among many vectors takes, for the guide:
`python tests/searching.py [COUNT]`; a million take two gigabytes of disk."""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from minicoca.index import Growing, Index
from minicoca.tasks.retrieval import nearest

WIDTH, PIECE, K, REPEATS = 512, 50_000, 20, 7


def made(folder, count):
    """An index of so many unit vectors drawn at random."""
    rng = np.random.default_rng(0)
    index = Growing.begin(folder, WIDTH, "w", "crop", "run")
    for start in range(0, count, PIECE):
        vectors = rng.standard_normal((min(PIECE, count - start), WIDTH), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        names = [f"/pictures/{start + i}.jpg" for i in range(len(vectors))]
        index.add(names, [(i, i) for i in range(len(vectors))], vectors)
    return folder


def seconds(folder):
    """Of the K nearest of one vector and their names, each time; the index is opened once."""
    rng, index, found = np.random.default_rng(1), Index(folder), []
    for _ in range(REPEATS):
        query = rng.standard_normal((1, WIDTH), np.float32)
        begun = time.perf_counter()
        order, _ = nearest(query / np.linalg.norm(query), index.vectors, K, index.dead)
        assert len([index.name(row) for row in order[0].tolist()]) == K
        found.append(time.perf_counter() - begun)
    return found


if __name__ == "__main__":
    count = int(sys.argv[1]) if sys.argv[1:] else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        taken = sorted(seconds(made(Path(folder) / "index", count)))
    middle, ends = taken[REPEATS // 2], f"{taken[0]:.2f} to {taken[-1]:.2f}"
    print(f"{K} nearest of {count:,} x {WIDTH}: {middle:.2f} s ({ends}, {REPEATS} searches)")
