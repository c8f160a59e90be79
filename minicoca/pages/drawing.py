"""What a report draws: curves, parts of a whole and matrices as SVG, which takes the colours of the
page it stands in, and pictures as PNG inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 190, 44, 20, 8, 24
PARTS = 80  # of a curve of over twice as many points, each its mean, and its range faintly behind
MARKED = 20  # points, which are dots too
SIDE, HEAVY = 96, 8_000  # pixels of a picture; bytes above which it has 256 colours
HEAT, COOL = (217, 25, 25), (25, 77, 217)  # of a map: more, and less
FAINT = 0.1  # the least that is drawn in full colour


class Curve(NamedTuple):
    """Values [n] at places [n] along the horizontal axis, which rise; kind: 0, 1, ... chooses its
    colour."""

    name: str
    x: np.ndarray
    y: np.ndarray
    kind: int = 0


def chart(title: str, curves: Sequence[Curve], log: bool = False) -> str:
    """Curves in one frame, on the same scales; each has the class line0, line1, ... by its
    kind. The vertical axis is logarithmic if it may be: where all values are over 0."""
    log = log and all((curve.y > 0).all() for curve in curves)
    x_of = across(np.concatenate([curve.x for curve in curves]))
    values = np.concatenate([curve.y for curve in curves])
    y_of, marks = upward(values, log)
    drawn = [line(curve, x_of, y_of) for curve in curves]
    said = "; ".join(
        f"{curve.name}: {number(curve.y[0])} at step {curve.x[0]:,.0f}, {number(curve.y[-1])} at "
        f"step {curve.x[-1]:,.0f}, lowest {number(curve.y.min())}, highest {number(curve.y.max())}"
        for curve in curves
    )
    return framed(title, said, x_of, y_of, marks, drawn)


def areas(title: str, x: np.ndarray, parts: dict[str, np.ndarray], ends: Sequence[float]) -> str:
    """Parts of 1, [n] each, one upon the other, with the classes part0, part1, ... ends: the first
    and last place of the horizontal axis."""
    if len(x) > 2 * PARTS:
        groups = np.array_split(np.arange(len(x)), PARTS)
        x = np.array([x[g].mean() for g in groups])
        parts = {n: np.array([y[g].mean() for g in groups]) for n, y in parts.items()}
    x_of = across(np.array([*ends, *x]))
    y_of, marks = upward(np.array([0.0, 1.0]), False)
    below, drawn = np.zeros(len(x)), []
    for i, own in enumerate(parts.values()):
        top = below + own
        edge = [*zip(x, top, strict=True), *zip(x[::-1], below[::-1], strict=True)]
        drawn.append(f'<polygon class="part{i}" points="{points(edge, x_of, y_of)}"/>')
        below = top
    said = ", ".join(f"{name} {own.mean():.1%}" for name, own in parts.items())
    return framed(title, f"in the mean {said}", x_of, y_of, marks, drawn)


def across(x):
    """A function of values of the horizontal axis, with its ends."""
    return scale(float(x.min()), float(x.max()), LEFT, WIDTH - RIGHT)


def upward(y, log):
    """(a function of values of the vertical axis, the values that are marked there)."""
    low, high = float(y.min()), float(y.max())
    if log:
        low, high = low / 1.05, high * 1.05
        place = scale(math.log10(low), math.log10(high), HEIGHT - BOTTOM, TOP)
        return lambda v: place(np.log10(v)), decades(low, high)
    if high - low < 1e-9 * max(abs(low), abs(high)) or low == high:  # flat: from 0
        low, high = min(0.0, 2 * low), max(0.0, 2 * high) or float(low == 0)
    return scale(low, high, HEIGHT - BOTTOM, TOP), ticks(low, high)


def scale(low, high, start, end):
    def place(value):
        return start + (end - start) * (value - low) / ((high - low) or 1)

    place.ends = low, high
    return place


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most so many round numbers from `low` to `high`, and one more: 1, 2 or 5 times a power of
    ten apart."""
    rough = (high - low) / most
    if not rough > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, with 2 and 5 between where there are few of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(found) < 3:
        found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found[:: -(-len(found) // 6)] if len(found) > 1 else [low, high]


def line(curve, x_of, y_of):
    x, y, kind, band = curve.x, curve.y, f"line{curve.kind}", ""
    if len(x) > 2 * PARTS:
        groups = np.array_split(np.arange(len(x)), PARTS)
        x = np.array([curve.x[g].mean() for g in groups])
        y = np.array([curve.y[g].mean() for g in groups])
        low = [(at, curve.y[g].min()) for at, g in zip(x, groups, strict=True)]
        high = [(at, curve.y[g].max()) for at, g in zip(x, groups, strict=True)]
        band = f'<polygon class="band {kind}" points="{points([*high, *low[::-1]], x_of, y_of)}"/>'
    pairs = list(zip(x, y, strict=True))
    dots = "".join(
        f'<circle class="{kind}" cx="{x_of(a):.1f}" cy="{y_of(b):.1f}" r="2.5"/>' for a, b in pairs
    )
    drawn = f'<polyline class="{kind}" points="{points(pairs, x_of, y_of)}"/>'
    return band + drawn + (dots if len(pairs) <= MARKED else "")


def points(pairs, x_of, y_of):
    return " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in pairs)


def framed(title, said, x_of, y_of, marks, drawn):
    """A figure: the title, and an SVG with its axes, which says to those who cannot see it what it
    shows."""
    grid = "".join(
        f'<path class="grid" d="M{LEFT} {y_of(v):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 5}" y="{y_of(v) + 3.5:.1f}" text-anchor="end">{number(v)}</text>'
        for v in marks
    )
    steps = "".join(
        f'<text x="{x_of(v):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{v:,.0f}</text>'
        for v in ticks(*x_of.ends, 4)
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">'
        f"{grid}{steps}{''.join(drawn)}</svg></figure>"
    )


def number(value: float) -> str:
    """As short as it is clear."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def matrix(cosines: np.ndarray, texts: Sequence[str], pictures: Sequence[str], said: str) -> str:
    """Cosines [n, n] as cells, the stronger the larger; of a negative one the class is `less`. The
    texts are columns; a picture (a data URI) stands before each row."""
    n, cells = len(cosines), []
    for i, own in enumerate(cosines):
        for j, value in enumerate(own):
            kind = ' class="less"' if value < 0 else ""
            strength = min(1.0, abs(float(value)))
            cells.append(
                f'<rect{kind} x="{j + 1}" y="{i}" width="1" height="1" fill-opacity='
                f'"{strength:.2f}"><title>{i + 1}, {escape(texts[j])}: {value:.2f}</title></rect>'
            )
    shown = "".join(
        f'<image href="{uri}" x="0.04" y="{i + 0.04}" width="0.92" height="0.92"/>'
        for i, uri in enumerate(pictures)
    )
    return (
        f'<svg class="matrix" viewBox="0 0 {n + 1} {n}" role="img" aria-label="{escape(said)}">'
        f"{shown}{''.join(cells)}</svg>"
    )


def png(pixels: np.ndarray) -> str:
    """A data URI of pixels, uint8 [I, I, 3 or 4], at most SIDE of them a side."""
    image = Image.fromarray(pixels)
    if max(image.size) > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = encoded(image)
    if len(data) > HEAVY and image.mode == "RGB":
        data = encoded(image.quantize(256))
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def encoded(image):
    file = io.BytesIO()
    image.save(file, "png", optimize=True)
    return file.getvalue()


def faded(pixels: np.ndarray) -> np.ndarray:
    """A picture in light grey, for a map to lie upon."""
    grey = np.repeat(pixels.mean(-1, keepdims=True), 3, -1)
    return np.rint(255 * 0.35 + 0.65 * grey).astype(np.uint8)


def heat(grid: np.ndarray, full: float = 1e-9) -> np.ndarray:
    """Pixels [G, G, 4] of a map: red for what is over 0, blue for what is under it, as opaque as it
    is far from 0; the furthest, or `full` if that is further, most."""
    strength = np.abs(grid) / max(float(np.abs(grid).max()), full)
    colours = np.where(grid[..., None] >= 0, HEAT, COOL)
    return np.concatenate([colours, np.rint(191 * strength[..., None])], -1).astype(np.uint8)
