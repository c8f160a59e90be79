"""Run a learner's kernel, or a piece of one, in Triton's interpreter."""

import numpy as np
import torch
from triton.runtime.errors import InterpreterError


def tensor(array, dtype=torch.float32):
    """A NumPy array as a contiguous tensor."""
    return torch.tensor(np.ascontiguousarray(array), dtype=dtype)


def empty(*shape, dtype=torch.float32):
    """Memory that nobody has written: NaN."""
    return torch.full(shape, torch.nan, dtype=dtype)


def launch(kernel, grid, *arguments, **constants):
    """kernel[grid](...); raises what the kernel itself raised, not the interpreter's wrapping.

    NotImplementedError where a function of the kernel returned nothing.
    """
    try:
        kernel[grid](*arguments, **constants)
    except InterpreterError as error:
        while error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, TypeError) and "NoneType" in str(error):
            raise NotImplementedError from None
        raise error from None


def launch_piece(piece, driver, grid, *arguments, **constants):
    """`driver` is a kernel that calls PIECE, a name of its module; it is set to the learner's."""
    driver.fn.__globals__["PIECE"] = piece
    launch(driver, grid, *arguments, **constants)


def stored(*outputs):
    """The outputs as arrays; None where a kernel has stored nothing at all."""
    arrays = tuple(output.numpy() for output in outputs)
    return None if all(np.isnan(array).all() for array in arrays) else arrays
