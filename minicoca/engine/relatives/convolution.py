"""What a convolutional tower is made of. As reference/relatives/convolution.py, by torch's own
convolution and pool; maps are [B, C, Y, X] here, as these want them."""

import math

import torch.nn.functional as F

SIDE = 3  # of every kernel


def groups_of(channels):
    """8, or what of 8 divides the channels."""
    return math.gcd(channels, 8)


def convolution(x_BCYX, params):
    """A kernel of 3 x 3, or of 1 x 1 by the shape of its weight, and a group norm: [B, O, Y, X]."""
    weight, norm, channels = params["weight"], params["norm"], x_BCYX.shape[1]
    side = SIDE if len(weight) > channels else 1
    kernel = weight.view(side, side, channels, -1).permute(3, 2, 0, 1)
    y_BOYX = F.conv2d(x_BCYX, kernel, padding=side // 2)
    scale, bias = norm["scale"].to(y_BOYX.dtype), norm["bias"].to(y_BOYX.dtype)
    return F.group_norm(y_BOYX, groups_of(y_BOYX.shape[1]), scale, bias)


def residual(x_BCYX, params, pool):
    """relu(shortcut + two convolutions); where `pool`, half as large. See the reference."""
    y, short = F.relu(convolution(x_BCYX, params["first"])), x_BCYX
    if pool:
        y, short = F.avg_pool2d(y, 2), F.avg_pool2d(x_BCYX, 2)
    if "shortcut" in params:
        short = convolution(short, params["shortcut"])
    return F.relu(convolution(y, params["second"]) + short)
