"""SigLIP, alone or with captioning. As reference/relatives/siglip.py."""

import torch
from torch.nn.functional import softplus

from ..ops import widened
from ..towers import joint_loss
from .layers import same_captions


def counted_pairs(tokens_BT):
    """[B, B], False where a text is another image's caption too, word for word."""
    own_BB = torch.eye(len(tokens_BT), dtype=torch.bool, device=tokens_BT.device)
    return own_BB | ~same_captions(tokens_BT)


def sigmoid_loss(image_BE, text_BE, log_temperature, bias, counted_BB):
    """- 1/B sum over all pairs i, j that count of log sigmoid(z (x_i . y_j / sigma + bias)), in
    float32 at least."""
    image_BE, text_BE = widened(image_BE), widened(text_BE)
    logits_BB = torch.exp(-log_temperature) * (image_BE @ text_BE.T) + bias
    z_BB = torch.where(torch.eye(len(logits_BB), device=bias.device) > 0, logits_BB, -logits_BB)
    return (softplus(-z_BB) * counted_BB).sum() / len(logits_BB)


def loss(params, config, settings, batch):
    """-> {loss, contrastive, caption, image [B, E], text [B, E]}, weighed as CoCa's."""
    counted_BB = counted_pairs(batch["tokens"])
    given = params["log_temperature"], params["sigmoid_bias"], counted_BB
    return joint_loss(params, config, batch, lambda x, y: sigmoid_loss(x, y, *given))
