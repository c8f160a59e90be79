"""How well texts fit images: by their vectors (paper Eq. 2), and as captions of them (Eq. 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..config import PAD
from . import embed_texts


class Scores(NamedTuple):
    """Of n images and m texts. None: what the model was not trained for.

    cosines: [n, m], of the unit vectors, as in Eq. 2 before the temperature.
    log_likelihoods: [n, m], log p(text | image) = sum over t of log P(y_t | y_<t, image), minus the
        paper's Eq. 3: over the tokens y_t of the text and its end, in float64.
    tokens: [m], how many those are.
    """

    cosines: Any
    log_likelihoods: Any
    tokens: Any

    @property
    def per_token(self) -> Any:
        """log_likelihoods / tokens: long texts are not worse for being long."""
        return None if self.log_likelihoods is None else self.log_likelihoods / self.tokens


def scores(
    model, tokenizer, batches: Iterable[tuple[Sequence, np.ndarray]], texts: Sequence[str]
) -> Scores:
    """Every text with every image of the batches (what, images)."""
    compares, captions = model.config.contrastive_weight > 0, model.config.caption_weight > 0
    tokens = tokenizer.encode(texts, model.config.text_length)
    vectors = embed_texts(model, tokenizer, texts) if compares else None
    cosines, sums = [np.zeros((0, len(texts)), np.float32)], [np.zeros((0, len(texts)))]
    for _, images in batches:
        if compares:
            cosines.append(model.embed_images(images) @ vectors.T)
        if captions and len(texts):
            sums.append(model.log_likelihoods(images, tokens).sum(-1, dtype=np.float64))
        elif captions:
            sums.append(np.zeros((len(images), 0)))
    return Scores(
        np.concatenate(cosines) if compares else None,
        np.concatenate(sums) if captions else None,
        (tokens[:, 1:] != PAD).sum(1),
    )
