"""Whether images and texts belong together, by the head that learned it (Li et al. 2022, section
3.2). It reads both at once, which is too slow for all pairs of a gallery: it is asked about the
nearest by the cosine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from . import embed_texts, trained
from .retrieval import nearest

RERANKED = 16  # candidates of a query
FEW = 32  # images whose pairs are asked about at once


def demand_matching(model) -> None:
    """Raises ValueError for a model without a head that says whether a pair is one."""
    if not model.config.matches:
        raise ValueError(f"{trained(model.config, 'matching')}: it has no head that matches")


def log_odds(
    model, tokenizer, images: np.ndarray, texts: Sequence[str], pairs: Sequence[np.ndarray]
) -> np.ndarray:
    """log p / (1 - p) of each of P pairs (places of images [P], places of texts [P]), where p is
    the probability that they belong together. Raises ValueError as `demand_matching`."""
    demand_matching(model)
    if not len(pairs[0]):
        return np.zeros(0, np.float32)
    return model.match(images, tokenizer.encode(texts, model.config.text_length), *pairs)


def matches(
    model, tokenizer, batches: Iterable[tuple[Sequence, np.ndarray]], texts: Sequence[str]
) -> np.ndarray:
    """The probability that they belong together, [n, m], of every image of the batches (what,
    images) and every text. Raises ValueError as `demand_matching`."""
    demand_matching(model)
    found = [np.zeros((0, len(texts)))]
    for _, images in batches:
        size = len(images), len(texts)
        odds = log_odds(model, tokenizer, images, texts, np.indices(size).reshape(2, -1))
        found.append(np.exp(-np.logaddexp(0, -odds.astype(np.float64))).reshape(size))
    return np.concatenate(found)


def found_first(
    model, tokenizer, look: Callable, vectors: np.ndarray, captions: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of n images finds one of its captions first, [n], and each caption an image of
    its own, [m], where of the RERANKED nearest by the cosine (of texts, of different ones) the
    head's likeliest comes first. A tie with a wrong one is not found.

    look: the images of rows, uint8; vectors: of all images, [n, E]; captions: of each.
    """
    place: dict[str, int] = {}
    said = [place.setdefault(text, len(place)) for own in captions for text in own]
    texts, text_vectors = list(place), embed_texts(model, tokenizer, place)
    near_IK = nearest(vectors, text_vectors, RERANKED)[0]
    near_TK = nearest(text_vectors, vectors, RERANKED)[0]
    asked_2P = np.concatenate([
        [np.indices(near_IK.shape)[0].ravel(), near_IK.ravel()],
        [near_TK.ravel(), np.indices(near_TK.shape)[0].ravel()],
    ], 1)  # fmt: skip
    odds_P = _each_once(model, tokenizer, look, texts, *asked_2P)
    right_P = np.array([texts[t] in captions[i] for i, t in asked_2P.T])
    best_P, wrong_P = np.where(right_P, odds_P, -np.inf), np.where(right_P, -np.inf, odds_P)

    def first(own, shape):
        best, wrong = (x[own].reshape(shape).max(1) for x in (best_P, wrong_P))
        return best > wrong

    ends = near_IK.size
    return first(slice(ends), near_IK.shape), first(slice(ends, None), near_TK.shape)[said]


def _each_once(model, tokenizer, look, texts, image_P, text_P):
    """`log_odds` of pairs of which some may be there twice, FEW images at a time."""
    once, back_P = np.unique(image_P * len(texts) + text_P, return_inverse=True)
    image_U, text_U = np.divmod(once, len(texts))
    odds_U = []
    for start in range(0, image_U[-1] + 1, FEW):
        own = slice(*np.searchsorted(image_U, (start, start + FEW)))
        rows, image = np.unique(image_U[own], return_inverse=True)
        used, text = np.unique(text_U[own], return_inverse=True)
        given = look(rows), [texts[u] for u in used], (image, text)
        odds_U.append(log_odds(model, tokenizer, *given))
    return np.concatenate(odds_U)[back_P]
