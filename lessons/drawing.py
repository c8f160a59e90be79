"""What every figure of the lessons is drawn with: a style for light and dark pages, SVG as text.

One function for each figure, named after its file: `page_04_mask` draws figures/04_mask.svg. It is
given empty axes. Grey lines on no ground can be read on light and dark pages alike.
"""

import io
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

FOLDER = Path(__file__).parent / "figures"
GREY, BLUE, ORANGE, GREEN = "#8a8f98", "#3987e5", "#e0752d", "#2a9d6f"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "minicoca",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, GREY]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    **{f"{part}.color": GREY for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}color": GREY for part in ("edge", "label")},
    "axes.titlecolor": GREY,
}
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
IDENTITY = re.compile(r'(?<=[#"])[a-z]+[0-9a-f]{10}(?=[)"])')
CREATOR = f"matplotlib {matplotlib.__version__}"  # another one puts ticks elsewhere
DRAWN = {}


def figure(width=6.0, height=2.4, columns=1):
    """Register a function that draws on `columns` axes, width x height inches in all."""

    def register(function):
        _, number, name = function.__name__.split("_", 2)
        DRAWN[f"{number}_{name}.svg"] = (function, (width, height), columns)
        return function

    return register


def draw(name):
    """The SVG of a figure, as text."""
    function, size, columns = DRAWN[name]
    with plt.rc_context(STYLE):
        drawing, axes = plt.subplots(1, columns, figsize=size, squeeze=False, layout="constrained")
        function(*axes[0])
        file = io.StringIO()
        drawing.savefig(file, format="svg", metadata={"Date": None, "Creator": CREATOR})
        plt.close(drawing)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def differ(one, other):
    """Whether two SVGs show something else: other words or shapes, or numbers beyond rounding."""
    one, other = IDENTITY.sub("", one), IDENTITY.sub("", other)
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return True
    a, b = (np.array(NUMBER.findall(text), float) for text in (one, other))
    return not np.allclose(a, b, rtol=1e-3, atol=1)


def box(axes, x, y, text, width=2.0, color=GREY):
    """A labelled box with its middle at (x, y)."""
    edge = (x - width / 2, y - 0.35)
    axes.add_patch(plt.Rectangle(edge, width, 0.7, fill=False, edgecolor=color))
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def arrow(axes, start, end, color=GREY):
    """An arrow between two points."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color})


def canvas(axes, width, height):
    """Axes to draw boxes on, without ticks and lines."""
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
