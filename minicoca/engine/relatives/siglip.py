"""SigLIP, alone or with captioning. As reference/relatives/siglip.py, but that which pairs count is
told by a number for each caption, not by a matrix."""

from ..ops import sigmoid_loss
from ..towers import joint_loss
from .layers import caption_numbers


def loss(params, config, settings, batch):
    """-> {loss, contrastive, caption, image [B, E], text [B, E]}, weighed as CoCa's."""
    captions_B = caption_numbers(batch["tokens"])
    given = params["log_temperature"], params["sigmoid_bias"], captions_B
    return joint_loss(params, config, batch, lambda x, y: sigmoid_loss(x, y, *given))
