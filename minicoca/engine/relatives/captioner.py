"""A captioner whose words see one another by any mask. As reference/relatives/captioner.py."""

from ..losses import caption_loss
from ..model import encode_image
from ..text import multimodal_decoder
from .layers import transformer, words


def captioner(params, config, images, inputs_BT, targets_BT, mask):
    """Images and token ids -> mean cross-entropy of the targets that are not padding."""
    _, memory = encode_image(params, config, images)
    x_BTD = words(inputs_BT, params["text"])
    x_BTD = transformer(x_BTD, params["text"]["blocks"], config.text_heads, config.gelu, mask=mask)
    n_BTD = multimodal_decoder(x_BTD, memory, params["decoder"], config, mask=mask)
    return caption_loss(n_BTD, params["decoder"]["head"], targets_BT)
