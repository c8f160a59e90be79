"""Layers that several relatives have, each with its gradient.

Letters as in params.py; S tokens of any kind, N patches.
"""

import numpy as np

from ..attention import block, block_backward
from ..ops import linear, linear_backward
from ..text import text_embedding, text_embedding_backward


def caption_numbers(tokens_BT):
    """[B], one number for all captions that are equal, token for token."""
    return np.unique(tokens_BT, axis=0, return_inverse=True)[1].reshape(-1)


def same_captions(tokens_BT):
    """[B, B], True where two captions are equal; so on the diagonal."""
    caption_B = caption_numbers(tokens_BT)
    return caption_B[:, None] == caption_B


def words(tokens_BT, params):
    """text_embedding without CLS: [B, T, D]."""
    x_BSD, cache = text_embedding(tokens_BT, {"cls": params["position"][0]} | params)
    return x_BSD[:, :-1], cache


def words_backward(dx_BTD, cache):
    dx_BSD = np.pad(dx_BTD, ((0, 0), (0, 1), (0, 0)))
    dparams = text_embedding_backward(dx_BSD, cache)
    return {name: dparams[name] for name in ("token", "position")}


def transformer(x_BSD, params, heads, kind, mask=None):
    """Blocks one after the other; `mask` as attention takes it."""
    caches = []
    for i in range(len(params)):
        x_BSD, cache = block(x_BSD, params[str(i)], heads, kind, mask)
        caches.append(cache)
    return x_BSD, caches


def transformer_backward(dx_BSD, caches):
    dparams = {}
    for i in reversed(range(len(caches))):
        dx_BSD, dparams[str(i)] = block_backward(dx_BSD, caches[i])
    return dx_BSD, dparams


def fill(x_BND, hole_BN, empty_D):
    """The tokens, and in their holes the same vector."""
    return np.where(hole_BN[..., None], empty_D, x_BND), hole_BN


def fill_backward(dy_BND, hole_BN):
    return np.where(hole_BN[..., None], 0, dy_BND), (dy_BND * hole_BN[..., None]).sum((0, 1))


def tower_of_holes(patches_BNP, params, config, hole_BN, empty_D):
    """CoCa's image tower, which reads every patch, but in holes one learned vector, put there after
    the patch embedding: [B, N, D]."""
    x_BND, patch_cache = linear(patches_BNP, params["patch"])
    x_BND, fill_cache = fill(x_BND, hole_BN, empty_D)
    x_BND = x_BND + params["position"]  # (1) which a hole has too
    x_BND, caches = transformer(x_BND, params["blocks"], config.image_heads, config.gelu)
    return x_BND, (patch_cache, fill_cache, caches)


def tower_of_holes_backward(dx_BND, cache):
    patch_cache, fill_cache, caches = cache
    dx_BND, dblocks = transformer_backward(dx_BND, caches)
    dparams = {"blocks": dblocks, "position": dx_BND.sum(0)}  # from (1)
    dx_BND, dempty_D = fill_backward(dx_BND, fill_cache)
    _, dparams["patch"] = linear_backward(dx_BND, patch_cache)
    return dparams, dempty_D


def pixel_loss(pixels_BNP, targets_BNP, counted_BN, power):
    """Mean over the pixels of the patches that count of |drawn - true| to the power of 1 or 2; 0
    where none counts."""
    gap_BNP = pixels_BNP - targets_BNP
    slope_BNP = np.sign(gap_BNP.real) if power == 1 else 2 * gap_BNP
    count = max(1, int(counted_BN.sum())) * gap_BNP.shape[-1]
    weight_BN1 = counted_BN[..., None].astype(gap_BNP.real.dtype) / count
    loss = (slope_BNP * gap_BNP * weight_BN1).sum() / power
    return loss, slope_BNP * weight_BN1


def pixel_loss_backward(dloss, slope_BNP):
    return dloss * slope_BNP


def added(one, other):
    """The sum of two trees of gradients, of which each may lack what the other has."""
    if not isinstance(one, dict):
        return one + other
    both = {name: added(one[name], other[name]) for name in one.keys() & other.keys()}
    return one | other | both


def of_all(gradients, params):
    """Gradients as a tree like the parameters': 0 for what no loss asked anything of."""
    return {
        name: of_all(gradients.get(name, {}), leaf)
        if isinstance(leaf, dict)
        else gradients.get(name, np.zeros_like(leaf))
        for name, leaf in params.items()
    }
