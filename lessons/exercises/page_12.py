"""Exercises of page 12: kernels in Triton's interpreter."""

import numpy as np
import triton
import triton.language as tl

from minicoca.reference.attention import attention, causal_mask

from .. import source
from ..exercise import KERNEL_IMPORTS, Exercise
from ..launch import empty, launch, launch_piece, stored, tensor

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
    """Rows that have seen nothing (2), see nothing (3), or both (0); peaks that rise and stay."""
    T, S = (int(n) for n in rng.permutation([8, 16]))
    scores = rng.standard_normal((T, S)) * 4
    peak = rng.standard_normal(T) * 4
    scores[0] = scores[3] = scores[1, 1:] = -np.inf
    peak[0] = peak[2] = -np.inf
    step = rng.uniform(0.5, 2, 2)
    peak[1], peak[4] = scores[1, 0] - step[0], scores[4].max() + step[1]
    total = np.where(np.isfinite(peak), rng.random(T) + 1, 0)
    return tuple(x.astype(np.float32) for x in (scores, peak, total))


def _online(scores, peak, total, **change):
    new = change.get("new", np.maximum(peak, scores.max(1)))
    shift = new if change.get("naive") else np.where(np.isfinite(new), new, 0)
    with np.errstate(all="ignore"):
        weights = np.exp2(scores - shift[:, None])
        factor = np.exp2(shift - peak if change.get("turned") else peak - shift)
        return weights, new, total * factor + weights.sum(1), factor


def _one_step(scores, peak, total):
    new_peak = np.maximum(peak, scores.max(1))
    shift = np.where(new_peak == -np.inf, 0, new_peak)
    weights = 2 ** (scores - shift[:, None])
    factor = 2 ** (peak - shift)
    return weights, new_peak, total * factor + weights.sum(1), factor


def _online_by_e(scores, peak, total):
    new = np.maximum(peak, scores.max(1))
    shift = np.where(np.isfinite(new), new, 0)
    weights, factor = np.exp(scores - shift[:, None]), np.exp(peak - shift)
    return weights, new, total * factor + weights.sum(1), factor


def _online_without_factor(scores, peak, total):
    weights, new, _, factor = _online(scores, peak, total)
    return weights, new, total + weights.sum(1), factor


def _online_own_peak(scores, peak, total):
    return _online(scores, peak, total, new=scores.max(1))


ONLINE_FILE = '''@triton.jit
def online_softmax(scores, peak, total):
    """One step over a tile of scores [T, S] (base 2, -inf where masked).

    peak [T]: the largest score so far, -inf at first. total [T]: the sum of 2^(score - peak) so
    far. Returns (weights [T, S] = 2^(scores - new peak), new peak [T], new total [T], factor [T]:
    what everything summed before must be multiplied by, 0 where the old peak is -inf). No NaN, even
    for rows of -inf alone.
    """
    raise NotImplementedError
'''

BLOCK, K = 16, 32  # K is another size: a factor [T] must not fit acc [T, K] by chance


def _forward_inputs(rng):
    """More keys than queries, neither a multiple of the tile; more heads than tiles of queries.

    The first head's scores are all so large that exp of one alone overflows.
    """
    H, T, S = 3, int(rng.integers(17, 31)), int(rng.integers(33, 47))
    q, k, v = (rng.standard_normal((H, n, K)).astype(np.float32) for n in (T, S, S))
    q[0, :, 0], k[0, :, 0] = 16, 32
    return q / 2, k, v, float(rng.uniform(0.5, 0.7))


def _causal_too(attend):
    """What attend(q, k, v, scale, causal) gives for all keys, and causal over the first T."""

    def both(q, k, v, scale):
        own = (x[:, : q.shape[1]] for x in (k, v))
        return *attend(q, k, v, scale, False), *attend(q, *own, scale, True)

    return both


def _forward_launch(kernel, q, k, v, scale):
    source.keeps_digits(kernel)
    source.masks_loads(kernel)

    def attend(q, k, v, scale, causal):
        (H, T, _), S = q.shape, k.shape[1]
        o, lse = empty(H, T, K), empty(H, T)
        grid, sizes = (triton.cdiv(T, BLOCK), H), {"BLOCK_T": BLOCK, "BLOCK_S": BLOCK, "K": K}
        launch(kernel, grid, *map(tensor, (q, k, v)), o, lse, T, S, scale, CAUSAL=causal, **sizes)
        return o, lse

    return stored(*_causal_too(attend)(q, k, v, scale))


def _attend(q, k, v, scale, causal, factors=("acc", "total"), seen=lambda t, s: s <= t, pad=False,
            divide=True, base=np.e, unit=1.0, end=None):  # fmt: skip
    """Attention over tiles of keys, with whatever a mistake changes."""
    (H, T, _), S = q.shape, k.shape[1]
    more = ((0, 0), (0, -S % BLOCK), (0, 0))
    k, v = np.pad(k, more).astype(float), np.pad(v, more).astype(float)
    peak, total, acc = np.full((H, T, 1), -np.inf), np.zeros((H, T, 1)), np.zeros((H, T, K))
    for first in range(0, end or S, BLOCK):
        s, t = first + np.arange(BLOCK), np.arange(T)[:, None]
        real = (s[None, :] < S) | pad
        real = real & (seen(t, s[None, :]) | (not causal))
        scores = np.where(real, q @ k[:, s].transpose(0, 2, 1) * scale, -np.inf)
        new = np.maximum(peak, scores.max(-1, keepdims=True))
        shift = np.where(np.isfinite(new), new, 0)
        factor, weights = base ** (peak - shift), base ** (scores - shift)
        total = total * (factor if "total" in factors else 1) + weights.sum(-1, keepdims=True)
        acc = acc * (factor if "acc" in factors else 1) + weights @ v[:, s]
        peak = new
    none = total == 0
    lse = np.where(none, -np.inf, peak * np.log(base) + np.log(total + none))[..., 0] * unit
    return (acc / np.where(none, 1, total) if divide else acc), lse


def _reference(q, k, v, scale, causal):
    """The same, from minicoca/reference: its scale is 1 / sqrt(K), so q makes up for ours."""
    own = [x.astype(float).transpose(1, 0, 2)[None] for x in (q * (scale * K**0.5), k, v)]
    o, cache = attention(*own, mask=causal_mask(q.shape[1]) if causal else None)
    scores = cache[0] @ cache[1].transpose(0, 1, 3, 2) * K**-0.5
    if causal:
        scores = np.where(causal_mask(q.shape[1]), scores, -np.inf)
    peak = scores.max(-1)
    return o[0].transpose(1, 0, 2), (peak + np.log(np.exp(scores - peak[..., None]).sum(-1)))[0]


def _wrong_forward(**change):
    return _causal_too(lambda *arguments: _attend(*arguments, **change))


def _heads(o=(0, 1, 2), lse=(0, 1, 2)):
    """What stands in the places of the heads: the numbers of others, or nothing (None)."""

    def at(x, heads):
        return np.stack([x[0] * np.nan if h is None else x[h] for h in heads])

    def attend(*arguments):
        found = _attend(*arguments)
        return at(found[0], o), at(found[1], lse)

    return _causal_too(attend)


def _overflowed(*arguments):
    """The first head without a peak."""
    o, lse = _attend(*arguments)
    o[0], lse[0] = np.nan, np.inf
    return o, lse


def _moved_by_t(values):
    """Head h of k (of v as well) begins h * T rows after the first, not h * S."""

    def attend(q, k, v, scale, causal):
        (H, T, _), S = q.shape, k.shape[1]
        rows = np.arange(H)[:, None] * T + np.arange(S)
        v = v.reshape(-1, K)[rows] if values else v
        return _attend(q, k.reshape(-1, K)[rows], v, scale, causal)

    return _causal_too(attend)


def _plainly(q, k, v, scale):
    """What the kernel computes, without its tiles; scores in base 2, the first T keys if causal."""
    found = []
    for causal in (False, True):
        T, S = q.shape[1], q.shape[1] if causal else k.shape[1]
        t, s = np.arange(T)[:, None], np.arange(S)
        scores = q.astype(float) @ k[:, :S].swapaxes(1, 2) * (scale * LOG2E)
        scores = np.where((s <= t) | (not causal), scores, -np.inf)
        peak = scores.max(2)
        p = 2 ** (scores - peak[..., None])
        total = p.sum(2)
        acc = p @ v[:, :S]
        o = acc / total[..., None]
        lse = (peak + np.log2(total)) / LOG2E
        found += [o, lse]
    return tuple(found)


FORWARD_FILE = '''@triton.jit
def attention_forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, T, S, scale,
    CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, K: tl.constexpr,
):
    """o = softmax(q k' scale) v and the natural log-sum-exp of each row of q k' scale.

    q and o [H, T, K], k and v [H, S, K], lse [H, T], contiguous float32: head h of q begins
    h * T * K numbers after q_ptr, and its rows are K apart. CAUSAL: query t sees keys 0 to t.
    Program (i, h) has the BLOCK_T queries from i * BLOCK_T on, of head h, and goes through the keys
    BLOCK_S at a time. T and S need not be multiples of the tiles. No T x S matrix is stored.
    """
    raise NotImplementedError
'''

PIECES = """

from minicoca.kernels.softmax import (  # noqa: F401
    LOG2E,
    load_tile,
    log_sum_exp,
    online_softmax,
    safe_inverse,
    score_mask,
    store_tile,
)"""

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
            "A row of -inf alone: -inf - (-inf) is NaN. Shift by 0 there.":
                lambda *arguments: _online(*arguments, naive=True),
            "The factor is turned around: it is 2^(old peak - new peak), 1 at most.":
                lambda *arguments: _online(*arguments, turned=True),
        },
        launch=_online_launch, file=ONLINE_FILE, imports=KERNEL_IMPORTS, model=(_one_step,),
    ),
    Exercise(
        "12b", 3, 60, "a whole attention forward",
        "minicoca.kernels.attention:attention_fwd_kernel",
        ("o", "lse", "o causal", "lse causal"), _forward_inputs, "",
        (
            "Before the loop: i = tl.program_id(0), h = tl.program_id(1); t, c; the tile of q; "
            "peak = -inf, total = 0 and acc [BLOCK_T, K] = 0. After it: o = acc / total.",
            "In the loop: load k; scores = tl.dot(q, tl.trans(k)) * (scale * LOG2E); -inf where "
            "score_mask is False; online_softmax; acc = acc * factor[:, None] + tl.dot(p, v).",
            "lse of a row is log_sum_exp(peak, total); store both with a mask, since the last tile "
            "has more rows than there are queries.",
        ),
        {
            "The scores are not multiplied by scale.":
                lambda q, k, v, scale: _wrong_forward()(q, k, v, 1.0),
            "exp2 wants scores in base 2: multiply them by log2 e.": _wrong_forward(base=2.0),
            "acc was not multiplied by the factor when the peak rose.":
                _wrong_forward(factors=("total",)),
            "total was not multiplied by the factor when the peak rose.":
                _wrong_forward(factors=("acc",)),
            "Neither scale nor log2 e reached the scores: multiply them by scale * LOG2E.":
                lambda q, k, v, scale: _wrong_forward(base=2.0)(q, k, v, 1.0),
            "Keys from S on have scores of 0, not of -inf: mask them.": _wrong_forward(pad=True),
            "No score was masked: those outside of score_mask must be -inf.":
                _wrong_forward(pad=True, seen=lambda t, s: s >= 0),
            "Nothing is taken off before exp2, which overflows above 128: take the peak so far.":
                _causal_too(_overflowed),
            "Only the first tile of keys was used: go through all S keys.":
                _wrong_forward(end=BLOCK),
            "acc was not divided by total at the end.": _wrong_forward(divide=False),
            "CAUSAL was not used.": _wrong_forward(seen=lambda t, s: s >= 0),
            "A query may see itself: the causal comparison must allow s == t.":
                _wrong_forward(seen=lambda t, s: s < t),
            "lse is in base 2: multiply it by ln 2.": _wrong_forward(unit=LOG2E),
            "Every head is computed as head 0: move q_ptr, k_ptr and v_ptr by the head.":
                _heads((0, 0, 0), (0, 0, 0)),
            "Every program read and wrote head 0: move all pointers by the head.":
                _heads((0, None, None), (0, None, None)),
            "The heads wrote over each other: move o_ptr and lse_ptr by the head.":
                _heads((2, None, None), (2, None, None)),
            "The heads' lse were written over each other: move lse_ptr by h * T.":
                _heads(lse=(2, None, None)),
            "A head of k has S rows: move k_ptr by h * S * K.": _moved_by_t(values=False),
            "A head of k and v has S rows: move their pointers by h * S * K.":
                _moved_by_t(values=True),
            "The programs are exchanged: program_id(0) is the tile of queries, program_id(1) the "
            "head.": _heads((0, 1, None), (0, 1, None)),
        },
        launch=_forward_launch, expected=_causal_too(_reference), file=FORWARD_FILE,
        constants={"CAUSAL": True, "BLOCK_T": 16, "BLOCK_S": 16, "K": K},
        imports=KERNEL_IMPORTS + PIECES, close=1e-4, model=(_plainly,),
    ),
)  # fmt: skip
