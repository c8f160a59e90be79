"""Pictures of any Pillow mode to grey or RGB: transparency, palettes, more than 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

WHITE = (255, 255, 255)
STRIP = 2**17  # pixels that are converted at once
RANGES = {"F": (1, 255, 65535), "I": (255, 65535)}  # of grey values that do not say theirs


def grey_or_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Any Pillow mode to "L" where it is grey alone, else to "RGB", strip by strip."""
    clear, wide = image.has_transparency_data, is_wide(image.mode)
    grey = not clear and (wide or image.mode in ("1", "L"))
    mode = "L" if grey else "RGB"
    if image.mode == mode and not clear:
        return image
    made, rows = Image.new(mode, image.size), max(1, STRIP // image.width)
    boxes = [
        (0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)
    ]
    largest = max(largest_of(image.crop(box)) for box in boxes) if wide else None
    for box in boxes:
        strip = image.crop(box)
        made.paste(to_rgb(strip, background, largest).convert(mode), box)
    return made


def is_wide(mode: str) -> bool:
    """Numbers of more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def to_rgb(
    image: Image.Image,
    background: tuple[int, int, int] = WHITE,
    largest: float | None = None,
) -> Image.Image:
    """Any Pillow mode to RGB. Numbers wider than 8 bits are scaled as `to_bytes` says."""
    if is_wide(image.mode):
        values, clear = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray(to_bytes(values, image.mode, largest))
        if isinstance(clear, int):  # the one grey value that is transparent, in 16 bits
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        below = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def to_bytes(values: np.ndarray, mode: str, largest: float | None = None) -> np.ndarray:
    """Grey values [height, width] of a Pillow mode wider than 8 bits to uint8.

    "I;16" has a known range. "I" and "F" do not say theirs: it is taken to be the smallest of 0..1
    (only "F"), 0..255, 0..65535 and 0..largest that holds all values. Negatives and NaN turn black.
    largest: of the whole picture, where these values are a part of it.
    """
    values = finite(values)
    largest = values.max(initial=0) if largest is None else largest
    full = next((full for full in RANGES.get(mode, (65535,)) if largest <= full), largest)
    return np.rint(values.clip(0, full) * (255 / full)).astype(np.uint8)


def largest_of(image: Image.Image) -> float:
    return finite(np.asarray(image)).max(initial=0)


def finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
