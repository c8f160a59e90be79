"""Exercises of page 17: a rounding in Triton, and the error that the kernels' tests look at."""

import numpy as np
import torch
import triton
import triton.language as tl

from ..exercise import KERNEL_IMPORTS, Exercise, distinct, values
from ..launch import empty, launch_piece, stored, tensor

FLOOR = 0.1

ROUND_FILE = '''@triton.jit
def round_to_bfloat16(x):
    """float32 [N] -> the nearest float32 that bfloat16 has; of two equally near, the even one.

    The upper 16 bits of a float32 are a bfloat16. x.to(tl.bfloat16) is no help here: the
    interpreter cuts the lower bits off. x is finite.
    """
    raise NotImplementedError
'''

ERROR_FILE = '''FLOOR = 0.1  # of each number: a divisor is at least FLOOR * sqrt(how many numbers)


def error(got, want):
    """(error of the whole, error of the worst row), two floats. want: float64, [..., K]; torch.

    whole: length of got - want over that of want. Worst row: the longest row (last axis) of
    got - want over the longest row of want. Both divisors with their floors.
    """
    raise NotImplementedError
'''


@triton.jit
def _round_driver(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, PIECE(tl.load(x_ptr + i)))  # noqa: F821


def _round_launch(piece, x):
    y = empty(len(x))
    launch_piece(piece, _round_driver, (1,), tensor(x), y, N=len(x))
    found = stored(y)
    return found and found[0]


def _round_inputs(rng):
    N = 2 ** int(rng.integers(5, 8))
    x = rng.uniform(1, 2, N) * rng.choice([-1, 1], N)
    ties = 1 + (rng.permutation(100)[: N // 2] + 0.5) * 2.0**-7  # between two bfloat16s
    x[: len(ties)] = ties * rng.choice([-1, 1], len(ties))
    x[:4] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, -1 - 3 * 2.0**-8
    x[-1] = 1.01  # not a tie, nearer to the neighbour above
    return (x.astype(np.float32),)


def _bits(change):
    """A wrong rounding that works on the bits."""

    def wrong(x):
        bits = x.view(np.uint32).astype(np.uint64)
        return change(bits).astype(np.uint32).view(np.float32)

    return wrong


def _cut(bits):
    return bits & 0xFFFF0000


def _right(x):
    return _bits(lambda bits: _cut(bits + 0x7FFF + ((bits >> 16) & 1)))(x)


def _nearest(x):
    bits = x.view(np.uint32).astype(np.uint64)
    last = (bits >> 16) & 1
    rounded = bits + 0x7FFF + last
    return (rounded & 0xFFFF0000).astype(np.uint32).view(np.float32)


def _error_inputs(rng):
    """An ordinary pair of tensors and one whose `want` is nearly nothing."""
    cases = []
    for size in (1.0, 1e-3):
        B, T, K = distinct(rng, 3)
        want = torch.tensor(rng.standard_normal((B, T, K))) * size
        want[:, 0] *= 0.01  # rows that are small by themselves
        got = want + 1e-3 * size * torch.tensor(rng.standard_normal((B, T, K)))
        got[0, 0] += 1e-3 * size
        got[1, 2] *= 1.3
        cases.append((got, want))
    return (cases,)


def _error_launch(function, cases):
    names = "error of the whole", "error of the worst row"
    return tuple(float(x) for case in cases for x in values(function(*case), *names))


def _longest(gap, want):
    return gap.norm(dim=-1).max(), want.norm(dim=-1).max()


def _along(axis):
    return lambda gap, want: (gap.norm(dim=axis).max(), want.norm(dim=axis).max())


def _root(count):
    return FLOOR * count**0.5


def _at_least(length, floor):
    return max(float(length), floor)


def _error(whole=None, worst=None, lengths=_longest, floor=_root, floored=_at_least, row=None,
           power=1):  # fmt: skip
    """A wrong error: one part of it done otherwise."""

    def wrong(cases):
        found = []
        for got, want in cases:
            gap = got - want
            least = floor(gap.numel()), (row or floor)(gap.shape[-1])
            longest, own = lengths(gap, want)
            one = whole(gap, want) if whole else (gap.norm(), want.norm())
            two = worst(gap, want, least[1]) if worst else longest / floored(own, least[1])
            found += [one[0] / floored(one[1], least[0]), two]
        return tuple(float(x) ** power for x in found)

    return wrong


def _every_row(gap, want, least):
    return (gap.norm(dim=-1) / want.norm(dim=-1).clamp(min=least)).max()


EXERCISES = (
    Exercise(
        "17a", 2, 20, "round to bfloat16, ties to even",
        "minicoca.kernels.softmax:round_to_bfloat16", ("rounded",), _round_inputs, "",
        (
            "Work on the bits: x.to(tl.uint32, bitcast=True). Add something, then keep the upper "
            "16 bits: & 0xFFFF0000. And back: .to(tl.float32, bitcast=True).",
            "Adding 0x7FFF carries into the upper half from 0x8001 on: everything above a tie. A "
            "tie, 0x8000, lacks 1.",
            "Give it that 1 if the lowest kept bit is 1: (bits >> 16) & 1.",
        ),
        {
            "The lower bits were cut off: that rounds towards 0, not to the nearest.": _bits(_cut),
            "Ties are rounded away from 0; they go to the neighbour whose last bit is 0.":
                _bits(lambda bits: _cut(bits + 0x8000)),
            "Ties are rounded towards 0; they go to the neighbour whose last bit is 0.":
                _bits(lambda bits: _cut(bits + 0x7FFF)),
            "Ties go to the odd neighbour: add 1 where the lowest kept bit is 1, not 0.":
                _bits(lambda bits: _cut(bits + 0x7FFF + (1 - ((bits >> 16) & 1)))),
            "x.to(tl.uint32) converts the value; bitcast=True takes the bits.":
                lambda x: np.zeros_like(x),
            "The bits were converted to a float as a value: back with bitcast=True as well.":
                lambda x: _right(x).view(np.uint32).astype(np.float32),
            "The lower bits are still there: cut them off after adding.":
                _bits(lambda bits: bits + 0x7FFF + ((bits >> 16) & 1)),
        },
        launch=_round_launch, model=(_nearest,), file=ROUND_FILE, imports=KERNEL_IMPORTS,
    ),
    Exercise(
        "17b", 2, 15, "the error of a tensor and of its worst row", "tests.kernel_oracles:error",
        ("whole", "worst row", "whole, want nearly 0", "worst row, want nearly 0"), _error_inputs,
        "",
        (
            "gap = got.double() - want; a length is the root of the sum of squares, .norm(). Rows: "
            ".norm(dim=-1).",
            "The floors differ: sqrt(numel) numbers in the whole, sqrt(K) in a row. "
            "max(want.norm(), FLOOR * numel ** 0.5).",
            "Worst row: the largest of the rows of gap over max(largest of the rows of want, "
            "FLOOR * K ** 0.5); both as float().",
        ),
        {
            "The divisors have no floor: a want that is nearly 0 makes any rounding an error.":
                _error(floor=lambda count: 1e-12),
            "The floor is for each number: FLOOR * sqrt(count), not FLOOR.":
                _error(floor=lambda count: FLOOR),
            "The floor lacks the root: FLOOR * sqrt(count), as lengths are roots.":
                _error(floor=lambda count: FLOOR * count),
            "The floor was added; a divisor is the larger of length and floor.":
                _error(floored=lambda length, floor: float(length) + floor),
            "The rows' divisor has the whole tensor's floor: a row has K numbers.":
                lambda cases: _error(row=lambda K: _root(cases[0][0].numel()))(cases[:1])
                + _error(row=lambda K: _root(cases[1][0].numel()))(cases[1:]),
            "Rows lie along the last axis: norm(dim=-1), not dim=0.": _error(lengths=_along(0)),
            "Rows lie along the last axis: norm(dim=-1), not dim=1.": _error(lengths=_along(1)),
            "The largest single number is no row: take each row's length first, then the longest.":
                _error(lengths=lambda gap, want: (gap.abs().max(), want.abs().max())),
            "Each row is judged by its own length; a row near 0 is all rounding: take the longest.":
                _error(worst=_every_row),
            "The mean over rows was taken: one bad row disappears in it. Take the largest.":
                _error(lengths=lambda gap, want: (gap.norm(dim=-1).mean(), _longest(gap, want)[1])),
            "The worst row is divided by the length of the whole: take the longest row.":
                _error(lengths=lambda gap, want: (_longest(gap, want)[0], want.norm())),
            "The whole is judged by its largest number: take lengths, root of the sum of squares.":
                _error(whole=lambda gap, want: (gap.abs().max(), want.abs().max())),
            "The squared lengths were divided: take the root.": _error(power=2),
        },
        launch=_error_launch, file=ERROR_FILE, imports="import torch  # noqa: F401",
    ),
)  # fmt: skip
