"""Exercises of page 06."""

import numpy as np

from minicoca.reference.attention import multi_head_attention, multi_head_attention_backward
from minicoca.reference.ops import layer_norm, layer_norm_backward
from minicoca.reference.pooling import attentional_pooler

from ..exercise import Exercise, Told, distinct, locals_of
from .page_05 import random_attention, random_norm

IMPORTS = """import numpy as np  # noqa: F401

from minicoca.reference.attention import {}
from minicoca.reference.ops import {}"""


def _inputs(rng):
    B, S, Q, H, K, M = (int(n) for n in distinct(rng, 6, 2, 4))
    D = H * K
    params = {
        "queries": rng.standard_normal((Q, D)),
        "norm_query": random_norm(rng, D),
        "norm_key": random_norm(rng, M),
        "attention": random_attention(rng, D, M),
        "norm_output": random_norm(rng, D),
    }
    return rng.standard_normal((B, S, M)) * 2, params, H


def _pooler(tokens, params, heads, skip="", residual=False):
    """attentional_pooler without a norm, or with a residual."""

    def norm(x, name):
        return x if skip == name else layer_norm(x, params[name])[0]

    q = norm(params["queries"], "norm_query")
    q = np.broadcast_to(q, (len(tokens), *q.shape))
    y = multi_head_attention(q, norm(tokens, "norm_key"), params["attention"], heads)[0]
    return norm(y + q if residual else y, "norm_output")


def _exchanged(params):
    return params | {"norm_query": params["norm_output"], "norm_output": params["norm_query"]}


def _backward_inputs(rng):
    y, cache = attentional_pooler(*_inputs(rng))
    return rng.standard_normal(y.shape), cache


def _told_of_showing(function, tokens, params, heads):
    try:
        return function(tokens, params, heads)
    except ValueError as error:
        q = locals_of(error, "multi_head_attention").get("x_BTD")
        if np.shape(q) and len(q) != len(tokens):
            raise Told(
                "The queries have no batch axis: show them to each image (np.broadcast_to)."
            ) from None
        raise


def _told_of_the_sum(function, dy, cache):
    try:
        return function(dy, cache)
    except ValueError as error:
        given = locals_of(error, "layer_norm_backward")
        if given.get("cache") is not cache[0]:  # norm_query's
            raise
        if given["dy"].ndim == 3:
            raise Told("Sum dq over the batch before norm_query: its cache is of [Q, D].") from None
        if given["dy"].shape == (len(dy), dy.shape[2]):
            raise Told("dq was summed over the queries; the batch is axis 0.") from None
        raise


def _backward(dy, cache, over_batch=lambda dq: dq.sum(0), skip="", residual=False):
    """attentional_pooler_backward, without a norm's, with another sum or with a residual."""
    query_cache, key_cache, attention_cache, output_cache = cache
    dpooled, dnorm_output = layer_norm_backward(dy, output_cache)
    dpooled = dy if skip == "norm_output" else dpooled
    dq, dk, dattention = multi_head_attention_backward(dpooled, attention_cache)
    dq = dq + dpooled if residual else dq
    dtokens, dnorm_key = layer_norm_backward(dk, key_cache)
    dqueries, dnorm_query = layer_norm_backward(over_batch(dq), query_cache)
    return dk if skip == "norm_key" else dtokens, {
        "queries": over_batch(dq) if skip == "norm_query" else dqueries,
        "norm_query": dnorm_query,
        "norm_key": dnorm_key,
        "norm_output": dnorm_output,
        "attention": dattention,
    }


EXERCISES = (
    Exercise(
        "6a", 2, 15, "pool image tokens with learned queries",
        "minicoca.reference.pooling:attentional_pooler", ("y_BQD",), _inputs,
        "# params: queries [Q, D], norm_query, norm_key, attention, norm_output\n"
        "# layer_norm(x, params) -> (y, cache)\n"
        "# multi_head_attention(x_BTD, memory_BSM, params, heads) -> (y_BTD, cache)\n"
        "# return y_BQD alone, or (y_BQD, cache); the cache is not compared",
        (
            "Four steps: norm the queries, norm the tokens, attend, norm the result.",
            "The queries have no batch axis: np.broadcast_to(q_QD, (B, Q, D)) shows the same ones "
            "to every sample.",
            "multi_head_attention(q_BQD, k_BSM, params['attention'], heads)[0]: the queries ask, "
            "the tokens are the memory.",
        ),
        {
            "The queries were not normed (norm_query).":
                lambda x, p, h: _pooler(x, p, h, skip="norm_query"),
            "The tokens were not normed (norm_key).":
                lambda x, p, h: _pooler(x, p, h, skip="norm_key"),
            "The result was not normed (norm_output).":
                lambda x, p, h: _pooler(x, p, h, skip="norm_output"),
            "The queries were added to the result; a pooler has no residual path.":
                lambda x, p, h: _pooler(x, p, h, residual=True),
            "heads was not used: the attention ran with one head.":
                lambda x, p, h: _pooler(x, p, 1),
            "norm_query and norm_output are exchanged.":
                lambda x, p, h: _pooler(x, _exchanged(p), h),
        },
        imports=IMPORTS.format("multi_head_attention", "layer_norm"),
        launch=_told_of_showing,
    ),
    Exercise(
        "6b", 2, 15, "the gradient of the pooler",
        "minicoca.reference.pooling:attentional_pooler_backward",
        ("dtokens_BSM", "dparams"), _backward_inputs,
        "query_cache, key_cache, attention_cache, output_cache = cache\n"
        "# layer_norm_backward(dy, cache) -> dx, dparams\n"
        "# multi_head_attention_backward(da, cache) -> dx, dmemory, dparams\n"
        '# returns dtokens_BSM, {"queries": [Q, D], and the dparams of "norm_query", "norm_key",\n'
        '# "norm_output", "attention"}',
        (
            "Undo the four steps from the last to the first: norm_output, the attention, then "
            "norm_key and norm_query.",
            "multi_head_attention_backward returns dq_BQD, the gradient of the normed tokens, and "
            "the attention's parameters.",
            "The queries were shown to every sample, so their gradient is dq_BQD.sum(0), and then "
            "back through norm_query.",
        ),
        {
            "The queries' gradient is a mean over the batch; it should be the sum.":
                lambda dy, c: _backward(dy, c, over_batch=lambda dq: dq.mean(0)),
            "The queries' gradient is the first sample's; it should be the sum over the batch.":
                lambda dy, c: _backward(dy, c, over_batch=lambda dq: dq[0]),
            "The queries' gradient skips norm_query: the attention read the normed queries.":
                lambda dy, c: _backward(dy, c, skip="norm_query"),
            "The tokens' gradient skips norm_key: the attention read the normed tokens.":
                lambda dy, c: _backward(dy, c, skip="norm_key"),
            "da was added to dq as if there were a residual path; a pooler has none.":
                lambda dy, c: _backward(dy, c, residual=True),
            "norm_output was not undone before the attention.":
                lambda dy, c: _backward(dy, c, skip="norm_output"),
        },
        imports=IMPORTS.format("multi_head_attention_backward", "layer_norm_backward"),
        launch=_told_of_the_sum,
    ),
)  # fmt: skip
