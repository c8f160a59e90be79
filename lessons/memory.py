"""How much memory does a function hold at its peak?"""

import contextlib
import sys
import tracemalloc
import weakref


def peak_bytes(function, *arguments):
    """What a call allocates and holds at its peak, in arrays of NumPy and tensors of torch: the
    least of three, since other threads allocate too. Whatever it imports is not counted."""
    return min([_peak_bytes(function, *arguments) for _ in range(4)][1:])


def _peak_bytes(function, *arguments):
    tensors = _torch_watcher() or contextlib.nullcontext()
    tensors.peak = 0
    tracemalloc.start()
    try:
        with tensors:
            function(*arguments)
        return tracemalloc.get_traced_memory()[1] + tensors.peak
    finally:
        tracemalloc.stop()


def _torch_watcher():
    """Counts the memory of tensors that are alive; None where torch is not in use."""
    if "torch" not in sys.modules:
        return None
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    class Watcher(TorchFunctionMode):
        peak, seen = 0, ()

        def __torch_function__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            alive = [(ref, *memory) for ref, *memory in self.seen if ref() is not None]
            for x in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(x, Tensor):
                    memory = x.untyped_storage()
                    alive.append((weakref.ref(x), memory.data_ptr(), memory.nbytes()))
            self.seen = alive
            self.peak = max(self.peak, sum({place: size for _, place, size in alive}.values()))
            return result

    return Watcher()
