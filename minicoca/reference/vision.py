"""The image encoder: patches, positions, pre-norm blocks (paper section 3.2; ViT).

The paper does not say whether its ViT has a class token; attentional pooling needs none, so the
plain stem has none. The `clip` stem (open_clip's) puts a class token first and a norm after it.
Letters of this file: I side of the square image, P pixels per patch (height x width x 3), L tokens
that are kept.
"""

import numpy as np

from .attention import block, block_backward
from .ops import layer_norm, layer_norm_backward, linear, linear_backward


def normalise(images, config):
    """uint8 pixels -> float32 of about zero mean and unit variance."""
    mean, std = (np.asarray(x, np.float32) for x in (config.pixel_mean, config.pixel_std))
    return (images.astype(np.float32) / 255 - mean) / std


def patchify(images_BII3, patch_size):
    """[B, I, I, 3] -> [B, N, P]: patches row by row, each flattened as (row, column, channel)."""
    B, side, p = len(images_BII3), images_BII3.shape[1] // patch_size, patch_size
    grid = images_BII3.reshape(B, side, p, side, p, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(B, side * side, p * p * 3)


def unpatchify(patches_BNP, patch_size):
    """[B, N, P] -> [B, I, I, 3]: the inverse, which is also patchify's gradient."""
    B, p = len(patches_BNP), patch_size
    side = int(np.sqrt(patches_BNP.shape[1]))
    grid = patches_BNP.reshape(B, side, side, p, p, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(B, side * p, side * p, 3)


def patch_embedding(images_BII3, params, patch_size):
    """One linear map of every patch, and where it was: [B, N (+ 1 class token), D]."""
    patches_BNP = patchify(images_BII3, patch_size)
    x_BSD, linear_cache = linear(patches_BNP, params["patch"])
    norm_cache = None
    if "class" in params:
        class_B1D = np.broadcast_to(params["class"], (len(x_BSD), 1, x_BSD.shape[-1]))
        x_BSD = np.concatenate([class_B1D, x_BSD], 1)
    x_BSD = x_BSD + params["position"]
    if "norm_pre" in params:
        x_BSD, norm_cache = layer_norm(x_BSD, params["norm_pre"])
    return x_BSD, (linear_cache, norm_cache, patch_size, "class" in params)


def patch_embedding_backward(dx_BSD, cache):
    linear_cache, norm_cache, patch_size, has_class = cache
    dparams = {}
    if norm_cache:
        dx_BSD, dparams["norm_pre"] = layer_norm_backward(dx_BSD, norm_cache)
    dparams["position"] = dx_BSD.sum(0)
    if has_class:
        dparams["class"] = dx_BSD[:, 0].sum(0)
    dpatches_BNP, dparams["patch"] = linear_backward(dx_BSD[:, int(has_class) :], linear_cache)
    return unpatchify(dpatches_BNP, patch_size), dparams


def keep_tokens(x_BSD, places_BL):
    """The tokens at these places, in each sample others: [B, L, D]."""
    return np.take_along_axis(x_BSD, places_BL[..., None], 1), (x_BSD.shape, places_BL)


def keep_tokens_backward(dy_BLD, cache):
    shape, places_BL = cache
    dx_BSD = np.zeros(shape, dy_BLD.dtype)
    np.put_along_axis(dx_BSD, places_BL[..., None], dy_BLD, 1)
    return dx_BSD


def image_encoder(images_BII3, params, config, places_BL=None):
    """Images (normalised) to image tokens [B, S, D]; the poolers' key norm is the last norm.

    places: the tokens that are kept, in training; all where there are none."""
    x_BSD, embedding_cache = patch_embedding(images_BII3, params, config.patch_size)
    caches, keep_cache = [], None
    if places_BL is not None:
        x_BSD, keep_cache = keep_tokens(x_BSD, places_BL)
    for i in range(config.image_layers):
        x_BSD, cache = block(x_BSD, params["blocks"][str(i)], config.image_heads, config.gelu)
        caches.append(cache)
    return x_BSD, (embedding_cache, keep_cache, caches)


def image_encoder_backward(dx_BSD, cache):
    embedding_cache, keep_cache, caches = cache
    dblocks = {}
    for i in reversed(range(len(caches))):
        dx_BSD, dblocks[str(i)] = block_backward(dx_BSD, caches[i])
    if keep_cache:
        dx_BSD = keep_tokens_backward(dx_BSD, keep_cache)
    dimages_BII3, dparams = patch_embedding_backward(dx_BSD, embedding_cache)
    return dimages_BII3, {"blocks": dblocks} | dparams
