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
    again = 1 if change.get("bare") else xhat
    through_spread = again * (dxhat * xhat).mean(axis, keepdims=True)
    direct = change.get("direct", 1) * (dxhat - mean * through_mean)
    dx = change.get("rstd", rstd) * (direct - spread * through_spread) * last
    summed = (dy * xhat).sum((0, 1)) * change.get("part", 1)
    dparams = {"scale": summed, "bias": dy.sum((0, 1)) * change.get("part", 1)}
    return dx, dparams | change.get("dparams", {})


def _by_the_table(dy, cache):
    """layer_norm_backward as the page's table has it."""
    xhat, r, scale = cache
    c, D = xhat / r, xhat.shape[-1]
    dxhat = dy * scale
    dc = dxhat * r
    dr = (dxhat * c).sum(-1, keepdims=True)
    dvariance = -0.5 * r**3 * dr
    dc = dc + 2 * c * dvariance / D
    dx = dc - dc.mean(-1, keepdims=True)
    return dx, {"scale": (dy * xhat).sum((0, 1)), "bias": dy.sum((0, 1))}


def _gelu_inputs(rng):
    B, T = distinct(rng, 2)
    return (rng.standard_normal((B, T)) * 2,)


def _gelu(x, cube=0.044715, a=A, **change):
    """_gelu_tanh, or with a part of its slope changed."""
    t = np.tanh(a * x * (1 + cube * x * x))
    half = 0.5 * (1 + t)
    bell = 1 - t if change.get("plain") else 1 - t * t
    inner = change.get("inner", a * (1 + change.get("three", 3) * cube * x * x))
    second = change.get("second", 1) * 0.5 * x * bell * inner
    return x * half, (change.get("first", 1) * half + second,)


def _no_x_in_the_slope(x):
    t = np.tanh(A * (x + 0.044715 * x**3))
    slope = (1 + t) / 2 + (1 - t**2) / 2 * A * (1 + 3 * 0.044715 * x**2)
    return x * (1 + t) / 2, (slope,)


def _in_steps(x):
    """_gelu_tanh as the page's table has it."""
    a = np.sqrt(2 / np.pi)
    u = a * (x + 0.044715 * x**3)
    t = np.tanh(u)
    h = (1 + t) / 2
    du = a * (1 + 3 * 0.044715 * x**2)
    dh = (1 - t**2) * du / 2
    return x * h, (h + x * dh,)


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
            "The mean of dxhat xhat must be multiplied by xhat before it is taken off.":
                lambda dy, c: _norm(dy, c, bare=True),
            "The spread's route has the wrong sign: row (3) of the table has a minus, -1/2 r^3 dr.":
                lambda dy, c: _norm(dy, c, spread=-1),
            "The spread's route is half of what it should be: row (2) of the table has 2 c.":
                lambda dy, c: _norm(dy, c, spread=0.5),
            "The spread's route is twice what it should be: row (3) of the table has 1/2.":
                lambda dy, c: _norm(dy, c, spread=2),
            "The spread is a sum over the row: row (2) of the table divides by D.":
                lambda dy, c: _norm(dy, c, spread=dy.shape[-1]),
            "dr is a mean in row (4) of the table: it is the sum of dxhat c over the row.":
                lambda dy, c: _norm(dy, c, spread=1 / dy.shape[-1]),
            "r^3 is too small a power in row (3): r stands there to the third.":
                lambda dy, c: _norm(dy, c, spread=1 / c[1] ** 2),
            "r^2 stands in row (3) of the table; it is r^3.":
                lambda dy, c: _norm(dy, c, spread=1 / c[1]),
            "dc lacks r in row (4) of the table: dc = dxhat r.":
                lambda dy, c: _norm(dy, c, direct=1 / c[1]),
            "The mean's route is added; like the spread's it is taken off.":
                lambda dy, c: _norm(dy, c, mean=-1),
            "rstd divides; it is 1 / std already, so multiply by it.":
                lambda dy, c: _norm(dy, c, rstd=1 / c[1]),
            "dscale takes dxhat; scale is met by dy: the sum of dy xhat.":
                lambda dy, c: _norm(dy, c, dparams={"scale": (dy * c[2] * c[0]).sum((0, 1))}),
            "dbias takes dxhat; bias is added last, so its gradient is the sum of dy.":
                lambda dy, c: _norm(dy, c, dparams={"bias": (dy * c[2]).sum((0, 1))}),
            "dscale and dbias are exchanged.":
                lambda dy, c: _norm(dy, c, dparams={
                    "scale": dy.sum((0, 1)), "bias": (dy * c[0]).sum((0, 1))}),
        },
        model=(_by_the_table,),
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
            "The constant inside tanh is sqrt(2 / pi), not sqrt(2) / pi.":
                lambda x: _gelu(x, a=np.sqrt(2) / np.pi),
            "The root is missing: the constant inside tanh is sqrt(2 / pi), not 2 / pi.":
                lambda x: _gelu(x, a=2 / np.pi),
            "The constant is upside down: sqrt(2 / pi), not sqrt(pi / 2).":
                lambda x: _gelu(x, a=np.sqrt(np.pi / 2)),
            "sqrt(2 / pi) is missing inside tanh.": lambda x: _gelu(x, a=1.0),
            "The constant is sqrt(2 / pi), not sqrt(2 pi).":
                lambda x: _gelu(x, a=np.sqrt(2 * np.pi)),
            "0.044715 has its point in another place: you have 0.44715.":
                lambda x: _gelu(x, cube=0.44715),
            "0.044715 has its point in another place: you have 0.0044715.":
                lambda x: _gelu(x, cube=0.0044715),
            "The cubic term's constant is 0.044715; you have 0.04715.":
                lambda x: _gelu(x, cube=0.04715),
            "The half is missing in y: y = x (1 + t) / 2.":
                lambda x: (2 * _gelu_tanh(x)[0], _gelu_tanh(x)[1]),
            "sqrt(2 / pi) is missing in du/dx.":
                lambda x: _gelu(x, inner=1 + 3 * 0.044715 * x * x),
            "x is missing in the slope's second term: it is x dh/dx.": _no_x_in_the_slope,
        },
        model=(_in_steps,),
        launch=_slope_in_a_tuple,
    ),
)  # fmt: skip
