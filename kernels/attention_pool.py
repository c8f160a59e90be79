"""One-query attentional pooling in Triton, with the key and value projections absorbed.

A pooler of one query needs, of every token x_n, one score per head and one weighted sum. With
xhat = (x - mean) / std (the norm of the keys without scale and bias) and one vector g_h per
head that carries query, key projection, norm scale and 1 / sqrt(K),
    s_hn = g_h . xhat_n,    p_h = softmax_n(s_h),    m_h = sum_n p_hn xhat_n,
and everything else is small: keys and values [B, N, D] are never formed. Constants of a head (key
bias, norm bias) shift all its scores and cancel. Same function as attentional_pooler with one query
(minicoca/reference/pooling.py), with K = D / H times fewer products and x read twice.

Backward of m from dm: dp_hn = dm_h . xhat_n,  ds = p (dp - dm_h . m_h),
dxhat_n = sum_h p_hn dm_h + ds_hn g_h, a matrix of rank 2 H, so that the two means that a norm's
backward wants need no pass over the channels:
    mean(dxhat_n)          = sum_h p_hn mean(dm_h) + ds_hn mean(g_h)
    mean(dxhat_n * xhat_n) = sum_h (p_hn dp_hn + ds_hn s_hn) / M
    dg_h = sum_n ds_hn xhat_n   over the batch, in the order of the samples.
Tensor cores want factors of 16 bits. Where x has no more it is a factor as it is, unrounded, and
mean and std are taken out of the products, in float32. A float32 x is centred first: tokens far
from zero would cost it digits.
Letters: B samples, N tokens, M their width, H heads.
"""

import torch
import triton
import triton.language as tl

from .checks import check_pool
from .configs import compute_options
from .softmax import end_of, load_tile, narrow, spread, store_tile
from .wanted import chosen, stand_ins

BLOCK_N, BLOCK_M = 64, 128  # tokens and channels of a tile
EPS = 1e-5  # of the norm


@triton.jit
def pool_scores_kernel(
    x_ptr, g_ptr, s_ptr, mean_ptr, rstd_ptr, lengths_ptr, x_b, x_n, g_b, N, M, H, eps,
    FIND_STATISTICS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr, WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """s [B, H, N] = g . xhat for BLOCK_N tokens of one sample. g [H, M], or [B, H, M] by g_b.

    FIND_STATISTICS: also mean and 1 / std of every token; else they are read. Tokens beyond a
    length are taken as zeros: what stands there may be NaN, and 0 times NaN is not 0.
    """
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    h = tl.arange(0, BLOCK_H)
    inside = n < N
    end = end_of(lengths_ptr, b, N)
    x_ptr += b * x_b
    products = tl.zeros([BLOCK_N, BLOCK_H], WIDE)
    g_sum = tl.zeros([BLOCK_H], WIDE)
    x_sum = tl.zeros([BLOCK_N], WIDE)
    square_sum = tl.zeros([BLOCK_N], WIDE)
    NARROW: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth < 32
    if FIND_STATISTICS:  # shifted by about their mean, channels far from zero keep their variance
        x = load_tile(x_ptr, n, tl.arange(0, BLOCK_M), x_n, end, M, UPCAST)
        shift = tl.sum(x.to(WIDE), 1) / tl.minimum(M, BLOCK_M)
    else:
        shift = tl.load(mean_ptr + b * N + n, mask=inside, other=0.0)
    for first in range(0, M, BLOCK_M):
        c = first + tl.arange(0, BLOCK_M)
        x = load_tile(x_ptr, n, c, x_n, end, M, UPCAST)  # [BLOCK_N, BLOCK_M]
        g = load_tile(g_ptr + b * g_b, h, c, M, H, M, UPCAST)  # [BLOCK_H, BLOCK_M]
        centred = tl.where((c < M)[None, :], x.to(WIDE) - shift[:, None], 0.0)
        factor = x if NARROW else centred
        products += tl.dot(factor, tl.trans(g), input_precision=PRECISION, out_dtype=WIDE)
        g_sum += tl.sum(g.to(WIDE), 1)
        if FIND_STATISTICS:
            x_sum += tl.sum(centred, 1)
            square_sum += tl.sum(centred * centred, 1)
    mean = x_sum / M  # from the shift on
    if FIND_STATISTICS:
        rstd = 1.0 / tl.sqrt(tl.maximum(square_sum / M - mean * mean, 0.0) + eps)
        tl.store(mean_ptr + b * N + n, mean + shift, mask=inside)
        tl.store(rstd_ptr + b * N + n, rstd, mask=inside)
    else:
        rstd = tl.load(rstd_ptr + b * N + n, mask=inside, other=0.0)
    away = mean + shift if NARROW else mean
    s = rstd[:, None] * (products - away[:, None] * g_sum[None, :])
    offsets = (b * H + h[None, :]) * N + n[:, None]
    tl.store(s_ptr + offsets, s, mask=inside[:, None] & (h[None, :] < H))


@triton.jit
def pool_sum_kernel(
    x_ptr, w_ptr, mean_ptr, rstd_ptr, m_ptr, lengths_ptr, x_b, x_n, N, M, H,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """m [B, H, M] = sum_n w_hn xhat_n for BLOCK_M channels of one sample."""
    b = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    h = tl.arange(0, BLOCK_H)
    end = end_of(lengths_ptr, b, N)
    x_ptr += b * x_b
    NARROW: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth < 32
    acc = tl.zeros([BLOCK_M, BLOCK_H], WIDE)
    means = tl.zeros([BLOCK_H], WIDE)
    lost = tl.zeros([BLOCK_H], WIDE)
    for first in range(0, end, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        x = load_tile(x_ptr, n, c, x_n, end, M, UPCAST)  # [BLOCK_N, BLOCK_M]
        mean = tl.load(mean_ptr + b * N + n, mask=n < N, other=0.0)
        rstd = tl.load(rstd_ptr + b * N + n, mask=n < N, other=1.0)
        inside = (n[:, None] < N) & (h[None, :] < H)
        w = tl.load(w_ptr + (b * H + h[None, :]) * N + n[:, None], mask=inside, other=0.0)
        exact = w * rstd[:, None]
        if NARROW:
            w = narrow(exact, x, UPCAST)
            means += tl.sum(w.to(WIDE) * mean[:, None], 0)
            lost += tl.sum((exact - w.to(WIDE)) / rstd[:, None], 0)
        else:
            w, x = exact, x - mean[:, None]
        acc += tl.dot(tl.trans(x), w, input_precision=PRECISION, out_dtype=WIDE)
    if NARROW:  # what w lost to rounding, times the mean of xhat
        n = spread(end, BLOCK_N)
        x = load_tile(x_ptr, n, c, x_n, end, M, UPCAST)
        mean = tl.load(mean_ptr + b * N + n, mask=n < end, other=0.0)
        rstd = tl.load(rstd_ptr + b * N + n, mask=n < end, other=0.0)
        common = tl.sum((x.to(WIDE) - mean[:, None]) * rstd[:, None], 0) / BLOCK_N
        acc += common[:, None] * lost[None, :]
    offsets = (b * H + h[None, :]) * M + c[:, None]
    tl.store(m_ptr + offsets, acc - means[None, :], mask=(c[:, None] < M) & (h[None, :] < H))


@triton.jit
def pool_dx_kernel(
    x_ptr, p_ptr, ds_ptr, dm_ptr, g_ptr, mean_ptr, rstd_ptr, c1_ptr, c2_ptr, dx_ptr, lengths_ptr,
    x_b, x_n, dx_b, dx_n, N, M, H,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx [BLOCK_N, BLOCK_M] = rstd (dxhat - c1 - xhat c2), dxhat = p' dm + ds' g."""
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    h = tl.arange(0, BLOCK_H)
    inside = (n[:, None] < N) & (h[None, :] < H)
    offsets = (b * H + h[None, :]) * N + n[:, None]
    p = tl.load(p_ptr + offsets, mask=inside, other=0.0)  # [BLOCK_N, BLOCK_H]
    ds = tl.load(ds_ptr + offsets, mask=inside, other=0.0)
    dm = load_tile(dm_ptr + b * H * M, h, c, M, H, M, UPCAST)  # [BLOCK_H, BLOCK_M]
    g = load_tile(g_ptr, h, c, M, H, M, UPCAST)
    dxhat = tl.dot(narrow(p, dm, UPCAST), dm, input_precision=PRECISION, out_dtype=WIDE)
    dxhat += tl.dot(narrow(ds, g, UPCAST), g, input_precision=PRECISION, out_dtype=WIDE)
    mean = tl.load(mean_ptr + b * N + n, mask=n < N, other=0.0)
    rstd = tl.load(rstd_ptr + b * N + n, mask=n < N, other=0.0)
    c1 = tl.load(c1_ptr + b * N + n, mask=n < N, other=0.0)
    c2 = tl.load(c2_ptr + b * N + n, mask=n < N, other=0.0)
    end = end_of(lengths_ptr, b, N)
    x = load_tile(x_ptr + b * x_b, n, c, x_n, end, M, UPCAST).to(WIDE)
    xhat = (x - mean[:, None]) * rstd[:, None]
    dx = rstd[:, None] * (dxhat - c1[:, None] - xhat * c2[:, None])
    store_tile(dx_ptr + b * dx_b, dx, n, c, dx_n, N, M, UPCAST)


def _grid_options(x, H):
    """Launch settings that all kernels here share."""
    return dict(
        BLOCK_N=BLOCK_N, BLOCK_M=min(BLOCK_M, max(16, triton.next_power_of_2(x.shape[2]))),
        BLOCK_H=max(16, triton.next_power_of_2(H)), num_warps=8, num_stages=2,
        **compute_options(x.dtype),
    )  # fmt: skip


def _scores(x, g, mean, rstd, key_lengths, find):
    """s [B, H, N]; mean and rstd [B, N] are filled where `find`."""
    (B, N, M), H = x.shape, g.shape[-2]
    s = mean.new_empty(B, H, N)
    pool_scores_kernel[(triton.cdiv(N, BLOCK_N), B)](
        x, g, s, mean, rstd, key_lengths, *x.stride()[:2], H * M if g.ndim == 3 else 0, N, M, H,
        EPS, FIND_STATISTICS=find, **_grid_options(x, H),
    )  # fmt: skip
    return s


def _weighted_sum(x, w, mean, rstd, key_lengths):
    """m [B, H, M] = sum_n w_hn xhat_n."""
    (B, N, M), H = x.shape, w.shape[1]
    m, options = mean.new_empty(B, H, M), _grid_options(x, H)
    pool_sum_kernel[(triton.cdiv(M, options["BLOCK_M"]), B)](
        x, w, mean, rstd, m, key_lengths, *x.stride()[:2], N, M, H, **options
    )
    return m


@torch.library.custom_op("minicoca::attention_pool", mutates_args=())
def attention_pool_forward(
    x: torch.Tensor, g: torch.Tensor, key_lengths: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(m [B, H, M], s and p [B, H, N], mean and 1 / std [B, N]), statistics float32 at least."""
    B, N, _ = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty(B, N, dtype=wide) for _ in range(2))
    s = _scores(x, g.to(x.dtype).contiguous(), mean, rstd, key_lengths, True)
    masked = s
    if key_lengths is not None:
        outside = torch.arange(N, device=x.device) >= key_lengths[:, None, None]
        masked = s.masked_fill(outside, -torch.inf)
    p = torch.softmax(masked, -1)
    if key_lengths is not None:
        p = p.masked_fill(outside, 0.0)  # a sample without tokens: zeros, not NaN
    return _weighted_sum(x, p, mean, rstd, key_lengths), s, p, mean, rstd


@attention_pool_forward.register_fake
def _(x, g, key_lengths):
    (B, N, M), H = x.shape, g.shape[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    shapes = ((B, H, M), (B, H, N), (B, H, N), (B, N), (B, N))
    return tuple(x.new_empty(shape, dtype=wide) for shape in shapes)


@torch.library.custom_op("minicoca::attention_pool_backward", mutates_args=())
def attention_pool_backward(
    dm: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    s: torch.Tensor,
    p: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    key_lengths: torch.Tensor | None,
    wanted: list[bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx [B, N, M], dg [H, M]), empty where it is not wanted."""
    if key_lengths is not None:  # what a sample without tokens gives is constant
        dm = dm.masked_fill((key_lengths < 1)[:, None, None], 0.0)
    dm, g = dm.contiguous(), g.contiguous()
    dp = _scores(x, dm.to(x.dtype), mean, rstd, key_lengths, False)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))  # dm_h . m_h, with the rounding of dp
    dx = dg = None
    if wanted[0]:
        dx = _dx(dm, x, g, p, ds, (ds * s + p * dp).sum(1), mean, rstd, key_lengths)
    if wanted[1]:
        dg = _weighted_sum(x, ds, mean, rstd, key_lengths).sum(0).to(g.dtype)
    return stand_ins(x, (dx, dg))


def _dx(dm, x, g, p, ds, along, mean, rstd, key_lengths):
    """dx [B, N, M]; along [B, N]: dxhat . xhat of every token."""
    (B, N, M), H = x.shape, g.shape[0]
    c1 = (p * dm.mean(-1, keepdim=True) + ds * g.to(p.dtype).mean(-1)[:, None]).sum(1)
    dx, options = torch.empty_like(x, memory_format=torch.contiguous_format), _grid_options(x, H)
    pool_dx_kernel[(triton.cdiv(N, BLOCK_N), triton.cdiv(M, options["BLOCK_M"]), B)](
        x, p, ds, dm.to(x.dtype), g.to(x.dtype), mean, rstd, c1, along / M, dx, key_lengths,
        *x.stride()[:2], *dx.stride()[:2], N, M, H, **options,
    )  # fmt: skip
    return dx


@attention_pool_backward.register_fake
def _(dm, x, g, s, p, mean, rstd, key_lengths, wanted):
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if wanted[0] else None
    return stand_ins(x, (dx, torch.empty_like(g) if wanted[1] else None))


def _save(ctx, inputs, output):
    x, g, key_lengths = inputs
    ctx.save_for_backward(x, g, *output[1:], key_lengths)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, dm, *_):
    wanted = ctx.needs_input_grad[:2]
    gradients = attention_pool_backward(dm, *ctx.saved_tensors, wanted)
    return *chosen(wanted, gradients), None


attention_pool_forward.register_autograd(_backward, setup_context=_save)


def attention_pool(x, g, *, key_lengths=None):
    """m [B, H, M]: per head, the mean of the normed tokens of x, weighted by softmax(g . xhat).

    x: tokens [B, N, M], last axis contiguous; g: [H, M], H at most 64. key_lengths: int [B], how
    many tokens of each sample are real (none gives 0); what stands beyond is never read. m is
    float32 at least.
    Raises ValueError naming the argument, its value and the limit.
    """
    check_pool(x, g, key_lengths)
    if key_lengths is not None:
        key_lengths = key_lengths.to(torch.int32).contiguous()
    return attention_pool_forward(x, g, key_lengths)[0]
