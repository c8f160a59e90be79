"""Exercises of page 11: which numbers of a tile are real, and where they lie in memory."""

import numpy as np
import torch
import triton
import triton.language as tl

from .. import source
from ..exercise import KERNEL_IMPORTS, Exercise, distinct
from ..launch import empty, launch_piece, stored, tensor


@triton.jit
def _mask_driver(out_ptr, first_t, first_s, T, end, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr,
                 BLOCK_S: tl.constexpr):  # fmt: skip
    t, s = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_S)
    mask = PIECE(first_t + t, first_s + s, T, end, CAUSAL)  # noqa: F821
    tl.store(out_ptr + t[:, None] * BLOCK_S + s[None, :], mask)


def _mask_launch(piece, first_t, first_s, T, end, block_t, block_s):
    source.compares_tiles(piece)
    full, causal = empty(block_t, block_s), empty(block_t, block_s)
    for out, flag in ((full, False), (causal, True)):
        sizes = {"CAUSAL": flag, "BLOCK_T": block_t, "BLOCK_S": block_s}
        launch_piece(piece, _mask_driver, (1,), out, first_t, first_s, T, end, **sizes)
    return stored(full, causal)


def _mask_inputs(rng):
    """A tile that the diagonal, the last query and the last key all cross."""
    block_t, block_s = (int(n) for n in rng.permutation([8, 16]))
    first_t, first_s = int(rng.integers(20, 23)), int(rng.integers(20, 23))
    T = first_t + block_t - int(rng.integers(1, 3))
    return first_t, first_s, T, first_s + int(rng.integers(4, 6)), block_t, block_s


def _mask(first_t, first_s, T, end, block_t, block_s, change=lambda t, s, T, end: {}):
    t = first_t + np.arange(block_t)[:, None]
    s = first_s + np.arange(block_s)[None, :]
    parts = {"rows": t < T, "keys": s < end, "past": s <= t} | change(t, s, T, end)
    full = parts["rows"] & parts["keys"] & np.ones_like(t >= s)
    return full.astype(float), (full & parts["past"]).astype(float)


def _real(first_t, first_s, T, end, block_t, block_s):
    """The mask of the tile, of all keys and causal."""
    t, s = first_t + np.arange(block_t)[:, None], first_s + np.arange(block_s)[None, :]
    inside = (t < T) & (s < end)
    causal = inside & (s <= t)
    return inside.astype(float), causal.astype(float)


def _mask_mistake(change):
    return lambda *arguments: _mask(*arguments, change=change)


MASK_FILE = '''@triton.jit
def score_mask(t, s, T, end, CAUSAL: tl.constexpr):
    """Which scores of a tile are real: booleans [len(t), len(s)].

    t: numbers of the tile's queries, of which there are T (0 to T - 1). s: numbers of its keys, of
    which the first `end` are real. CAUSAL: query t sees keys 0 to t, itself included.
    """
    raise NotImplementedError
'''


@triton.jit
def _tile_driver(x_ptr, tile_ptr, kind_ptr, first, row_stride, row_count, column_count,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    tile = PIECE(x_ptr, first + rows, columns, row_stride, row_count, column_count, UPCAST)  # noqa: F821
    tl.store(tile_ptr + rows[:, None] * COLUMNS + columns[None, :], tile)
    tl.store(kind_ptr, 1.0 if tile.dtype == tl.float32 else 0.0)


def _tile_launch(piece, memory, first, row_stride, row_count, column_count, rows, columns):
    source.compares_tiles(piece)
    source.masks_loads(piece)
    tiles, kinds = [], []
    for upcast in (False, True):
        tile, kind = empty(rows, columns), empty(1)
        sizes = {"ROWS": rows, "COLUMNS": columns, "UPCAST": upcast}
        launch_piece(
            piece, _tile_driver, (1,), tensor(memory, torch.float16), tile, kind, first, row_stride,
            row_count, column_count, **sizes,
        )  # fmt: skip
        tiles.append(tile)
        kinds.append(kind)
    return stored(*tiles, torch.cat(kinds))


def _tile_inputs(rng):
    """An array whose rows stand further apart than they are long, and a tile over its edges."""
    first, row_count, column_count, row_stride = (int(n) for n in np.sort(distinct(rng, 4, 2, 9)))
    row_count += first + 1
    column_count = min(column_count, 12)
    memory = rng.standard_normal(4000).astype(np.float16)
    return memory, first, column_count + row_stride, row_count, column_count, 32, 16


def _tile(memory, first, row_stride, row_count, column_count, rows, columns, **change):
    r, c = first + np.arange(rows)[:, None], np.arange(columns)[None, :]
    row, column = change.get("strides", (row_stride, 1))
    inside = (r < row_count) & (c < column_count)
    tile = np.where(change.get("inside", inside), memory[r * row + c * column], 0).astype(float)
    return tile, tile, np.array(change.get("kinds", (0, 1)))


def _read(memory, first, row_stride, row_count, column_count, rows, columns):
    """The tile, twice, and which of the two is float32."""
    r, c = first + np.arange(rows)[:, None], np.arange(columns)[None, :]
    inside = (r < row_count) & (c < column_count)
    tile = np.where(inside, memory[r * row_stride + c], 0.0)
    return tile, tile, np.array([0, 1])


def _mask_past_alone(first_t, first_s, T, end, block_t, block_s):
    full, _ = _mask(first_t, first_s, T, end, block_t, block_s)
    t, s = first_t + np.arange(block_t)[:, None], first_s + np.arange(block_s)[None, :]
    return full, (s <= t).astype(float)


def _tile_packed(memory, first, row_stride, row_count, column_count, rows, columns):
    sizes = (memory, first, row_stride, row_count, column_count, rows, columns)
    return _tile(*sizes, strides=(column_count, 1))


def _tile_transposed(memory, first, row_stride, row_count, column_count, rows, columns):
    sizes = (memory, first, row_stride, row_count, column_count, rows, columns)
    return _tile(*sizes, strides=(1, row_stride))


def _tile_all_rows(memory, first, row_stride, row_count, column_count, rows, columns):
    sizes = (memory, first, row_stride, row_count, column_count, rows, columns)
    return _tile(*sizes, inside=np.arange(columns)[None, :] < column_count)


def _tile_all_columns(memory, first, row_stride, row_count, column_count, rows, columns):
    sizes = (memory, first, row_stride, row_count, column_count, rows, columns)
    return _tile(*sizes, inside=(first + np.arange(rows))[:, None] < row_count)


TILE_FILE = '''@triton.jit
def load_tile(ptr, rows, columns, row_stride, row_count, column_count, UPCAST: tl.constexpr):
    """The numbers at `rows` and `columns` of an array: a tile [len(rows), len(columns)].

    ptr: where number (0, 0) lies. A row is contiguous; the next begins row_stride numbers later.
    The array has row_count rows and column_count columns: what is outside of them is 0 in the
    tile, and its memory is not read. UPCAST: the tile is float32, whatever the memory holds;
    otherwise it has the memory's type.
    """
    raise NotImplementedError
'''

EXERCISES = (
    Exercise(
        "11a", 1, 10, "which scores of a tile are real", "minicoca.kernels.softmax:score_mask",
        ("mask", "causal mask"), _mask_inputs, "",
        (
            "t[:, None] is a column and s[None, :] a row: comparing them gives a tile.",
            "Three comparisons joined by &: the query exists, the key is real, and under "
            "`if CAUSAL:` the key is not after the query.",
        ),
        {
            "A query may see itself: the causal comparison must allow s == t.":
                _mask_mistake(lambda t, s, T, end: {"past": s < t}),
            "The causal comparison is turned around: query t sees keys up to t, not from t on.":
                _mask_mistake(lambda t, s, T, end: {"past": s >= t}),
            "Queries from T on are not there: their rows must be False.":
                _mask_mistake(lambda t, s, T, end: {"rows": t >= 0}),
            "Keys from `end` on are padding: their columns must be False.":
                _mask_mistake(lambda t, s, T, end: {"keys": s >= 0}),
            "Key `end` is one too many: the first `end` keys are 0 to end - 1.":
                _mask_mistake(lambda t, s, T, end: {"keys": s <= end}),
            "CAUSAL adds a third comparison to the first two; it does not replace them.":
                _mask_past_alone,
            "The causal flag was not used.": _mask_mistake(lambda t, s, T, end: {"past": s >= 0}),
        },
        launch=_mask_launch, model=(_real,), file=MASK_FILE, imports=KERNEL_IMPORTS,
    ),
    Exercise(
        "11b", 2, 15, "load a tile from memory", "minicoca.kernels.softmax:load_tile",
        ("tile", "upcast tile", "is float32"), _tile_inputs, "",
        (
            "Number (r, c) lies at ptr + r * row_stride + c: make a tile of these addresses with "
            "[:, None] and [None, :].",
            "tl.load(addresses, mask=inside, other=0.0); inside is True where the row and the "
            "column both exist. Then tile.to(tl.float32) where UPCAST.",
        ),
        {
            "Rows begin row_stride numbers apart, not column_count: the array may be a view.":
                _tile_packed,
            "Rows and columns are exchanged: the stride belongs to the row.": _tile_transposed,
            "Rows from row_count on were read: mask them.": _tile_all_rows,
            "Columns from column_count on were read: they belong to somebody else.":
                _tile_all_columns,
            "UPCAST was not used: the tile must then be float32.":
                lambda *arguments: _tile(*arguments, kinds=(0, 0)),
            "Without UPCAST the tile must keep the memory's type.":
                lambda *arguments: _tile(*arguments, kinds=(1, 1)),
        },
        launch=_tile_launch, model=(_read,), file=TILE_FILE, imports=KERNEL_IMPORTS,
    ),
)  # fmt: skip
