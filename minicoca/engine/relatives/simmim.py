"""SimMIM: many patches are replaced by one vector, and drawn. As reference/relatives/simmim.py."""

from ..ops import layer_norm, linear
from ..vision import patchify
from .layers import pixel_loss, tower_of_holes


def loss(params, config, settings, batch):
    """-> {loss, pixels [B, N, P]}: the mean of |drawn - true| over what is replaced."""
    own, masked_BN = params["drawing"], batch["masked"]
    patches_BNP = patchify(batch["images"], config.patch_size)
    x_BND = tower_of_holes(patches_BNP, params["image"], config, masked_BN, own["mask"])
    pixels_BNP = linear(layer_norm(x_BND, own["norm"]), own["pixels"])
    return {"loss": pixel_loss(pixels_BNP, patches_BNP, masked_BN, 1), "pixels": pixels_BNP}
