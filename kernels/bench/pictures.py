"""What the benchmarks say, as pictures: rooflines, bars against baselines, memory against batch."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..info_nce import WORKSPACE, info_nce

COLOURS = ["#1f6feb", "#8b949e", "#d29922", "#a371f7", "#3fb950", "#f85149"]


def draw(report, folder):
    """Every picture that the report has figures for, as PNG files; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    timed = [row for row in report["rows"] if "total_ms" in row["ways"]["ours"]]
    paths = []
    for name, figure in {
        "roofline": _roofline(report, timed) if timed else None,
        "bars": _bars(report, timed) if timed else None,
        "memory": _memory(timed),
        "accuracy": accuracy(),
        "centring": centring(),
    }.items():
        if figure:
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=90, bbox_inches="tight", facecolor="white")
    return paths


def _roofline(report, rows):
    figure = Figure((7, 4.5))
    axes = figure.add_subplot()
    limits = report["roofline"]
    intensity = [2.0**n for n in range(1, 16)]
    least = [min(limits["tflop_s"], limits["gb_s"] * x / 1e3) for x in intensity]
    axes.plot(intensity, least, color="black", label=f"measured on this {report['device']}")
    for colour, op in zip(COLOURS, dict.fromkeys(row["op"] for row in rows), strict=False):
        points = [_point(row) for row in rows if row["op"] == op]
        axes.plot(*zip(*points, strict=True), "o", color=colour, label=op)
    axes.set(
        xscale="log", yscale="log", xlabel="FLOP per byte moved", ylabel="TFLOP/s, both directions"
    )
    axes.legend(frameon=False)
    return figure


def _point(row):
    ours = row["ways"]["ours"]
    return 1e3 * ours["tflop_s"] / max(ours["gb_s"], 1e-9), ours["tflop_s"]


def _bars(report, rows):
    figure = Figure((8, 0.6 + 0.45 * len(rows)))
    axes = figure.add_subplot()
    labels = list(dict.fromkeys(label for row in rows for label in row["ratios"]))
    height = 0.8 / max(1, len(labels))
    for i, label in enumerate(labels):
        at = [y + i * height for y, row in enumerate(rows) if label in row["ratios"]]
        values = [row["ratios"][label] for row in rows if label in row["ratios"]]
        axes.barh(at, values, height, color=COLOURS[1:][i % 5], label=label)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(yticks=range(len(rows)), yticklabels=[row["case"] for row in rows])
    axes.set_xlabel(f"its time / ours, forward and backward ({report['device']})")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


def memory_model(pairs, width=768, element=2):
    """(eager, ours) bytes beyond the embeddings: both matrices of logits and their gradients in the
    inputs' type and in float32; a workspace that does not grow, gradients in float32 and as given
    back, and the product of a chunk."""
    eager = pairs * pairs * (2 * element + 3 * 4)
    rows = min(pairs, max(1, WORKSPACE // (pairs * element)))
    return eager, rows * (pairs * element + width * 4) + 2 * pairs * width * (4 + element)


def _memory(rows):
    """InfoNCE's peak: by the model, and measured where there are figures."""
    figure = Figure((6, 4))
    axes = figure.add_subplot()
    batches = [1 << n for n in range(10, 18)]
    for label, part, colour in (("eager", 0, COLOURS[1]), ("ours", 1, COLOURS[0])):
        modelled = [memory_model(pairs)[part] / 1e9 for pairs in batches]
        axes.plot(batches, modelled, color=colour, label=f"{label}, reckoned (bfloat16, E 768)")
        found = [
            (row["batch"], row["ways"][label]["peak_mb"] / 1e3)
            for row in rows
            if row["op"] == "info_nce" and row["ways"].get(label, {}).get("peak_mb")
        ]
        if found:
            axes.plot(*zip(*found, strict=True), "o", color=colour, label=f"{label}, measured")
    axes.set(xscale="log", yscale="log", xlabel="pairs", ylabel="GB at the peak")
    axes.legend(frameon=False)
    return figure


def accuracy(pairs=160, width=14):
    """Error of the image's gradient on a learned batch in bfloat16, as the temperature falls."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(pairs, width, generator=generator)
    y = x + 0.01 * torch.randn(pairs, width, generator=generator)
    x, y = (torch.nn.functional.normalize(t, dim=1).bfloat16() for t in (x, y))
    scales = [1, 2, 5, 10, 20, 30, 50, 70, 100]
    errors = {"eager": [], "ours": []}
    for scale in scales:
        exact = _gradient(_eager, x.double(), y.double(), scale)
        for label, way in {"eager": _eager, "ours": _ours}.items():
            gap = _gradient(way, x, y, scale).double() - exact
            errors[label].append(float(gap.norm() / exact.norm()))
    figure = Figure((6, 4))
    axes = figure.add_subplot()
    axes.plot(scales, errors["eager"], "o-", color=COLOURS[1], label="eager, as open_clip's loss")
    axes.plot(scales, errors["ours"], "o-", color=COLOURS[0], label="the diagonal kept apart")
    axes.set(yscale="log", xlabel="1 / temperature", ylabel="relative error of the gradient")
    axes.set_title("Pairs that are learned, bfloat16", fontsize=10)
    axes.legend(frameon=False)
    return figure


def centring(rows=64, width=64):
    """Error of dQ in bfloat16 as all logits move away from zero, since the keys share a part."""
    generator = torch.Generator().manual_seed(0)
    q, noise, v, do = (torch.randn(rows, width, generator=generator) for _ in range(4))
    common = torch.randn(width, generator=generator).sign() * width**-0.5
    q += (width**0.5 - q @ common)[:, None] * common
    shifts = [0, 3, 10, 20, 30, 60, 90, 120]
    errors = {}
    for shift in shifts:
        factors = [x.bfloat16() for x in (q, noise - shift * common, v, do)]
        exact = _query_gradients(*(x.double() for x in factors))["keys as they are"]
        for label, dq in (_query_gradients(*factors) | {"plain torch": _plain(*factors)}).items():
            gap = float((dq.double() - exact).norm() / exact.norm())
            errors.setdefault(label, []).append(gap)
    figure = Figure((6, 4))
    axes = figure.add_subplot()
    for colour, label in ((2, "plain torch"), (1, "keys as they are"), (0, "mean key taken out")):
        axes.plot([-s for s in shifts], errors[label], "o-", color=COLOURS[colour], label=label)
    axes.set(yscale="log", xlabel="where all logits are", ylabel="relative error of dQ")
    axes.set_title("Keys that share a large part, bfloat16", fontsize=10)
    axes.legend(frameon=False)
    return figure


def _query_gradients(q, k, v, do):
    """{label: dQ} as a fused backward has it, with float32 sums of factors of the inputs' type."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q_, k_, v_, do_ = (x.to(wide) for x in (q, k, v, do))
    scale = q.shape[-1] ** -0.5
    p = torch.softmax(q_ @ k_.T * scale, -1)
    delta = ((p @ v_).to(q.dtype).to(wide) * do_).sum(-1, keepdim=True)
    ds = (p * (do_ @ v_.T - delta) * scale).to(q.dtype).to(wide)
    plain = ds @ k_
    centred = plain - ds.sum(-1, keepdim=True) * k_.mean(0)
    return {"keys as they are": plain.to(q.dtype), "mean key taken out": centred.to(q.dtype)}


def _plain(q, k, v, do):
    leaf = q.detach().clone().requires_grad_()
    o = torch.softmax(leaf @ k.T * q.shape[-1] ** -0.5, -1) @ v
    return torch.autograd.grad(o, leaf, do)[0]


def _gradient(way, x, y, scale):
    x = x.detach().clone().requires_grad_()
    large = 1e8  # a learned batch leaves little; keep it in range
    return torch.autograd.grad(large * way(x, y, scale), x)[0]


def _eager(x, y, scale):
    logits, labels = scale * x @ y.T, torch.arange(len(x))
    entropy = torch.nn.functional.cross_entropy
    wide = torch.promote_types(logits.dtype, torch.float32)
    return (entropy(logits.to(wide), labels) + entropy(logits.T.to(wide), labels)) / 2


def _ours(x, y, scale):
    return info_nce(x, y, torch.tensor(float(scale)), fused=False)
