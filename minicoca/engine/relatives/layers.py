"""Layers that several relatives have. As reference/relatives/layers.py."""

import torch

from ..attention import block
from ..text import text_embedding


def same_captions(tokens_BT):
    """[B, B], True where two captions are equal, token for token; so on the diagonal."""
    caption_B = torch.unique(tokens_BT, dim=0, return_inverse=True)[1]
    return caption_B[:, None] == caption_B


def words(tokens_BT, params):
    """text_embedding without CLS: [B, T, D]."""
    last_B = torch.full_like(tokens_BT[:, 0], tokens_BT.shape[1])
    return text_embedding(tokens_BT, {"cls": params["position"][0]} | params, last_B)[:, :-1]


def transformer(x_BSD, params, heads, kind, **masking):
    """Blocks one after the other; masking as attention takes it."""
    for i in range(len(params)):
        x_BSD = block(x_BSD, params[str(i)], heads, kind, **masking)
    return x_BSD
