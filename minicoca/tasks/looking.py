"""Where a caption's words looked, and what else they could have been: attention weights, which the
backward pass keeps anyway. A decoder that reads pooled tokens is followed through the pooler to the
image tokens, A_dec A_pool (the paper shows none of this; section 3.2 has both attentions).

Letters of this file: L multimodal layers, Q what the decoder reads, S image tokens.
"""

import numpy as np

from ..reference.model import encode_image, encode_text
from ..reference.ops import linear, log_softmax
from ..reference.text import multimodal_decoder


def looks(params, config, images_BII3, tokens_BT):
    """(log P(y_t | y_<t, x) of every token but the first, [B, T - 1, V]; the weights with which
    each was told from the image tokens, [L, B, H, T - 1, S]; those of the query that the image's
    vector is made of, [B, H, S]). Weights of one head sum to 1."""
    _, memory, (_, pool_cache, _) = encode_image(params, config, images_BII3)
    _, x_BTD, _ = encode_text(params, config, tokens_BT)
    n, (caches, *_) = multimodal_decoder(x_BTD[:, :-1], memory, params["decoder"], config)
    log_p_BTV, _ = log_softmax(linear(n, params["decoder"]["head"])[0])
    pooled_BQS, contrast_BHS = pooler_weights(pool_cache)
    words = [weights(attention_cache) for _, _, (_, _, attention_cache), _ in caches]
    if pooled_BQS is not None:
        words = [p_BHTQ @ pooled_BQS[:, None] for p_BHTQ in words]
    return log_p_BTV, np.stack(words), contrast_BHS


def pooler_weights(cache):
    """From the cache of `pool`: how much of each image token is in each token of the decoder's
    memory, [B, Q, S], mean of heads (None where they are the same), and in the contrastive query,
    [B, H, S]."""
    mode, contrast_cache, caption_cache = cache
    contrast_BHQS = weights(contrast_cache[2])
    if mode == "shared":
        return contrast_BHQS[:, :, 1:].mean(1), contrast_BHQS[:, :, 0]
    if mode == "none":
        return None, contrast_BHQS[:, :, 0]
    pooled_BQS = weights(caption_cache[2]).mean(1)
    if mode == "cascade":  # whose contrastive query reads the pooled tokens
        contrast_BHQS = contrast_BHQS @ pooled_BQS[:, None]
    return pooled_BQS, contrast_BHQS[:, :, 0]


def weights(attention_cache):
    """softmax(q k'), [B, H, T, S], from the cache of `multi_head_attention`."""
    return attention_cache[3][3]
