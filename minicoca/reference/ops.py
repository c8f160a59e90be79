"""The smallest layers, forward and backward.

Every layer is a pair: `op(...) -> (y, cache)` and right below it `op_backward(dy, cache)`, which
returns the gradient of each differentiable argument (parameters last, as a dict of their shape).
Trailing letters name axes (params.py has the list); an array without any may have any shape.
Nothing here is real-only, so the tests can differentiate by complex step.
"""

import math

import numpy as np


def linear(x, params):
    """y = x W + b over the last axis; the bias may be absent."""
    weight_DF = params["weight"]
    y = (x.reshape(-1, len(weight_DF)) @ weight_DF).reshape(*x.shape[:-1], -1)  # (1)
    if "bias" in params:
        y = y + params["bias"]  # (2)
    return y, (x, params)


def linear_backward(dy, cache):
    x, params = cache
    weight_DF = params["weight"]
    x_RD, dy_RF = x.reshape(-1, len(weight_DF)), dy.reshape(-1, dy.shape[-1])
    dparams = {"weight": x_RD.T @ dy_RF}  # from (1)
    if "bias" in params:
        dparams["bias"] = dy_RF.sum(0)  # from (2)
    return (dy_RF @ weight_DF.T).reshape(x.shape), dparams  # from (1)


def embedding(ids, table_VD):
    """The row of the table for every id."""
    return table_VD[ids], (ids, table_VD.shape)


def embedding_backward(dy, cache):
    ids, shape = cache
    dtable_VD = np.zeros(shape, dy.dtype)
    np.add.at(dtable_VD, ids.reshape(-1), dy.reshape(-1, shape[1]))  # a row may be used many times
    return dtable_VD


def gelu(x, kind):
    """x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016), or its usual
    approximation by tanh. The paper names no activation; GELU is the ViT's."""
    return (_gelu_tanh if kind == "tanh" else _gelu_exact)(x)


def gelu_backward(dy, cache):
    (slope,) = cache
    return dy * slope


def _gelu_tanh(x):
    a = math.sqrt(2 / math.pi)
    square = x * x
    t = np.tanh(a * x * (1 + 0.044715 * square))  # (1)
    half = 0.5 * (1 + t)
    y = x * half  # (2)
    slope = half + 0.5 * x * (1 - t * t) * a * (1 + 3 * 0.044715 * square)  # dy/dx of (2) with (1)
    return y, (slope,)


def _gelu_exact(x):
    phi = 0.5 * (1 + erf(x / math.sqrt(2)))  # (1)
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * phi, (phi + x * density,)  # (2), and its slope


def erf(x):
    """The error function by its all-positive series 2/sqrt(pi) e^(-x^2) sum (2x^2)^n x / (2n+1)!!.

    (Abramowitz and Stegun 7.1.6.) Beyond 6, erf is 1 to the last bit of float64.
    """
    inside = np.abs(x.real) < 6
    z = np.where(inside, x, 0)
    term = total = z
    for n in range(1, 150):
        if np.max(np.abs(term), initial=0) == 0:
            break
        term = term * (2 * z * z / (2 * n + 1))
        total = total + term
    series = 2 / math.sqrt(math.pi) * np.exp(-z * z) * total
    return np.where(inside, series, np.sign(x.real)).astype(x.dtype)


def layer_norm(x, params, eps=1e-5):
    """scale * (x - mean) / std + bias over the last axis (Ba et al. 2016)."""
    centred = x - x.mean(-1, keepdims=True)  # (1)
    variance = (centred * centred).mean(-1, keepdims=True)  # (2)
    rstd = 1 / np.sqrt(variance + eps)  # (3)
    xhat = centred * rstd  # (4)
    return xhat * params["scale"] + params["bias"], (xhat, rstd, params["scale"])  # (5)


def layer_norm_backward(dy, cache):
    xhat, rstd, scale_D = cache
    dy_RD, xhat_RD = (a.reshape(-1, a.shape[-1]) for a in (dy, xhat))
    dparams = {"scale": (dy_RD * xhat_RD).sum(0), "bias": dy_RD.sum(0)}  # from (5)
    dxhat = dy * scale_D  # from (5)
    # (4) to (1): x reaches xhat directly, through the mean, and through the spread.
    through_mean = dxhat.mean(-1, keepdims=True)
    through_spread = xhat * (dxhat * xhat).mean(-1, keepdims=True)
    return rstd * (dxhat - through_mean - through_spread), dparams


def softmax(x):
    """exp(x) / sum exp(x) over the last axis. A row of nothing but -inf gives zeros."""
    peak = x.real.max(-1, keepdims=True)  # cancels in the quotient; keeps exp in range
    e = np.exp(x - np.where(np.isfinite(peak), peak, 0))
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total == 0, 1, total)
    return p, (p,)


def softmax_backward(dp, cache):
    (p,) = cache
    return p * (dp - (p * dp).sum(-1, keepdims=True))


def log_softmax(x):
    """x - log sum exp(x) over the last axis."""
    shifted = x - x.real.max(-1, keepdims=True)
    y = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return y, (y,)


def log_softmax_backward(dy, cache):
    (y,) = cache
    return dy - np.exp(y) * dy.sum(-1, keepdims=True)


def l2_normalise(x, eps=1e-12):
    """x / |x| over the last axis."""
    rnorm = 1 / np.sqrt((x * x).sum(-1, keepdims=True) + eps)  # (1)
    y = x * rnorm  # (2)
    return y, (y, rnorm)


def l2_normalise_backward(dy, cache):
    y, rnorm = cache
    return rnorm * (dy - y * (dy * y).sum(-1, keepdims=True))
