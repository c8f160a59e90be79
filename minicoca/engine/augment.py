"""Random changes to training images, drawn anew for every step from (seed, step)."""

import math

import torch
import torch.nn.functional as F


def augment(images_BII3, strength, generator):
    """Scale, turn, shift, and recolour float images in 0..1; 1.0 is a moderate strength.

    Scale by up to 20 %, turn by up to 12 degrees, shift by up to 8 % of the side, and change
    brightness, contrast and the strength of each colour channel by up to 20 %. What moves in from
    outside is the nearest pixel of the border.
    """
    B, kind = len(images_BII3), {"dtype": images_BII3.dtype, "device": images_BII3.device}

    def uniform(*shape):
        draw = torch.rand(B, *shape, generator=generator) * 2 - 1
        return strength * draw.to(**kind)

    zoom, ratio, angle = 1 + 0.2 * uniform(), 1 + 0.1 * uniform(), uniform() * math.radians(12)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shift_B2 = 0.16 * uniform(2)  # in units of half the side
    theta = torch.stack([cos * ratio, -sin, shift_B2[:, 0], sin, cos / ratio, shift_B2[:, 1]], 1)
    images = images_BII3.permute(0, 3, 1, 2)
    grid = F.affine_grid(theta.view(B, 2, 3), images.shape, align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast, gain = 1 + 0.2 * uniform(1, 1, 1), 1 + 0.2 * uniform(3, 1, 1)
    images = ((images - mean) * contrast + mean + 0.1 * uniform(1, 1, 1)) * gain
    return images.clamp(0, 1).permute(0, 2, 3, 1)
