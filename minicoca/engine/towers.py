"""Both towers and the decoder, for objectives that have other losses than CoCa's. As
reference/towers.py, with the rows of padding not computed where that is worth it."""

from .model import encode_image, encode_text
from .text import TextRows, multimodal_decoder


def decoded(params, config, images, tokens_RT, places=None, about_R=None):
    """Both embeddings, [B, E] and [R, E], what the heads read, [R, T - 1, D] or packed, and the
    packing. places, about_R: as the reference's."""
    rows = TextRows(tokens_RT, config)
    image_BE, memory = encode_image(params, config, images, places)
    text_RE, x_RTD = encode_text(params, config, tokens_RT, rows)
    memory = memory if about_R is None else memory.index_select(0, about_R)
    n = multimodal_decoder(x_RTD, memory, params["decoder"], config, rows.decoder_packing)
    return image_BE, text_RE, n, rows.decoder_packing
