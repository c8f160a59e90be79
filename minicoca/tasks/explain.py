"""Why a caption says what it says: each word's probability, its rivals, and where it looked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..config import demand_vit
from ..params import tree_map
from ..reference.vision import normalise
from .captioning import demand_captions
from .looking import looks

RIVALS = 3


class Word(NamedTuple):
    """One token of a caption, as text, and why it stands there.

    probability: P(y_t | y_<t, image), of the whole vocabulary.
    rivals: [(text, probability)] of the likeliest others.
    attention: [G, G], how much was read from each patch (rows from the top), a part of 1.
    occlusion: [G, G], by how much log P falls when that patch alone is grey; below 0: it rises.
    """

    text: str
    probability: float
    rivals: list[tuple[str, float]]
    attention: np.ndarray
    occlusion: np.ndarray


class Explanation(NamedTuple):
    """contrast: [G, G], what the query read of which the image's own vector is made; None for a
    model without one. The end of the caption is the last word, of text ""."""

    caption: str
    words: list[Word]
    contrast: np.ndarray | None


def explain(
    model, tokenizer, image: np.ndarray, caption: str, layer: int | None = None,
    head: int | None = None,
) -> Explanation:  # fmt: skip
    """Of one image (uint8 [I, I, 3]) and a caption, written by the model or by anybody.

    layer, head: whose attention is shown, from 0; None: the mean of all. A class token's weight is
    left out, so attention may sum to less than 1. Raises ValueError for a layer or a head that
    there is not, for a caption that is empty to this model, and for a model that cannot caption or
    whose image tower is not CoCa's.
    """
    demand_captions(model)
    config = model.config
    demand_vit(config)
    for name, value, count in (
        ("layer", layer, config.multimodal_layers),
        ("head", head, config.text_heads),
    ):
        if value is not None and not 0 <= value < count:
            raise ValueError(f"{name} {value}: this model has {count}, from 0 to {count - 1}")
    tokens_1T = tokenizer.encode([caption], config.text_length)
    tokens_1T = tokens_1T[:, : int((tokens_1T != tokenizer.pad).sum())]
    if tokens_1T.shape[1] < 3:
        raise ValueError(f"the caption {caption!r} is empty to this model")
    params = tree_map(np.asarray, on_cpu(model.params))
    given = normalise(image[None], config)
    log_p_1TV, words_L1HTS, contrast_1HS = looks(params, config, given, tokens_1T)
    picked = words_L1HTS[:, 0] if layer is None else words_L1HTS[layer : layer + 1, 0]
    picked = picked.mean(0).mean(0) if head is None else picked.mean(0)[head]
    fall_TN = occlusion(model, image, tokens_1T)
    texts = pieces(tokenizer, tokens_1T[0])
    found = [
        Word(
            texts[t],
            float(np.exp(log_p_V[token])),
            rivals(tokenizer, tokens_1T[0, : t + 1], log_p_V, token),
            on_grid(picked[t], config),
            on_grid(fall_TN[t], config),
        )
        for t, (token, log_p_V) in enumerate(zip(tokens_1T[0, 1:], log_p_1TV[0], strict=True))
    ]
    has_vector = config.compares
    contrast = on_grid(contrast_1HS[0].mean(0), config) if has_vector else None
    return Explanation(caption, found, contrast)


def occlusion(model, image: np.ndarray, tokens_1T: np.ndarray) -> np.ndarray:
    """[T - 1, N]: by how much each token's log P falls when a patch is the data's mean grey."""
    masks = np.eye(model.config.patches, dtype=bool)
    shown = np.concatenate([image[None], greyed(model.config, image, masks)])
    log_p = model.log_likelihoods(shown, tokens_1T)[:, 0]
    return (log_p[:1] - log_p[1:]).T


def greyed(config, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Copies [n, I, I, 3] of an image, where masks [n, N] say whose patches are grey."""
    side = config.image_size // config.patch_size
    grid = masks.reshape(-1, side, side).repeat(config.patch_size, 1).repeat(config.patch_size, 2)
    grey = np.rint(255 * np.asarray(config.pixel_mean)).astype(np.uint8)
    return np.where(grid[..., None], grey, image)


def on_grid(weights_S, config):
    """Of image tokens, those of patches, as they lie: [G, G]."""
    side = config.image_size // config.patch_size
    return np.asarray(weights_S, np.float64)[-(side**2) :].reshape(side, side)


def pieces(tokenizer, tokens_T):
    """The text that each token but the first adds."""
    whole = [tokenizer.decode(tokens_T[:t]) for t in range(1, len(tokens_T) + 1)]
    return [
        after[len(before) :].strip() for before, after in zip(whole[:-1], whole[1:], strict=True)
    ]


def rivals(tokenizer, before_T, log_p_V, token):
    """The likeliest tokens beside this one."""
    order = [int(i) for i in np.argsort(-log_p_V)[: RIVALS + 1] if i != token][:RIVALS]
    known = tokenizer.decode(before_T)
    texts = [tokenizer.decode([*before_T, i])[len(known) :].strip() for i in order]
    return [(text, float(np.exp(log_p_V[i]))) for text, i in zip(texts, order, strict=True)]


def on_cpu(params):
    """The tree with its tensors, if they are some, where NumPy can read them, in float32."""
    return tree_map(lambda x: x.detach().float().cpu() if hasattr(x, "detach") else x, params)
