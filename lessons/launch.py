"""Run a learner's kernel, or a piece of one, in Triton's interpreter."""

import inspect

import numpy as np
import torch
from triton.runtime.errors import InterpreterError

from .exercise import Told

GUARD = 4096  # numbers of NaN on either side of every tensor: a stray store must not hit the heap
SHAPES = {
    "make_shape_compatible": "Two tiles of different shapes met: is a [:, None] or [None, :] "
    "missing?",
    "reduction dimensions": "tl.dot met tiles whose inner sizes differ: is a tl.trans missing?",
}


def tensor(array, dtype=torch.float32):
    """A NumPy array as a contiguous tensor, NaN around it."""
    given = torch.tensor(np.ascontiguousarray(array), dtype=dtype)
    return empty(*given.shape, dtype=dtype).copy_(given)


def empty(*shape, dtype=torch.float32):
    """Memory that nobody has written: NaN, and NaN around it."""
    count = torch.Size(shape).numel()
    whole = torch.full((count + 2 * GUARD,), torch.nan, dtype=dtype)
    return whole[GUARD : GUARD + count].view(shape)


def _spoiled(x):
    """Whether the NaN around a tensor of this module has been written over."""
    whole = x._base if isinstance(x, torch.Tensor) else None
    if whole is None or whole.numel() != x.numel() + 2 * GUARD:
        return False
    return not (whole[:GUARD].isnan().all() and whole[-GUARD:].isnan().all())


def _in_words(error):
    """The interpreter's own error, saying what is likely to be missing; where it was stays."""
    for part, words in SHAPES.items():
        if part in str(error):
            return ValueError(words).with_traceback(error.__traceback__)
    return error


def launch(kernel, grid, *arguments, **constants):
    """kernel[grid](...); raises what the kernel itself raised, not the interpreter's wrapping.

    NotImplementedError where a function of the kernel returned nothing; Told where the kernel has
    written outside of a tensor.
    """
    try:
        with np.errstate(all="ignore"):  # a card does not warn either
            kernel[grid](*arguments, **constants)
    except InterpreterError as error:
        while error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, TypeError) and "NoneType" in str(error):
            raise NotImplementedError from None
        raise _in_words(error) from None
    for name, argument in zip(inspect.signature(kernel.fn).parameters, arguments, strict=False):
        if _spoiled(argument):
            raise Told(f"You wrote past the end of {name}'s memory: the store needs a mask.")


def launch_piece(piece, driver, grid, *arguments, **constants):
    """`driver` is a kernel that calls PIECE, a name of its module; it is set to the learner's."""
    driver.fn.__globals__["PIECE"] = piece
    launch(driver, grid, *arguments, **constants)


def stored(*outputs):
    """The outputs as arrays; None where a kernel has stored nothing at all."""
    arrays = tuple(output.numpy() for output in outputs)
    return None if all(np.isnan(array).all() for array in arrays) else arrays
