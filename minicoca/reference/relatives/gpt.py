"""GPT (Radford et al. 2018): a language model of captions alone, no image. CoCa's unimodal decoder
without CLS, as deep as both halves together, and CoCa's head; tied: the table of tokens, turned.
"""

import numpy as np

from ..attention import causal_mask
from ..losses import caption_loss, caption_loss_backward
from ..ops import layer_norm, layer_norm_backward, linear, linear_backward
from .layers import transformer, transformer_backward, words, words_backward


def _read(params, config, tokens_BT):
    x_BTD, words_cache = words(tokens_BT, params["text"])
    given = config.text_heads, config.gelu, causal_mask(tokens_BT.shape[1])
    x_BTD, caches = transformer(x_BTD, params["text"]["blocks"], *given)
    return x_BTD, words_cache, caches


def head(params, settings):
    """What makes logits."""
    return {"weight": params["text"]["token"].T} if settings.tied else params["decoder"]["head"]


def loss(params, config, settings, batch):
    """-> ({loss, caption, logits [B, T - 1, V]}, cache)."""
    inputs_BT, targets_BT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    x_BTD, words_cache, caches = _read(params, config, inputs_BT)
    n_BTD, norm_cache = layer_norm(x_BTD, params["decoder"]["norm"])
    logits_BTV, head_cache = linear(n_BTD, head(params, settings))  # (1)
    value, loss_cache = caption_loss(logits_BTV, targets_BT)
    caches = settings, words_cache, caches, norm_cache, head_cache, loss_cache
    return {"loss": value, "caption": value, "logits": logits_BTV}, caches


def loss_backward(dloss, cache):
    settings, words_cache, caches, norm_cache, head_cache, loss_cache = cache
    dlogits_BTV = caption_loss_backward(dloss, loss_cache)
    dn_BTD, dhead = linear_backward(dlogits_BTV, head_cache)
    dx_BTD, dnorm = layer_norm_backward(dn_BTD, norm_cache)
    dx_BTD, dblocks = transformer_backward(dx_BTD, caches)
    dtext = {"blocks": dblocks} | words_backward(dx_BTD, words_cache)
    if settings.tied:
        dtext["token"] = dtext["token"] + dhead["weight"].T  # from (1): the table was used twice
        return {"text": dtext, "decoder": {"norm": dnorm}}
    return {"text": dtext, "decoder": {"norm": dnorm, "head": dhead}}


def image_features(params, config, settings, images):
    """-> (no vectors, no token that a decoder could read [B, 0, D], none of a tower)."""
    return None, np.zeros((len(images), 0, config.text_width), images.dtype), None


def text_features(params, config, settings, tokens_BT):
    """-> (no vectors, what all blocks make of the tokens [B, T, D]): the decoder has none."""
    return None, _read(params, config, tokens_BT)[0]


def decoder(params, config, settings):
    """-> {no blocks, norm, head}."""
    return {"blocks": {}, "norm": params["decoder"]["norm"], "head": head(params, settings)}
