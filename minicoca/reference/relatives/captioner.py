"""A captioner whose words see one another by any mask: CoCa's image tower and text decoder, without
CLS and the contrastive loss. With a causal mask its loss is CoCa's captioning loss."""

import numpy as np

from ..losses import caption_loss, caption_loss_backward
from ..model import encode_image, encode_image_backward
from ..ops import linear, linear_backward
from ..text import multimodal_decoder, multimodal_decoder_backward
from .layers import of_all, transformer, transformer_backward, words, words_backward


def captioner(params, config, images, inputs_BT, targets_BT, mask):
    """Images and token ids -> (mean cross-entropy of the targets that are not padding, cache)."""
    image_BE, memory, image_cache = encode_image(params, config, images)
    x_BTD, words_cache = words(inputs_BT, params["text"])
    given = config.text_heads, config.gelu, mask
    x_BTD, caches = transformer(x_BTD, params["text"]["blocks"], *given)
    n_BTD, decoder_cache = multimodal_decoder(x_BTD, memory, params["decoder"], config, mask)
    logits_BTV, head_cache = linear(n_BTD, params["decoder"]["head"])
    loss, loss_cache = caption_loss(logits_BTV, targets_BT)
    text_caches = words_cache, caches, decoder_cache, head_cache, loss_cache
    return loss, (params, image_BE, image_cache, text_caches)


def captioner_backward(dloss, cache):
    params, image_BE, image_cache, text_caches = cache
    words_cache, caches, decoder_cache, head_cache, loss_cache = text_caches
    dlogits_BTV = caption_loss_backward(dloss, loss_cache)
    dn_BTD, dhead = linear_backward(dlogits_BTV, head_cache)
    dx_BTD, dmemory, ddecoder = multimodal_decoder_backward(dn_BTD, decoder_cache)
    dx_BTD, dblocks = transformer_backward(dx_BTD, caches)
    dtext = {"blocks": dblocks} | words_backward(dx_BTD, words_cache)
    _, dparams = encode_image_backward(np.zeros_like(image_BE), dmemory, image_cache)
    return of_all(dparams | {"text": dtext, "decoder": ddecoder | {"head": dhead}}, params)
