"""How far chance may have moved a figure: intervals by resampling (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

DRAWS, LEVEL = 1000, 0.95


def intervals(
    figures_of: Callable[[np.ndarray], Mapping[str, float]],
    images: int,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, list[float]]:
    """[lowest, highest] of the middle 95 % of each figure over `draws` sets of as many images,
    drawn from the images with replacement: the percentile bootstrap.

    figures_of: the figures where image i counts times[i] times, from `times`, int64 [images], with
        all that belongs to it, so that the captions of an image are drawn together. NaN where a set
        does not have the figure; a figure that no set has is left out.

    It says what other images would have done, not what another training would. Of few images, or of
    a share near 0 or 1, it is too narrow: where all are right it is [1, 1].
    """
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        times = np.bincount(random.integers(images, size=images), minlength=images)
        for name, value in figures_of(times).items():
            if not np.isnan(value):
                found.setdefault(name, []).append(value)
    ends = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    return {name: np.quantile(values, ends).tolist() for name, values in found.items()}
