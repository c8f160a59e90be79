"""Image files of the command line: find them, decode them batch by batch, skip what is broken."""

import stat
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.files import Report, images_below
from ..images import ImageError, ReadError, load_image, patiently, status
from ..words import clip

BATCH = 64


def find_images(paths, report=None):
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


def decoded(paths, side, skipped):
    """(paths, uint8 images [b, side, side, 3]) batch by batch, with progress where it takes long.

    A file that cannot be read or decoded is left out and its error added to the list `skipped`.
    """
    steps = range(0, len(paths), BATCH)
    for i in tqdm(steps, unit="batch", disable=len(paths) <= 4 * BATCH, leave=False):
        kept, images = [], []
        for path in paths[i : i + BATCH]:
            try:
                images.append(patiently(lambda path=path: load_image(path, side), ReadError))
                kept.append(path)
            except (ImageError, ReadError) as error:
                skipped.append(str(error))
        if kept:
            yield kept, np.stack(images)


def embed(model, paths, skipped):
    """(paths that could be read, their unit vectors [b, E]) batch by batch, as `decoded`."""
    for kept, images in decoded(paths, model.config.image_size, skipped):
        yield kept, model.embed_images(images)
