"""CoCa whole: two encoders, two losses (paper section 3, Eq. 4). As reference/model.py."""

from .losses import caption_loss, contrastive_loss
from .ops import l2_normalise, linear
from .pooling import pool
from .text import TextRows, multimodal_decoder, unimodal_decoder
from .vision import image_encoder


def embed(features_BD, params, projection):
    """Project (where the config has a shared width E) and scale to length 1: [B, E]."""
    if projection in params:
        features_BD = linear(features_BD, params[projection])
    return l2_normalise(features_BD)


def encode_image(params, config, images_BII3, places_BL=None):
    """Images -> (unit embedding [B, E], image tokens for the decoder)."""
    if isinstance(images_BII3, tuple):  # both, as a locked tower has made them (tuning.Locked)
        return images_BII3
    tokens_BSM = image_encoder(images_BII3, params["image"], config, places_BL)
    contrast_BD, memory = pool(tokens_BSM, params["pooler"], config)
    return embed(contrast_BD, params, "image_projection"), memory


def encode_text(params, config, tokens_BT, rows=None):
    """Token ids -> (unit embedding [B, E], token outputs for the multimodal layers)."""
    rows = rows or TextRows(tokens_BT, config)
    x_BTD, cls_BD = unimodal_decoder(tokens_BT, params["text"], config, rows)
    return embed(cls_BD, params, "text_projection"), x_BTD


def coca(params, config, images_BII3, tokens_BT, places_BL=None, compare=True):
    """The whole objective. tokens: [B, T] ids, start and end included, padded with 0 at the end.
    places: the image tokens that are kept, where not all are. compare: whether these are all pairs
    of a step; of a part of them there is no contrastive loss.

    Returns a dict: `loss` (Eq. 4), `contrastive`, `caption`, the embeddings `image`, `text` [B, E].
    A loss of weight 0 is not computed.
    """
    rows = TextRows(tokens_BT, config)
    image_BE, memory = encode_image(params, config, images_BII3, places_BL)
    text_BE, x_BTD = encode_text(params, config, tokens_BT, rows)
    outputs = {"image": image_BE, "text": text_BE}
    if config.contrastive_weight and compare:
        outputs["contrastive"] = contrastive_loss(image_BE, text_BE, params["log_temperature"])
    if config.caption_weight:
        packing, decoder = rows.decoder_packing, params["decoder"]
        n_BTD = multimodal_decoder(x_BTD, memory, decoder, config, packing)
        outputs["caption"] = caption_loss(n_BTD, decoder["head"], tokens_BT[:, 1:], packing)
    outputs["loss"] = total_loss(outputs, config)
    return outputs


def total_loss(outputs, config):
    """Eq. 4, of the losses that are there."""
    weights = {"contrastive": config.contrastive_weight, "caption": config.caption_weight}
    return sum(weight * outputs[name] for name, weight in weights.items() if name in outputs)
