"""Run a learner's kernel, or a piece of one, in Triton's interpreter."""

import inspect
from unittest import mock

import numpy as np
import torch
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from .compare import UNWRITTEN
from .exercise import Told

GAP = 4096  # numbers between two tensors: who strays by less is told from which one
SHAPES = {
    "make_shape_compatible": "Two tiles of different shapes met: is a [:, None] or [None, :] "
    "missing?",
    "reduction dimensions": "tl.dot met tiles whose inner sizes differ: is a tl.trans missing?",
    "unpack": "another number of values is returned than the docstring says",
    "object is not iterable": "another number of values is returned than the docstring says",
}


def tensor(array, dtype=torch.float32):
    """A NumPy array as a contiguous tensor."""
    given = torch.tensor(np.ascontiguousarray(array), dtype=dtype)
    return empty(*given.shape, dtype=dtype).copy_(given)


def empty(*shape, dtype=torch.float32):
    """Memory that nobody has written: a NaN of its own where it is float32."""
    count = torch.Size(shape).numel()
    whole = torch.full((count + 2 * GAP,), torch.nan, dtype=dtype)
    if dtype == torch.float32:
        whole.view(torch.int32).fill_(UNWRITTEN)
    return whole[GAP : GAP + count].view(shape)


def _is_empty(x):
    return x.dtype == torch.float32 and bool((x.view(torch.int32) == UNWRITTEN).all())


class Memory:
    """The interpreter's own, but an address outside of the tensors raises IndexError, and so does
    writing into one that was given: all but the empty ones and those in `writes`."""

    def __init__(self, tensors, writes=()):
        self.own = interpreter._interpreter
        self.spans = {name: (x.data_ptr(), x.numel() * x.itemsize) for name, x in tensors.items()}
        self.given = [n for n, x in tensors.items() if n not in writes and not _is_empty(x)]

    def __getattr__(self, name):
        return getattr(self.own, name)

    def load(self, addresses, mask, other, dtype):
        self._check("tl.load reads", addresses[mask])
        return self.own.load(addresses, mask, other, dtype)

    def store(self, addresses, value, mask):
        self._check("tl.store writes", addresses[mask])
        self._check_given(addresses[mask].astype(np.int64).ravel())
        return self.own.store(addresses, value, mask)

    def _check(self, does, addresses):
        addresses = addresses.astype(np.int64).ravel()
        away = {  # how far outside of each tensor
            name: np.maximum(start - addresses, addresses - (start + size - 1)).clip(0)
            for name, (start, size) in self.spans.items()
        }
        outside = np.min(list(away.values()), axis=0) > 0
        if outside.any():
            worst = np.argmax(outside)
            name = min(away, key=lambda name: away[name][worst])
            where = "before the start" if addresses[worst] < self.spans[name][0] else "past the end"
            raise IndexError(
                f"{does} {where} of {name}'s memory: a mask is missing or wrong, or the pointer "
                "was moved too far"
            )

    def _check_given(self, addresses):
        for name in self.given:
            start, size = self.spans[name]
            if ((addresses >= start) & (addresses < start + size)).any():
                raise IndexError(f"tl.store writes into {name}'s memory, which is given to read")


def _in_words(error):
    """The interpreter's own error, saying what is likely to be missing; where it was stays."""
    for part, words in SHAPES.items():
        if part in str(error):
            return ValueError(words).with_traceback(error.__traceback__)
    return error


def launch(kernel, grid, *arguments, writes=(), **constants):
    """kernel[grid](...); raises what the kernel itself raised, not the interpreter's wrapping.

    NotImplementedError where a function of the kernel returned nothing; IndexError where the kernel
    reads or writes outside of the tensors, which are contiguous, or writes into one that it should
    read. Told where the file has no kernel.
    """
    if not hasattr(kernel, "fn"):
        raise Told("The function is no kernel: @triton.jit stands above it.")
    names = zip(inspect.signature(kernel.fn).parameters, arguments, strict=False)
    memory = Memory({n: x for n, x in names if isinstance(x, torch.Tensor)}, writes)
    try:
        with mock.patch.object(interpreter, "_interpreter", memory), np.errstate(all="ignore"):
            kernel[grid](*arguments, **constants)  # errstate: a card does not warn either
    except InterpreterError as error:
        while error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, TypeError) and "NoneType" in str(error):
            raise NotImplementedError from None
        raise _in_words(error) from None


def launch_piece(piece, driver, grid, *arguments, **constants):
    """`driver` is a kernel that calls PIECE, a name of its module; it is set to the learner's."""
    driver.fn.__globals__["PIECE"] = piece
    launch(driver, grid, *arguments, **constants)


def stored(*outputs):
    """The outputs as arrays; None where a kernel has stored nothing at all."""
    arrays = tuple(output.numpy() for output in outputs)
    return None if all(np.isnan(array).all() for array in arrays) else arrays
