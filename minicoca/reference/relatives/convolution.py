"""What a convolutional tower is made of. Maps are [B, Y, X, C]: rows, columns, channels.

Letters of this file: Y rows, X columns, C channels read, O written, J numbers under a kernel.
"""

import math

import numpy as np

from ..ops import layer_norm, layer_norm_backward, linear, linear_backward

SIDE = 3  # of every kernel


def im2col(x_BYXC):
    """What lies under a kernel of 3 x 3 around each place, zeros beyond the edges: [B, Y, X, J],
    J as (row, column, channel)."""
    edge = SIDE // 2
    padded = np.pad(x_BYXC, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE), (1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(*x_BYXC.shape[:3], -1), x_BYXC.shape


def im2col_backward(dy_BYXJ, shape):
    B, Y, X, C = shape
    padded = np.zeros((B, Y + SIDE - 1, X + SIDE - 1, C), dy_BYXJ.dtype)
    for k, dy_BYXC in enumerate(np.split(dy_BYXJ, SIDE**2, -1)):
        row, column = divmod(k, SIDE)
        padded[:, row : row + Y, column : column + X] += dy_BYXC
    edge = SIDE // 2
    return padded[:, edge : edge + Y, edge : edge + X]


def groups_of(channels):
    """8, or what of 8 divides the channels."""
    return math.gcd(channels, 8)


def group_norm(x_BYXC, params):
    """Each image's groups of channels by themselves (Wu and He 2018): a batch's images do not see
    one another, as they would in batch norm."""
    B, Y, X, C = x_BYXC.shape
    groups = groups_of(C)
    x = x_BYXC.reshape(B, Y * X, groups, -1).swapaxes(1, 2).reshape(B, groups, -1)  # (1)
    one = np.ones(x.shape[-1], x.real.dtype)
    xhat, cache = layer_norm(x, {"scale": one, "bias": 0 * one})
    xhat_BYXC = xhat.reshape(B, groups, Y * X, -1).swapaxes(1, 2).reshape(B, Y, X, C)  # undoes (1)
    return xhat_BYXC * params["scale"] + params["bias"], (xhat_BYXC, cache, params["scale"])  # (2)


def group_norm_backward(dy_BYXC, cache):
    xhat_BYXC, norm_cache, scale_C = cache
    B, Y, X, C = dy_BYXC.shape
    dparams = {"scale": (dy_BYXC * xhat_BYXC).sum((0, 1, 2)), "bias": dy_BYXC.sum((0, 1, 2))}
    groups, dxhat = groups_of(C), dy_BYXC * scale_C  # from (2)
    dxhat = dxhat.reshape(B, Y * X, groups, -1).swapaxes(1, 2).reshape(B, groups, -1)
    dx, _ = layer_norm_backward(dxhat, norm_cache)
    return dx.reshape(B, groups, Y * X, -1).swapaxes(1, 2).reshape(B, Y, X, C), dparams  # from (1)


def relu(x):
    """x where it is positive, else 0."""
    return np.where(x.real > 0, x, 0), x.real > 0


def relu_backward(dy, positive):
    return dy * positive


def mean_pool(x_BYXC):
    """The mean of every 2 x 2 places: half the rows, half the columns."""
    B, Y, X, C = x_BYXC.shape
    return x_BYXC.reshape(B, Y // 2, 2, X // 2, 2, C).mean((2, 4)), None


def mean_pool_backward(dy, _):
    return dy.repeat(2, 1).repeat(2, 2) / 4


def convolution(x_BYXC, params):
    """A kernel of 3 x 3, or of 1 x 1 by the shape of its weight, and a group norm: [B, Y, X, O]."""
    shape, weight = None, params["weight"]
    if len(weight) > x_BYXC.shape[-1]:
        x_BYXC, shape = im2col(x_BYXC)
    y_BYXO, linear_cache = linear(x_BYXC, {"weight": weight})
    y_BYXO, norm_cache = group_norm(y_BYXO, params["norm"])
    return y_BYXO, (shape, linear_cache, norm_cache)


def convolution_backward(dy_BYXO, cache):
    shape, linear_cache, norm_cache = cache
    dy_BYXO, dnorm = group_norm_backward(dy_BYXO, norm_cache)
    dx, dparams = linear_backward(dy_BYXO, linear_cache)
    return (im2col_backward(dx, shape) if shape else dx), dparams | {"norm": dnorm}


def residual(x_BYXC, params, pool):
    """relu(shortcut + two convolutions); where `pool`, half as large (ResNet-D, He et al. 2018: the
    shortcut is pooled before its 1 x 1; CLIP: the other way is pooled before its last kernel)."""
    y, first_cache = convolution(x_BYXC, params["first"])
    y, relu_cache = relu(y)
    short, short_cache = x_BYXC, None
    if pool:
        (y, _), (short, _) = mean_pool(y), mean_pool(x_BYXC)
    y, second_cache = convolution(y, params["second"])
    if "shortcut" in params:
        short, short_cache = convolution(short, params["shortcut"])
    y, last_cache = relu(y + short)  # (1)
    return y, (pool, first_cache, relu_cache, second_cache, short_cache, last_cache)


def residual_backward(dy, cache):
    pool, first_cache, relu_cache, second_cache, short_cache, last_cache = cache
    dparams = {}
    dshort = dy = relu_backward(dy, last_cache)  # from (1)
    if short_cache:
        dshort, dparams["shortcut"] = convolution_backward(dshort, short_cache)
    dy, dparams["second"] = convolution_backward(dy, second_cache)
    if pool:
        dy, dshort = mean_pool_backward(dy, None), mean_pool_backward(dshort, None)
    dx, dparams["first"] = convolution_backward(relu_backward(dy, relu_cache), first_cache)
    return dx + dshort, dparams
