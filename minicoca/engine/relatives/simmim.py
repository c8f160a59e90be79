"""SimMIM: many patches are replaced by one vector, and drawn. As reference/relatives/simmim.py."""

from ..ops import layer_norm, linear
from ..vision import patchify
from .layers import fill, pixel_loss, transformer


def loss(params, config, settings, batch):
    """-> {loss, pixels [B, N, P]}: the mean of |drawn - true| over what is replaced."""
    image, own, masked_BN = params["image"], params["drawing"], batch["masked"]
    patches_BNP = patchify(batch["images"], config.patch_size)
    x_BND = fill(linear(patches_BNP, image["patch"]), masked_BN, own["mask"])
    x_BND = x_BND + image["position"]
    x_BND = transformer(x_BND, image["blocks"], config.image_heads, config.gelu)
    pixels_BNP = linear(layer_norm(x_BND, own["norm"]), own["pixels"])
    return {"loss": pixel_loss(pixels_BNP, patches_BNP, masked_BN, 1), "pixels": pixels_BNP}
