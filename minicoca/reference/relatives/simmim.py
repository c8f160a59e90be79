"""SimMIM (Xie et al. 2021, arXiv 2111.09886): the tower, CoCa's, reads all patches, but many are
replaced by one learned vector, after the patch embedding; a linear map of its tokens draws those.
"""

from ..ops import layer_norm, layer_norm_backward, linear, linear_backward
from ..vision import patchify
from .layers import (
    pixel_loss,
    pixel_loss_backward,
    tower_of_holes,
    tower_of_holes_backward,
)


def loss(params, config, settings, batch):
    """-> ({loss, pixels [B, N, P]}, cache): the mean of |drawn - true| over what is replaced."""
    own, masked_BN = params["drawing"], batch["masked"]
    patches_BNP = patchify(batch["images"], config.patch_size)
    given = patches_BNP, params["image"], config, masked_BN, own["mask"]
    x_BND, tower_cache = tower_of_holes(*given)
    n_BND, norm_cache = layer_norm(x_BND, own["norm"])
    pixels_BNP, pixels_cache = linear(n_BND, own["pixels"])
    value, loss_cache = pixel_loss(pixels_BNP, patches_BNP, masked_BN, 1)
    cache = tower_cache, norm_cache, pixels_cache, loss_cache
    return {"loss": value, "pixels": pixels_BNP}, cache


def loss_backward(dloss, cache):
    tower_cache, norm_cache, pixels_cache, loss_cache = cache
    ddrawing = {}
    dpixels_BNP = pixel_loss_backward(dloss, loss_cache)
    dn_BND, ddrawing["pixels"] = linear_backward(dpixels_BNP, pixels_cache)
    dx_BND, ddrawing["norm"] = layer_norm_backward(dn_BND, norm_cache)
    dimage, ddrawing["mask"] = tower_of_holes_backward(dx_BND, tower_cache)
    return {"image": dimage, "drawing": ddrawing}
