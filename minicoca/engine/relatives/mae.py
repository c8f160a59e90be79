"""MAE: a few patches are read, the others drawn. As reference/relatives/mae.py."""

import torch

from ..ops import layer_norm, linear
from ..vision import image_encoder, patchify
from .layers import fill, pixel_loss, tower_of_holes, transformer


def holes(seen_BL, patches):
    """[B, N], True where a patch is not seen."""
    shape = len(seen_BL), patches
    return torch.ones(shape, dtype=torch.bool, device=seen_BL.device).scatter(1, seen_BL, False)


def drawn(x_BLD, seen_BL, params, heads, kind):
    """What the tower made of the patches that are seen -> pixels of all [B, N, P]."""
    e_BLM = linear(layer_norm(x_BLD, params["norm"]), params["enter"])
    shape = len(e_BLM), len(params["position"]), e_BLM.shape[-1]
    put_BNM = e_BLM.new_zeros(shape).scatter(1, seen_BL[..., None].expand_as(e_BLM), e_BLM)
    y_BNM = fill(put_BNM, holes(seen_BL, shape[1]), params["mask"]) + params["position"]
    y_BNM = transformer(y_BNM, params["blocks"], heads, kind)
    return linear(layer_norm(y_BNM, params["norm_output"]), params["pixels"])


def targets(images, patch_size, normalise):
    """Patches [B, N, P]; normalised, each has mean 0 and (over its P - 1) variance 1."""
    patches_BNP = patchify(images, patch_size)
    if not normalise:
        return patches_BNP
    centred_BNP = patches_BNP - patches_BNP.mean(-1, keepdim=True)
    return centred_BNP / torch.sqrt(patches_BNP.var(-1, keepdim=True) + 1e-6)


def loss(params, config, settings, batch):
    """-> {loss, pixels [B, N, P]}: the mean square of what is drawn less what is there, over the
    patches that are not seen."""
    images, seen_BL, own = batch["images"], batch["seen"], params["drawing"]
    hole_BN = holes(seen_BL, len(own["position"]))
    if settings.mask_tokens:
        patches_BNP = patchify(images, config.patch_size)
        read = patches_BNP, params["image"], config, hole_BN, own["mask_read"]
        x_BLD = tower_of_holes(*read)
        every_N = torch.arange(hole_BN.shape[1], device=seen_BL.device)
        seen_BL = every_N.expand(len(seen_BL), -1)
    else:
        x_BLD = image_encoder(images, params["image"], config, seen_BL)
    pixels_BNP = drawn(x_BLD, seen_BL, own, settings.decoder_heads, config.gelu)
    true_BNP = targets(images, config.patch_size, settings.normalise_patches)
    return {"loss": pixel_loss(pixels_BNP, true_BNP, hole_BN, 2), "pixels": pixels_BNP}
