"""Fused attention in Triton, forward and backward: no T x S matrix ever reaches memory.

Maths: minicoca/reference/attention.py, same names. The forward keeps only the log-sum-exp of each
row; the backward recomputes the probabilities from it. With P = exp(S - LSE), D = rowsum(dO * O):
dV = P' dO,  dP = dO V',  dS = P * (dP - D),  dQ = dS K scale,  dK = dS' Q scale.

Reads q, k, v once and writes o: at CoCa's lengths (50 to 257) the forward is bound by memory.
Wins: whenever T x S would be written. Does not win: a handful of rows (launch time).
Three ways, chosen by kernels/configs.py from the sizes alone:
    tiny      forward with all keys in one tile: plain softmax, no rescaling
    short     backward in one program per (sample, head): five products, no atomics
    general   forward over key tiles; backward split in a kernel for dK, dV and one for dQ
Deterministic: no atomics, every sum in a fixed order.
"""

import torch
import triton
import triton.language as tl

from .checks import check_attention
from .configs import attention_config, compute_options, is_exact
from .softmax import (
    LN2,
    LOG2E,
    load_tile,
    log_sum_exp,
    narrow,
    online_softmax,
    safe_inverse,
    score_mask,
    store_tile,
)

BATCH_SLICES = 32  # partial sums of the gradient of shared queries


@triton.jit
def attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, lengths_ptr,
    q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, o_b, o_t, o_h,
    T, S, H, scale,
    CAUSAL: tl.constexpr, LENGTHS: tl.constexpr, ONE_TILE: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, K: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_T queries of one (sample, head), all its keys."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_K)
    q_ptr += b * q_b + head_offset(h, q_h, ALIGNED)
    k_ptr += b * k_b + head_offset(h, k_h, ALIGNED)
    v_ptr += b * v_b + head_offset(h, v_h, ALIGNED)
    end = tl.minimum(tl.load(lengths_ptr + b), S) if LENGTHS else S
    q = load_tile(q_ptr, t, c, q_t, T, K, UPCAST)  # [BLOCK_T, BLOCK_K]
    if ONE_TILE:
        s = tl.arange(0, BLOCK_S)
        k = load_tile(k_ptr, s, c, k_s, end, K, UPCAST)  # [BLOCK_S, BLOCK_K]
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=WIDE) * (scale * LOG2E)
        scores = tl.where(score_mask(t, s, T, end, CAUSAL), scores, float("-inf"))
        start = tl.full([BLOCK_T], float("-inf"), WIDE)
        p, peak, total, _ = online_softmax(scores, start, tl.zeros([BLOCK_T], WIDE))
        v = load_tile(v_ptr, s, c, v_s, end, K, UPCAST)
        acc = tl.dot(narrow(p, v, UPCAST), v, input_precision=PRECISION, out_dtype=WIDE)
    else:
        if CAUSAL:
            end = tl.minimum(end, (tl.program_id(0) + 1) * BLOCK_T)
        peak = tl.full([BLOCK_T], float("-inf"), WIDE)
        total = tl.zeros([BLOCK_T], WIDE)
        acc = tl.zeros([BLOCK_T, BLOCK_K], WIDE)
        for first in range(0, end, BLOCK_S):
            s = first + tl.arange(0, BLOCK_S)
            k = load_tile(k_ptr, s, c, k_s, end, K, UPCAST)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=WIDE)
            scores *= scale * LOG2E
            scores = tl.where(score_mask(t, s, T, end, CAUSAL), scores, float("-inf"))
            p, peak, total, factor = online_softmax(scores, peak, total)
            v = load_tile(v_ptr, s, c, v_s, end, K, UPCAST)
            acc = acc * factor[:, None]
            acc += tl.dot(narrow(p, v, UPCAST), v, input_precision=PRECISION, out_dtype=WIDE)
    o_ptr += b * o_b + head_offset(h, o_h, ALIGNED)
    store_tile(o_ptr, acc * safe_inverse(total)[:, None], t, c, o_t, T, K, UPCAST)
    tl.store(lse_ptr + tl.program_id(1).to(tl.int64) * T + t, log_sum_exp(peak, total), mask=t < T)


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
def attention_bwd_short_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, lengths_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr,
    q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, o_b, o_t, o_h, do_b, do_t, do_h,
    dq_b, dq_t, dq_h, dk_b, dk_s, dk_h, dv_b, dv_s, dv_h,
    T, S, H, scale,
    CAUSAL: tl.constexpr, LENGTHS: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, K: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: all queries of one (sample, head), which fit in BLOCK_T, and all its keys.

    Five products; every tensor is read once; dQ stays in registers while the keys go by.
    """
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    t = tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_K)
    k_ptr += b * k_b + head_offset(h, k_h, ALIGNED)
    v_ptr += b * v_b + head_offset(h, v_h, ALIGNED)
    dk_ptr += b * dk_b + head_offset(h, dk_h, ALIGNED)
    dv_ptr += b * dv_b + head_offset(h, dv_h, ALIGNED)
    end = tl.minimum(tl.load(lengths_ptr + b), S) if LENGTHS else S
    q = load_tile(q_ptr + b * q_b + head_offset(h, q_h, ALIGNED), t, c, q_t, T, K, UPCAST)
    do = load_tile(do_ptr + b * do_b + head_offset(h, do_h, ALIGNED), t, c, do_t, T, K, UPCAST)
    o = load_tile(o_ptr + b * o_b + head_offset(h, o_h, ALIGNED), t, c, o_t, T, K, UPCAST)
    delta = tl.sum(o.to(WIDE) * do.to(WIDE), 1)  # [BLOCK_T]
    lse2 = load_lse2(lse_ptr + tl.program_id(0).to(tl.int64) * T, t, T)
    dq = tl.zeros([BLOCK_T, BLOCK_K], WIDE)
    for first in range(0, S, BLOCK_S):  # beyond `end` too: the gradients there must be written, 0
        s = first + tl.arange(0, BLOCK_S)
        k = load_tile(k_ptr, s, c, k_s, end, K, UPCAST)
        v = load_tile(v_ptr, s, c, v_s, end, K, UPCAST)
        p = probabilities(q, k, lse2, t, s, T, end, scale, CAUSAL, WIDE, PRECISION)
        dv = tl.dot(tl.trans(narrow(p, do, UPCAST)), do, input_precision=PRECISION, out_dtype=WIDE)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION, out_dtype=WIDE)
        ds = narrow(p * (dp - delta[:, None]) * scale, q, UPCAST)
        dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION, out_dtype=WIDE)
        dq += tl.dot(ds, k, input_precision=PRECISION, out_dtype=WIDE)
        store_tile(dk_ptr, dk, s, c, dk_s, S, K, UPCAST)
        store_tile(dv_ptr, dv, s, c, dv_s, S, K, UPCAST)
    store_tile(dq_ptr + b * dq_b + head_offset(h, dq_h, ALIGNED), dq, t, c, dq_t, T, K, UPCAST)


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
    CAUSAL: tl.constexpr, LENGTHS: tl.constexpr, ALIGNED: tl.constexpr,
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
    end = tl.minimum(tl.load(lengths_ptr + b), S) if LENGTHS else S
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
        dv += tl.dot(tl.trans(narrow(p, do, UPCAST)), do, input_precision=PRECISION, out_dtype=WIDE)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION, out_dtype=WIDE)
        ds = narrow(p * (dp - delta[:, None]) * scale, q, UPCAST)
        dk += tl.dot(tl.trans(ds), q, input_precision=PRECISION, out_dtype=WIDE)
    dk_ptr += b * dk_b + head_offset(h, dk_h, ALIGNED)
    dv_ptr += b * dv_b + head_offset(h, dv_h, ALIGNED)
    store_tile(dk_ptr, dk, s, c, dk_s, S, K, UPCAST)
    store_tile(dv_ptr, dv, s, c, dv_s, S, K, UPCAST)


@triton.jit
def attention_bwd_dq_kernel(
    q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, lengths_ptr, do_ptr, dq_ptr,
    q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, do_b, do_t, do_h, dq_b, dq_t, dq_h,
    T, S, H, scale, B, samples,
    CAUSAL: tl.constexpr, LENGTHS: tl.constexpr, ALIGNED: tl.constexpr,
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
    for b in range(slice_ * samples, tl.minimum(slice_ * samples + samples, B)):
        q_own = q_ptr + b * q_b + head_offset(h, q_h, ALIGNED)
        do_own = do_ptr + b * do_b + head_offset(h, do_h, ALIGNED)
        k_own = k_ptr + b * k_b + head_offset(h, k_h, ALIGNED)
        v_own = v_ptr + b * v_b + head_offset(h, v_h, ALIGNED)
        end = tl.minimum(tl.load(lengths_ptr + b), S) if LENGTHS else S
        q = load_tile(q_own, t, c, q_t, T, K, UPCAST)
        do = load_tile(do_own, t, c, do_t, T, K, UPCAST)
        rows = (b * H + h) * T
        lse2 = load_lse2(lse_ptr + rows, t, T)
        delta = tl.load(delta_ptr + rows + t, mask=t < T, other=0.0)
        last = end
        if CAUSAL:
            last = tl.minimum(end, (tl.program_id(0) + 1) * BLOCK_T)
        for first in range(0, last, BLOCK_S):
            s = first + tl.arange(0, BLOCK_S)
            k = load_tile(k_own, s, c, k_s, end, K, UPCAST)
            v = load_tile(v_own, s, c, v_s, end, K, UPCAST)
            p = probabilities(q, k, lse2, t, s, T, end, scale, CAUSAL, WIDE, PRECISION)
            dp = tl.dot(do, tl.trans(v), input_precision=PRECISION, out_dtype=WIDE)
            ds = narrow(p * (dp - delta[:, None]) * scale, q, UPCAST)
            dq += tl.dot(ds, k, input_precision=PRECISION, out_dtype=WIDE)
    dq_ptr += slice_ * dq_b + head_offset(h, dq_h, ALIGNED)
    store_tile(dq_ptr, dq, t, c, dq_t, T, K, UPCAST)


def strides_of(*tensors):
    """Batch, row and head strides of each [B, T, H, K], one after another; 0 over a batch of 1,
    so that one set of queries serves every sample."""
    return [0 if len(x) == 1 and i == 0 else x.stride(i) for x in tensors for i in range(3)]


def is_aligned(*tensors):
    """Whether every head begins at a multiple of 8 elements in all of them."""
    return all(x.stride(2) % 8 == 0 for x in tensors)


def empty_wide(q, *shape):
    """Uninitialised statistics: float32, or float64 for float64."""
    return q.new_empty(shape, dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("minicoca::attention", mutates_args=())
def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_lengths: torch.Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o [B, T, H, K], natural log-sum-exp of the scores [B, H, T])."""
    (B, S, H, K), T = k.shape, q.shape[1]
    o, lse = q.new_empty(B, T, H, K), empty_wide(q, B, H, T)
    config = attention_config(T, S, K, exact=is_exact(q.dtype))
    tile = config.forward
    attention_fwd_kernel[(triton.cdiv(T, tile.block_t), B * H)](
        q, k, v, o, lse, key_lengths, *strides_of(q, k, v, o), T, S, H, scale,
        K=K, CAUSAL=causal, LENGTHS=key_lengths is not None, ONE_TILE=config.one_tile,
        ALIGNED=is_aligned(q, k, v, o), BLOCK_T=tile.block_t, BLOCK_S=tile.block_s,
        BLOCK_K=config.block_k, num_warps=tile.warps, num_stages=tile.stages,
        **compute_options(q.dtype, exact=True),
    )  # fmt: skip
    return o, lse


@attention_forward.register_fake
def _(q, k, v, key_lengths, causal, scale):
    (B, _, H, K), T = k.shape, q.shape[1]
    return q.new_empty(B, T, H, K), empty_wide(q, B, H, T)


@torch.library.custom_op("minicoca::attention_backward", mutates_args=())
def attention_backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    key_lengths: torch.Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv), each contiguous and in the shape of what it is the gradient of."""
    (B, S, H, K), T = k.shape, q.shape[1]
    if do.stride(-1) != 1:
        do = do.contiguous()
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    shared = len(q) < B
    config = attention_config(T, S, K, shared, is_exact(q.dtype))
    tile = config.backward
    flags = dict(
        CAUSAL=causal, LENGTHS=key_lengths is not None, BLOCK_K=config.block_k, K=K,
        ALIGNED=is_aligned(q, k, v, o, do, dq, dk, dv), **compute_options(q.dtype, exact=True),
    )  # fmt: skip
    if config.short:
        attention_bwd_short_kernel[(B * H,)](
            q, k, v, o, lse, key_lengths, do, dq, dk, dv,
            *strides_of(q, k, v, o, do, dq, dk, dv), T, S, H, scale,
            BLOCK_T=tile.block_t, BLOCK_S=tile.block_s, num_warps=tile.warps,
            num_stages=tile.stages, **flags,
        )  # fmt: skip
        return dq, dk, dv
    delta = torch.empty_like(lse)
    attention_delta_kernel[(triton.cdiv(T, 64), B * H)](
        o, do, delta, *strides_of(o, do), T, H, ALIGNED=flags["ALIGNED"], BLOCK_T=64,
        BLOCK_K=config.block_k, K=K, WIDE=flags["WIDE"], num_warps=4,
    )  # fmt: skip
    attention_bwd_dkdv_kernel[(triton.cdiv(S, tile.block_s), B * H)](
        q, k, v, lse, delta, key_lengths, do, dk, dv, *strides_of(q, k, v, do, dk, dv),
        T, S, H, scale, BLOCK_T=tile.block_t, BLOCK_S=tile.block_s, num_warps=tile.warps,
        num_stages=tile.stages, **flags,
    )  # fmt: skip
    tile = config.backward_dq
    slices = min(B, BATCH_SLICES) if shared else B
    partial = empty_wide(q, slices, T, H, K) if shared and slices > 1 else dq
    dq_strides = partial.stride()[:3]
    attention_bwd_dq_kernel[(triton.cdiv(T, tile.block_t), slices * H)](
        q, k, v, lse, delta, key_lengths, do, partial, *strides_of(q, k, v, do), *dq_strides,
        T, S, H, scale, B, triton.cdiv(B, slices), BLOCK_T=tile.block_t, BLOCK_S=tile.block_s,
        num_warps=tile.warps, num_stages=tile.stages, **flags,
    )  # fmt: skip
    if partial is not dq:
        dq = partial.sum(0, keepdim=True).to(q.dtype)
    return dq, dk, dv


@attention_backward.register_fake
def _(do, q, k, v, o, lse, key_lengths, causal, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output):
    q, k, v, key_lengths, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, key_lengths)


def _backward(ctx, do, dlse):
    q, k, v, o, lse, key_lengths = ctx.saved_tensors
    grads = attention_backward(do, q, k, v, o, lse, key_lengths, ctx.causal, ctx.scale)
    return *grads, None, None, None


attention_forward.register_autograd(_backward, setup_context=_save)


def attention(q, k, v, *, causal=False, key_lengths=None, scale=None):
    """softmax(q k' scale) v for each head: q [B, T, H, K], k and v [B, S, H, K] -> [B, T, H, K].

    q of one sample serves a batch of any size, and its gradient is summed in a fixed order.
    causal: query t sees keys 0 to t; T must equal S. key_lengths: int [B], how many keys of each
    sample are real (0 to S); a query without any key gets 0. scale: 1 / sqrt(K) by default.
    Any strides whose last is 1.
    Raises ValueError naming the argument, its value and the limit.
    """
    check_attention(q, k, v, causal, key_lengths)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if key_lengths is not None:
        key_lengths = key_lengths.to(torch.int32).contiguous()
    return attention_forward(q, k, v, key_lengths, causal, scale)[0]
