"""MAE (He et al. 2021, arXiv 2111.06377): the tower, CoCa's, reads a few patches of each image; a
small decoder gets what it made of them, and one learned vector for each of the others, and draws
these. The decoder is thrown away. Positions begin as the paper's waves, and are learned.
Letter of this file: L patches that are seen.
"""

import numpy as np

from ..ops import layer_norm, layer_norm_backward, linear, linear_backward
from ..vision import (
    image_encoder,
    image_encoder_backward,
    keep_tokens,
    keep_tokens_backward,
    patchify,
)
from .layers import (
    fill,
    fill_backward,
    pixel_loss,
    pixel_loss_backward,
    transformer,
    transformer_backward,
)


def drawn(x_BLD, seen_BL, params, heads, kind):
    """What the tower made of the patches that are seen -> pixels of all [B, N, P], and which are
    drawn [B, N]."""
    n_BLD, norm_cache = layer_norm(x_BLD, params["norm"])
    e_BLM, enter_cache = linear(n_BLD, params["enter"])
    shape = len(e_BLM), len(params["position"]), e_BLM.shape[-1]
    hole_BN = np.ones(shape[:2], bool)
    np.put_along_axis(hole_BN, seen_BL, False, 1)
    put_BNM = keep_tokens_backward(e_BLM, (shape, seen_BL))  # (1) to their places
    y_BNM, fill_cache = fill(put_BNM, hole_BN, params["mask"])
    y_BNM, caches = transformer(y_BNM + params["position"], params["blocks"], heads, kind)  # (2)
    y_BNM, output_cache = layer_norm(y_BNM, params["norm_output"])
    pixels_BNP, pixels_cache = linear(y_BNM, params["pixels"])
    first, last = (norm_cache, enter_cache, seen_BL, fill_cache), (output_cache, pixels_cache)
    return pixels_BNP, hole_BN, (first, caches, last)


def drawn_backward(dpixels_BNP, cache):
    (norm_cache, enter_cache, seen_BL, fill_cache), caches, (output_cache, pixels_cache) = cache
    dparams = {}
    dy_BNM, dparams["pixels"] = linear_backward(dpixels_BNP, pixels_cache)
    dy_BNM, dparams["norm_output"] = layer_norm_backward(dy_BNM, output_cache)
    dy_BNM, dparams["blocks"] = transformer_backward(dy_BNM, caches)
    dparams["position"] = dy_BNM.sum(0)  # from (2)
    dput_BNM, dparams["mask"] = fill_backward(dy_BNM, fill_cache)
    de_BLM, _ = keep_tokens(dput_BNM, seen_BL)  # from (1)
    dn_BLD, dparams["enter"] = linear_backward(de_BLM, enter_cache)
    dx_BLD, dparams["norm"] = layer_norm_backward(dn_BLD, norm_cache)
    return dx_BLD, dparams


def targets(images, patch_size, normalise):
    """Patches [B, N, P]; normalised, each has mean 0 and (over its P - 1) variance 1."""
    patches_BNP = patchify(images, patch_size)
    if not normalise:
        return patches_BNP
    centred_BNP = patches_BNP - patches_BNP.mean(-1, keepdims=True)
    return centred_BNP / np.sqrt(patches_BNP.var(-1, keepdims=True, ddof=1) + 1e-6)


def loss(params, config, settings, batch):
    """-> ({loss, pixels [B, N, P]}, cache): the mean square of what is drawn less what is there,
    over the patches that are not seen."""
    images, seen_BL = batch["images"], batch["seen"]
    x_BLD, tower_cache = image_encoder(images, params["image"], config, seen_BL)
    given = params["drawing"], settings.decoder_heads, config.gelu
    pixels_BNP, hole_BN, drawn_cache = drawn(x_BLD, seen_BL, *given)
    true_BNP = targets(images, config.patch_size, settings.normalise_patches)
    value, loss_cache = pixel_loss(pixels_BNP, true_BNP, hole_BN, 2)
    return {"loss": value, "pixels": pixels_BNP}, (tower_cache, drawn_cache, loss_cache)


def loss_backward(dloss, cache):
    tower_cache, drawn_cache, loss_cache = cache
    dx_BLD, ddrawing = drawn_backward(pixel_loss_backward(dloss, loss_cache), drawn_cache)
    return {"image": image_encoder_backward(dx_BLD, tower_cache)[1], "drawing": ddrawing}
