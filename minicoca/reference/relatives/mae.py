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
    tower_of_holes,
    tower_of_holes_backward,
    transformer,
    transformer_backward,
)


def holes(seen_BL, patches):
    """[B, N], True where a patch is not seen."""
    hole_BN = np.ones((len(seen_BL), patches), bool)
    np.put_along_axis(hole_BN, seen_BL, False, 1)
    return hole_BN


def drawn(x_BLD, seen_BL, params, heads, kind):
    """What the tower made of the patches that are seen -> pixels of all [B, N, P]."""
    n_BLD, norm_cache = layer_norm(x_BLD, params["norm"])
    e_BLM, enter_cache = linear(n_BLD, params["enter"])
    shape = len(e_BLM), len(params["position"]), e_BLM.shape[-1]
    put_BNM = keep_tokens_backward(e_BLM, (shape, seen_BL))  # (1) to their places
    y_BNM, fill_cache = fill(put_BNM, holes(seen_BL, shape[1]), params["mask"])
    y_BNM, caches = transformer(y_BNM + params["position"], params["blocks"], heads, kind)  # (2)
    y_BNM, output_cache = layer_norm(y_BNM, params["norm_output"])
    pixels_BNP, pixels_cache = linear(y_BNM, params["pixels"])
    first, last = (norm_cache, enter_cache, seen_BL, fill_cache), (output_cache, pixels_cache)
    return pixels_BNP, (first, caches, last)


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
    images, seen_BL, own = batch["images"], batch["seen"], params["drawing"]
    hole_BN = holes(seen_BL, len(own["position"]))
    if settings.mask_tokens:
        patches_BNP = patchify(images, config.patch_size)
        read = patches_BNP, params["image"], config, hole_BN, own["mask_read"]
        x_BLD, tower_cache = tower_of_holes(*read)
        seen_BL = np.arange(hole_BN.shape[1])[None].repeat(len(images), 0)
    else:
        x_BLD, tower_cache = image_encoder(images, params["image"], config, seen_BL)
    pixels_BNP, drawn_cache = drawn(x_BLD, seen_BL, own, settings.decoder_heads, config.gelu)
    true_BNP = targets(images, config.patch_size, settings.normalise_patches)
    value, loss_cache = pixel_loss(pixels_BNP, true_BNP, hole_BN, 2)
    cache = settings.mask_tokens, tower_cache, drawn_cache, loss_cache
    return {"loss": value, "pixels": pixels_BNP}, cache


def loss_backward(dloss, cache):
    mask_tokens, tower_cache, drawn_cache, loss_cache = cache
    dx_BLD, ddrawing = drawn_backward(pixel_loss_backward(dloss, loss_cache), drawn_cache)
    if mask_tokens:
        dimage, ddrawing["mask_read"] = tower_of_holes_backward(dx_BLD, tower_cache)
    else:
        _, dimage = image_encoder_backward(dx_BLD, tower_cache)
    return {"image": dimage, "drawing": ddrawing}
