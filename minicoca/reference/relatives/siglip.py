"""SigLIP (Zhai et al. 2023, arXiv 2303.15343), alone or with captioning: CoCa, but its contrastive
loss asks of every image and text of a batch by itself whether they are a pair.

Two images may have the same caption: neither is then a negative of the other's text.
"""

import numpy as np

from ..towers import joint_loss, joint_loss_backward
from .layers import same_captions


def counted_pairs(tokens_BT):
    """[B, B], False where a text is another image's caption too, word for word."""
    own_BB = np.eye(len(tokens_BT), dtype=bool)
    return own_BB | ~same_captions(tokens_BT)


def sigmoid_loss(image_BE, text_BE, log_temperature, bias, counted_BB):
    """- 1/B sum over all pairs i, j that count of log sigmoid(z (x_i . y_j / sigma + bias)), where
    z is 1 for i = j and -1 for all others. The sum is of B^2 terms; it is divided by B."""
    scale = np.exp(-log_temperature)
    logits_BB = scale * (image_BE @ text_BE.T)  # (1)
    sign_BB = 2 * np.eye(len(logits_BB), dtype=image_BE.real.dtype) - 1
    z_BB = sign_BB * (logits_BB + bias)  # (2)
    small_BB = np.exp(np.where(z_BB.real > 0, -z_BB, z_BB))  # at most 1
    losses_BB = np.log1p(small_BB) - np.where(z_BB.real > 0, 0, z_BB)  # (3) log(1 + exp(-z))
    loss = (losses_BB * counted_BB).sum() / len(logits_BB)  # (4)
    return loss, (image_BE, text_BE, scale, logits_BB, sign_BB, z_BB, small_BB, counted_BB)


def sigmoid_loss_backward(dloss, cache):
    image_BE, text_BE, scale, logits_BB, sign_BB, z_BB, small_BB, counted_BB = cache
    no_BB = np.where(z_BB > 0, small_BB, 1) / (1 + small_BB)  # sigmoid(-z)
    dz_BB = -dloss / len(logits_BB) * no_BB * counted_BB  # from (4) and (3)
    dlogits_BB = dz_BB * sign_BB  # from (2)
    dimage_BE = scale * (dlogits_BB @ text_BE)  # from (1)
    dtext_BE = scale * (dlogits_BB.T @ image_BE)  # from (1)
    dlog_temperature = -(dlogits_BB * logits_BB).sum()  # from (1): d scale / d log = -scale
    return dimage_BE, dtext_BE, dlog_temperature, dlogits_BB.sum()


def loss(params, config, settings, batch):
    """-> ({loss, contrastive, caption, image [B, E], text [B, E]}, cache), weighed as CoCa's."""
    counted_BB = counted_pairs(batch["tokens"])
    given = params["log_temperature"], params["sigmoid_bias"], counted_BB
    return joint_loss(params, config, batch, lambda x, y: sigmoid_loss(x, y, *given))


def loss_backward(dloss, cache):
    dparams, (dtemperature, dbias) = joint_loss_backward(dloss, cache, sigmoid_loss_backward)
    return dparams | {"log_temperature": dtemperature, "sigmoid_bias": dbias}
