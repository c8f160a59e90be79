"""A learner's answer to exercise 12b."""

import triton
import triton.language as tl

from minicoca.kernels.softmax import (
    LOG2E,
    load_tile,
    log_sum_exp,
    online_softmax,
    safe_inverse,
    score_mask,
)


@triton.jit
def attention_forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, T, S, scale,
    CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """o = softmax(q k' scale) v and lse, a tile of queries of one head for each program."""
    h = tl.program_id(1)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.arange(0, K)
    q = load_tile(q_ptr + h * T * K, t, c, K, T, K, False)
    peak = tl.full([BLOCK_T], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    acc = tl.zeros([BLOCK_T, K], tl.float32)
    for first in range(0, S, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        k = load_tile(k_ptr + h * S * K, s, c, K, S, K, False)
        v = load_tile(v_ptr + h * S * K, s, c, K, S, K, False)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
        scores = tl.where(score_mask(t, s, T, S, CAUSAL), scores, float("-inf"))
        p, peak, total, factor = online_softmax(scores, peak, total)
        acc = acc * factor[:, None] + tl.dot(p, v, input_precision="ieee")
    rows = h * T + t
    o = acc * safe_inverse(total)[:, None]
    tl.store(o_ptr + rows[:, None] * K + c[None, :], o, mask=t[:, None] < T)
    tl.store(lse_ptr + rows, log_sum_exp(peak, total), mask=t < T)
