"""Pieces that every kernel shares: online softmax, masks, tile loads, rounding. All `@triton.jit`.

Scores are in base 2 inside the kernels (the scale is multiplied by log2 e once), and every
statistic is float32 at least. Tile shapes stand in trailing brackets.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_tile(ptr, rows, columns, row_stride, row_count, column_count, UPCAST: tl.constexpr):
    """[R, C] from contiguous columns; zeros outside. UPCAST: compute in float32 (interpreter)."""
    inside = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    offsets = rows[:, None] * row_stride + columns[None, :]
    tile = tl.load(ptr + offsets, mask=inside, other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def end_of(lengths_ptr, b, count):
    """How many of the `count` rows of sample b are real: all, where there are no lengths."""
    end = count
    if lengths_ptr is not None:
        end = tl.minimum(tl.load(lengths_ptr + b), count)
    return end


@triton.jit
def spread(end, COUNT: tl.constexpr):
    """COUNT rows, evenly spread over the first `end`; fewer are there several times."""
    return tl.arange(0, COUNT).to(tl.int64) * end // COUNT


@triton.jit
def store_tile(ptr, tile, rows, columns, row_stride, row_count, column_count, UPCAST: tl.constexpr):
    """Write what is inside of [R, C] in the type of the memory; nothing where ptr is None."""
    if ptr is not None:
        inside = (rows[:, None] < row_count) & (columns[None, :] < column_count)
        offsets = rows[:, None] * row_stride + columns[None, :]
        if UPCAST and ptr.dtype.element_ty == tl.bfloat16:  # not partial sums
            tile = round_to_bfloat16(tile)
        tl.store(ptr + offsets, tile.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def round_to_bfloat16(x):
    """float32 -> the nearest float32 that bfloat16 has, ties to even.

    The interpreter's own conversion cuts the low bits off.
    """
    bits = x.to(tl.uint32, bitcast=True)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def narrow(x, other, UPCAST: tl.constexpr):
    """x as a factor of a product with `other`: in its type; UPCAST: as bfloat16 would hold it."""
    return round_to_bfloat16(x) if UPCAST else x.to(other.dtype)


@triton.jit
def score_mask(t, s, T, end, CAUSAL: tl.constexpr):
    """[T, S]: key s is one of the first `end`, and not after query t where CAUSAL."""
    inside = (t[:, None] < T) & (s[None, :] < end)
    if CAUSAL:
        inside = inside & (s[None, :] <= t[:, None])
    return inside


@triton.jit
def online_softmax(scores, peak, total):
    """One step over a tile of scores [T, S] (base 2, -inf where masked).

    Returns (weights [T, S], new peak [T], new total [T], factor [T] for what was summed before). A
    row that has seen only -inf keeps peak -inf and total 0, and makes no NaN.
    """
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    shift = finite_or_zero(new_peak)
    weights = tl.exp2(scores - shift[:, None])
    factor = tl.exp2(peak - shift)
    return weights, new_peak, total * factor + tl.sum(weights, 1), factor


@triton.jit
def tile_log_sum_exp(scores, AXIS: tl.constexpr):
    """Natural log-sum-exp of a tile of scores (base 2, -inf where masked) over one axis."""
    peak = tl.max(scores, AXIS)
    weights = tl.exp2(scores - tl.expand_dims(finite_or_zero(peak), AXIS))
    return log_sum_exp(peak, tl.sum(weights, AXIS))


@triton.jit
def finite_or_zero(x):
    """-inf -> 0, so that differences with it are never NaN."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def safe_inverse(total):
    """1 / total, and 1 where total is 0."""
    return 1.0 / tl.where(total == 0.0, 1.0, total)


@triton.jit
def log_sum_exp(peak, total):
    """Natural logarithm of the sum that (peak, total) in base 2 stand for; -inf for none."""
    return (peak + tl.log2(tl.where(total == 0.0, 1.0, total))) * LN2
