"""SimMIM (Xie et al. 2021, arXiv 2111.09886): the tower, CoCa's, reads all patches, but many are
replaced by one learned vector, after the patch embedding; a linear map of its tokens draws those.
"""

from ..ops import layer_norm, layer_norm_backward, linear, linear_backward
from ..vision import patchify
from .layers import (
    fill,
    fill_backward,
    pixel_loss,
    pixel_loss_backward,
    transformer,
    transformer_backward,
)


def loss(params, config, settings, batch):
    """-> ({loss, pixels [B, N, P]}, cache): the mean of |drawn - true| over what is replaced."""
    image, own, masked_BN = params["image"], params["drawing"], batch["masked"]
    patches_BNP = patchify(batch["images"], config.patch_size)
    x_BND, patch_cache = linear(patches_BNP, image["patch"])
    x_BND, fill_cache = fill(x_BND, masked_BN, own["mask"])
    x_BND = x_BND + image["position"]  # (1) which what is replaced has too
    x_BND, caches = transformer(x_BND, image["blocks"], config.image_heads, config.gelu)
    n_BND, norm_cache = layer_norm(x_BND, own["norm"])
    pixels_BNP, pixels_cache = linear(n_BND, own["pixels"])
    value, loss_cache = pixel_loss(pixels_BNP, patches_BNP, masked_BN, 1)
    cache = patch_cache, fill_cache, caches, norm_cache, pixels_cache, loss_cache
    return {"loss": value, "pixels": pixels_BNP}, cache


def loss_backward(dloss, cache):
    patch_cache, fill_cache, caches, norm_cache, pixels_cache, loss_cache = cache
    dimage, ddrawing = {}, {}
    dpixels_BNP = pixel_loss_backward(dloss, loss_cache)
    dn_BND, ddrawing["pixels"] = linear_backward(dpixels_BNP, pixels_cache)
    dx_BND, ddrawing["norm"] = layer_norm_backward(dn_BND, norm_cache)
    dx_BND, dimage["blocks"] = transformer_backward(dx_BND, caches)
    dimage["position"] = dx_BND.sum(0)  # from (1)
    dx_BND, ddrawing["mask"] = fill_backward(dx_BND, fill_cache)
    _, dimage["patch"] = linear_backward(dx_BND, patch_cache)
    return {"image": dimage, "drawing": ddrawing}
