"""What can be known of a grammar's captions before any is read: their entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def caption_groups(
    counts: Sequence[int], first: int, kinds: int, layouts: Mapping[int, int]
) -> dict[tuple[int, int], tuple[int, float]]:
    """{(n, m): (how many captions name n things of which m may be drawn first, the probability of
    each of these captions)}, of scenes as data/shapes.py draws them: n is one of `counts`; the
    first thing is of one of `first` kinds, the others of one of `kinds` that is not there yet; and
    the things, in this order, sit in one of layouts[n] ways. Each choice is evenly drawn.

    A caption does not tell in which order its things were drawn: any of the m may have been the
    first, and the others come in any order, each order with one way to sit.
    """
    found = {}
    for n in set(counts):
        ways = layouts[n] // math.factorial(n)  # that a caption can tell apart
        drawn = first * math.perm(kinds - 1, n - 1) * layouts[n]
        for m in range(1, n + 1):
            named = math.comb(n, m) * math.perm(first, m) * math.perm(kinds - first, n - m)
            if named:
                orders = m * math.factorial(n - 1)
                found[n, m] = ways * named, counts.count(n) / len(counts) * orders / drawn
    return found


def caption_entropy(*scenes) -> float:
    """Of a caption, in nats: by less no model that sees no image can be surprised, in the mean.
    scenes: as `caption_groups` takes them."""
    return -sum(many * p * math.log(p) for many, p in caption_groups(*scenes).values())
