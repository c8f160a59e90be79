"""A learner's answer to exercise 13b."""

import triton
import triton.language as tl

from minicoca.kernels.attention import load_lse2, probabilities
from minicoca.kernels.softmax import load_tile, store_tile


@triton.jit
def attention_backward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr, T, S, scale,
    CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv of one head for each program; dq is summed while the keys go by."""
    h = tl.program_id(0)
    t, c = tl.arange(0, BLOCK_T), tl.arange(0, K)
    q = load_tile(q_ptr + h * T * K, t, c, K, T, K, False)
    o = load_tile(o_ptr + h * T * K, t, c, K, T, K, False)
    do = load_tile(do_ptr + h * T * K, t, c, K, T, K, False)
    delta = tl.sum(o * do, 1)
    lse2 = load_lse2(lse_ptr + h * T, t, T)
    dq = tl.zeros([BLOCK_T, K], tl.float32)
    for first in range(0, S, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        k = load_tile(k_ptr + h * S * K, s, c, K, S, K, False)
        v = load_tile(v_ptr + h * S * K, s, c, K, S, K, False)
        p = probabilities(q, k, lse2, t, s, T, S, scale, CAUSAL, tl.float32, "ieee")
        dv = tl.dot(tl.trans(p), do, input_precision="ieee")
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None]) * scale
        dk = tl.dot(tl.trans(ds), q, input_precision="ieee")
        dq += tl.dot(ds, k, input_precision="ieee")
        store_tile(dk_ptr + h * S * K, dk, s, c, K, S, K, False)
        store_tile(dv_ptr + h * S * K, dv, s, c, K, S, K, False)
    store_tile(dq_ptr + h * T * K, dq, t, c, K, T, K, False)
