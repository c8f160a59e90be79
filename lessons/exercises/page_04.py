"""Exercises of page 04."""

import traceback

import numpy as np

from minicoca.reference.attention import attention
from minicoca.reference.ops import softmax

from ..exercise import Exercise, Told, distinct

IMPORTS = "import numpy as np\n\nfrom minicoca.reference.ops import {}"


def _arrays(rng):
    B, T, S, H, K = distinct(rng, 5, 2, 4)
    q, k, v = (rng.standard_normal((B, length, H, K)) for length in (T, S, S))
    mask = rng.random((B, T, S)) < 0.6
    mask[:, np.arange(T), rng.integers(S, size=T)] = True  # every query may see something
    return q * 1.5, k, v, mask


def _forward_inputs(rng):
    """Arrays of which one head's scores are all one number, smaller than any fill but -inf."""
    q, k, v, mask = _arrays(rng)
    q[0, :, 0, 1:], k[0, :, 0, 1:] = 0, 0
    q[0, :, 0, 0], k[0, :, 0, 0] = 1, -1e100
    return q, k, v, mask


def _backward_inputs(rng):
    q, k, v, mask = _arrays(rng)
    o, cache = attention(q, k, v, mask)
    return rng.standard_normal(o.shape), cache


def _split(x):
    return x.transpose(0, 2, 1, 3)


def _forward(q, k, v, mask, power=-0.5, fill=-np.inf, heads=None, over=-1, **change):
    """attention, with something changed."""
    q_BHTK, k_BHSK, v_BHSK = (heads(x) if heads else _split(x) for x in (q, k, v))
    s = q_BHTK @ _swap(k_BHSK) * q.shape[-1] ** power * change.get("also", 1)
    if "masked" in change:
        s = change["masked"](s, mask[:, None])
    elif change.get("before", True):
        s = np.where(mask[:, None], s, fill)
    p = s if over is None else softmax(s)[0] if over == -1 else _swap(softmax(_swap(s))[0])
    if change.get("after"):
        p = p * mask[:, None]
    o = p @ v_BHSK
    return o.reshape(q.shape) if change.get("pasted") else _split(o)


def _told_of_the_pair(function, *arguments):
    try:
        return function(*arguments)
    except ValueError as error:
        if "inhomogeneous" in str(error):
            raise Told("softmax returns (p, cache): take the first of the two.") from None
        raise


def _told_of_the_order(function, do, cache):
    try:
        found = function(do, cache)
    except ValueError as error:
        if "matmul" in str(error) or "remapped" in str(error):
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            raise Told(
                f"Line {line}: the shapes of a product do not fit. First do to [B, H, T, K]; then "
                "dv = p' do, dp = do v', dq = ds k, dk = ds' q."
            ) from None
        raise
    if isinstance(found, tuple) and len(found) == 3:
        first, length = np.shape(found[0]), do.shape[1]
        if first[1:2] != (length,) and any(np.shape(x) == do.shape for x in found[1:]):
            raise Told("The order of the results is dq, dk, dv.")
    return found


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
    ds = (dp if change.get("no_softmax") else p * (dp - total)) * change.get("scale", scale)
    weights = ds if change.get("scores_for_values") else p
    found = {"q": ds @ k, "k": _swap(ds) @ q * factor_k, "v": _swap(weights) @ do}
    return tuple(_split(found[name]) for name in change.get("order", "qkv"))


EXERCISES = (
    Exercise(
        "4a", 2, 20, "attention with a mask", "minicoca.reference.attention:attention",
        ("o_BTHK",), _forward_inputs,
        "# the mask is given here: [B, T, S], True where a query may look, the same for all heads\n"
        "# softmax(s) -> (p, cache), over the last axis\n"
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
            "The scores are divided by sqrt(D), all heads' width; each head's is K.":
                lambda q, k, v, m: _forward(q, k, v, m, power=-0.5, also=q.shape[2] ** -0.5),
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
            "The mask was added: True and False are 1 and 0. np.where sets the others to -inf.":
                lambda q, k, v, m: _forward(q, k, v, m, masked=lambda s, m: s + m),
            "Masked scores are a large but finite number; a real one may be smaller still: -inf.":
                lambda q, k, v, m: _forward(q, k, v, m, fill=-1e9),
            "The causal mask stands in place of the mask that is given.":
                lambda q, k, v, m: _forward(q, k, v, m, masked=lambda s, m: np.where(
                    np.tri(*s.shape[2:], dtype=bool), s, -np.inf)),
            "The softmax is missing: its weights are exp(s) over their sum in each row.":
                lambda q, k, v, m: _forward(q, k, v, m, fill=0.0, over=None),
            "The scores take v where k should stand: a score is q . k.":
                lambda q, k, v, m: _forward(q, v, v, m),
            "o takes k where v should stand: o = p v.": lambda q, k, v, m: _forward(q, k, k, m),
            "The scores are multiplied by sqrt(K); divide by it.":
                lambda q, k, v, m: _forward(q, k, v, m, power=0.5),
        },
        imports=IMPORTS.format("softmax"),
        launch=_told_of_the_pair,
    ),
    Exercise(
        "4b", 3, 30, "the gradient of attention", "minicoca.reference.attention:attention_backward",
        ("dq_BTHK", "dk_BSHK", "dv_BSHK"), _backward_inputs,
        "q_BHTK, k_BHSK, v_BHSK, p_BHTS, softmax_cache, scale = cache\n"
        "# softmax_backward(dp_BHTS, softmax_cache) -> the gradient of softmax's input\n"
        "# returns dq_BTHK, dk_BSHK, dv_BSHK",
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
            "The softmax was not undone: ds = softmax_backward(dp, softmax_cache), then the scale.":
                lambda do, c: _backward(do, c, no_softmax=True),
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
        launch=_told_of_the_order,
    ),
)  # fmt: skip
