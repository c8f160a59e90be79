"""How well texts fit images: by their vectors (paper Eq. 2), and as captions of them (Eq. 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..config import PAD
from ..images import ImageError, ReadError
from . import embed_texts
from .captioning import demand_captions
from .files import WHOLE, Fitting, pixels
from .matching import log_odds
from .retrieval import Found


class Scores(NamedTuple):
    """Of n images and m texts. None: what the model was not trained for.

    cosines: [n, m], of the unit vectors, as in Eq. 2 before the temperature.
    log_likelihoods: [n, m], log p(text | image) = sum over t of log P(y_t | y_<t, image), minus the
        paper's Eq. 3: over the tokens y_t of the text and its end, in float64.
    tokens: [m], how many those are.
    without_image: [m], log p(text), as `without_image` estimates it.
    """

    cosines: Any
    log_likelihoods: Any
    tokens: Any
    without_image: Any

    @property
    def per_token(self) -> Any:
        """log_likelihoods / tokens: long texts are not worse for being long."""
        return None if self.log_likelihoods is None else self.log_likelihoods / self.tokens

    @property
    def pmi(self) -> Any:
        """log p(text | image) - log p(text), the pointwise mutual information: what the image adds.
        A text that is likely of any picture is no better for that."""
        return None if self.log_likelihoods is None else self.log_likelihoods - self.without_image


def scores(
    model, tokenizer, batches: Iterable[tuple[Sequence, np.ndarray]], texts: Sequence[str]
) -> Scores:
    """Every text with every image of the batches (what, images)."""
    compares, captions = model.config.compares, model.config.writes
    tokens = tokenizer.encode(texts, model.config.text_length)
    vectors = embed_texts(model, tokenizer, texts) if compares else None
    cosines, sums = [np.zeros((0, len(texts)), np.float32)], [np.zeros((0, len(texts)))]
    for _, images in batches:
        if compares:
            cosines.append(model.embed_images(images) @ vectors.T)
        if captions:
            sums.append(log_likelihoods(model, images, tokens))
    return Scores(
        np.concatenate(cosines) if compares else None,
        np.concatenate(sums) if captions else None,
        counts(tokens),
        without_image(model, tokens) if captions else None,
    )


def counts(tokens: np.ndarray) -> np.ndarray:
    """How many tokens of each text [m] have a probability: all but the first, which is given."""
    return (tokens[:, 1:] != PAD).sum(1)


def log_likelihoods(model, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """log p(text | image), float64 [n, m], of ids [m, T]."""
    if not len(tokens):
        return np.zeros((len(images), 0))
    return model.log_likelihoods(images, tokens).sum(-1, dtype=np.float64)


def reranked(
    model,
    tokenizer,
    text: str,
    found: Sequence[Found],
    skipped: list[str] | None = None,
    how: Fitting = WHOLE,
) -> list[Found]:
    """Images that vectors found for a sentence, those first that belong to it by the model's head
    that matches; of a model without one those of which it is the likelier caption, by log p(text |
    image) per token. To subtract log p(text) would not change the order.

    skipped: takes the errors of those that cannot be read any more, which come last; without it
    they are raised. Raises ValueError as `demand_ranking`.
    """
    demand_ranking(model)
    tokens, read, lost = tokenizer.encode([text], model.config.text_length), [], []
    by = "log_odds" if model.config.matches else "likelihood"
    for one in found:
        try:
            images = np.stack([pixels(one.image, model.config.image_size, how)])
        except (ImageError, ReadError) as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            lost.append(one)
            continue
        if model.config.matches:
            [score] = log_odds(model, tokenizer, images, [text], np.zeros((2, 1), int))
        else:
            score = log_likelihoods(model, images, tokens)[0, 0] / counts(tokens)[0]
        read.append(one._replace(**{by: float(score)}))
    return sorted(read, key=lambda one: -getattr(one, by)) + lost


def demand_ranking(model) -> None:
    """Raises ValueError for a model that can neither match nor caption: it ranks nothing again."""
    if not model.config.matches:
        demand_captions(model)


def without_image(model, tokens: np.ndarray) -> np.ndarray:
    """log p(text), float64 [m], of ids [m, T]: the mean of log p(text | picture) over three with
    nothing on them, a black and a white one and one of the mean colour of training.

    It is an estimate, for the decoder was never trained without a picture; and a function of the
    text alone, so that what is said of an image does not depend on which others are looked at. On
    validation pictures of shapes the three served better than one blank picture, noise, the mean of
    the pictures' tokens, or a mixture of training pictures (minicoca/DECISIONS.md).
    """
    side = model.config.image_size
    mean = np.round(255 * np.array(model.config.pixel_mean))
    blank = np.array([np.zeros(3), np.full(3, 255), mean], np.uint8)[:, None, None]
    blank = np.broadcast_to(blank, (3, side, side, 3)).copy()
    return log_likelihoods(model, blank, tokens).mean(0)
