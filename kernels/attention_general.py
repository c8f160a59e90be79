"""The general backward of attention in Triton, for sizes that one program cannot hold (maths:
attention.py): one kernel for dK and dV, one for dQ, and what all backward kernels share.
"""

import triton
import triton.language as tl

from .softmax import LN2, LOG2E, end_of, load_tile, narrow, score_mask, spread, store_tile


@triton.jit
def head_offset(h, stride, ALIGNED: tl.constexpr):
    """h * stride; told to be a multiple of 8 where it is. Triton sees only divisibility by 16 of a
    stride, and a head of 88 or 72 would be loaded element by element."""
    offset = h * stride
    return tl.multiple_of(offset, 8) if ALIGNED else offset


@triton.jit
def probabilities(q, k, lse2, t, s, T, end, scale, CAUSAL: tl.constexpr, WIDE: tl.constexpr,
                  PRECISION: tl.constexpr):  # fmt: skip
    """P [BLOCK_T, BLOCK_S] again, from the rows' base-2 log-sum-exp; exactly 0 where masked."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=WIDE) * (scale * LOG2E)
    # Masked after exp2 as well: a masked score may overflow it, and 0 * inf is NaN.
    return tl.where(score_mask(t, s, T, end, CAUSAL), tl.exp2(scores - lse2[:, None]), 0.0)


@triton.jit
def load_lse2(lse_ptr, t, T):
    """Base-2 log-sum-exp of the rows; +inf where there is no row or no key, so that P is 0."""
    lse = tl.load(lse_ptr + t, mask=t < T, other=float("inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse / LN2)


@triton.jit
def mean_key(k_ptr, c, k_s, end, K: tl.constexpr, BLOCK_S: tl.constexpr, WIDE: tl.constexpr,
             UPCAST: tl.constexpr):  # fmt: skip
    """The mean [BLOCK_K] of BLOCK_S keys, evenly spread over the first `end`; 0 of none."""
    k = load_tile(k_ptr, spread(end, BLOCK_S), c, k_s, end, K, UPCAST)
    return tl.sum(k.to(WIDE), 0) / BLOCK_S


@triton.jit
def attention_delta_kernel(
    o_ptr, do_ptr, delta_ptr, o_b, o_t, o_h, do_b, do_t, do_h, T, H,
    ALIGNED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, K: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(o * do) [B, H, T], for the two kernels of the general backward."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_K)
    o = load_tile(o_ptr + b * o_b + head_offset(h, o_h, ALIGNED), t, c, o_t, T, K, False)
    do = load_tile(do_ptr + b * do_b + head_offset(h, do_h, ALIGNED), t, c, do_t, T, K, False)
    delta = tl.sum(o.to(WIDE) * do.to(WIDE), 1)
    tl.store(delta_ptr + tl.program_id(1).to(tl.int64) * T + t, delta, mask=t < T)


@triton.jit
def attention_bwd_dkdv_kernel(
    q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, lengths_ptr, do_ptr, dk_ptr, dv_ptr,
    q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, do_b, do_t, do_h, dk_b, dk_s, dk_h,
    dv_b, dv_s, dv_h,
    T, S, H, scale,
    CAUSAL: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, K: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_S keys of one (sample, head), all queries that see them."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    c = tl.arange(0, BLOCK_K)
    q_ptr += b * q_b + head_offset(h, q_h, ALIGNED)
    do_ptr += b * do_b + head_offset(h, do_h, ALIGNED)
    end = end_of(lengths_ptr, b, S)
    k = load_tile(k_ptr + b * k_b + head_offset(h, k_h, ALIGNED), s, c, k_s, end, K, UPCAST)
    v = load_tile(v_ptr + b * v_b + head_offset(h, v_h, ALIGNED), s, c, v_s, end, K, UPCAST)
    rows = tl.program_id(1).to(tl.int64) * T
    dk = tl.zeros([BLOCK_S, BLOCK_K], WIDE)
    dv = tl.zeros([BLOCK_S, BLOCK_K], WIDE)
    first_t = (tl.program_id(0) * BLOCK_S // BLOCK_T) * BLOCK_T if CAUSAL else 0
    for first in range(first_t, T, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        q = load_tile(q_ptr, t, c, q_t, T, K, UPCAST)
        do = load_tile(do_ptr, t, c, do_t, T, K, UPCAST)
        lse2 = load_lse2(lse_ptr + rows, t, T)
        delta = tl.load(delta_ptr + rows + t, mask=t < T, other=0.0)
        p = probabilities(q, k, lse2, t, s, T, end, scale, CAUSAL, WIDE, PRECISION)
        if dv_ptr is not None:
            dv += tl.dot(
                tl.trans(narrow(p, do, UPCAST)), do, input_precision=PRECISION, out_dtype=WIDE
            )
        if dk_ptr is not None:
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION, out_dtype=WIDE)
            ds = narrow(p * (dp - delta[:, None]) * scale, q, UPCAST)
            dk += tl.dot(tl.trans(ds), q, input_precision=PRECISION, out_dtype=WIDE)
    if dk_ptr is not None:
        dk_ptr += b * dk_b + head_offset(h, dk_h, ALIGNED)
    if dv_ptr is not None:
        dv_ptr += b * dv_b + head_offset(h, dv_h, ALIGNED)
    store_tile(dk_ptr, dk, s, c, dk_s, S, K, UPCAST)
    store_tile(dv_ptr, dv, s, c, dv_s, S, K, UPCAST)


@triton.jit
def attention_bwd_dq_kernel(
    q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, lengths_ptr, do_ptr, dq_ptr,
    q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, do_b, do_t, do_h, dq_b, dq_t, dq_h,
    T, S, H, scale, B, samples,
    CAUSAL: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, K: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_T queries of one head, all keys that they see, of `samples` samples.

    One sample each, ordinarily; a slice of the batch for queries that the batch shares, whose
    gradients are then summed in registers, and over the slices by the caller.
    """
    slice_ = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_K)
    dq = tl.zeros([BLOCK_T, BLOCK_K], WIDE)
    for i in range(0, samples):
        b = tl.minimum(slice_ * samples + i, B - 1)
        q_own = q_ptr + b * q_b + head_offset(h, q_h, ALIGNED)
        do_own = do_ptr + b * do_b + head_offset(h, do_h, ALIGNED)
        k_own = k_ptr + b * k_b + head_offset(h, k_h, ALIGNED)
        v_own = v_ptr + b * v_b + head_offset(h, v_h, ALIGNED)
        end = end_of(lengths_ptr, b, S)
        end = tl.where(slice_ * samples + i < B, end, 0)  # the last slice may have fewer
        q = load_tile(q_own, t, c, q_t, T, K, UPCAST)
        do = load_tile(do_own, t, c, do_t, T, K, UPCAST)
        rows = (b * H + h) * T
        lse2 = load_lse2(lse_ptr + rows, t, T)
        delta = tl.load(delta_ptr + rows + t, mask=t < T, other=0.0)
        last = end
        if CAUSAL:
            last = tl.minimum(end, (tl.program_id(0) + 1) * BLOCK_T)
        row_sum = tl.zeros([BLOCK_T], WIDE)
        for first in range(0, last, BLOCK_S):
            s = first + tl.arange(0, BLOCK_S)
            k = load_tile(k_own, s, c, k_s, end, K, UPCAST)
            v = load_tile(v_own, s, c, v_s, end, K, UPCAST)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION, out_dtype=WIDE)
            p = probabilities(q, k, lse2, t, s, T, end, scale, CAUSAL, WIDE, PRECISION)
            ds = narrow(p * (dp - delta[:, None]), q, UPCAST)
            row_sum += tl.sum(ds.to(WIDE), 1)
            dq += tl.dot(ds, k, input_precision=PRECISION, out_dtype=WIDE)
        mean = mean_key(k_own, c, k_s, last, K, BLOCK_S, WIDE, UPCAST)
        dq -= row_sum[:, None] * mean[None, :]
    dq *= scale  # once, and not in every tile
    dq_ptr += slice_ * dq_b + head_offset(h, dq_h, ALIGNED)
    store_tile(dq_ptr, dq, t, c, dq_t, T, K, UPCAST)
