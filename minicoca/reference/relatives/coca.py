"""CoCa as one of its relatives: model.py, with a batch that is a dict. How it reads is how every
relative does that has its towers."""

from ..model import coca, coca_backward, embed, encode_text
from ..pooling import pool
from ..vision import image_encoder


def loss(params, config, settings, batch):
    """-> ({loss, contrastive, caption, image [B, E], text [B, E], logits}, cache)."""
    return coca(params, config, batch["images"], batch["tokens"], batch.get("places"))


def loss_backward(dloss, cache):
    return coca_backward(dloss, cache)[0]


def image_features(params, config, settings, images):
    """-> (unit vectors [B, E], what the decoder reads [B, Q, M], the tower's tokens [B, S, M]).
    Without poolers the vectors are of the tokens' mean, and nothing is read."""
    tokens_BSM, _ = image_encoder(images, params["image"], config)
    contrast_BD, memory = tokens_BSM.mean(1), None
    if "pooler" in params:
        contrast_BD, memory, _ = pool(tokens_BSM, params["pooler"], config)
    return embed(contrast_BD, params, "image_projection")[0], memory, tokens_BSM


def decoder(params, config, settings):
    """-> the layers that read an image, a norm and a head: {blocks, norm, head}."""
    return params["decoder"]


def text_features(params, config, settings, tokens_BT):
    """-> (unit vectors [B, E], what the decoder begins with [B, T, D])."""
    return encode_text(params, config, tokens_BT)[:2]
