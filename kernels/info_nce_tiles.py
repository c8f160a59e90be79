"""The tiles of info_nce.py in Triton: a chunk of rows against all columns, logits never in memory.

A program computes one tile of logits. Forward: the tile's log-sum-exp for each of its rows and
columns, merged by the caller in a fixed order. Backward: G of the tile, written in the type of the
inputs for a library's product, and the tile's share of the temperature's gradient.
Reads x and y once per row or column of tiles (programs are ordered so that both stay in the cache).
"""

import torch
import triton
import triton.language as tl

from .configs import INFO_NCE, compute_options
from .softmax import LN2, LOG2E, load_tile, store_tile, tile_log_sum_exp


@triton.jit
def tile_position(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """(row tile, column tile): down GROUP row tiles, then one column on."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = tl.program_id(0) // (GROUP * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP, GROUP)
    inside = tl.program_id(0) % (GROUP * tiles_n)
    return group * GROUP + inside % height, inside // height


@triton.jit
def tile_scores(
    x_ptr, y_ptr, scale_ptr, rx_ptr, ry_ptr, x_m, y_n, tile_m, tile_n, M, N, first, E: tl.constexpr,
    NORMALISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(s [BLOCK_M, BLOCK_N] in base 2; whether each is of two that are no pair, and inside)."""
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    rows, columns = M - tile_m * BLOCK_M, N - tile_n * BLOCK_N  # how many there are from here on
    x_ptr += (tile_m * BLOCK_M).to(tl.int64) * x_m
    y_ptr += (tile_n * BLOCK_N).to(tl.int64) * y_n
    s = tl.zeros([BLOCK_M, BLOCK_N], WIDE)
    for start in range(0, E, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        x = load_tile(x_ptr, m, e, x_m, rows, E, UPCAST)
        y = load_tile(y_ptr, n, e, y_n, columns, E, UPCAST)
        s += tl.dot(x, tl.trans(y), input_precision=PRECISION, out_dtype=WIDE)
    s *= tl.load(scale_ptr) * LOG2E
    if NORMALISE:
        rx = tl.load(rx_ptr + tile_m * BLOCK_M + m, mask=m < rows, other=0.0)
        ry = tl.load(ry_ptr + tile_n * BLOCK_N + n, mask=n < columns, other=0.0)
        s = s * rx[:, None] * ry[None, :]
    pair = (first + tile_m * BLOCK_M + m)[:, None] == (tile_n * BLOCK_N + n)[None, :]
    return s, (m < rows)[:, None] & (n < columns)[None, :] & (pair == 0)


@triton.jit
def info_nce_fwd_kernel(
    x_ptr, y_ptr, scale_ptr, rx_ptr, ry_ptr, row_ptr, column_ptr, x_m, y_n, M, N, first,
    E: tl.constexpr, NORMALISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr, GROUP: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile's LSE: row [column tiles, M], column [row tiles, N]."""
    tile_m, tile_n = tile_position(M, N, BLOCK_M, BLOCK_N, GROUP)
    s, others = tile_scores(
        x_ptr, y_ptr, scale_ptr, rx_ptr, ry_ptr, x_m, y_n, tile_m, tile_n, M, N, first, E,
        NORMALISE, BLOCK_M, BLOCK_N, BLOCK_E, WIDE, UPCAST, PRECISION,
    )  # fmt: skip
    s = tl.where(others, s, float("-inf"))
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(row_ptr + tile_n.to(tl.int64) * M + m, tile_log_sum_exp(s, 1), mask=m < M)
    tl.store(column_ptr + tile_m.to(tl.int64) * N + n, tile_log_sum_exp(s, 0), mask=n < N)


@triton.jit
def info_nce_bwd_kernel(
    x_ptr, y_ptr, scale_ptr, rx_ptr, ry_ptr, row_ptr, column_ptr, g_ptr, total_ptr, x_m, y_n, g_m,
    M, N, first,
    E: tl.constexpr, NORMALISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr, GROUP: tl.constexpr,
    WIDE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of G (times both norms), 0 for a pair; its sums of G s [column tiles, M], if any."""
    tile_m, tile_n = tile_position(M, N, BLOCK_M, BLOCK_N, GROUP)
    s, others = tile_scores(
        x_ptr, y_ptr, scale_ptr, rx_ptr, ry_ptr, x_m, y_n, tile_m, tile_n, M, N, first, E,
        NORMALISE, BLOCK_M, BLOCK_N, BLOCK_E, WIDE, UPCAST, PRECISION,
    )  # fmt: skip
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.load(row_ptr + m, mask=m < M, other=float("inf")) * LOG2E
    column = tl.load(column_ptr + n, mask=n < N, other=float("inf")) * LOG2E
    g = tl.exp2(s - row[:, None]) + tl.exp2(s - column[None, :])
    g = tl.where(others, g, 0.0)
    # A sum for each row: Triton 3.7 cannot compile the sum of a whole tile for sm_100.
    if total_ptr is not None:
        tl.store(total_ptr + tile_n.to(tl.int64) * M + m, tl.sum(g * s, 1) * LN2, mask=m < M)
    if NORMALISE:
        g *= tl.load(rx_ptr + m, mask=m < M, other=0.0)[:, None]
        g *= tl.load(ry_ptr + n, mask=n < N, other=0.0)[None, :]
    g_ptr += (tile_m * BLOCK_M).to(tl.int64) * g_m
    rows = M - tile_m * BLOCK_M
    store_tile(g_ptr, g, tl.arange(0, BLOCK_M), n, g_m, rows, N, UPCAST)


def _options(x, text, rx):
    tile = INFO_NCE
    block_e = min(tile.block_e * 2 // x.itemsize, max(16, triton.next_power_of_2(x.shape[1])))
    return dict(
        E=x.shape[1], NORMALISE=rx is not None, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        BLOCK_E=block_e, GROUP=tile.group, num_warps=tile.warps, num_stages=tile.stages,
        **compute_options(x.dtype),
    )  # fmt: skip


def _tiles(x, text):
    return triton.cdiv(len(x), INFO_NCE.block_m), triton.cdiv(len(text), INFO_NCE.block_n)


def gradient_type(x):
    """What G is kept in: probabilities of a learned batch are too small for float16."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def bytes_per_row(x, columns):
    """Of workspace: a row of G; less than that in the forward."""
    return columns * gradient_type(x).itemsize


def statistics(x, text, scale, first, rx, ry):
    """LSE of the rows [c] and, over these rows, of the columns [N]; pairs left out."""
    M, N, (tiles_m, tiles_n) = len(x), len(text), _tiles(x, text)
    wide = torch.promote_types(x.dtype, torch.float32)
    row, column = x.new_empty(tiles_n, M, dtype=wide), x.new_empty(tiles_m, N, dtype=wide)
    info_nce_fwd_kernel[(tiles_m * tiles_n,)](
        x, text, scale, rx, ry, row, column, x.stride(0), text.stride(0), M, N, first,
        **_options(x, text, rx),
    )  # fmt: skip
    return row.logsumexp(0), column.logsumexp(0)


def gradient(x, text, scale, first, rx, ry, row, column, for_scale=True):
    """(G rx ry [c, N], sum of G s or None), pairs left out."""
    M, N, (tiles_m, tiles_n) = len(x), len(text), _tiles(x, text)
    wide = torch.promote_types(x.dtype, torch.float32)
    g = x.new_empty(M, N, dtype=gradient_type(x))
    total = x.new_empty(tiles_n, M, dtype=wide) if for_scale else None
    info_nce_bwd_kernel[(tiles_m * tiles_n,)](
        x, text, scale, rx, ry, row, column, g, total, x.stride(0), text.stride(0), N, M, N, first,
        **_options(x, text, rx),
    )  # fmt: skip
    return g, total.sum() if for_scale else None
