"""Image-text matching as BLIP's (Li et al. 2022, arXiv 2201.12086, section 3.2), added to CoCa: is
this caption of this picture? Every pair is asked three times: as it is, with another text, and with
another image; the others are drawn, the more alike the likelier, but never with an equal caption.

BLIP reads a text bidirectionally for this and begins it with a token of its own. Here the decoder,
which has read every word of the caption across the image, is asked by a pooler of one query, as
for answers (answers.py). Letters: B pairs, R rows of an image and a text that are asked about.
"""

import numpy as np

from ..answers import answer_head, answer_head_backward, answer_loss, answer_loss_backward
from ..losses import (
    caption_loss,
    caption_loss_backward,
    contrastive_loss,
    contrastive_loss_backward,
)
from ..model import encode_image, encode_image_backward, encode_text, encode_text_backward
from ..ops import linear, linear_backward, softmax
from ..text import lengths_of, multimodal_decoder, multimodal_decoder_backward
from .layers import same_captions


def drawn(scores_BB, allowed_BB, noise_B):
    """A column for each row by softmax over those that are allowed, where noise from 0 to 1 stands
    in what comes before; B where none is allowed."""
    p_BB, _ = softmax(np.where(allowed_BB, scores_BB, -np.inf))
    before_BB = p_BB.cumsum(1)
    return (before_BB <= noise_B[:, None] * before_BB[:, -1:]).sum(1)


def rows_asked(scores_BB, tokens_BT, noise_2B):
    """(image of each row [R], its text [R]); the first B rows are the pairs themselves. Where all
    captions are equal there are no others."""
    own_B, allowed_BB = np.arange(len(tokens_BT)), ~same_captions(tokens_BT)
    text_B = drawn(scores_BB, allowed_BB, noise_2B[0])
    image_B = drawn(scores_BB.T, allowed_BB, noise_2B[1])
    image_R, text_R = np.hstack([(own_B, own_B), (own_B, text_B), (image_B, own_B)])
    there_R = (image_R < len(own_B)) & (text_R < len(own_B))
    return image_R[there_R], text_R[there_R]


def matcher(params, config, settings, images, tokens_RT):
    """-> a function of P pairs, of which image and text each is: logits [P, 2] of no and yes."""
    memory, lengths_R = encode_image(params, config, images)[1], lengths_of(tokens_RT) - 1
    x_RTD = encode_text(params, config, tokens_RT)[1]

    def matches(image_P, text_P):
        read, inputs = memory[image_P], x_RTD[text_P, :-1]
        n, _ = multimodal_decoder(inputs, read, params["decoder"], config)
        return answer_head(n, params["matching"], lengths_R[text_P], config)[0]

    return matches


def right_answers(asked, pairs, dtype):
    """[R, 2]: of the rows asked about the first ones are pairs. Columns: no, yes."""
    return np.eye(2, dtype=dtype)[(np.arange(asked) < pairs).astype(int)]


def loss(params, config, settings, batch):
    """-> ({loss, contrastive, caption, matching, image [B, E], text [B, E]}, cache)."""
    tokens_BT = batch["tokens"]
    image_BE, memory, image_cache = encode_image(params, config, batch["images"])
    text_BE, x_BTD, text_cache = encode_text(params, config, tokens_BT)
    given = image_BE, text_BE, params["log_temperature"]
    contrastive, contrastive_cache = contrastive_loss(*given)
    scores_BB = np.exp(-given[2].real) * (image_BE.real @ text_BE.real.T)
    image_R, text_R = rows_asked(scores_BB, tokens_BT, batch["noise"])
    read, inputs = memory[image_R], x_BTD[text_R, :-1]  # (1)
    n, decoder_cache = multimodal_decoder(inputs, read, params["decoder"], config)
    logits, words_cache = linear(n[: len(tokens_BT)], params["decoder"]["head"])  # (2)
    caption, caption_cache = caption_loss(logits, tokens_BT[:, 1:])
    asked, head_cache = answer_head(
        n, params["matching"], lengths_of(tokens_BT)[text_R] - 1, config
    )
    matching, matching_cache = answer_loss(
        asked, right_answers(len(asked), len(tokens_BT), n.real.dtype)
    )
    weights = config.contrastive_weight, config.caption_weight, settings.matching_weight
    value = weights[0] * contrastive + weights[1] * caption + weights[2] * matching
    outputs = {"loss": value, "contrastive": contrastive, "caption": caption, "matching": matching}
    towers = memory, x_BTD, image_R, text_R, image_cache, text_cache, decoder_cache
    heads = contrastive_cache, words_cache, caption_cache, head_cache, matching_cache
    return outputs | {"image": image_BE, "text": text_BE}, (weights, towers, heads)


def loss_backward(dloss, cache):
    weights, towers, heads = cache
    memory, x_BTD, image_R, text_R, image_cache, text_cache, decoder_cache = towers
    contrastive_cache, words_cache, caption_cache, head_cache, matching_cache = heads
    dasked = answer_loss_backward(weights[2] * dloss, matching_cache)
    dn, dmatching = answer_head_backward(dasked, head_cache)
    dlogits = caption_loss_backward(weights[1] * dloss, caption_cache)
    dpairs, dwords = linear_backward(dlogits, words_cache)
    dn[: len(dpairs)] += dpairs  # from (2)
    dinputs, dread, ddecoder = multimodal_decoder_backward(dn, decoder_cache)
    dmemory, dx_BTD = np.zeros_like(memory), np.zeros_like(x_BTD)
    np.add.at(dmemory, image_R, dread)  # from (1): each is asked about several times
    np.add.at(dx_BTD[:, :-1], text_R, dinputs)  # from (1)
    dimage_BE, dtext_BE, dlog_temperature = contrastive_loss_backward(
        weights[0] * dloss, contrastive_cache
    )
    dparams = {"log_temperature": dlog_temperature, "matching": dmatching}
    dparams |= encode_text_backward(dtext_BE, dx_BTD, text_cache)
    dparams |= encode_image_backward(dimage_BE, dmemory, image_cache)[1]
    return dparams | {"decoder": ddecoder | {"head": dwords}}
