"""The image encoder: patches, positions, pre-norm blocks. Line for line reference/vision.py."""

import torch

from .attention import block
from .ops import layer_norm, linear, recomputed


def normalise(images, config):
    """Pixels in 0..1 -> about zero mean and unit variance."""
    mean, std = (images.new_tensor(x) for x in (config.pixel_mean, config.pixel_std))
    return (images - mean) / std


def patchify(images_BII3, patch_size):
    """[B, I, I, 3] -> [B, N, P]: patches row by row, each flattened as (row, column, channel)."""
    B, side, p = len(images_BII3), images_BII3.shape[1] // patch_size, patch_size
    grid = images_BII3.reshape(B, side, p, side, p, 3).transpose(2, 3)
    return grid.reshape(B, side * side, p * p * 3)


def unpatchify(patches_BNP, patch_size):
    """[B, N, P] -> [B, I, I, 3]: the inverse."""
    B, p = len(patches_BNP), patch_size
    side = int(patches_BNP.shape[1] ** 0.5)
    grid = patches_BNP.reshape(B, side, side, p, p, 3).transpose(2, 3)
    return grid.reshape(B, side * p, side * p, 3)


def patch_embedding(images_BII3, params, patch_size):
    """One linear map of every patch, and where it was: [B, N (+ 1 class token), D]."""
    x_BSD = linear(patchify(images_BII3, patch_size), params["patch"])
    if "class" in params:
        class_B1D = params["class"].expand(len(x_BSD), 1, -1)
        x_BSD = torch.cat([class_B1D, x_BSD], 1)
    x_BSD = x_BSD + params["position"]
    return layer_norm(x_BSD, params["norm_pre"]) if "norm_pre" in params else x_BSD


def keep_tokens(x_BSD, places_BL):
    """The tokens at these places, in each sample others: [B, L, D]."""
    return torch.take_along_dim(x_BSD, places_BL[..., None], 1)


def image_encoder(images_BII3, params, config, places_BL=None):
    """Images (normalised) to image tokens [B, S, D]; the poolers' key norm is the last norm.

    places: the tokens that are kept, in training; all where there are none."""
    x_BSD = patch_embedding(images_BII3, params, config.patch_size)
    if places_BL is not None:
        x_BSD = keep_tokens(x_BSD, places_BL)
    return image_blocks(x_BSD, params["blocks"], config)


def image_blocks(x_BSD, params, config):
    """The blocks one after the other."""
    for i in range(config.image_layers):
        given = x_BSD, params[str(i)], config.image_heads, config.gelu
        x_BSD = recomputed(block, *given) if config.recompute else block(*given)
    return x_BSD
