"""Exercises of page 02."""

import numpy as np

from ..exercise import Exercise, distinct


def _softmax_inputs(rng):
    B, T = distinct(rng, 2)
    e = np.exp(rng.standard_normal((B, T)))
    return rng.standard_normal((B, T)), (e / e.sum(-1, keepdims=True),)


def _linear_inputs(rng):
    B, T, D, F = distinct(rng, 4)
    params = {"weight": rng.standard_normal((D, F)), "bias": rng.standard_normal(F)}
    return rng.standard_normal((B, T, F)), (rng.standard_normal((B, T, D)), params)


def _linear_mistake(change):
    def wrong(dy, cache):
        x, params = cache
        rows_x, rows_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        right = {
            "dx": dy @ params["weight"].T,
            "weight": rows_x.T @ rows_dy,
            "bias": rows_dy.sum(0),
        }
        right |= change(x, dy, params)
        return right["dx"], {"weight": right["weight"], "bias": right["bias"]}

    return wrong


def _products(dp, cache):
    """softmax_backward with its brackets opened."""
    (p,) = cache
    shared = (p * dp).sum(-1, keepdims=True)
    return p * dp - p * shared


EXERCISES = (
    Exercise(
        "2a", 1, 10, "the gradient of a linear layer", "minicoca.reference.ops:linear_backward",
        ("dx", "dparams"), _linear_inputs,
        'x, params = cache  # x: [..., D], dy: [..., F]\nweight_DF = params["weight"]\n'
        '# returns dx, {"weight": dweight_DF, "bias": dbias_F}; there is always a bias here',
        (
            "Shapes nearly decide it: dx is like x, dweight like weight. Batch and tokens are only "
            "rows: reshape x to [R, D] and dy to [R, F].",
            "dweight = x' dy over the rows; dbias sums dy over the rows; dx = dy weight'.",
        ),
        {
            "dweight must add up over every row of the batch: here it is the mean.":
                _linear_mistake(lambda x, dy, p: {
                    "weight": np.einsum("btd,btf->df", x, dy) / (x.size // x.shape[-1])}),
            "dbias is the mean over the rows; it should be the sum.":
                _linear_mistake(lambda x, dy, p: {"bias": dy.mean((0, 1))}),
            "dbias sums over one sample only.":
                _linear_mistake(lambda x, dy, p: {"bias": dy[0].sum(0)}),
            "dweight uses the first sample only.":
                _linear_mistake(lambda x, dy, p: {"weight": x[0].T @ dy[0]}),
        },
    ),
    Exercise(
        "2b", 2, 15, "the gradient of softmax", "minicoca.reference.ops:softmax_backward",
        ("dx",), _softmax_inputs,
        "(p,) = cache  # p and dp: [B, T]; a row is the last axis\n# returns dx",
        (
            "Every output depends on every input: dp_i/dx_j = p_i (1[i = j] - p_j).",
            "Sum over i: dx_j = p_j (dp_j - sum_i p_i dp_i). The sum is one number per row.",
        ),
        {
            "The shared sum is missing: raising one input lowers every other output.":
                lambda dp, c: c[0] * dp,
            "That is the derivative of a sigmoid: p (1 - p) leaves out the other outputs.":
                lambda dp, c: c[0] * (1 - c[0]) * dp,
            "The sum runs over the batch; it should run over a row, the last axis.":
                lambda dp, c: c[0] * (dp - (c[0] * dp).sum(0, keepdims=True)),
            "The mean of dp was taken off, not its mean weighted by p.":
                lambda dp, c: c[0] * (dp - dp.mean(-1, keepdims=True)),
            "The sum leaves out p: it is the sum of p dp over the row, not of dp.":
                lambda dp, c: c[0] * (dp - dp.sum(-1, keepdims=True)),
            "The outer factor p is missing: dx_j = p_j (dp_j - sum).":
                lambda dp, c: dp - (c[0] * dp).sum(-1, keepdims=True),
            "The sum runs over the whole array; each row has its own (axis -1, keepdims=True).":
                lambda dp, c: c[0] * (dp - (c[0] * dp).sum()),
            "The shared sum is added; it must be taken off.":
                lambda dp, c: c[0] * (dp + (c[0] * dp).sum(-1, keepdims=True)),
            "That is the gradient of a loss, p minus what was wanted; dp is a gradient already.":
                lambda dp, c: c[0] - dp,
            "That is p - p^2, the derivative's diagonal: dp and the other outputs are missing.":
                lambda dp, c: c[0] - c[0] ** 2,
            "That is the gradient of log softmax: of softmax it is p (dp - sum of p dp).":
                lambda dp, c: dp - c[0] * dp.sum(-1, keepdims=True),
            "dp stands where p should, in front of the bracket.":
                lambda dp, c: dp * (dp - (c[0] * dp).sum(-1, keepdims=True)),
            "The shared sum needs the factor p too: p dp - p times the sum.":
                lambda dp, c: c[0] * dp - (c[0] * dp).sum(-1, keepdims=True),
            "The sum is a mean over the row; it should be the sum.":
                lambda dp, c: c[0] * (dp - (c[0] * dp).mean(-1, keepdims=True)),
        },
        model=(_products,),
    ),
)  # fmt: skip
