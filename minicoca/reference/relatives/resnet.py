"""CoCa with a convolutional image tower: ResNet-D (He et al. 2015, 1512.03385; 2018, 1812.01187) as
CLIP's (Radford et al. 2021): a stem of three kernels, mean pools where others have strides, group
norms, none of which mixes images, and the last norm of every block begins at 0.

Its places are the image tokens that any of CoCa's poolers reads. By settings a ViT's blocks follow
(Xiao et al. 2021), or the image's vector is pooled as CLIP's: the mean token asks, all answer.
"""

from functools import partial

import numpy as np

from ..attention import multi_head_attention, multi_head_attention_backward
from ..losses import contrastive_loss, contrastive_loss_backward
from ..model import embed, embed_backward
from ..ops import linear, linear_backward
from ..pooling import pool, pool_backward
from ..towers import joint_loss, joint_loss_backward
from .convolution import (
    convolution,
    convolution_backward,
    mean_pool,
    mean_pool_backward,
    relu,
    relu_backward,
    residual,
    residual_backward,
)
from .layers import transformer, transformer_backward


def stem(x, params, pools):
    """Three kernels, then `pools` mean pools."""
    caches = []
    for i in range(len(params)):
        x, cache = convolution(x, params[str(i)])
        x, relu_cache = relu(x)
        caches.append((cache, relu_cache))
    for _ in range(pools):
        x, _ = mean_pool(x)
    return x, (caches, pools)


def stem_backward(dx, cache):
    caches, pools = cache
    dparams = {}
    for _ in range(pools):
        dx = mean_pool_backward(dx, None)
    for i in reversed(range(len(caches))):
        cache, relu_cache = caches[i]
        dx, dparams[str(i)] = convolution_backward(relu_backward(dx, relu_cache), cache)
    return dx, dparams


def tower(images, params, config, settings):
    """Images -> tokens [B, S, M], row by row. Every stage but the first begins with a pool."""
    x, stem_cache = stem(images, params["stem"], settings.stem_pools)
    caches, vit_caches = [], None
    for i in range(len(params["residuals"])):
        pools = i > 0 and i % settings.depth == 0
        x, cache = residual(x, params["residuals"][str(i)], pools)
        caches.append(cache)
    x_BSM = x.reshape(len(x), -1, x.shape[-1])
    if settings.transformer:
        x_BSM = x_BSM + params["position"]  # (1)
        given = params["blocks"], config.image_heads, config.gelu
        x_BSM, vit_caches = transformer(x_BSM, *given)
    return x_BSM, (x.shape, stem_cache, caches, vit_caches)


def tower_backward(dx_BSM, cache):
    shape, stem_cache, caches, vit_caches = cache
    dparams, dresiduals = {}, {}
    if vit_caches is not None:
        dx_BSM, dparams["blocks"] = transformer_backward(dx_BSM, vit_caches)
        dparams["position"] = dx_BSM.sum(0)  # from (1)
    dx = dx_BSM.reshape(shape)
    for i in reversed(range(len(caches))):
        dx, dresiduals[str(i)] = residual_backward(dx, caches[i])
    dimages, dstem = stem_backward(dx, stem_cache)
    return dimages, dparams | {"stem": dstem, "residuals": dresiduals}


def attention_pool(tokens_BSM, params, heads):
    """CLIP's: of the mean token and all, each at its place, the mean one asks: [B, D]."""
    x = np.concatenate([tokens_BSM.mean(1, keepdims=True), tokens_BSM], 1)  # (1)
    x = x + params["position"]  # (2)
    pooled_B1M, cache = multi_head_attention(x[:, :1], x, params["attention"], heads)  # (3)
    y_BD, output_cache = linear(pooled_B1M[:, 0], params["output"])
    return y_BD, (cache, output_cache)


def attention_pool_backward(dy_BD, cache):
    attention_cache, output_cache = cache
    dpooled_BM, doutput = linear_backward(dy_BD, output_cache)
    dquery, dx, dattention = multi_head_attention_backward(dpooled_BM[:, None], attention_cache)
    dx[:, :1] += dquery  # from (3)
    dtokens_BSM = dx[:, 1:] + dx[:, :1] / (dx.shape[1] - 1)  # from (1)
    return dtokens_BSM, {"position": dx.sum(0), "attention": dattention, "output": doutput}


def encode(params, config, images, places, settings):
    """As CoCa's `encode_image`: -> (unit embedding [B, E], image tokens for the decoder)."""
    tokens_BSM, tower_cache = tower(images, params["image"], config, settings)
    contrast_BD, memory, pool_cache = pool(tokens_BSM, params["pooler"], config)
    own_cache = None
    if settings.attention_pool:
        contrast_BD, own_cache = attention_pool(
            tokens_BSM, params["attention_pool"], config.image_heads
        )
    image_BE, embed_cache = embed(contrast_BD, params, "image_projection")
    return image_BE, memory, (tokens_BSM, tower_cache, pool_cache, own_cache, embed_cache)


def encode_backward(dimage_BE, dmemory, cache):
    _, tower_cache, pool_cache, own_cache, embed_cache = cache
    dcontrast_BD, dparams = embed_backward(dimage_BE, embed_cache)
    dpooled_BD = np.zeros_like(dcontrast_BD) if own_cache else dcontrast_BD
    dtokens_BSM, dparams["pooler"] = pool_backward(dpooled_BD, dmemory, pool_cache)
    if own_cache:
        dread, dparams["attention_pool"] = attention_pool_backward(dcontrast_BD, own_cache)
        dtokens_BSM = dtokens_BSM + dread  # tokens were read twice
    dimages, dparams["image"] = tower_backward(dtokens_BSM, tower_cache)
    return dimages, dparams


def image_features(params, config, settings, images):
    """As CoCa's: `encode` and the tower's tokens [B, S, M]."""
    image_BE, memory, (tokens_BSM, *_) = encode(params, config, images, None, settings)
    return image_BE, memory, tokens_BSM


def loss(params, config, settings, batch):
    """-> ({loss, contrastive, caption, image [B, E], text [B, E]}, cache), weighed as CoCa's."""
    encoder = partial(encode, settings=settings), encode_backward

    def contrast(image_BE, text_BE):
        return contrastive_loss(image_BE, text_BE, params["log_temperature"])

    return joint_loss(params, config, batch, contrast, encoder)


def loss_backward(dloss, cache):
    dparams, (dtemperature,) = joint_loss_backward(dloss, cache, contrastive_loss_backward)
    return dparams | {"log_temperature": dtemperature}
