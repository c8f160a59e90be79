"""CoCa's towers and decoder for objectives that are not CoCa's (model.py): those that have other
losses, or another image tower.

Letter of this file: R texts, as many as there are images (B) where each has its own.
"""

import numpy as np

from .losses import caption_loss, caption_loss_backward
from .model import encode_image, encode_image_backward, encode_text, encode_text_backward
from .ops import linear, linear_backward
from .text import multimodal_decoder, multimodal_decoder_backward

ENCODE = encode_image, encode_image_backward  # CoCa's image tower, poolers and projection


def decoded(params, config, images, tokens_RT, places=None, about_R=None, encode=ENCODE):
    """Both embeddings, [B, E] and [R, E], and what the heads read, [R, T - 1, D].

    places: the image tokens that are kept, where not all are; about: which image each text is
    about, where not each has its own; encode: what is done to images, and its gradient."""
    image_BE, memory, image_cache = encode[0](params, config, images, places)
    text_RE, x_RTD, text_cache = encode_text(params, config, tokens_RT)
    read = memory if about_R is None else memory[about_R]  # (1)
    n, decoder_cache = multimodal_decoder(x_RTD[:, :-1], read, params["decoder"], config)
    shown = memory, about_R, image_cache, encode[1]
    return image_BE, text_RE, n, (shown, x_RTD, text_cache, decoder_cache)


def decoded_backward(dimage_BE, dtext_RE, dn, cache):
    (memory, about_R, image_cache, encode_backward), x_RTD, text_cache, decoder_cache = cache
    dinputs, dmemory, ddecoder = multimodal_decoder_backward(dn, decoder_cache)
    if about_R is not None:
        dread, dmemory = dmemory, np.zeros_like(memory)
        np.add.at(dmemory, about_R, dread)  # from (1): several texts may be about one image
    dx_RTD = np.zeros_like(x_RTD)
    dx_RTD[:, :-1] = dinputs  # the last token is followed by nothing
    dtext = encode_text_backward(dtext_RE, dx_RTD, text_cache)
    dimages, dvision = encode_backward(dimage_BE, dmemory, image_cache)
    return dimages, {"decoder": ddecoder} | dtext | dvision


def joint_loss(params, config, batch, contrast, encode=ENCODE):
    """Eq. 4 with any contrastive loss of both embeddings, `contrast(image_BE, text_BE)`.

    batch: images, tokens [B, T]. -> ({loss, contrastive, caption, image, text [B, E]}, cache)."""
    tokens_BT = batch["tokens"]
    given = params, config, batch["images"], tokens_BT
    image_BE, text_BE, n, towers = decoded(*given, encode=encode)
    contrastive, contrast_cache = contrast(image_BE, text_BE)
    logits, head_cache = linear(n, params["decoder"]["head"])
    caption, caption_cache = caption_loss(logits, tokens_BT[:, 1:])
    value = config.contrastive_weight * contrastive + config.caption_weight * caption
    outputs = {"loss": value, "contrastive": contrastive, "caption": caption}
    cache = config, towers, contrast_cache, head_cache, caption_cache
    return outputs | {"image": image_BE, "text": text_BE}, cache


def joint_loss_backward(dloss, cache, contrast_backward):
    """-> (the gradients of towers and decoder, what contrast_backward gives beyond the embeddings'
    gradients)."""
    config, towers, contrast_cache, head_cache, caption_cache = cache
    dlogits = caption_loss_backward(config.caption_weight * dloss, caption_cache)
    dn, dhead = linear_backward(dlogits, head_cache)
    dcontrast = config.contrastive_weight * dloss
    dimage_BE, dtext_BE, *more = contrast_backward(dcontrast, contrast_cache)
    _, dparams = decoded_backward(dimage_BE, dtext_BE, dn, towers)
    return dparams | {"decoder": dparams["decoder"] | {"head": dhead}}, more
