"""SigLIP, alone or with captioning. As reference/relatives/siglip.py."""

import torch
from torch.nn.functional import softplus

from ..losses import caption_loss
from ..model import total_loss
from ..ops import widened
from ..towers import decoded
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
    """-> {loss, contrastive, caption, image [B, E], text [B, E]}, weighed as CoCa's; a caption's
    loss of weight 0 is not computed."""
    tokens = batch["tokens"]
    image_BE, text_BE, n, packing = decoded(params, config, batch["images"], tokens)
    given = image_BE, text_BE, params["log_temperature"], params["sigmoid_bias"]
    outputs = {"contrastive": sigmoid_loss(*given, counted_pairs(tokens))}
    if config.caption_weight:
        outputs["caption"] = caption_loss(n, params["decoder"]["head"], tokens[:, 1:], packing)
    outputs["loss"] = total_loss(outputs, config)
    return outputs | {"image": image_BE, "text": text_BE}
