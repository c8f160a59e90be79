"""Pictures of any shape to squares of pixels, bit for bit as open_clip makes them."""

from __future__ import annotations

import numpy as np
from PIL import Image

FITS = ("crop", "pad", "squash")
MOST_SCALED = 2**24  # pixels of a whole picture that is scaled; of a longer one only the middle is


def fitted(image: Image.Image, side: int, fit: str = "crop") -> np.ndarray:
    """ "L" or "RGB" to uint8 [side, side, 3], bit for bit as open_clip's transform does (its
    resize_mode shortest, longest, squash).

    fit: "crop" scales the shorter side to `side` and keeps the middle of the longer one; "pad"
        scales the longer side and sets black beside the shorter one; "squash" scales both.
    """
    width, height = image.size
    bicubic = Image.Resampling.BICUBIC
    if fit == "squash":
        if side * height > MOST_SCALED:  # else it has all its height for a moment
            image = image.resize((width, side), bicubic)
        small = image.resize((side, side), bicubic)
    elif fit == "pad":
        ratio = max(width, height) / side
        inner = image.resize([max(1, round(length / ratio)) for length in image.size], bicubic)
        small = Image.new(image.mode, (side, side))
        small.paste(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
    else:
        (across, down), left, top = scaled(width, height, side)
        if across * max(down, height) > MOST_SCALED:
            small = image.resize((side, side), bicubic, box=centre_box(width, height, side))
        else:
            whole = image.resize((across, down), bicubic)
            small = whole.crop((left, top, left + side, top + side))
    return np.asarray(small.convert("RGB"))


def scaled(width: int, height: int, side: int) -> tuple[tuple[int, int], int, int]:
    """((width, height), left, top): of a picture whose shorter side becomes `side`, and of the
    middle `side` x `side` pixels; rounded as torchvision does."""
    size = tuple(int(side * length / min(width, height)) for length in (width, height))
    left, top = (round((length - side) / 2) for length in size)
    return size, left, top


def centre_box(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """The part of a picture that `scaled` keeps.

    Resizing only this part gives the same pixels, give or take rounding, and never makes a huge
    image of a long thin one.
    """
    (new_width, new_height), left, top = scaled(width, height, side)
    across, down = width / new_width, height / new_height
    right, bottom = min((left + side) * across, width), min((top + side) * down, height)
    return left * across, top * down, right, bottom
