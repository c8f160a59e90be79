"""Image files of the command line: find them, decode them batch by batch, skip what is broken."""

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..images import ImageError, load_image

BATCH = 64


def find_images(paths):
    """Every image file among `paths`; folders are searched to the bottom, in order of name.

    Raises ValueError if a path is not there or nothing is found.
    """
    Image.init()
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in Image.EXTENSION)
            found += [p for p in inside if p.is_file()]
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"{path}: there is no such file or folder")
    if not found:
        raise ValueError(f"no images in {', '.join(map(str, paths))}")
    return found


def decoded(paths, side, skipped):
    """(paths, uint8 images [b, side, side, 3]) batch by batch, with progress where it takes long.

    A file that cannot be decoded is left out and its error added to the list `skipped`.
    """
    steps = range(0, len(paths), BATCH)
    for i in tqdm(steps, unit="batch", disable=len(paths) <= 4 * BATCH, leave=False):
        kept, images = [], []
        for path in paths[i : i + BATCH]:
            try:
                images.append(load_image(path, side))
                kept.append(path)
            except ImageError as error:
                skipped.append(str(error))
        if kept:
            yield kept, np.stack(images)


def embed(model, paths, skipped):
    """(paths that could be read, their unit vectors [n, E])."""
    kept, vectors = [], [np.zeros((0, 1), np.float32)]
    for names, images in decoded(paths, model.config.image_size, skipped):
        kept += names
        vectors.append(model.embed_images(images))
    if not kept:
        raise ValueError(f"none of the {len(paths)} images could be read: {skipped[0]}")
    return kept, np.concatenate(vectors[1:])
