"""Milliseconds, memory, and the machine's own limits, measured in the same run.

`race` times all ways of one op so that none can win by anything but being faster: see its text.
"""

import statistics
import time
from dataclasses import dataclass, field

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROUNDS = 15
AT_LEAST, SECONDS = 5, 1.0  # rounds there are in any case, and for a way in all when they are slow
REPLAYED_UNDER = 0.1  # milliseconds: below, a launch costs as much as the work
LATE = 0.1  # milliseconds (and half of the time itself) that may pass after the last event


@dataclass
class Timing:
    """Of one way: milliseconds of each round, whether a CUDA graph was replayed, or the refusal."""

    rounds: list[float] = field(default_factory=list)
    over: list[float] = field(default_factory=list)  # until the whole device was idle, beyond it
    by: str = "calls"
    refused: str = ""

    @property
    def spread(self):
        """(median, lowest fifth, highest fifth) of the rounds."""
        fifths = statistics.quantiles(self.rounds, n=5)
        return statistics.median(self.rounds), fifths[0], fifths[-1]


def race(ways, sets, wrong, device, prepare=None, rounds=ROUNDS):
    """{label: Timing} of ways, {label: function}; each result of a timed call is looked at.

    `sets`: lists of input tensors, all of the same shapes. Each way is called once a round, in an
    order that moves on by one, on one set a round, whose values are written into the same buffers
    each time: who knows a tensor by its identity or address knows nothing. `prepare(label,
    buffers)`, untimed, gives what the call is given (default: the buffers). `wrong(place, results)`
    is a sentence on what is wrong with the results of set number `place`, or "". It is given a copy
    taken as soon as the clock stopped; the results themselves are then overwritten with NaN, so
    that memory which was right before is not so again. Inputs must be as they were, to the bit.
    A way that fails in any of this, or raises, is refused: from there on it is not called.
    """
    buffers = [x.detach().clone().requires_grad_(x.requires_grad) for x in sets[0]]
    timings = {label: Timing() for label in ways}
    clock = _Events() if device == "cuda" else _Clock()
    replays, labels, on_card = {}, list(ways), device == "cuda"
    begun = time.perf_counter()
    for turn in range(-2, rounds):  # two rounds to warm up, which are looked at as well
        if turn >= AT_LEAST and time.perf_counter() - begun > SECONDS * len(labels):
            break
        place = turn % len(sets)
        first = turn % len(labels)
        for label in labels[first:] + labels[:first]:
            timing = timings[label]
            if timing.refused:
                continue
            try:
                _fill(buffers, sets[place])
                if label in replays:
                    prepared, call = replays[label]
                    if prepared:
                        prepared.replay()
                else:
                    given = prepare(label, buffers) if prepare else buffers
                    call = lambda way=ways[label], given=given: way(given)  # noqa: E731
                results, copies, spent, over = clock.time(call)
                timing.refused = _changed(buffers, sets[place]) or wrong(place, copies)
                _poison(results, buffers)
                if turn >= 0:
                    timing.rounds.append(spent)
                    timing.over.append(over)
                elif turn == -1 and not timing.refused and spent < REPLAYED_UNDER and on_card:
                    timing.by = "graph"
                    try:
                        replays[label] = _captured(ways[label], prepare, label, buffers)
                    except Exception as failure:
                        timing.by = f"calls, no graph: {_short(failure)}"
                        torch.cuda.synchronize()
            except Exception as failure:  # a baseline that this machine or torch does not have
                timing.refused = _short(failure)
    for timing in timings.values():
        if not timing.refused and device == "cuda":
            timing.refused = late(timing)
    return timings


def late(timing):
    """A sentence if the device was at work for long after the last event of the timed stream."""
    over = statistics.median(timing.over)
    limit = LATE + 0.5 * statistics.median(timing.rounds)
    return f"works on another stream: {over:.3f} ms after its end" if over > limit else ""


def _short(failure):
    return str(failure).split("\n")[0][:80] or type(failure).__name__


@torch.no_grad()
def _fill(buffers, values):
    for buffer, x in zip(buffers, values, strict=True):
        buffer.copy_(x)


def _changed(buffers, values):
    same = all(torch.equal(a, b) for a, b in zip(buffers, values, strict=True))
    return "" if same else "changes its inputs"


def _copies(results):
    return [None if x is None else x.detach().clone() for x in results]


def _poison(results, buffers):
    """NaN over the whole memory of every result that is not an input."""
    held = {x.untyped_storage().data_ptr() for x in buffers}
    for x in results:
        if x is None or x.untyped_storage().data_ptr() in held:
            continue
        whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
        whole.fill_(torch.nan)


def differs(results, exact, limit):
    """A sentence if the relative error of any result is not under the limit (NaN is not)."""
    error = relative_error(results, exact)
    return "" if error < limit else f"wrong by {error:.1e}"


def relative_error(results, exact):
    """The largest among outputs and gradients; NaN if one is. Gradients may be absent."""
    pairs = zip(results, exact, strict=True)
    gaps = [(a.double() - b).norm() / b.double().norm() for a, b in pairs if a is not None]
    return float(torch.stack(gaps).max())


class _Clock:
    """Of the host, for what computes on it."""

    def time(self, call):
        """(results, copies of them, milliseconds, milliseconds beyond)"""
        start = time.perf_counter()
        results = call()
        spent = 1e3 * (time.perf_counter() - start)
        return results, _copies(results), spent, 0.0


class _Events:
    """Of a GPU: events around the call, its cache emptied before. The host does not wait for that,
    so that it has sent the call's launches by the time it ends."""

    def __init__(self):
        self.cache = torch.empty(1 << 26, dtype=torch.int32, device="cuda")
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]

    def time(self, call):
        start, end, copied = self.events
        torch.cuda.synchronize()
        self.cache.zero_()
        start.record()
        results = call()
        end.record()
        # In the stream's own order: what another stream has not written by then is not there.
        copies = _copies(results)
        copied.record()
        copied.synchronize()
        stopped = time.perf_counter()
        torch.cuda.synchronize()
        over = 1e3 * (time.perf_counter() - stopped)
        return results, copies, start.elapsed_time(end), over


def _captured(way, prepare, label, buffers):
    """(graph of what is prepared, or None, and a call that replays the way and returns its
    results)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        way(prepare(label, buffers) if prepare else buffers)
    torch.cuda.current_stream().wait_stream(side)
    prepared, given = None, buffers
    if prepare:
        prepared = torch.cuda.CUDAGraph()
        with torch.cuda.graph(prepared):
            given = prepare(label, buffers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=prepared.pool() if prepared else None):
        results = way(given)

    def call():
        graph.replay()
        return results

    return prepared, call


def kept(function, held=()):
    """(bytes kept for the backward, of those the bytes that the caller holds anyway): exact, by
    torch's saved-tensor hooks, each storage once. `held`: the caller's inputs and parameters."""
    storages = {}

    def pack(x):
        storage = x.untyped_storage()
        storages[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function()
    theirs = {x.untyped_storage().data_ptr() for x in held}
    sizes = {place: storage.nbytes() for place, storage in storages.items()}
    del result
    return sum(sizes.values()), sum(n for place, n in sizes.items() if place in theirs)


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


def milliseconds(call, device):
    """Median of a call that is not compared with others."""
    clock = _Events() if device == "cuda" else _Clock()
    return statistics.median(clock.time(call)[2] for _ in range(ROUNDS))


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
    product = milliseconds(lambda: [a @ b], device)
    copy = milliseconds(lambda: [y.copy_(x)], device)
    return {
        "tflop_s": 2 * side**3 / product / 1e9,
        "gb_s": 2 * x.numel() * x.element_size() / copy / 1e6,
    }
