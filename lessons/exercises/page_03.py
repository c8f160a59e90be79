"""Exercises of page 03."""

import numpy as np

from minicoca.reference.ops import _gelu_exact, _gelu_tanh, layer_norm

from ..exercise import Exercise, Told, distinct

A = np.sqrt(2 / np.pi)


def _norm_inputs(rng):
    B, T, D = distinct(rng, 3)
    x = rng.standard_normal((B, T, D)) * 2 + 1
    params = {"scale": rng.standard_normal(D), "bias": rng.standard_normal(D)}
    return rng.standard_normal((B, T, D)), layer_norm(x, params)[1]


def _norm(dy, cache, mean=1, spread=1, last=1, **change):
    """layer_norm_backward with a route left out, or with something changed."""
    xhat, rstd, scale = cache
    dxhat = dy * change.get("scale", scale)
    axis = change.get("axis", -1)
    through_mean = dxhat.mean(axis, keepdims=True)
    through_spread = xhat * (dxhat * xhat).mean(axis, keepdims=True)
    dx = change.get("rstd", rstd) * (dxhat - mean * through_mean - spread * through_spread) * last
    summed = (dy * xhat).sum((0, 1)) * change.get("part", 1)
    dparams = {"scale": summed, "bias": dy.sum((0, 1)) * change.get("part", 1)}
    return dx, dparams | change.get("dparams", {})


def _gelu_inputs(rng):
    B, T = distinct(rng, 2)
    return (rng.standard_normal((B, T)) * 2,)


def _gelu(x, cube=0.044715, **change):
    """_gelu_tanh, or with a part of its slope changed."""
    t = np.tanh(A * x * (1 + cube * x * x))
    half = 0.5 * (1 + t)
    bell = 1 - t if change.get("plain") else 1 - t * t
    inner = change.get("inner", A * (1 + change.get("three", 3) * cube * x * x))
    second = change.get("second", 1) * 0.5 * x * bell * inner
    return x * half, (change.get("first", 1) * half + second,)


def _slope_in_a_tuple(function, x):
    found = function(x)
    if isinstance(found, tuple) and len(found) == 2 and not isinstance(found[1], tuple):
        raise Told("The slope must be in a tuple, the cache: return y, (slope,).")
    return found


def _gelu_sigmoid(x):
    s = 1 / (1 + np.exp(-1.702 * x))
    return x * s, (s + 1.702 * x * s * (1 - s),)


EXERCISES = (
    Exercise(
        "3a", 2, 25, "the gradient of layer norm", "minicoca.reference.ops:layer_norm_backward",
        ("dx", "dparams"), _norm_inputs,
        "xhat, rstd, scale_D = cache  # xhat is [B, T, D] like dy, rstd [B, T, 1]\n"
        '# returns dx, {"scale": dscale_D, "bias": dbias_D}',
        (
            "scale and bias meet every row, so their gradients are sums over all axes but the "
            "last; dxhat = dy * scale.",
            "x reaches xhat by three routes. Each of the other two takes a mean over the row off "
            "dxhat: one is the mean of dxhat, one is xhat times a mean.",
            "dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)), means over the last axis.",
        ),
        {
            "The route through the mean is missing: take off the mean of dxhat over the row.":
                lambda dy, c: _norm(dy, c, mean=0),
            "The route through the spread is missing: take off xhat times the mean of dxhat xhat.":
                lambda dy, c: _norm(dy, c, spread=0),
            "Only the direct route is there: the mean and the spread of the row depend on x too.":
                lambda dy, c: _norm(dy, c, mean=0, spread=0),
            "dx lacks the factor rstd: xhat is the centred row times rstd.":
                lambda dy, c: _norm(dy, c, rstd=1),
            "dx leaves out scale: the gradient of xhat is dy times scale.":
                lambda dy, c: _norm(dy, c, scale=1),
            "Sums over the row were taken off; they should be means.":
                lambda dy, c: _norm(dy, c, mean=dy.shape[-1], spread=dy.shape[-1]),
            "scale is multiplied at the end; dxhat = dy scale comes first, before the means.":
                lambda dy, c: _norm(dy, c, scale=1, last=c[2]),
            "The means run over the batch; layer norm's run over a row, the last axis.":
                lambda dy, c: _norm(dy, c, axis=0),
            "dscale leaves out xhat: scale is multiplied by xhat, so its gradient is dy xhat.":
                lambda dy, c: _norm(dy, c, dparams={"scale": dy.sum((0, 1))}),
            "dscale and dbias are means over the rows; they should be sums.":
                lambda dy, c: _norm(dy, c, part=1 / (dy.shape[0] * dy.shape[1])),
        },
    ),
    Exercise(
        "3b", 1, 15, "GELU and its slope", "minicoca.reference.ops:_gelu_tanh",
        ("y", "slope"), _gelu_inputs,
        "# returns y, (slope,): the second is a tuple of one array, dy/dx",
        (
            "t = tanh(inner) with inner = sqrt(2 / pi) (x + 0.044715 x^3); y = 0.5 x (1 + t).",
            "Product rule: slope = 0.5 (1 + t) + 0.5 x dt/dx.",
            "dt/dx = (1 - t^2) times the derivative of inner, sqrt(2 / pi) (1 + 3 * 0.044715 x^2).",
        ),
        {
            "That is the exact GELU, with erf; this one takes tanh in its place.": _gelu_exact,
            "That is x sigmoid(1.702 x), another approximation; this one is by tanh.":
                _gelu_sigmoid,
            "The slope lacks its second term: t depends on x too.": lambda x: _gelu(x, second=0),
            "The slope lacks its first term h: by the product rule it is h + x dh/dx.":
                lambda x: _gelu(x, first=0),
            "A half is missing in the slope's second term: dh/dx = (dt/dx) / 2.":
                lambda x: _gelu(x, second=2),
            "du/dx is missing: dt/dx = (1 - t^2) du/dx.": lambda x: _gelu(x, inner=1),
            "The derivative of x^3 is 3 x^2: a factor 3 is missing in the slope.":
                lambda x: _gelu(x, three=1),
            "The derivative of tanh is 1 - t^2, not 1 - t.": lambda x: _gelu(x, plain=True),
            "The cubic term is missing: inside tanh stands x + 0.044715 x^3.":
                lambda x: _gelu(x, cube=0),
            "That is the ReLU and its slope.":
                lambda x: (np.maximum(x, 0), ((x > 0).astype(float),)),
            "The slope was multiplied by x: return dy/dx itself.":
                lambda x: (_gelu_tanh(x)[0], (x * _gelu_tanh(x)[1][0],)),
        },
        launch=_slope_in_a_tuple,
    ),
)  # fmt: skip
