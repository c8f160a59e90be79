"""Images and texts as tokens of one width. As reference/relatives/modalities.py."""

import torch
from torch.nn.functional import pad

from ...config import PAD
from ..ops import l2_normalise, layer_norm
from ..text import text_embedding
from ..vision import patch_embedding
from .experts import expert_blocks


def read(tokens_BT, params):
    """Words and CLS: [B, T + 1, D], and which are real. A word that is masked is the id after the
    last of the vocabulary."""
    table = torch.cat([params["text"]["token"], params["word_mask"][None]])
    last_B = torch.full_like(tokens_BT[:, 0], tokens_BT.shape[1])
    x_BSD = text_embedding(tokens_BT, params["text"] | {"token": table}, last_B)
    return x_BSD, pad(tokens_BT != PAD, (0, 1), value=True)


def seen(images, params, config):
    """Patches and a class token: [B, N + 1, D]."""
    embedding = {name: params["image"][name] for name in ("patch", "position")}
    x_BND = patch_embedding(images, embedding, config.patch_size)
    return torch.cat([x_BND, params["image"]["class"].expand(len(x_BND), 1, -1)], 1)


def alone(x_BSD, params, config, settings, real_BS, name):
    """One modality by itself -> (unit vectors of the whole [B, D], its tokens [B, S, D], the
    layers' balance)."""
    parts = {name: x_BSD.shape[1]}
    x_BSD, balance = expert_blocks(x_BSD, params["blocks"], config, settings, real_BS, parts)
    return l2_normalise(layer_norm(x_BSD[:, -1], params["norm"])), x_BSD, balance
