"""Views: an image by another cut and in other colours, of which SimCLR learns what stays.

Nothing is mirrored: left and right are words of captions. Letters: B images of I x I pixels.
"""

import numpy as np

GREY = 0.299, 0.587, 0.114  # of red, green, blue
GREYED = 0.2  # part of the views that have no colour, at strength 1 or more


def view(images, rng, crop, colours):
    """uint8 [B, I, I, 3] -> the same kind, each image changed in its own way: a rectangle of it, of
    `crop` to all of its area and sides of 3 to 4 to 4 to 3, drawn as large as it was; then, by
    `colours`, other brightness, contrast, saturation and tint, and some of them grey (Chen et al.
    2020, appendix A, whose strengths are those of colours=1)."""
    x = _cut(images.astype(np.float32) / 255, rng, crop)
    if colours:
        x = _tinted(x, rng, colours)
    return (255 * np.clip(x, 0, 1) + 0.5).astype(np.uint8)


def _cut(x, rng, crop):
    B, side = x.shape[:2]
    area_B = rng.uniform(crop, 1, B)
    stretch_B = np.exp(rng.uniform(-1, 1, B) * np.log(4 / 3) / 2)
    sizes_B2 = np.minimum(1, np.stack([area_B**0.5 * stretch_B, area_B**0.5 / stretch_B], 1))
    first_B2 = rng.random((B, 2)) * (1 - sizes_B2)
    at_I = (np.arange(side) + 0.5) / side
    for axis in (0, 1):
        place_BI = (first_B2[:, axis, None] + sizes_B2[:, axis, None] * at_I) * side - 0.5
        x = _line(np.swapaxes(x, 1, 1 + axis), np.clip(place_BI, 0, side - 1))
        x = np.swapaxes(x, 1, 1 + axis)
    return x


def _line(x, place_BI):
    """Rows of images at places between them, by linear interpolation."""
    low_BI = np.minimum(place_BI.astype(np.int64), x.shape[1] - 2) if x.shape[1] > 1 else 0
    low_BI = np.broadcast_to(low_BI, place_BI.shape)
    part = (place_BI - low_BI)[..., None, None].astype(np.float32)
    below, above = (x[np.arange(len(x))[:, None], low_BI + d * (x.shape[1] > 1)] for d in (0, 1))
    return below + part * (above - below)


def _tinted(x, rng, colours):
    B = len(x)

    def factor(most):
        return (1 + most * colours * rng.uniform(-1, 1, (B, 1, 1, 1))).astype(np.float32)

    x = np.clip(x * factor(0.8), 0, 1)
    mean = (x @ np.float32(GREY)).mean((1, 2))[:, None, None, None]
    x = np.clip(mean + factor(0.8) * (x - mean), 0, 1)
    grey = (x @ np.float32(GREY))[..., None]
    x = grey + factor(0.8) * (x - grey)
    x = np.clip(np.einsum("bijc,bcd->bijd", x, _turns(rng, B, colours)), 0, 1)
    greyed_B = rng.random(B) < GREYED * min(1, colours)
    return np.where(greyed_B[:, None, None, None], (x @ np.float32(GREY))[..., None], x)


def _turns(rng, count, colours):
    """[count, 3, 3]: turns about the axis of greys, by up to a fifth of a whole one: of the hue."""
    angle = 2 * np.pi * np.minimum(0.5, 0.2 * colours) * rng.uniform(-1, 1, count)
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5  # v -> axis x v
    turns = cos * np.eye(3) + (1 - cos) / 3 + sin * cross
    return turns.astype(np.float32).swapaxes(1, 2)
