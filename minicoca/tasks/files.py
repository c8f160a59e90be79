"""Images as people have them: find files, decode all batch by batch, skip what is broken."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.files import Report, images_below
from ..images import ImageError, ReadError, from_picture, load_image, patiently, status
from ..words import clip
from . import demand_vectors

BATCH = 64


class Fitting(NamedTuple):
    """How pictures become squares, as `images.load_image` takes it."""

    fit: str = "crop"
    max_pixels: int | None = None
    told: Callable[[str], None] | None = None


WHOLE = Fitting()
Picture = str | os.PathLike | Image.Image | np.ndarray


def find_images(paths: Iterable[str | os.PathLike], report: Report | None = None) -> list[Path]:
    """Every image file among `paths`; folders are searched to the bottom, as training does.

    What is left alone there goes to the `report`. Raises ValueError if a path is not there or may
    not be looked at, or if nothing is found.
    """
    found, report = [], Report() if report is None else report
    for path in map(Path, paths):
        is_folder = stat.S_ISDIR(patiently(lambda path=path: status(path), ReadError).st_mode)
        found += images_below(path, report) if is_folder else [path]
    if not found:
        left = f"\n{report}" if report.named else ""
        raise ValueError(f"no images in {clip(', '.join(map(str, paths)), 150)}{left}")
    return found


def pixels(image: Picture, side: int, how: Fitting = WHOLE) -> np.ndarray:
    """uint8 [side, side, 3] of the path of a file, a PIL image, or an array: uint8 [height, width,
    3], or [height, width] of grey. Raises ImageError, and ReadError as `load_image`."""
    if isinstance(image, str | os.PathLike):
        return patiently(lambda: load_image(image, side, **how._asdict()), ReadError)
    if isinstance(image, Image.Image):
        return from_picture(image, side, how.fit)
    if not hasattr(image, "__array__"):
        kind = type(image).__name__
        raise ImageError(f"an image is a path, a PIL image or an array, and not {kind}")
    array = np.asarray(image)
    rgb_or_grey = array.ndim == 2 or array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not rgb_or_grey or not array.size:
        what = f"{array.dtype} {list(array.shape)}"
        advice = "; of 0 to 1, multiply by 255 and round" if array.dtype.kind == "f" else ""
        raise ImageError(
            f"an array is uint8 [height, width, 3] or [height, width]: not {what}{advice}"
        )
    return from_picture(Image.fromarray(array), side, how.fit)


def decoded(
    given: Sequence[Picture],
    side: int,
    skipped: list[str] | None = None,
    how: Fitting = WHOLE,
) -> Iterator[tuple[list, np.ndarray]]:
    """(what is given, uint8 images [b, side, side, 3]) batch by batch.

    skipped: takes the errors of files that cannot be read or decoded, which are left out, and
    shows progress where it takes long; without it they are raised.
    """
    quiet = skipped is None or len(given) <= 4 * BATCH
    for i in tqdm(range(0, len(given), BATCH), unit="batch", disable=quiet, leave=False):
        kept, images = [], []
        for one in given[i : i + BATCH]:
            try:
                images.append(pixels(one, side, how))
                kept.append(one)
            except (ImageError, ReadError) as error:
                if skipped is None:
                    raise
                skipped.append(str(error))
        if kept:
            yield kept, np.stack(images)


def embed(
    model, given: Sequence[Picture], skipped: list[str] | None = None, how: Fitting = WHOLE
) -> Iterator[tuple[list, np.ndarray]]:
    """(what could be read, its unit vectors [b, E]) batch by batch, as `decoded`. Raises ValueError
    for a model not trained to match images and texts."""
    demand_vectors(model)
    for kept, images in decoded(given, model.config.image_size, skipped, how):
        yield kept, model.embed_images(images)
