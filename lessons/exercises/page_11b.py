"""Exercises of page 11b: three whole kernels, each one step further than the last."""

import numpy as np
import triton

from minicoca.reference.ops import softmax

from .. import source
from ..exercise import KERNEL_IMPORTS, Exercise
from ..launch import empty, launch, stored, tensor

BLOCK = 16
ROW = 32  # a block that holds a whole row

SCALE_FILE = '''@triton.jit
def scale_kernel(x_ptr, y_ptr, N, scale, BLOCK: tl.constexpr):
    """y = scale x, of N numbers. Program i has the BLOCK numbers from i * BLOCK on.

    There are as many programs as it takes: the last one has fewer numbers than BLOCK.
    """
    raise NotImplementedError
'''

SOFTMAX_FILE = '''@triton.jit
def softmax_kernel(x_ptr, y_ptr, C, BLOCK: tl.constexpr):
    """y = softmax of each row of x. Program r has row r.

    x and y have rows of C numbers, one after the other in memory. BLOCK is at least C: one block
    holds the row. The numbers may be large: e to the power of one alone may overflow.
    """
    raise NotImplementedError
'''

PRODUCT_FILE = '''@triton.jit
def product_kernel(
    x_ptr, w_ptr, y_ptr, R, D, F,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):
    """y = x w. x [R, D], w [D, F], y [R, F], contiguous float32.

    Program (i, j) has the tile of y that begins at row i * BLOCK_R and column j * BLOCK_F, and goes
    along D, BLOCK_D numbers at a time. No size need be a multiple of its block.
    """
    raise NotImplementedError
'''

TILES = "\n\nfrom minicoca.kernels.softmax import load_tile, store_tile  # noqa: F401"


def _scale_inputs(rng):
    return rng.standard_normal(int(rng.integers(35, 47))).astype(np.float32), rng.uniform(4, 6)


def _scale_launch(kernel, x, scale):
    source.masks_loads(kernel)
    y, count = empty(len(x)), triton.cdiv(len(x), BLOCK)
    launch(kernel, (count,), tensor(x), y, len(x), scale, BLOCK=BLOCK)
    return stored(y)


def _scaled(x, scale):
    return (scale * x,)


def _only(places):
    """Right where the programs write, which is at places(program, numbers of a block, N) alone."""

    def wrong(x, scale):
        y, numbers = np.full(len(x), np.nan), np.arange(BLOCK)
        for program in range(-(-len(x) // BLOCK)):
            i = places(program, numbers, len(x))
            i = i[(i >= 0) & (i < len(x))]
            y[i] = scale * x[i]
        return (y,)

    return wrong


def _softmax_inputs(rng):
    """A row far below 0, where a 0 beside it would count, and one whose e^x overflows."""
    R, C = int(rng.integers(3, 6)), int(rng.integers(19, 30))
    x = rng.standard_normal((R, C)) * 2
    x[0] -= 60
    x[1] += 120
    return (x.astype(np.float32),)


def _softmax_launch(kernel, x):
    source.masks_loads(kernel)
    y = empty(*x.shape)
    launch(kernel, (len(x),), tensor(x), y, x.shape[1], BLOCK=ROW)
    return stored(y)


def _softmax(x):
    return (softmax(x.astype(float))[0],)


def _weights(of):
    """Each row's weights made by `of`, in float32, NaN and infinities included."""

    def wrong(x):
        with np.errstate(all="ignore"):
            return (np.stack([of(row) for row in x]),)

    return wrong


def _by_peak(row, exp=np.exp):
    return exp(row - row.max())


def _beside_zeros(row):
    wide = np.append(row, np.zeros(ROW - len(row), row.dtype))
    return (_by_peak(wide) / _by_peak(wide).sum())[: len(row)]


def _first_row(x):
    y = np.full(x.shape, np.nan)
    y[0] = _softmax(x)[0][0]
    return (y,)


def _rows_one_apart(x):
    """Row r read and written from r on: each program writes over the one before."""
    y, flat, C = np.full(x.size, np.nan), x.ravel(), x.shape[1]
    for r in range(len(x)):
        y[r : r + C] = _softmax(flat[None, r : r + C])[0][0]
    return (y.reshape(x.shape),)


def _product_inputs(rng):
    """R < D < F, so that a wrong stride stays inside of the memory; none is a multiple of 16."""
    R, D = int(rng.integers(18, 25)), int(rng.integers(34, 40))
    x, w = rng.standard_normal((R, D)), rng.standard_normal((D, int(rng.integers(41, 47))))
    return x.astype(np.float32), w.astype(np.float32)


def _product_launch(kernel, x, w):
    source.keeps_digits(kernel)
    source.masks_loads(kernel)
    (R, D), F = x.shape, w.shape[1]
    y, blocks = empty(R, F), {"BLOCK_R": BLOCK, "BLOCK_D": BLOCK, "BLOCK_F": BLOCK}
    grid = triton.cdiv(R, BLOCK), triton.cdiv(F, BLOCK)
    launch(kernel, grid, tensor(x), tensor(w), y, R, D, F, **blocks)
    return stored(y)


def _product(x, w):
    return (x.astype(float) @ w.astype(float),)


def _whole(x):
    """Zeros beside, up to whole blocks."""
    return np.pad(x.astype(float), [(0, -n % BLOCK) for n in x.shape])


def _tiles(
    dot=np.matmul,
    join=lambda acc, part: acc + part,
    steps=lambda D: range(0, D, BLOCK),
    at=lambda first: (first, first),
    tile=lambda i, j: (i, j),
):
    """The product tile by tile, with whatever a mistake changes; NaN where nothing is written."""

    def wrong(x, w):
        (R, D), F = x.shape, w.shape[1]
        a, b, block = _whole(x), _whole(w), np.arange(BLOCK)
        y = np.full((a.shape[0], b.shape[1]), np.nan)
        for place in np.ndindex(y.shape[0] // BLOCK, y.shape[1] // BLOCK):
            i, j = tile(*place)
            if i >= y.shape[0] // BLOCK or j >= y.shape[1] // BLOCK:
                continue
            r, f, acc = i * BLOCK + block, j * BLOCK + block, np.zeros((BLOCK, BLOCK))
            for first in steps(D):
                own, other = (start + block for start in at(first))
                acc = join(acc, dot(a[np.ix_(r, own)], b[np.ix_(other, f)]))
            y[np.ix_(r, f)] = acc
        return (y[:R, :F],)

    return wrong


def _rows_apart(x, stride):
    """What is read of x where its rows are taken to begin `stride` numbers apart."""
    rows, columns = np.arange(x.shape[0])[:, None], np.arange(x.shape[1])[None, :]
    return x.ravel()[rows * stride + columns]


EXERCISES = (
    Exercise(
        "11c", 1, 10, "scale a vector in blocks", "lessons.answers.11c:scale_kernel",
        ("y",), _scale_inputs, "",
        (
            "i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK) are this program's numbers; which "
            "of them exist?",
            "tl.load(x_ptr + i, mask=i < N, other=0.0), a product, and tl.store(y_ptr + i, ..., "
            "mask=i < N).",
        ),
        {
            "Every program has the first block: begin at tl.program_id(0) * BLOCK.":
                _only(lambda program, i, N: i),
            "Program i begins at number i, not at i * BLOCK.":
                _only(lambda program, i, N: program + i),
            "A program's numbers are program_id * BLOCK + arange: a sum, not a product.":
                _only(lambda program, i, N: program * i),
            "The last block is not full, and nothing of it was written: mask each number.":
                _only(lambda program, i, N: i + program * BLOCK + N * ((program + 1) * BLOCK > N)),
            "Number N - 1 was left out: the mask is i < N.":
                _only(lambda program, i, N: (lambda at: at[at < N - 1])(program * BLOCK + i)),
            "The first block was left out: programs count from 0.":
                _only(lambda program, i, N: (program + 1) * BLOCK + i),
            "scale was not used.": lambda x, scale: (x,),
            "scale is a factor; it was added.": lambda x, scale: (x + scale,),
            "Divided by scale, not multiplied.": lambda x, scale: (x / scale,),
        },
        launch=_scale_launch, expected=_scaled, file=SCALE_FILE, imports=KERNEL_IMPORTS,
        constants={"BLOCK": BLOCK},
    ),
    Exercise(
        "11d", 2, 10, "softmax of rows", "lessons.answers.11d:softmax_kernel",
        ("y",), _softmax_inputs, "",
        (
            "Row r begins C * r numbers after x_ptr; c = tl.arange(0, BLOCK) are its columns, and "
            "those from C on are not there.",
            "What is not there must weigh nothing: other=float(\"-inf\"). Take tl.max(x, 0) off, "
            "then tl.exp, then divide by tl.sum(weights, 0).",
        ),
        {
            "What stands outside of the row counts as 0: e^0 is 1. other must be -inf.":
                _weights(_beside_zeros),
            "e to the power of a large number overflows: take the row's largest off first.":
                _weights(lambda row: np.exp(row) / np.exp(row).sum()),
            "exp2 is 2 to the power; softmax is of e: tl.exp, or times log2 e before.":
                _weights(lambda row: _by_peak(row, np.exp2) / _by_peak(row, np.exp2).sum()),
            "The weights are not divided by their sum (their largest is 1).": _weights(_by_peak),
            "exp is missing: the numbers themselves were divided by their sum.":
                _weights(lambda row: row / row.sum()),
            "That is the logarithm of softmax: minus log of the sum, where softmax divides.":
                _weights(lambda row: row - row.max() - np.log(_by_peak(row).sum())),
            "Every program has row 0: move both pointers by tl.program_id(0) * C.": _first_row,
            "Rows are C numbers apart, not one: tl.program_id(0) * C.": _rows_one_apart,
        },
        launch=_softmax_launch, expected=_softmax, file=SOFTMAX_FILE, imports=KERNEL_IMPORTS,
        constants={"BLOCK": ROW}, close=1e-4,
    ),
    Exercise(
        "11e", 2, 10, "a product with a loop over D", "lessons.answers.11e:product_kernel",
        ("y",), _product_inputs, "",
        (
            "r and f are this program's rows and columns of y, from program_id(0) and (1); acc is "
            "a tile of zeros, tl.zeros([BLOCK_R, BLOCK_F], tl.float32).",
            "for first in range(0, D, BLOCK_D): the tiles of x at (r, d) and of w at (d, f), where "
            "d = first + tl.arange(0, BLOCK_D); acc += tl.dot(..., input_precision=\"ieee\").",
            "load_tile(x_ptr, r, d, D, R, D, False): rows D apart, R of them, D columns. What is "
            "outside is 0, and adds nothing.",
        ),
        {
            "acc must be added to: each step wrote over the one before.":
                _tiles(join=lambda acc, part: part),
            "Only the first block along D was used: go on up to D.":
                _tiles(steps=lambda D: range(0, BLOCK, BLOCK)),
            "The last block along D, which is not full, was left out: range(0, D, BLOCK_D).":
                _tiles(steps=lambda D: range(0, D - BLOCK + 1, BLOCK)),
            "w's rows stay where they were: they must go on with first, as x's columns do.":
                _tiles(at=lambda first: (first, 0)),
            "x's columns stay where they were: they must go on with first, as w's rows do.":
                _tiles(at=lambda first: (0, first)),
            "Both tiles stay where they were: d = first + tl.arange(0, BLOCK_D).":
                _tiles(at=lambda first: (0, 0)),
            "The programs are exchanged: program_id(0) counts tiles of rows, program_id(1) of "
            "columns.": _tiles(tile=lambda i, j: (j, i)),
            "Every program has the first tile: begin at program_id * BLOCK, rows and columns.":
                _tiles(tile=lambda i, j: (0, 0)),
            "Every program has the first columns: f begins at tl.program_id(1) * BLOCK_F.":
                _tiles(tile=lambda i, j: (i, 0)),
            "Every program has the first rows: r begins at tl.program_id(0) * BLOCK_R.":
                _tiles(tile=lambda i, j: (0, j)),
            "tl.dot's factors are exchanged: x's tile comes first.":
                _tiles(dot=lambda x, w: w @ x),
            "w's tile was turned: tl.trans is not wanted here.": _tiles(dot=lambda x, w: x @ w.T),
            "A row of w has F numbers: its rows are F apart, not D.":
                lambda x, w: _product(x, _rows_apart(w, len(w))),
            "A row of x has D numbers: its rows are D apart, not R.":
                lambda x, w: _product(_rows_apart(x, len(x)), w),
        },
        launch=_product_launch, expected=_product, file=PRODUCT_FILE,
        imports=KERNEL_IMPORTS + TILES, close=1e-5,
        constants={"BLOCK_R": BLOCK, "BLOCK_D": BLOCK, "BLOCK_F": BLOCK},
    ),
)  # fmt: skip
