"""CoCa as one of its relatives. As reference/relatives/coca.py."""

from ..model import coca, embed, encode_text
from ..pooling import pool
from ..text import TextRows
from ..vision import image_encoder


def loss(params, config, settings, batch):
    """-> {loss, contrastive, caption, image [B, E], text [B, E]}."""
    given = batch["images"], batch["tokens"], batch.get("places"), batch.get("compare", True)
    return coca(params, config, *given)


def image_features(params, config, settings, images):
    """-> (unit vectors [B, E], what the decoder reads [B, Q, M], the tower's tokens [B, S, M])."""
    tokens_BSM = image_encoder(images, params["image"], config)
    contrast_BD, memory = tokens_BSM.mean(1), None
    if "pooler" in params:
        contrast_BD, memory = pool(tokens_BSM, params["pooler"], config)
    return embed(contrast_BD, params, "image_projection"), memory, tokens_BSM


def decoder(params, config, settings):
    """-> the layers that read an image, a norm and a head: {blocks, norm, head}."""
    return params["decoder"]


def text_features(params, config, settings, tokens_BT):
    """-> (unit vectors [B, E], what the decoder begins with [B, T - 1, D], not packed)."""
    rows = TextRows(tokens_BT, config)
    text_BE, x = encode_text(params, config, tokens_BT, rows)
    return text_BE, rows.decoder_packing.pad(x) if rows.decoder_packing else x
