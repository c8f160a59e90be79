"""Every op against its baselines at CoCa's shapes: time, memory, and how near the machine's limits.

A way that does not compute the function is not timed: each is first compared, at a small batch of
the same shape, with plain float32 (outputs and every gradient).
"""

import platform
import sys
import time

import torch
import triton

from ..configs import INTERPRETED
from . import measure, registry

WRONG = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}  # relative error


def run(quick=False, ops=None, dtype=None, say=print):
    """Time every case; returns {"device": ..., "roofline": ..., "rows": [...]}.

    Without a GPU the same code runs on tiny shapes in Triton's interpreter (TRITON_INTERPRET=1): a
    rehearsal, which times nothing.
    """
    device = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
    dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
    report = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "rehearsal": device == "cpu",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
        "dtype": str(dtype).removeprefix("torch."),
        "date": time.strftime("%Y-%m-%d"),
        "rows": [],
    }
    limits = measure.roofline(device, dtype)
    if device == "cuda":
        report["roofline"] = limits
    for case in registry.cases(device, dtype, quick, shrink=device == "cpu"):
        if ops and case.op not in ops:
            continue
        row = _row(case, device, dtype, limits)
        report["rows"].append(row)
        say(line(row), file=sys.stderr)
    return report


def _row(case, device, dtype, limits):
    row = {"op": case.op, "case": case.name, "batch": case.batch, "targets": case.targets}
    row["ways"] = ways = {}
    exact = _results(next(reversed(case.ways.values())), _made(case, torch.float32))
    for label, way in case.ways.items():
        try:
            error = _error(_results(way, _made(case, dtype)), exact)
            ways[label] = {"error": error}
            if not error < WRONG[dtype]:
                ways[label]["refused"] = f"wrong by {error:.1e}"
            else:
                timed = _timed(case, way, device, limits)
                ways[label] |= timed if device == "cuda" else {"rehearsed": len(timed)}
        except Exception as failure:  # a baseline that this machine or torch does not have
            ways[label] = {"refused": str(failure).split("\n")[0][:80] or type(failure).__name__}
    row["ratios"] = {
        label: round(way["total_ms"] / ways["ours"]["total_ms"], 3)
        for label, way in ways.items()
        if label != "ours" and "total_ms" in way and "total_ms" in ways["ours"]
    }
    return row


def _made(case, dtype):
    """The same small batch for every way."""
    torch.manual_seed(0)
    inputs, upstream = case.make(min(case.batch, 2))
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    return inputs, upstream.to(dtype)


def _results(way, made):
    inputs, upstream = made
    y = way(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, upstream.to(y.dtype))]


def _error(results, exact):
    """The largest relative error among output and gradients."""
    pairs = zip(results, exact, strict=True)
    return max(float((a.double() - b).norm() / b.double().norm()) for a, b in pairs)


def _timed(case, way, device, limits):
    """Medians and spread of forward and backward; memory; TFLOP/s, GB/s, part of the roofline."""
    inputs, upstream = case.make(case.batch)

    def both():
        y = way(*inputs)
        return torch.autograd.grad(y, inputs, upstream.to(y.dtype))

    kept = way(*inputs)
    upstream = upstream.to(kept.dtype)
    times = {
        "forward": measure.milliseconds(lambda: way(*inputs), device),
        "backward": measure.milliseconds(
            lambda: torch.autograd.grad(kept, inputs, upstream, retain_graph=True), device
        ),
    }
    found = {"total_ms": round(sum(t[0] for t in times.values()), 4)}
    for (name, (median, low, high)), flops, traffic in zip(
        times.items(), case.flops, case.traffic, strict=True
    ):
        # No faster than the slower of computing and moving, at what this machine reaches.
        least = max(flops / limits["tflop_s"] / 1e9, traffic / limits["gb_s"] / 1e6)
        found |= {
            f"{name}_ms": round(median, 4),
            f"{name}_spread": [round(low, 4), round(high, 4)],
            f"{name}_tflop_s": round(flops / median / 1e9, 1),
            f"{name}_gb_s": round(traffic / median / 1e6, 1),
            f"{name}_roofline": round(least / median, 3),
        }
    found["peak_mb"] = round(measure.memory(both) / 1e6, 1)
    found["kept_mb"] = round(measure.kept(lambda: way(*inputs)) / 1e6, 1)
    return found


def line(row):
    """A row in a line."""
    parts = [f"{row['op']:15} {row['case']:28}"]
    for label, way in row["ways"].items():
        what = f"{way['total_ms']:.3f} ms" if "total_ms" in way else way.get("refused", "right")
        parts.append(f"{label}: {what}")
    return "  ".join(parts)


def table(report):
    """The report as a Markdown table."""
    head = "| case | ours, ms (forward, backward) | roofline | peak MB | as fast as | target |"
    lines = [head, "|---|---|---|---|---|---|"]
    for row in report["rows"]:
        ours = row["ways"]["ours"]
        if "total_ms" in ours:
            cells = [
                f"{ours['forward_ms']:.3f}, {ours['backward_ms']:.3f}",
                f"{ours['forward_roofline']:.0%}, {ours['backward_roofline']:.0%}",
                f"{ours['peak_mb']:.0f}",
            ]
        else:
            cells = [ours.get("refused", "right (rehearsal)"), "-", "-"]
        ratios = ", ".join(f"{label} {ratio}" for label, ratio in row["ratios"].items())
        targets = ", ".join(f"{label} {least}" for label, least in row["targets"].items())
        lines.append(f"| {row['case']} | {' | '.join(cells)} | {ratios} | {targets} |")
    return "\n".join(lines)
