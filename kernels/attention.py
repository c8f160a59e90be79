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

from .attention_general import (
    attention_bwd_dkdv_kernel,
    attention_bwd_dq_kernel,
    attention_delta_kernel,
    head_offset,
    load_lse2,
    mean_key,
    probabilities,
)
from .checks import check_attention
from .configs import attention_config, compute_options, is_exact
from .softmax import (
    LOG2E,
    end_of,
    load_tile,
    log_sum_exp,
    narrow,
    online_softmax,
    safe_inverse,
    score_mask,
    store_tile,
)
from .wanted import chosen, empty_where, stand_ins

BATCH_SLICES = 32  # partial sums of the gradient of shared queries


@triton.jit
def attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, lengths_ptr,
    q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, o_b, o_t, o_h,
    T, S, H, scale,
    CAUSAL: tl.constexpr, ONE_TILE: tl.constexpr, ALIGNED: tl.constexpr,
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
    end = end_of(lengths_ptr, b, S)
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
def attention_bwd_short_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, lengths_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr,
    q_b, q_t, q_h, k_b, k_s, k_h, v_b, v_s, v_h, o_b, o_t, o_h, do_b, do_t, do_h,
    dq_b, dq_t, dq_h, dk_b, dk_s, dk_h, dv_b, dv_s, dv_h,
    T, S, H, scale,
    CAUSAL: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, K: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: all queries of one (sample, head), which fit in BLOCK_T, and all its keys.

    Five products; every tensor is read once; dQ stays in registers while the keys go by. A gradient
    whose pointer is None is not stored, and the compiler drops what only it would need.
    """
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    t = tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_K)
    k_ptr += b * k_b + head_offset(h, k_h, ALIGNED)
    v_ptr += b * v_b + head_offset(h, v_h, ALIGNED)
    if dk_ptr is not None:
        dk_ptr += b * dk_b + head_offset(h, dk_h, ALIGNED)
    if dv_ptr is not None:
        dv_ptr += b * dv_b + head_offset(h, dv_h, ALIGNED)
    end = end_of(lengths_ptr, b, S)
    q = load_tile(q_ptr + b * q_b + head_offset(h, q_h, ALIGNED), t, c, q_t, T, K, UPCAST)
    do = load_tile(do_ptr + b * do_b + head_offset(h, do_h, ALIGNED), t, c, do_t, T, K, UPCAST)
    o = load_tile(o_ptr + b * o_b + head_offset(h, o_h, ALIGNED), t, c, o_t, T, K, UPCAST)
    delta = tl.sum(o.to(WIDE) * do.to(WIDE), 1)  # [BLOCK_T]
    lse2 = load_lse2(lse_ptr + tl.program_id(0).to(tl.int64) * T, t, T)
    dq = tl.zeros([BLOCK_T, BLOCK_K], WIDE)
    row_sum = tl.zeros([BLOCK_T], WIDE)  # of dS, as rounded
    for first in range(0, S, BLOCK_S):  # beyond `end` too: the gradients there must be written, 0
        s = first + tl.arange(0, BLOCK_S)
        k = load_tile(k_ptr, s, c, k_s, end, K, UPCAST)
        v = load_tile(v_ptr, s, c, v_s, end, K, UPCAST)
        p = probabilities(q, k, lse2, t, s, T, end, scale, CAUSAL, WIDE, PRECISION)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION, out_dtype=WIDE)
        ds = narrow(p * (dp - delta[:, None]) * scale, q, UPCAST)
        if dq_ptr is not None:
            dq += tl.dot(ds, k, input_precision=PRECISION, out_dtype=WIDE)
        dv = tl.dot(tl.trans(narrow(p, do, UPCAST)), do, input_precision=PRECISION, out_dtype=WIDE)
        store_tile(dv_ptr, dv, s, c, dv_s, S, K, UPCAST)
        dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION, out_dtype=WIDE)
        store_tile(dk_ptr, dk, s, c, dk_s, S, K, UPCAST)
        if dq_ptr is not None:
            row_sum += tl.sum(ds.to(WIDE), 1)
    if dq_ptr is not None:
        mean = mean_key(k_ptr, c, k_s, end, K, BLOCK_S, WIDE, UPCAST)
        dq -= row_sum[:, None] * mean[None, :]
        store_tile(dq_ptr + b * dq_b + head_offset(h, dq_h, ALIGNED), dq, t, c, dq_t, T, K, UPCAST)


def strides_of(*tensors):
    """Batch, row and head strides of each [B, T, H, K], one after another; 0 over a batch of 1,
    so that one set of queries serves every sample, and for what is not there."""
    return [
        0 if x is None or (len(x) == 1 and i == 0) else x.stride(i)
        for x in tensors
        for i in range(3)
    ]


def is_aligned(*tensors):
    """Whether every head begins at a multiple of 8 elements in all of them."""
    return all(x is None or x.stride(2) % 8 == 0 for x in tensors)


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
        K=K, CAUSAL=causal, ONE_TILE=config.one_tile,
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
    wanted: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv), each contiguous and in the shape of what it is the gradient of; empty where it
    is not wanted."""
    (B, S, H, K), T = k.shape, q.shape[1]
    if do.stride(-1) != 1:
        do = do.contiguous()
    dq, dk, dv = empty_where(wanted, q, k, v)
    shared = len(q) < B
    config = attention_config(T, S, K, shared, is_exact(q.dtype))
    tile = config.backward
    flags = dict(
        CAUSAL=causal, BLOCK_K=config.block_k, K=K,
        ALIGNED=is_aligned(q, k, v, o, do, dq, dk, dv), **compute_options(q.dtype, exact=True),
    )  # fmt: skip
    if config.short:
        attention_bwd_short_kernel[(B * H,)](
            q, k, v, o, lse, key_lengths, do, dq, dk, dv,
            *strides_of(q, k, v, o, do, dq, dk, dv), T, S, H, scale,
            BLOCK_T=tile.block_t, BLOCK_S=tile.block_s, num_warps=tile.warps,
            num_stages=tile.stages, **flags,
        )  # fmt: skip
        return stand_ins(q, (dq, dk, dv))
    delta = torch.empty_like(lse)
    attention_delta_kernel[(triton.cdiv(T, 64), B * H)](
        o, do, delta, *strides_of(o, do), T, H, ALIGNED=flags["ALIGNED"], BLOCK_T=64,
        BLOCK_K=config.block_k, K=K, WIDE=flags["WIDE"], num_warps=4,
    )  # fmt: skip
    if wanted[1] or wanted[2]:
        attention_bwd_dkdv_kernel[(triton.cdiv(S, tile.block_s), B * H)](
            q, k, v, lse, delta, key_lengths, do, dk, dv, *strides_of(q, k, v, do, dk, dv),
            T, S, H, scale, BLOCK_T=tile.block_t, BLOCK_S=tile.block_s, num_warps=tile.warps,
            num_stages=tile.stages, **flags,
        )  # fmt: skip
    if not wanted[0]:
        return stand_ins(q, (dq, dk, dv))
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
    return stand_ins(q, (dq, dk, dv))


@attention_backward.register_fake
def _(do, q, k, v, o, lse, key_lengths, causal, scale, wanted):
    return stand_ins(q, empty_where(wanted, q, k, v))


def _save(ctx, inputs, output):
    q, k, v, key_lengths, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, key_lengths)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, do, _):
    wanted = ctx.needs_input_grad[:3]
    gradients = attention_backward(do, *ctx.saved_tensors, ctx.causal, ctx.scale, wanted)
    return *chosen(wanted, gradients), None, None, None


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
