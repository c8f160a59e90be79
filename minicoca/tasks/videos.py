"""Videos: frames of each through the image encoder one by one (paper section 3.3)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from ..data.video import FRAMES, load_video
from ..images import ImageError, ReadError, patiently
from . import demand_vectors
from .files import WHOLE, Fitting
from .probe import features

BATCH = 16  # videos


def watched(
    given: Sequence[str | os.PathLike],
    side: int,
    frames: int = FRAMES,
    skipped: list[str] | None = None,
    how: Fitting = WHOLE,
) -> Iterator[tuple[list, np.ndarray]]:
    """(what is given, uint8 videos [b, frames, side, side, 3]) batch by batch; skipped as in
    `files.decoded`; of `how` the fit alone counts."""
    quiet = skipped is None or len(given) <= 4 * BATCH
    for i in tqdm(range(0, len(given), BATCH), unit="batch", disable=quiet, leave=False):
        kept, videos = [], []
        for path in given[i : i + BATCH]:
            try:
                load = lambda path=path: load_video(path, side, frames, how.fit)  # noqa: E731
                videos.append(patiently(load, ReadError))
                kept.append(path)
            except (ImageError, ReadError) as error:
                if skipped is None:
                    raise
                skipped.append(str(error))
        if kept:
            yield kept, np.stack(videos)


def embed_videos(
    model,
    given: Sequence[str | os.PathLike],
    skipped: list[str] | None = None,
    how: Fitting = WHOLE,
) -> Iterator[tuple[list, np.ndarray]]:
    """(what could be read, its unit vectors [b, E]) batch by batch: of a video the mean of those of
    FRAMES frames, at length 1 again. Raises ValueError for a model not trained to compare."""
    demand_vectors(model)
    for kept, videos in watched(given, model.config.image_size, FRAMES, skipped, how):
        yield kept, features(model, videos, with_tokens=False)[0]
