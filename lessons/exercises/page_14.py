"""Exercises of page 14: a pooler of one query, bracketed otherwise."""

import numpy as np

from minicoca.reference.ops import (
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
    softmax,
    softmax_backward,
)
from minicoca.reference.pooling import absorbed_pooler, absorbed_pooler_backward

from ..exercise import Exercise, Told, distinct, values
from ..memory import peak_bytes


def _pooler_inputs(rng):
    return _pooler_of(rng, *(int(n) for n in distinct(rng, 5, 2, 7)))


def _pooler_of(rng, B, S, H, K, M):
    """Tokens, a tree of random parameters (biases too), and the number of heads."""
    D = H * K

    def pair(name, *shape):
        size = shape[0] ** -0.5 if len(shape) == 2 else 1.0
        weights = {name: rng.standard_normal(shape) * size}
        return weights | {"bias": rng.standard_normal(shape[-1]) * 0.5}

    params = {
        "queries": rng.standard_normal((1, D)),
        "norm_query": pair("scale", D),
        "norm_key": pair("scale", M),
        "attention": {
            "query": pair("weight", D, D),
            "key": pair("weight", M, D),
            "value": pair("weight", M, D),
            "output": pair("weight", D, D),
        },
        "norm_output": pair("scale", D),
    }
    return rng.standard_normal((B, S, M)), params, H


def _pooled(tokens, params, heads, *, scale=None, score_gamma=True, value_gamma=True, beta=True,
            bias=True, axis=-1, split=(0, 1, 2), output=True, norm=True):  # fmt: skip
    """absorbed_pooler, with whatever a mistake changes."""
    q = linear(layer_norm(params["queries"], params["norm_query"])[0], params["attention"]["query"])
    q = q[0].reshape(heads, -1)
    xhat = layer_norm(tokens, {"scale": 1.0, "bias": 0.0})[0]
    gamma, shift = params["norm_key"]["scale"], params["norm_key"]["bias"]
    shape = [(len(gamma), *q.shape)[i] for i in split]
    key, value = (
        params["attention"][name]["weight"].reshape(shape).transpose(np.argsort(split))
        for name in ("key", "value")
    )
    a = np.einsum("mhk,hk->hm", key, q) * (scale or q.shape[1] ** -0.5)
    s = np.einsum("hm,bsm->bhs", a * (gamma if score_gamma else 1), xhat)
    p = softmax(s.swapaxes(axis, -1))[0].swapaxes(axis, -1)
    m = np.einsum("bhs,bsm->bhm", p, xhat)
    u = m * (gamma if value_gamma else 1) + (shift if beta else 0)
    o = np.einsum("bhm,mhk->bhk", u, value).reshape(len(u), 1, -1)
    o = o + (params["attention"]["value"]["bias"] if bias else 0)
    y = linear(o, params["attention"]["output"])[0] if output else o
    return layer_norm(y, params["norm_output"])[0] if norm else y


def _pooled_scaled_by_width(tokens, params, heads):
    return _pooled(tokens, params, heads, scale=tokens.shape[-1] ** -0.5)


def _pooler_launch(function, tokens, params, heads):
    """y; Told where it is right, but keys or values of every token were formed on the way."""
    found = function(tokens, params, heads)
    if function is absorbed_pooler:
        return found[0]
    if isinstance(found, tuple):
        raise Told("Return y_B1D alone: layer_norm gives two values, of which it is the first.")
    if np.shape(found) == (len(tokens), 1, params["queries"].shape[1]):
        if np.allclose(found, _pooled(tokens, params, heads)) and _forms_keys(function):
            raise Told(
                "Right, but keys or values of every token were formed: let the query meet the key "
                "weights first, and the weighted sum the value weights."
            )
    return found


def _forms_keys(function):
    """Whether a pooler of narrow tokens takes the memory of a quarter of one head's keys, which are
    64 times as wide: all heads', one head's at a time, or those in float32."""
    B, S, H, K, M = 1, 2000, 2, 128, 2
    arguments = _pooler_of(np.random.default_rng(0), B, S, H, K, M)
    return peak_bytes(function, *arguments) > B * S * K * 8 / 4


def _pooled_mistake(**change):
    return lambda *arguments: _pooled(*arguments, **change)


FORWARD_BODY = """q_1D, _ = layer_norm(params["queries"], params["norm_query"])
q_1D, _ = linear(q_1D, params["attention"]["query"])
q_HK = q_1D.reshape(heads, -1)
width = tokens_BSM.shape[-1]
xhat_BSM, _ = layer_norm(tokens_BSM, {"scale": np.ones(width), "bias": np.zeros(width)})
gamma_M, beta_M = params["norm_key"]["scale"], params["norm_key"]["bias"]
key_MHK, value_MHK = (
    params["attention"][name]["weight"].reshape(width, *q_HK.shape) for name in ("key", "value")
)
# Yours: (1) to (6) of the page, never forming keys or values of the tokens; then the output's
# linear map, params["attention"]["output"], and norm_output. Return y_B1D alone, an array."""

IMPORTS = "import numpy as np\n\nfrom minicoca.reference.ops import "


def _backward_inputs(rng):
    tokens, params, heads = _pooler_inputs(rng)
    D = params["queries"].shape[1]
    return rng.standard_normal((len(tokens), 1, D)), tokens, params, heads


INSIDE = ("dxhat_BSM", "dq_HK", "dkey_MHK", "dvalue_MHK", "dgamma_M", "dbeta_M")


def _backward_launch(function, dy, tokens, params, heads):
    """The whole backward, of which a learner's function is the inside."""
    _, cache = absorbed_pooler(tokens, params, heads)
    if function is absorbed_pooler_backward:
        dtokens, d = function(dy, cache)
        weights = (d["attention"][name]["weight"] for name in ("key", "value"))
        return dtokens, d["queries"], *weights, d["norm_key"]["scale"], d["norm_key"]["bias"]
    inputs, (query_norm_cache, query_cache, key_cache, _, output_cache, norm_cache) = cache
    dpooled, _ = layer_norm_backward(dy, norm_cache)
    do, _ = linear_backward(dpooled, output_cache)
    found = values(function(do.reshape(len(do), *inputs[0].shape), inputs), *INSIDE)
    q, xhat, gamma, key, value = inputs[:5]
    for name, x, like in zip(INSIDE, found, (xhat, q, key, value, gamma, gamma), strict=True):
        if np.shape(x) != like.shape:
            raise Told(f"{name} has shape {np.shape(x)}; expected {like.shape}")
    dxhat, dq, dkey, dvalue, dgamma, dbeta = found
    dtokens, _ = layer_norm_backward(dxhat, key_cache)
    dq, _ = linear_backward(dq.reshape(1, -1), query_cache)
    dqueries, _ = layer_norm_backward(dq, query_norm_cache)
    return dtokens, dqueries, *(x.reshape(len(x), -1) for x in (dkey, dvalue)), dgamma, dbeta


def _backward_mistake(**change):
    def inside(do, inputs):
        q, xhat, gamma, key, value, scale, a, p, m, u = inputs
        parts = ("values", "scores", "first", "delta", "gamma", "scale", "both")
        parts += ("g", "gamma_of_a", "delta_of_m", "order")
        on = dict.fromkeys(parts, True) | change
        dvalue = np.einsum("bhm,bhk->mhk", u if on["first"] else m, do)
        du = np.einsum("bhk,mhk->bhm", do, value)
        dm = du * (gamma if on["gamma"] else 1)
        dp = np.einsum("bhm,bsm->bhs", dm, xhat)
        ds = softmax_backward(dp, (p,)) if on["delta"] else p * dp
        if not on["delta_of_m"]:
            ds = p * (dp - (dm * u).sum(-1)[..., None])
        dg = np.einsum("bhs,bsm->hm", ds, xhat)
        dxhat = np.einsum("bhs,bhm->bsm", p, dm) * on["values"]
        dxhat = dxhat + np.einsum("bhs,hm->bsm", ds, a * (gamma if on["g"] else 1)) * on["scores"]
        da = dg * (gamma if on["gamma_of_a"] else 1) * (scale if on["scale"] else 1)
        dgamma = (du * m).sum((0, 1)) + (dg * a).sum(0) * on["both"]
        dq, dkey = np.einsum("hm,mhk->hk", da, key), np.einsum("hm,hk->mhk", da, q)
        if not on["order"]:
            dkey, dvalue = dvalue, dkey
        return dxhat, dq, dkey, dvalue, dgamma, du.sum((0, 1))

    return lambda *arguments: _backward_launch(inside, *arguments)


BACKWARD_FILE = '''# (1) to (6) of page 14, backwards. What stands around them is done for you.
def absorbed_backward(do_BHK, inputs):
    """From the gradient of o, the gradients of all that the inside of the pooler reads.

    scale is 1 / sqrt(K); a_HM, p_BHS, m_BHM and u_BHM are those of (1) to (4). dp through the
    softmax: softmax_backward(dp_BHS, (p_BHS,)), whose second argument is a tuple.

    Returns (dxhat_BSM, dq_HK, dkey_MHK, dvalue_MHK, dgamma_M, dbeta_M). `check` compares what
    becomes of them around this function: dtokens_BSM of dxhat_BSM (through the norm), dqueries_1D
    of dq_HK (through the linear map and the norm), dkey_MD and dvalue_MD with the heads joined.
    """
    q_HK, xhat_BSM, gamma_M, key_MHK, value_MHK, scale, a_HM, p_BHS, m_BHM, u_BHM = inputs
    raise NotImplementedError
'''

EXERCISES = (
    Exercise(
        "14a", 2, 30, "a pooler of one query without keys and values",
        "minicoca.reference.pooling:absorbed_pooler", ("y_B1D",), _pooler_inputs, FORWARD_BODY,
        (
            "The query meets the key weights first: a_HM = sum over k of key_MHK q_HK, times "
            "1 / sqrt(K). A score is then a . (gamma * xhat), with nothing added.",
            "The weights meet the tokens before the value weights: m_BHM = sum over s of p_BHS "
            "xhat_BSM, then u = m * gamma + beta, then value_MHK, then the value's bias.",
            "np.einsum(\"hm,bsm->bhs\", a_HM * gamma_M, xhat_BSM) are the scores; softmax(...) of "
            "minicoca.reference.ops gives (p, cache).",
        ),
        {
            "The scores are not divided by sqrt(K).": _pooled_mistake(scale=1.0),
            "The scores need gamma: the keys were made of gamma * xhat + beta.":
                _pooled_mistake(score_gamma=False),
            "The values need gamma: they were made of gamma * xhat + beta.":
                _pooled_mistake(value_gamma=False),
            "The values need beta; only in the scores it cancels.": _pooled_mistake(beta=False),
            "The value's bias is missing; only the key's cancels.": _pooled_mistake(bias=False),
            "The softmax must run over the tokens, the last axis, not over the heads.":
                _pooled_mistake(axis=-2),
            "The scores are divided by sqrt(K), K the size of a head, not the tokens' width M.":
                _pooled_scaled_by_width,
            "The output's linear map is missing after (6).": _pooled_mistake(output=False),
            "norm_output is missing at the end.": _pooled_mistake(norm=False),
        },
        launch=_pooler_launch, imports=IMPORTS + "layer_norm, linear, softmax  # noqa: F401",
    ),
    Exercise(
        "14b", 3, 50, "its backward", "minicoca.reference.pooling:absorbed_pooler_backward",
        ("dtokens_BSM", "dqueries_1D", "dkey_MD", "dvalue_MD", "dgamma_M", "dbeta_M"),
        _backward_inputs, "",
        (
            "Go from (5) back to (1). Each einsum has two factors: the gradient of one is the "
            "einsum of the result's gradient with the other.",
            "xhat is used twice, in the scores (2) and in the sum (3): its gradient has two terms. "
            "So is gamma, in (2) and in (4).",
            "dvalue = u, do; du = do, value; dm = du * gamma; dp = dm, xhat; ds by "
            "softmax_backward(dp_BHS, (p_BHS,)); dg = ds, xhat summed over b and s, for "
            "g = a * gamma; da = dg * gamma * scale.",
        ),
        {
            "xhat's gradient through the scores (2) is missing.": _backward_mistake(scores=False),
            "xhat's gradient through the weighted sum (3) is missing.":
                _backward_mistake(values=False),
            "The softmax's backward is missing its sum: ds = p (dp - sum p dp).":
                _backward_mistake(delta=False),
            "dm needs gamma: u = m * gamma + beta.": _backward_mistake(gamma=False),
            "da needs the scale 1 / sqrt(K) of (1).": _backward_mistake(scale=False),
            "gamma is used in (2) as well: its gradient has a second term.":
                _backward_mistake(both=False),
            "dvalue takes u, the normed token with gamma and beta, not m.":
                _backward_mistake(first=False),
            "The tokens meet g = a * gamma in (2): xhat's gradient there needs gamma.":
                _backward_mistake(g=False),
            "da needs gamma: the tokens meet g = a * gamma in (2).":
                _backward_mistake(gamma_of_a=False),
            "delta is dm . m, with the m of (3), not u.": _backward_mistake(delta_of_m=False),
            "dkey_MHK and dvalue_MHK are exchanged.": _backward_mistake(order=False),
        },
        launch=_backward_launch, file=BACKWARD_FILE,
        imports=IMPORTS + "softmax_backward  # noqa: F401",
    ),
)  # fmt: skip
