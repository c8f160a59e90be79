"""CoCa whole: two encoders, two losses, one forward and one backward (paper section 3, Eq. 4)."""

import numpy as np

from .losses import caption_loss, caption_loss_backward, contrastive_loss, contrastive_loss_backward
from .ops import l2_normalise, l2_normalise_backward, linear, linear_backward
from .pooling import pool, pool_backward
from .text import (
    multimodal_decoder,
    multimodal_decoder_backward,
    unimodal_decoder,
    unimodal_decoder_backward,
)
from .vision import image_encoder, image_encoder_backward


def embed(features_BD, params, projection):
    """Project (where the config has a shared width E) and scale to length 1: [B, E]."""
    projection_cache = None
    if projection in params:
        features_BD, projection_cache = linear(features_BD, params[projection])
    y_BE, norm_cache = l2_normalise(features_BD)
    return y_BE, (projection, projection_cache, norm_cache)


def embed_backward(dy_BE, cache):
    projection, projection_cache, norm_cache = cache
    dfeatures_BD = l2_normalise_backward(dy_BE, norm_cache)
    if projection_cache is None:
        return dfeatures_BD, {}
    dfeatures_BD, dprojection = linear_backward(dfeatures_BD, projection_cache)
    return dfeatures_BD, {projection: dprojection}


def encode_image(params, config, images_BII3, places_BL=None):
    """Images -> (unit embedding [B, E], image tokens for the decoder)."""
    if isinstance(images_BII3, tuple):  # both, as a locked tower has made them (tuning.Locked)
        return *images_BII3, None
    tokens_BSM, encoder_cache = image_encoder(images_BII3, params["image"], config, places_BL)
    contrast_BD, memory, pool_cache = pool(tokens_BSM, params["pooler"], config)
    image_BE, embed_cache = embed(contrast_BD, params, "image_projection")
    return image_BE, memory, (encoder_cache, pool_cache, embed_cache)


def encode_image_backward(dimage_BE, dmemory, cache):
    if cache is None:
        return None, {}
    encoder_cache, pool_cache, embed_cache = cache
    dcontrast_BD, dparams = embed_backward(dimage_BE, embed_cache)
    dtokens_BSM, dparams["pooler"] = pool_backward(dcontrast_BD, dmemory, pool_cache)
    dimages_BII3, dparams["image"] = image_encoder_backward(dtokens_BSM, encoder_cache)
    return dimages_BII3, dparams


def encode_text(params, config, tokens_BT):
    """Token ids -> (unit embedding [B, E], token outputs [B, T, D] for the multimodal layers)."""
    x_BTD, cls_BD, decoder_cache = unimodal_decoder(tokens_BT, params["text"], config)
    text_BE, embed_cache = embed(cls_BD, params, "text_projection")
    return text_BE, x_BTD, (decoder_cache, embed_cache)


def encode_text_backward(dtext_BE, dx_BTD, cache):
    decoder_cache, embed_cache = cache
    dcls_BD, dparams = embed_backward(dtext_BE, embed_cache)
    dparams["text"] = unimodal_decoder_backward(dx_BTD, dcls_BD, decoder_cache)
    return dparams


def coca(params, config, images_BII3, tokens_BT, places_BL=None):
    """The whole objective. tokens: [B, T] ids, start and end included, padded with 0 at the end.
    places: the image tokens that are kept, where not all are.

    Returns (outputs, cache); outputs has `loss` (Eq. 4), `contrastive`, `caption`, the embeddings
    `image` and `text` [B, E], and `logits` [B, T - 1, V]: what follows tokens 0 to T - 2.
    """
    image_BE, memory, image_cache = encode_image(params, config, images_BII3, places_BL)
    text_BE, x_BTD, text_cache = encode_text(params, config, tokens_BT)
    contrastive, contrastive_cache = contrastive_loss(image_BE, text_BE, params["log_temperature"])
    n, decoder_cache = multimodal_decoder(x_BTD[:, :-1], memory, params["decoder"], config)
    logits, head_cache = linear(n, params["decoder"]["head"])
    caption, caption_cache = caption_loss(logits, tokens_BT[:, 1:])  # the labels: one later
    loss = config.contrastive_weight * contrastive + config.caption_weight * caption  # Eq. 4
    outputs = {"loss": loss, "contrastive": contrastive, "caption": caption}
    outputs |= {"image": image_BE, "text": text_BE, "logits": logits}
    towers = config, x_BTD, image_cache, text_cache
    return outputs, (towers, contrastive_cache, decoder_cache, head_cache, caption_cache)


def coca_backward(dloss, cache):
    """The gradient of every parameter, as a tree like the parameters', and of the images."""
    towers, contrastive_cache, decoder_cache, head_cache, caption_cache = cache
    config, x_BTD, image_cache, text_cache = towers
    dlogits = caption_loss_backward(config.caption_weight * dloss, caption_cache)
    dn, dhead = linear_backward(dlogits, head_cache)
    dimage_BE, dtext_BE, dlog_temperature = contrastive_loss_backward(
        config.contrastive_weight * dloss, contrastive_cache
    )
    dinputs, dmemory, ddecoder = multimodal_decoder_backward(dn, decoder_cache)
    dparams = {"log_temperature": dlog_temperature, "decoder": ddecoder | {"head": dhead}}
    dx_BTD = np.zeros_like(x_BTD)
    dx_BTD[:, :-1] = dinputs  # the last token predicts nothing
    dparams |= encode_text_backward(dtext_BE, dx_BTD, text_cache)
    dimages_BII3, dvision = encode_image_backward(dimage_BE, dmemory, image_cache)
    return dparams | dvision, dimages_BII3
