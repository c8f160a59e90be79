"""Exercises of page 04."""

import numpy as np

from minicoca.reference.attention import attention
from minicoca.reference.ops import softmax

from ..exercise import Exercise, distinct

IMPORTS = "import numpy as np\n\nfrom minicoca.reference.ops import {}"


def _arrays(rng):
    B, T, S, H, K = distinct(rng, 5, 2, 4)
    q, k, v = (rng.standard_normal((B, length, H, K)) for length in (T, S, S))
    mask = rng.random((B, T, S)) < 0.6
    mask[:, np.arange(T), rng.integers(S, size=T)] = True  # every query may see something
    return q * 1.5, k, v, mask


def _backward_inputs(rng):
    q, k, v, mask = _arrays(rng)
    o, cache = attention(q, k, v, mask)
    return rng.standard_normal(o.shape), cache


def _split(x):
    return x.transpose(0, 2, 1, 3)


def _forward(q, k, v, mask, power=-0.5, fill=-np.inf, heads=None, over=-1, **change):
    """attention, with something changed."""
    q_BHTK, k_BHSK, v_BHSK = (heads(x) if heads else _split(x) for x in (q, k, v))
    s = q_BHTK @ _swap(k_BHSK) * q.shape[-1] ** power
    if change.get("before", True):
        s = np.where(mask[:, None], s, fill)
    p = softmax(s)[0] if over == -1 else _swap(softmax(_swap(s))[0])
    if change.get("after"):
        p = p * mask[:, None]
    o = p @ v_BHSK
    return o.reshape(q.shape) if change.get("pasted") else _split(o)


def _swap(x):
    return x.transpose(0, 1, 3, 2)


def _by_reshape(x):
    B, T, H, K = x.shape
    return x.reshape(B, H, T, K)


def _backward(do, cache, total=None, heads=None, factor_k=1, **change):
    """attention_backward, with something changed."""
    q, k, v, p, _, scale = cache
    do = heads(do) if heads else _split(do)
    dp = do @ _swap(v)
    total = total(p, dp) if total else (p * dp).sum(-1, keepdims=True)
    ds = p * (dp - total) * change.get("scale", scale)
    weights = ds if change.get("scores_for_values") else p
    found = {"q": ds @ k, "k": _swap(ds) @ q * factor_k, "v": _swap(weights) @ do}
    return tuple(_split(found[name]) for name in change.get("order", "qkv"))


EXERCISES = (
    Exercise(
        "4a", 2, 20, "attention with a mask", "minicoca.reference.attention:attention",
        ("o_BTHK",), _arrays,
        "# the mask is given here: [B, T, S], True where a query may look, the same for all heads\n"
        "# return o_BTHK alone, or (o_BTHK, cache); the cache is not compared",
        (
            "Bring the heads in front of the tokens, q to [B, H, T, K]; then (1) is one matrix "
            "product for every sample and head. Transpose o back at the end.",
            "(2): np.where(mask[:, None], scores, -np.inf), before the softmax. mask[:, None] is "
            "[B, 1, T, S] and fits every head.",
            "softmax(scores)[0] is p, over the last axis: the keys. o is p times v.",
        ),
        {
            "The scores are not scaled: multiply them by K ** -0.5.":
                lambda q, k, v, m: _forward(q, k, v, m, power=0),
            "The scores are divided by K; by its square root is right.":
                lambda q, k, v, m: _forward(q, k, v, m, power=-1),
            "The mask is not used: every query sees every key.":
                lambda q, k, v, m: _forward(q, k, v, m, before=False),
            "The mask is turned around: True is where a query may look.":
                lambda q, k, v, m: _forward(q, k, v, ~m),
            "Masked scores were set to 0, and e^0 is 1; they should be -inf.":
                lambda q, k, v, m: _forward(q, k, v, m, fill=0.0),
            "Masked after the softmax: the rows of p no longer add up to 1. Mask the scores.":
                lambda q, k, v, m: _forward(q, k, v, m, before=False, after=True),
            "The softmax runs over the queries; it should run over the keys, the last axis.":
                lambda q, k, v, m: _forward(q, k, v, m, over=-2),
            "o was reshaped to [B, T, H, K]; its axes are H, T and must be transposed.":
                lambda q, k, v, m: _forward(q, k, v, m, pasted=True),
            "The heads were split by a reshape to [B, H, T, K]; that mixes tokens. Transpose.":
                lambda q, k, v, m: _forward(q, k, v, m, heads=_by_reshape),
        },
        imports=IMPORTS.format("softmax  # softmax(x) -> (p, cache)"),
    ),
    Exercise(
        "4b", 3, 30, "the gradient of attention", "minicoca.reference.attention:attention_backward",
        ("dq_BTHK", "dk_BSHK", "dv_BSHK"), _backward_inputs,
        "q_BHTK, k_BHSK, v_BHSK, p_BHTS, softmax_cache, scale = cache",
        (
            "Bring the heads of do in front of its tokens, as the cache has them; undo (4), (3), "
            "(1) in this order; transpose the three results back.",
            "o = p v is a linear map, twice: dv = p' do and dp = do v'.",
            "ds = softmax_backward(dp, softmax_cache) * scale; dq = ds k; dk = ds' q.",
        ),
        {
            "scale is missing: it stands in (1), so it multiplies the gradient of the scores.":
                lambda do, c: _backward(do, c, scale=1),
            "scale is applied to the gradient of q only; k needs it as well.":
                lambda do, c: _backward(do, c, factor_k=1 / c[5]),
            "scale is applied twice to the gradient of k.":
                lambda do, c: _backward(do, c, factor_k=c[5]),
            "Softmax's shared sum is missing: ds = p (dp - sum of p dp over the row).":
                lambda do, c: _backward(do, c, total=lambda p, dp: 0),
            "Softmax's sum runs over the queries; it should run over the keys, the last axis.":
                lambda do, c: _backward(do, c, total=lambda p, dp: (p * dp).sum(-2)[:, :, None]),
            "dv takes ds for its weights; o = p v, so dv = p' do.":
                lambda do, c: _backward(do, c, scores_for_values=True),
            "dk and dv are exchanged: the order is dq, dk, dv.":
                lambda do, c: _backward(do, c, order="qvk"),
            "The heads of do were split by a reshape; transpose [B, T, H, K] to [B, H, T, K].":
                lambda do, c: _backward(do, c, heads=_by_reshape),
        },
        imports=IMPORTS.format("softmax_backward"),
    ),
)  # fmt: skip
