"""Exercises of page 12: kernels in Triton's interpreter."""

import numpy as np
import triton
import triton.language as tl

from ..exercise import KERNEL_IMPORTS, Exercise, distinct
from ..launch import empty, launch_piece, tensor

LOG2E = np.log2(np.e)


@triton.jit
def _online_driver(scores_ptr, peak_ptr, total_ptr, out_ptr, T: tl.constexpr, S: tl.constexpr):
    t, s = tl.arange(0, T), tl.arange(0, S)
    scores = tl.load(scores_ptr + t[:, None] * S + s[None, :])
    found = PIECE(scores, tl.load(peak_ptr + t), tl.load(total_ptr + t))  # noqa: F821
    weights, peak, total, factor = found
    width = S + 3
    tl.store(out_ptr + t[:, None] * width + s[None, :], weights)
    tl.store(out_ptr + t * width + S, peak)
    tl.store(out_ptr + t * width + S + 1, total)
    tl.store(out_ptr + t * width + S + 2, factor)


def _online_launch(piece, scores, peak, total):
    (T, S), out = scores.shape, empty(scores.shape[0], scores.shape[1] + 3)
    inputs = (tensor(x) for x in (scores, peak, total))
    launch_piece(piece, _online_driver, (1,), *inputs, out, T=T, S=S)
    out = out.numpy()
    return out[:, :S], out[:, S], out[:, S + 1], out[:, S + 2]


def _online_inputs(rng):
    T, S = (2 ** int(n) for n in distinct(rng, 2, 2, 3))
    scores = rng.standard_normal((T, S)) * 4
    scores[0] = -np.inf
    scores[1, 1:] = -np.inf
    peak = rng.standard_normal(T) * 4
    peak[2] = -np.inf
    if rng.random() < 0.5:
        peak[0] = -np.inf  # has seen nothing so far, and sees nothing now
    total = np.where(np.isfinite(peak), rng.random(T) + 1, 0)
    return tuple(x.astype(np.float32) for x in (scores, peak, total))


def _online(scores, peak, total, **change):
    new = change.get("new", np.maximum(peak, scores.max(1)))
    shift = np.where(np.isfinite(new), new, 0)
    weights = np.exp2(scores - shift[:, None])
    factor = np.exp2(peak - shift)
    return weights, new, total * factor + weights.sum(1), factor


def _online_by_e(scores, peak, total):
    new = np.maximum(peak, scores.max(1))
    shift = np.where(np.isfinite(new), new, 0)
    weights, factor = np.exp(scores - shift[:, None]), np.exp(peak - shift)
    return weights, new, total * factor + weights.sum(1), factor


def _online_without_factor(scores, peak, total):
    weights, new, _, factor = _online(scores, peak, total)
    return weights, new, total + weights.sum(1), factor


def _online_own_peak(scores, peak, total):
    with np.errstate(all="ignore"):
        return _online(scores, peak, total, new=scores.max(1))


ONLINE_FILE = '''@triton.jit
def online_softmax(scores, peak, total):
    """One step over a tile of scores [T, S] (base 2, -inf where masked).

    peak [T]: the largest score so far, -inf at first. total [T]: the sum of 2^(score - peak) so
    far. Returns (weights [T, S] = 2^(scores - new peak), new peak [T], new total [T], factor [T]:
    what everything summed before must be multiplied by). No NaN, even for rows of -inf alone.
    """
    raise NotImplementedError
'''

EXERCISES = (
    Exercise(
        "12a", 2, 20, "one step of online softmax", "minicoca.kernels.softmax:online_softmax",
        ("weights", "peak", "total", "factor"), _online_inputs, "",
        (
            "The new peak is the larger of the old one and the row's own; what was summed before "
            "was divided by 2^(old peak), and must now be divided by 2^(new peak).",
            "-inf - (-inf) is NaN: where the new peak is -inf, shift by 0 instead (tl.where).",
        ),
        {
            "exp instead of exp2: the scores are in base 2.": _online_by_e,
            "total was not multiplied by the factor before adding to it.": _online_without_factor,
            "The new peak must be the larger of the old one and this tile's.": _online_own_peak,
        },
        launch=_online_launch, file=ONLINE_FILE, imports=KERNEL_IMPORTS,
    ),
)  # fmt: skip
