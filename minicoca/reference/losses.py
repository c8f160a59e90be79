"""The two losses (paper Eq. 2 and 3).

The paper writes sums: over both directions (Eq. 2), over the tokens of a caption (Eq. 3). Ours are
means: over the two directions, so half of Eq. 2, and over all target tokens of the batch, as in
open_clip. The weights 1 and 2 of Eq. 4 therefore weigh other quantities than the paper's.
"""

import numpy as np

from ..config import PAD
from .ops import log_softmax, log_softmax_backward


def contrastive_loss(image_BE, text_BE, log_temperature):
    """Of B pairs of unit vectors, find each image's text and each text's image.

    log_temperature is the logarithm of sigma in Eq. 2. Returns (loss, cache).
    """
    scale = np.exp(-log_temperature)
    logits_BB = scale * (image_BE @ text_BE.T)  # (1) x_i . y_j / sigma
    log_p_BB, image_cache = log_softmax(logits_BB)  # (2) over the texts
    log_r_BB, text_cache = log_softmax(logits_BB.T)  # (3) over the images
    loss = -0.5 * (np.diagonal(log_p_BB).mean() + np.diagonal(log_r_BB).mean())  # (4)
    return loss, (image_BE, text_BE, scale, logits_BB, image_cache, text_cache)


def contrastive_loss_backward(dloss, cache):
    image_BE, text_BE, scale, logits_BB, image_cache, text_cache = cache
    B = len(image_BE)
    dlog_p_BB = -0.5 / B * dloss * np.eye(B, dtype=logits_BB.dtype)  # from (4)
    dlogits_BB = log_softmax_backward(dlog_p_BB, image_cache)  # from (2)
    dlogits_BB = dlogits_BB + log_softmax_backward(dlog_p_BB, text_cache).T  # from (3)
    dimage_BE = scale * (dlogits_BB @ text_BE)  # from (1)
    dtext_BE = scale * (dlogits_BB.T @ image_BE)  # from (1)
    dlog_temperature = -(dlogits_BB * logits_BB).sum()  # from (1): d scale / d log = -scale
    return dimage_BE, dtext_BE, dlog_temperature


def caption_loss(logits_BTV, targets_BT):
    """Mean cross-entropy over the targets that are not padding; 0 if all are."""
    valid_BT = targets_BT != PAD
    count = max(int(valid_BT.sum()), 1)
    log_p_BTV, cache = log_softmax(logits_BTV)  # (1)
    log_p_BT = np.take_along_axis(log_p_BTV, targets_BT[..., None], 2)[..., 0]  # (2)
    return -(log_p_BT * valid_BT).sum() / count, (cache, targets_BT, valid_BT, count)  # (3)


def caption_loss_backward(dloss, cache):
    log_softmax_cache, targets_BT, valid_BT, count = cache
    dlog_p_BTV = np.zeros_like(log_softmax_cache[0])
    d_BT = -dloss / count * valid_BT.astype(dlog_p_BTV.dtype)  # from (3)
    np.put_along_axis(dlog_p_BTV, targets_BT[..., None], d_BT[..., None], 2)  # from (2)
    return log_softmax_backward(dlog_p_BTV, log_softmax_cache)  # from (1)
