"""Layers that several relatives have. As reference/relatives/layers.py."""

import torch

from ..attention import block
from ..ops import linear, widened
from ..text import text_embedding
from ..vision import image_blocks


def caption_numbers(tokens_BT):
    """[B], one number for all captions that are equal, token for token."""
    return torch.unique(tokens_BT, dim=0, return_inverse=True)[1]


def same_captions(tokens_BT):
    """[B, B], True where two captions are equal; so on the diagonal."""
    caption_B = caption_numbers(tokens_BT)
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


def fill(x_BND, hole_BN, empty_D):
    """The tokens, and in their holes the same vector."""
    return torch.where(hole_BN[..., None], empty_D.to(x_BND.dtype), x_BND)


def tower_of_holes(patches_BNP, params, config, hole_BN, empty_D):
    """CoCa's image tower, which reads every patch, but in holes one learned vector, put there after
    the patch embedding: [B, N, D]."""
    x_BND = fill(linear(patches_BNP, params["patch"]), hole_BN, empty_D) + params["position"]
    return image_blocks(x_BND, params["blocks"], config)


def pixel_loss(pixels_BNP, targets_BNP, counted_BN, power):
    """Mean over the pixels of the patches that count of |drawn - true| to the power of 1 or 2, in
    float32 at least; 0 where none counts."""
    gap_BNP = widened(pixels_BNP) - targets_BNP
    count = counted_BN.sum().clamp(min=1) * gap_BNP.shape[-1]
    return (gap_BNP.abs() ** power * counted_BN[..., None]).sum() / count
