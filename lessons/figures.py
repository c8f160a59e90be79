"""The pages' figures: `python -m lessons.figures` draws them all again.

One function for each figure, named after its file: `page_04_mask` draws figures/04_mask.svg. It is
given empty axes. Grey lines on no ground can be read on light and dark pages alike.
"""

import io
import os
import re
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")

import matplotlib  # noqa: E402

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
        drawing.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(drawing)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def differ(one, other):
    """Whether two SVGs show something else: other words or shapes, or numbers beyond rounding."""
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return True
    a, b = (np.array(NUMBER.findall(text), float) for text in (one, other))
    return not np.allclose(a, b, rtol=1e-3, atol=0.02)


@figure(6.0, 2.2, columns=2)
def page_01_patches(left, right):
    """A picture in four patches, and the four tokens they become."""
    picture = np.add.outer(np.arange(6), np.arange(6)) / 10
    left.pcolormesh(picture, cmap="Blues", vmin=-0.3, vmax=1.4)
    patches = picture.reshape(2, 3, 2, 3).transpose(0, 2, 1, 3).reshape(4, 9)
    right.pcolormesh(patches, cmap="Blues", vmin=-0.3, vmax=1.4)
    for axes, title in ((left, "6 x 6 pixels"), (right, "4 tokens of 9 pixels")):
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.invert_yaxis()
    left.axhline(3, color=ORANGE)
    left.axvline(3, color=ORANGE)
    right.hlines([1, 2, 3], 0, 9, color=ORANGE)


@figure(6.0, 2.4)
def page_02_steps(axes):
    """The error of exp's derivative against the step."""
    h = 10.0 ** -np.arange(1, 16)
    exact = np.exp(1.0)
    difference = np.abs((np.exp(1 + h) - np.exp(1 - h)) / (2 * h) / exact - 1)
    complex_step = np.abs(np.exp(1 + 1j * h).imag / h / exact - 1)
    axes.loglog(h, difference, marker="o", markersize=3, label="difference")
    axes.loglog(h, np.maximum(complex_step, 1e-17), marker="s", markersize=3, label="complex step")
    axes.invert_xaxis()
    axes.set_xlabel("step h")
    axes.set_ylabel("relative error")
    axes.legend()


def main():
    """Draw every figure."""
    FOLDER.mkdir(exist_ok=True)
    for name in DRAWN:
        (FOLDER / name).write_text(draw(name))
        print(FOLDER / name)


if __name__ == "__main__":
    main()
