"""Random changes to training images, drawn anew for every step.

They stand for what differs between two drawings of one thing: where it stands and its proportions
(`_warp`), how lines and edges are drawn (`_redraw`), light and colour (`_recolour`), and parts that
are missing (`_erase`). What the thing is stays.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F


def augment(images_BII3, strength, rng, place=None):
    """Change float images in 0..1, each in its own way; strength 1.0 is a lot, 0.5 moderate.

    rng: a NumPy generator. place: (first, all), where these are images of a larger batch, from
    the first on: what happens to each is what would happen to it there.
    """
    first, all_ = place or (0, len(images_BII3))
    own = slice(first, first + len(images_BII3))

    def uniform(*shape, low=-1.0):
        """Random numbers from low to 1, [B, *shape], on the images' device."""
        draw = torch.from_numpy(rng.random((all_, *shape), np.float32)[own])
        return (low + (1 - low) * draw).to(images_BII3)

    x_B3II = images_BII3.permute(0, 3, 1, 2)
    x_B3II = _warp(x_B3II, strength, uniform)
    x_B3II = _redraw(x_B3II, strength, uniform, max(0, all_ // 2 - first))
    x_B3II = _recolour(x_B3II, strength, uniform)
    x_B3II = _erase(x_B3II, strength, uniform)
    return x_B3II.clamp(0, 1).permute(0, 2, 3, 1)


def _warp(x_B3II, strength, uniform):
    """Scale by up to 20 %, stretch by 15 %, turn by 12 degrees, slant and shift by 8 %, and bend: a
    4 x 4 grid of points moves by up to 5 % of the side. What comes in from outside is the border's
    nearest pixel."""
    zoom, stretch = torch.exp(0.2 * strength * uniform()), torch.exp(0.15 * strength * uniform())
    angle, slant = math.radians(12) * strength * uniform(), 0.1 * strength * uniform()
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    right, down = (0.16 * strength * uniform(2)).unbind(1)  # in units of half the side, as below
    rows = [cos * stretch, slant - sin, right, sin, cos / stretch, down]
    grid_BII2 = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), x_B3II.shape, False)
    bend_B2II = _smooth(0.1 * strength * uniform(2, 4, 4), x_B3II)
    grid_BII2 = grid_BII2 + bend_B2II.permute(0, 2, 3, 1)
    return F.grid_sample(x_B3II, grid_BII2, padding_mode="border", align_corners=False).contiguous()


def _redraw(x_B3II, strength, uniform, half):
    """Blur or sharpen; then thicken dark lines in one half of the batch, which the first `half`
    images are of, and thin them in the other (pairs come in random order)."""
    blurred_B3II = _neighbours(torch.add, x_B3II) / 9
    x_B3II = x_B3II + strength * uniform(1, 1, 1) * (x_B3II - blurred_B3II)
    amount_B111 = 0.5 * strength * uniform(1, 1, 1, low=0.0)
    dark, light = x_B3II[:half], x_B3II[half:]
    dark = torch.lerp(dark, _neighbours(torch.minimum, dark), amount_B111[:half])
    light = torch.lerp(light, _neighbours(torch.maximum, light), amount_B111[half:])
    return torch.cat([dark, light])


def _recolour(x_B3II, strength, uniform):
    """Mix the channels, in every tenth image to grey; let light fall unevenly; change how deep the
    colour is by up to 20 %, each channel by 30 %. All is done to the ink: paper stays white."""
    ink_B3II = 1 - x_B3II
    mix_B33 = 0.2 * strength * uniform(3, 3)
    mix_B33 = mix_B33 - mix_B33.mean(2, keepdim=True)  # so that grey stays grey
    ink_B3II = ink_B3II + (mix_B33 @ ink_B3II.flatten(2)).view_as(ink_B3II)
    grey_B111 = (uniform(1, 1, 1, low=0.0) < 0.1 * strength).to(x_B3II)
    ink_B3II = torch.lerp(ink_B3II, ink_B3II.mean(1, keepdim=True), grey_B111)
    light_B1II = 1 + _smooth(0.3 * strength * uniform(1, 3, 3), x_B3II)
    depth, channel = 1 + 0.2 * strength * uniform(1, 1, 1), 1 + 0.3 * strength * uniform(3, 1, 1)
    return 1 - ink_B3II * (depth * channel) * light_B1II


def _erase(x_B3II, strength, uniform):
    """Paint a rectangle of one random colour over part of three images in ten."""
    place_I = torch.linspace(-1, 1, x_B3II.shape[-1]).to(x_B3II)
    centre_B21, half_B21 = uniform(2, 1), 0.15 + 0.35 * uniform(2, 1, low=0.0)
    row_BI, column_BI = ((place_I - centre_B21).abs() < half_B21).to(x_B3II).unbind(1)
    chosen_B111 = (uniform(1, 1, 1, low=0.0) < 0.3 * strength).to(x_B3II)
    hole_B1II = row_BI[:, None, :, None] * column_BI[:, None, None, :] * chosen_B111
    return torch.lerp(x_B3II, uniform(3, 1, 1, low=0.0).expand_as(x_B3II), hole_B1II)


def _smooth(points_BCKK, x_B3II):
    """A few random points, joined to a smooth surface of the images' size."""
    size = x_B3II.shape[-2:]
    return F.interpolate(points_BCKK, size=size, mode="bicubic", align_corners=True)


def _neighbours(function, x_B3II):
    """`function` (torch.minimum, maximum or add) over each pixel and the eight around it."""
    p = F.pad(x_B3II, (1, 1, 1, 1), mode="replicate")
    p = function(p[:, :, 1:-1], function(p[:, :, :-2], p[:, :, 2:]))
    return function(p[..., 1:-1], function(p[..., :-2], p[..., 2:]))
