"""Every op against its baselines at CoCa's shapes: time, memory, and how near the machine's limits.

A way that does not compute the function is not timed: each is first compared, at a small batch of
the same shape, with plain float32 (outputs and every gradient).
"""

import json
import platform
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch._dynamo
import torch._functorch.config
import triton

from ..configs import INTERPRETED
from . import measure, reckoned, registry

SETS = 3  # of inputs, in turn
WRONG = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # relative error


def run(quick=False, ops=None, dtype=None, say=print, keep=None):
    """Time every case; returns {"device": ..., "roofline": ..., "rows": [...]}.

    The file `keep` holds what there is of it after every case.

    Without a GPU the losses' chunked torch code is timed. In Triton's interpreter
    (TRITON_INTERPRET=1) the same code runs on tiny shapes: a rehearsal, which states no time.
    """
    device = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
    size = "full" if device == "cuda" else "rehearsal" if INTERPRETED else "cpu"
    dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
    report = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "size": size,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "baselines": registry.baselines.versions(),
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
        "dtype": str(dtype).removeprefix("torch."),
        "date": time.strftime("%Y-%m-%d"),
        "rows": [],
    }
    # A compiled way's backward is run many times over; it may not use up what the forward kept.
    torch._functorch.config.donated_buffer = False
    report["roofline"] = limits = measure.roofline(device, dtype)
    expected = reckoned.milliseconds(report["device"]) if dtype == torch.bfloat16 else {}
    for case in registry.cases(device, dtype, quick, size):
        if ops is not None and case.op not in ops:
            continue
        torch._dynamo.reset()  # each case is compiled for its own sizes
        row = _row(case, device, dtype, limits, size == "rehearsal")
        row |= {"reckoned_ms": expected[case.name]} if case.name in expected else {}
        report["rows"].append(row)
        if keep:
            Path(keep).write_text(json.dumps(report, indent=1))
        say(line(row), file=sys.stderr)
    return report


def _row(case, device, dtype, limits, rehearsal):
    row = {"op": case.op, "case": case.name, "batch": case.batch, "targets": case.targets}
    row["ways"] = ways = {}
    inputs, upstream = _made(case, dtype)  # rounded, as every way gets them
    inputs = [x.detach().float().requires_grad_() for x in inputs]
    exact = _results(next(reversed(case.ways.values())), (inputs, upstream.float()))
    for label, way in case.ways.items():
        try:
            found = _results(way, _made(case, dtype))
            error = measure.relative_error(found, exact)
            ways[label] = {"error": error}
            if any(part is None for part in found):
                ways[label]["without"] = missing = "without one of the gradients"
                if label == "ours":
                    ways[label]["refused"] = missing
            if not error < WRONG[dtype]:
                ways[label]["refused"] = f"wrong by {error:.1e}"
        except Exception as failure:  # a baseline that this machine or torch does not have
            ways[label] = {"refused": str(failure).split("\n")[0][:80] or type(failure).__name__}
        if device == "cuda":
            torch.cuda.empty_cache()
    right = [label for label, way in ways.items() if "refused" not in way]
    raced = _raced(case, right, dtype, device, limits)
    for label, figures in raced.items():
        plain = rehearsal and "refused" not in figures
        ways[label] |= {"rehearsed": len(figures)} if plain else figures
    row["ratios"] = {
        label: round(way["total_ms"] / ways["ours"]["total_ms"], 3)
        for label, way in ways.items()
        if label != "ours" and "total_ms" in way and "total_ms" in ways["ours"]
    }
    return row


def _made(case, dtype):
    """The same small batch for every way."""
    torch.manual_seed(0)
    inputs, upstream = case.make(min(case.batch, case.compared))
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    return inputs, upstream.to(dtype)


def _results(way, made):
    inputs, upstream = made
    y = way(*inputs)
    found = torch.autograd.grad(y, inputs, upstream.to(y.dtype), allow_unused=True)
    return [y.detach(), *found]


def _raced(case, labels, dtype, device, limits):
    """{label: medians and spread of forward and backward; memory; TFLOP/s, GB/s, roofline}.

    Every way is timed on the same inputs, in turn, and what was timed is compared with the
    results in float32 (`_exact`, measure.race).
    """
    sets = []
    for seed in range(SETS):
        torch.manual_seed(seed)
        inputs, upstream = case.make(case.batch)
        sets.append([*inputs, upstream])
    exact = _exact(case, sets)

    def wrong(part, place, results):
        wanted = [x.to(device) for x in exact[place][part]]
        return measure.differs(results, wanted, WRONG[dtype])

    def forward(way):
        return lambda buffers: [way(*buffers[:-1])]

    def backward(given):
        y, inputs, upstream = given
        return torch.autograd.grad(
            y, inputs, upstream.to(y.dtype), retain_graph=True, allow_unused=True
        )

    def prepare(label, buffers):
        return case.ways[label](*buffers[:-1]), buffers[:-1], buffers[-1]

    forwards = measure.race(
        {label: forward(case.ways[label]) for label in labels}, sets,
        partial(wrong, slice(0, 1)), device,
    )  # fmt: skip
    backwards = measure.race(
        {label: backward for label in labels if not forwards[label].refused}, sets,
        partial(wrong, slice(1, None)), device, prepare,
    )  # fmt: skip
    found = {}
    for label in labels:
        refused = forwards[label].refused or backwards[label].refused
        if refused:
            found[label] = {"refused": refused}
            continue
        times = {"forward": forwards[label], "backward": backwards[label]}
        found[label] = _figures(case, case.ways[label], times, sets[0], limits)
    return found


def _exact(case, sets):
    """The results of each set in float32, in the host's memory: of the last way, which keeps all
    that there is to keep, or where that does not fit, of ours, which `_row` compared with it on a
    smaller batch."""
    last = next(reversed(case.ways))
    try:
        return [_in_float32(case.ways[last], made) for made in sets]
    except torch.OutOfMemoryError:
        return [_in_float32(case.ways["ours"], made) for made in sets]


def _in_float32(way, made):
    *inputs, upstream = made
    inputs = [x.detach().float().requires_grad_() for x in inputs]
    return [x.to("cpu") for x in _results(way, (inputs, upstream.float()))]


def _figures(case, way, times, given, limits):
    *inputs, upstream = given
    total = sum(timing.spread[0] for timing in times.values())
    found = {"total_ms": round(total, 4)}
    for name, timing in times.items():
        median, low, high = timing.spread
        found |= {
            f"{name}_ms": round(median, 4),
            f"{name}_spread": [round(low, 4), round(high, 4)],
            f"{name}_by": timing.by,
        }
    # Of both directions: a loss may do the backward's work in its forward. No faster than the
    # slower of computing and moving, at what this machine reaches.
    both_ways = zip(case.flops, case.traffic, strict=True)
    least = sum(max(f / limits["tflop_s"] / 1e9, t / limits["gb_s"] / 1e6) for f, t in both_ways)
    found["tflop_s"] = round(sum(case.flops) / total / 1e9, 3)
    found["gb_s"] = round(sum(case.traffic) / total / 1e6, 3)
    found["roofline"] = round(least / total, 3)
    found["peak_mb"] = round(measure.memory(lambda: _results(way, (inputs, upstream))) / 1e6, 1)
    found["kept_bytes"], found["kept_inputs"] = measure.kept(lambda: way(*inputs), inputs)
    found["kept_mb"] = round((found["kept_bytes"] - found["kept_inputs"]) / 1e6, 1)
    return found


def line(row):
    """A row in a line."""
    parts = [f"{row['op']:15} {row['case']:28}"]
    for label, way in row["ways"].items():
        what = f"{way['total_ms']:.3f} ms" if "total_ms" in way else way.get("refused", "right")
        parts.append(f"{label}: {what}{_lacks(way)}")
    if "reckoned_ms" in row:
        parts.insert(2, f"reckoned: {sum(row['reckoned_ms']):.3f} ms")
    return "  ".join(parts)


def table(report):
    """The report as a Markdown table."""
    columns = (
        "case", "ours, ms (forward, backward)", "reckoned", "TFLOP/s", "GB/s", "roofline",
        "peak, kept MB", "as fast as (peak, kept MB)", "target",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in report["rows"]:
        ours = row["ways"]["ours"]
        if "total_ms" in ours:
            cells = [
                f"{ours['forward_ms']:.3f}, {ours['backward_ms']:.3f}",
                ", ".join(f"{ms:.3f}" for ms in row.get("reckoned_ms", ())) or "-",
                f"{ours['tflop_s']:.1f}",
                f"{ours['gb_s']:.0f}",
                f"{ours['roofline']:.0%}",
                _megabytes(ours),
            ]
        else:
            cells = [ours.get("refused", "right (rehearsal)"), "-", "-", "-", "-", "-"]
        ratios = ", ".join(
            f"{label} {ratio} ({_megabytes(row['ways'][label])}){_lacks(row['ways'][label])}"
            for label, ratio in row["ratios"].items()
        )
        targets = ", ".join(f"{label} {least}" for label, least in row["targets"].items())
        lines.append(f"| {row['case']} | {' | '.join(cells)} | {ratios} | {targets} |")
    return "\n".join([*lines, *crossovers(report)])


def crossovers(report):
    """Where another way is faster than the kernel: lines to go under the table."""
    on_card = report.get("size", "full") == "full"
    seam = "EAGER_UP_TO in kernels/checks.py" if on_card else "PAIRS_IN_CHUNKS in engine/ops.py"
    return [
        f"\n{row['case']}: {label} is faster than the kernel ({ratio} of its time)"
        + (f"; see {seam}" if label.startswith("eager") else "")
        for row in report["rows"]
        for label, ratio in row["ratios"].items()
        if ratio < 1
    ]


def _lacks(way):
    """What a way is spared that the others compute."""
    return f" ({way['without']})" if "without" in way and "refused" not in way else ""


def _megabytes(way):
    """What a way needs at its peak, and what it keeps for the backward."""
    found = (way.get(f"{name}_mb") for name in ("peak", "kept"))
    return ", ".join(f"{x:.0f}" if x else "-" for x in found)


def memory_table(width=768):
    """InfoNCE's memory by the model (pictures.memory_model), as a Markdown table."""
    from .pictures import memory_model

    lines = [f"| pairs (width {width}, bfloat16) | eager, GB | ours, GB |", "|---|---|---|"]
    for n in range(10, 18):
        eager, ours = (amount / 1e9 for amount in memory_model(1 << n, width))
        lines.append(f"| {1 << n:,} | {eager:.2f} | {ours:.2f} |")
    return "\n".join(lines)
