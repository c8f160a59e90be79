"""What a person gives from Python: one image or text, or several."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from ..words import clip


def listed(images):
    """(a list of images, whether one alone was given)."""
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images], True
    if hasattr(images, "__array__") and (images := np.asarray(images)).ndim != 4:
        return [images], True
    try:
        return list(images), False
    except TypeError:
        return [images], True  # which says why it is none


def texts_of(texts):
    """(a list of texts, whether one alone was given)."""
    if isinstance(texts, str):
        return [text_of(texts)], True
    try:
        return [text_of(text) for text in texts], False
    except TypeError:
        raise ValueError(f"a text is a str, and not {type(texts).__name__}") from None


def text_of(text):
    if not isinstance(text, str):
        raise ValueError(f"a text is a str, and not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = f"position {error.start}"
        raise ValueError(f"{clip(text)!r} is no text: half a letter at {at}") from None
    return text
