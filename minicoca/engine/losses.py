"""The two losses (paper Eq. 2 and 3), as in reference/losses.py; computed behind the seam."""

import torch

from ..config import PAD
from . import ops


def contrastive_loss(image_BE, text_BE, log_temperature):
    """Of B pairs of unit vectors, find each image's text and each text's image."""
    return ops.contrastive_loss(image_BE, text_BE, log_temperature)


def caption_loss(n, head, targets_BT, packing=None):
    """Mean cross-entropy over the targets that are not padding; 0 if all are.

    n: what the head reads, [B, T, D], or the rows of `packing`. Padding never reaches the head.
    """
    if packing:
        return ops.caption_loss(n, head, packing.take(targets_BT[..., None])[:, 0])
    if torch.compiler.is_compiling():  # a graph of fixed sizes cannot leave rows out
        return ops.masked_caption_loss(n, head, targets_BT)
    valid_BT = targets_BT != PAD
    return ops.caption_loss(n[valid_BT], head, targets_BT[valid_BT])
