"""Images and texts as tokens of one width, for one transformer; each with a token of its own, the
last, that stands for the whole.

Letters of this file: S tokens of either kind, the whole's with them.
"""

import numpy as np

from ...config import PAD
from ..ops import l2_normalise, l2_normalise_backward, layer_norm, layer_norm_backward
from ..text import text_embedding, text_embedding_backward
from ..vision import patch_embedding, patch_embedding_backward
from .experts import expert_blocks, expert_blocks_backward


def read(tokens_BT, params):
    """Words and CLS: [B, T + 1, D], and which are real. A word that is masked is the id after the
    last of the vocabulary."""
    table = np.concatenate([params["text"]["token"], params["word_mask"][None]])  # (1)
    x_BSD, cache = text_embedding(tokens_BT, params["text"] | {"token": table})
    return x_BSD, np.pad(tokens_BT != PAD, ((0, 0), (0, 1)), constant_values=True), cache


def read_backward(dx_BSD, cache):
    dtext = text_embedding_backward(dx_BSD, cache)
    table = dtext["token"]  # from (1)
    return {"text": dtext | {"token": table[:-1]}, "word_mask": table[-1]}


def seen(images, params, config):
    """Patches and a class token: [B, N + 1, D]."""
    embedding = {name: params["image"][name] for name in ("patch", "position")}
    x_BND, cache = patch_embedding(images, embedding, config.patch_size)
    class_B1D = np.broadcast_to(params["image"]["class"], (len(x_BND), 1, x_BND.shape[-1]))
    return np.concatenate([x_BND, class_B1D], 1), cache


def seen_backward(dx_BSD, cache):
    _, dimage = patch_embedding_backward(dx_BSD[:, :-1], cache)
    return {"image": dimage | {"class": dx_BSD[:, -1].sum(0)}}


def alone(x_BSD, params, config, settings, real_BS, name):
    """One modality by itself -> (unit vectors of the whole [B, D], its tokens [B, S, D], the
    layers' balance, cache)."""
    parts = {name: x_BSD.shape[1]}
    x_BSD, balance, cache = expert_blocks(x_BSD, params["blocks"], config, settings, real_BS, parts)
    n_BD, norm_cache = layer_norm(x_BSD[:, -1], params["norm"])  # (1)
    y_BD, unit_cache = l2_normalise(n_BD)
    return y_BD, x_BSD, balance, (x_BSD.shape, cache, norm_cache, unit_cache)


def alone_backward(dy_BD, dbalance, cache):
    shape, blocks_cache, norm_cache, unit_cache = cache
    dx_BSD = np.zeros(shape, dy_BD.dtype)
    dlast_BD, dnorm = layer_norm_backward(l2_normalise_backward(dy_BD, unit_cache), norm_cache)
    dx_BSD[:, -1] = dlast_BD  # from (1)
    dx_BSD, dblocks = expert_blocks_backward(dx_BSD, dbalance, blocks_cache)
    return dx_BSD, {"blocks": dblocks, "norm": dnorm}
