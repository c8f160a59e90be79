"""The two losses (paper Eq. 2 and 3), as in reference/losses.py; computed behind the seam."""

from . import ops


def contrastive_loss(image_BE, text_BE, log_temperature, ranks=None, counts=None):
    """Of B pairs of unit vectors, find each image's text and each text's image.

    ranks, counts: where the pairs are of several processes (kernels/info_nce_ranks.py).
    """
    return ops.contrastive_loss(image_BE, text_BE, log_temperature, ranks, counts)


def caption_loss(n, head, targets_BT, packing=None):
    """Mean cross-entropy over the targets that are not padding; 0 if all are.

    n: what the head reads, [B, T, D], or the rows of `packing`.
    """
    targets = packing.take(targets_BT[..., None])[:, 0] if packing else targets_BT
    return ops.caption_loss(n, head, targets)
