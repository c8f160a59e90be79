"""Milliseconds, peak memory, and the machine's own limits, measured in the same run."""

import statistics
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def milliseconds(function, device):
    """(median, lowest fifth, highest fifth) of a call; a GPU's cache is emptied before each."""
    if device == "cuda":
        from triton.testing import do_bench

        return tuple(do_bench(function, warmup=20, rep=80, quantiles=[0.5, 0.2, 0.8]))
    function()
    times, begun = [], time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begun < 1.0 and len(times) < 50):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    fifths = statistics.quantiles(times, n=5)
    return statistics.median(times), fifths[0], fifths[-1]


def memory(function):
    """Bytes that a call on a GPU holds at its peak, over what is held before it; else 0."""
    if not torch.cuda.is_available():
        return 0 * len(function())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def kept(function):
    """Bytes that a forward pass on a GPU keeps for its backward, its output included; else 0."""
    before = torch.cuda.memory_allocated()
    result = function()
    held = torch.cuda.memory_allocated() - before
    del result
    return held


class LargestTensor(TorchDispatchMode):
    """Within the block, `bytes` is what the largest result of any torch operation takes. It does
    not look into custom ops."""

    bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.numel() * x.itemsize)
        return result


def roofline(device, dtype):
    """What this machine reaches: TFLOP/s of a large product, GB/s of a copy."""
    side, count = (8192, 1 << 28) if device == "cuda" else (1024, 1 << 24)
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    x = torch.empty(count, device=device, dtype=dtype)
    y = torch.empty_like(x)
    product = milliseconds(lambda: a @ b, device)[0]
    copy = milliseconds(lambda: y.copy_(x), device)[0]
    return {
        "tflop_s": 2 * side**3 / product / 1e9,
        "gb_s": 2 * x.numel() * x.element_size() / copy / 1e6,
    }
