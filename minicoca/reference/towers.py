"""Both towers and the decoder, for objectives that have other losses than CoCa's (model.py).

Letter of this file: R texts, as many as there are images (B) where each has its own.
"""

import numpy as np

from .model import encode_image, encode_image_backward, encode_text, encode_text_backward
from .text import multimodal_decoder, multimodal_decoder_backward


def decoded(params, config, images, tokens_RT, places=None, about_R=None):
    """Both embeddings, [B, E] and [R, E], and what the heads read, [R, T - 1, D].

    places: the image tokens that are kept, where not all are; about: which image each text is
    about, where not each has its own."""
    image_BE, memory, image_cache = encode_image(params, config, images, places)
    text_RE, x_RTD, text_cache = encode_text(params, config, tokens_RT)
    read = memory if about_R is None else memory[about_R]  # (1)
    n, decoder_cache = multimodal_decoder(x_RTD[:, :-1], read, params["decoder"], config)
    shown = memory, about_R, image_cache
    return image_BE, text_RE, n, (shown, x_RTD, text_cache, decoder_cache)


def decoded_backward(dimage_BE, dtext_RE, dn, cache):
    (memory, about_R, image_cache), x_RTD, text_cache, decoder_cache = cache
    dinputs, dmemory, ddecoder = multimodal_decoder_backward(dn, decoder_cache)
    if about_R is not None:
        dread, dmemory = dmemory, np.zeros_like(memory)
        np.add.at(dmemory, about_R, dread)  # from (1): several texts may be about one image
    dx_RTD = np.zeros_like(x_RTD)
    dx_RTD[:, :-1] = dinputs  # the last token is followed by nothing
    dtext = encode_text_backward(dtext_RE, dx_RTD, text_cache)
    dimages, dvision = encode_image_backward(dimage_BE, dmemory, image_cache)
    return dimages, {"decoder": ddecoder} | dtext | dvision
