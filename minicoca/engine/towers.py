"""CoCa's towers and decoder for other objectives than CoCa's. As reference/towers.py, with the rows
of padding not computed where that is worth it."""

from .losses import caption_loss
from .model import encode_image, encode_text, total_loss
from .text import TextRows, multimodal_decoder


def decoded(params, config, images, tokens_RT, places=None, about_R=None, encode=encode_image):
    """Both embeddings, [B, E] and [R, E], what the heads read, [R, T - 1, D] or packed, and the
    packing. places, about_R, encode: as the reference's."""
    rows = TextRows(tokens_RT, config)
    image_BE, memory = encode(params, config, images, places)
    text_RE, x_RTD = encode_text(params, config, tokens_RT, rows)
    memory = memory if about_R is None else memory.index_select(0, about_R)
    n = multimodal_decoder(x_RTD, memory, params["decoder"], config, rows.decoder_packing)
    return image_BE, text_RE, n, rows.decoder_packing


def joint_loss(params, config, batch, contrast, encode=encode_image):
    """Eq. 4 with any contrastive loss of both embeddings, `contrast(image_BE, text_BE)`. Captioning
    of weight 0 is not computed.

    batch: images, tokens [B, T]. -> {loss, contrastive, caption, image, text [B, E]}."""
    tokens_BT = batch["tokens"]
    given = params, config, batch["images"], tokens_BT
    image_BE, text_BE, n, packing = decoded(*given, encode=encode)
    outputs = {"contrastive": contrast(image_BE, text_BE)}
    if config.caption_weight:
        outputs["caption"] = caption_loss(n, params["decoder"]["head"], tokens_BT[:, 1:], packing)
    outputs["loss"] = total_loss(outputs, config)
    return outputs | {"image": image_BE, "text": text_BE}
