"""`minicoca plot`: the curves of one run or several, in one picture."""

from pathlib import Path

import numpy as np

from ..training.checkpoint import LOG, find_run
from ..training.log import Log
from .flags import Usage
from .results import check_picture, save_figure

HELP = "draw the curves of several runs in one picture"
PANELS = {  # of each: its name as logged (`flat`), and whether its axis is logarithmic
    "loss": ("loss", True),
    "contrastive loss": ("contrastive", True),
    "captioning loss": ("caption", True),
    "loss of answers": ("answer", True),
    "matching loss": ("matching", True),
    "loss of masked words": ("words", True),
    "balance of the router": ("balance", False),
    "gradient norm": ("gradient_norm", True),
    "learning rate": ("learning_rate", False),
    "temperature": ("temperature", False),
    "validation: loss": ("validation loss", True),
    "validation: captions exactly right": ("validation caption_exact", False),
    "validation: answers of the head": ("validation answer_head", False),
    "validation: answers written": ("validation answer_generation", False),
    "validation: image to text, R@1": ("validation image_to_text_r1", False),
    "validation: zero-shot accuracy": ("validation zero_shot_top1", False),
}
COLUMNS = 2
FEW = 20  # points, which are marked
PARTS = 60  # of a curve, each drawn as its mean over the faint whole
MOST = 20  # runs; more colours nobody can tell apart


def add_flags(parser):
    parser.add_argument("runs", nargs="+", help="run folders, or names in runs/; unfinished too")
    parser.add_argument("--out", type=Path, required=True, help="a new picture to write")
    parser.add_argument(
        "--by", choices=("step", "seconds"), default="step", help="what lies across (default step)"
    )


def run(arguments):
    if len(arguments.runs) > MOST:
        raise Usage(f"{len(arguments.runs)} runs: at most {MOST} can be told apart in a picture")
    check_picture("--out", arguments.out)
    logs = {}
    for name in arguments.runs:
        path = find_run(name) / LOG
        records = Log.read(path) if path.is_file() else []
        if not any("learning_rate" in record for record in records):
            raise ValueError(f"{name}: no run with steps in its {LOG}")
        logs[name] = [*map(flat, records)]
    panels, figure = drawn(logs, arguments.by)
    save_figure(arguments.out, figure)
    print(f"{len(logs)} run{'s' * (len(logs) > 1)}, {len(panels)} panels: {arguments.out}")


def flat(record):
    """A record of a log, with what it says of validation data under names of their own."""
    seen = record.get("validation", {})
    return record | {f"validation {name}": value for name, value in seen.items()}


def drawn(logs, by):
    """(titles of the panels that any run has something for, the figure)."""
    from matplotlib.figure import Figure

    times = {name: seconds_of(records) for name, records in logs.items()}
    panels = {
        title: (key, log)
        for title, (key, log) in PANELS.items()
        if any(key in record for records in logs.values() for record in records)
    }
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(6.2 * COLUMNS, 2.9 * rows + 0.3 * len(logs)), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for (title, (key, log)), axis in zip(panels.items(), axes, strict=False):
        for i, (name, records) in enumerate(logs.items()):
            points = [(r["step"], r[key]) for r in records if key in r]
            if points:
                x, y = np.array(points, float).T
                x = times[name](x) if by == "seconds" else x
                curve(axis, x, y, f"C{i % 10}", "--" if i >= 10 else "-", name)
        axis.set(title=title, xlabel=by, yscale="log" if log else "linear")
        axis.grid(alpha=0.3)
    for axis in list(axes):
        axis.set_axis_off()
    entries = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries, loc="outside lower left")
    return panels, figure


def seconds_of(records):
    """A function of steps: how long the run had taken then, by its log."""
    known = [(r["step"], r["seconds"]) for r in records if "seconds" in r]
    steps, seconds = np.array(known, float).T
    return lambda x: np.interp(x, steps, seconds)


def curve(axis, x, y, colour, style, name):
    """All values faintly, and over them the means of PARTS."""
    if len(x) < 2 * PARTS:
        marker = "o" if len(x) <= FEW else None
        axis.plot(x, y, color=colour, linestyle=style, marker=marker, label=name)
        return
    axis.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
    parts = np.array_split(np.arange(len(x)), PARTS)
    means = np.array([(x[part].mean(), y[part].mean()) for part in parts])
    axis.plot(*means.T, color=colour, linestyle=style, label=name)
