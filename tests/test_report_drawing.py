"""What a report draws is where its numbers are: curves, parts, maps, matrices, pictures."""

import base64
import io
import re

import numpy as np
import pytest
from oracles import planted
from PIL import Image
from test_page_files import contrast
from test_report import evil_looks

from minicoca.pages import drawing, split
from minicoca.pages import report as page
from minicoca.pages.page import source
from minicoca.pages.report import Told


def records(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"step": 10 * i, "learning_rate": 0.1, "caption": float(y)}
        for i, y in enumerate(rng.uniform(0.01, 5, count), 1)
    ]


def points_of(svg, kind):
    (found,) = re.findall(rf'<polyline class="{kind}" points="(.*?)"', svg)
    return np.array([pair.split(",") for pair in found.split()], float)


def check_curves():
    """A curve's points are where the axes say: two runs on the same scales, in the frame."""
    for count in (3, 50, 10 * drawing.PARTS):
        told = [
            Told(name, {"data": "shapes"}, {}, records(count, seed), {}, [])
            for seed, name in enumerate("ab")
        ]
        html = page.curves(told, {"captioning loss": ("caption", True)})
        logs = [[(r["step"], r["caption"]) for r in one.records] for one in told]
        low, high = (f([y for log in logs for _, y in log]) for f in (min, max))
        top, bottom = drawing.TOP, drawing.HEIGHT - drawing.BOTTOM
        for kind, log in enumerate(logs):
            found = points_of(html, f"line{kind}")
            x, y = np.array(log).T
            if count > 2 * drawing.PARTS:
                groups = np.array_split(np.arange(count), drawing.PARTS)
                x, y = (np.array([v[g].mean() for g in groups]) for v in (x, y))
            assert len(found) == len(x)
            part = (np.log(y) - np.log(low / 1.05)) / np.log(high / low * 1.05**2)
            np.testing.assert_allclose(found[:, 1], bottom + part * (top - bottom), atol=0.06)
            across = drawing.WIDTH - drawing.RIGHT - drawing.LEFT
            part = (x - 10) / (10 * count - 10)
            np.testing.assert_allclose(found[:, 0], drawing.LEFT + part * across, atol=0.06)


def test_curves_are_where_the_axes_say():
    check_curves()


@pytest.mark.parametrize("low, high", [(0, 1), (-3, 1e6), (0.2, 0.21), (1e-5, 2e-5), (5, 5)])
def test_marks_are_few_round_and_inside(low, high):
    marks = drawing.ticks(low, high)
    assert 1 <= len(marks) <= 7 and all(low - 1e-9 <= m <= high * (1 + 1e-9) for m in marks)
    if low > 0:
        marks = drawing.decades(low, high)
        assert 1 <= len(marks) <= 6 and all(low <= m <= high for m in marks)


def test_values_that_are_none_and_curves_without_width():
    told = Told("a", {"data": "x"}, {}, [
        {"step": 10, "caption": float("nan"), "loss": 1.0, "temperature": 0.07},
        {"step": 20, "caption": 0.0, "temperature": 0.07},
    ], {}, [])  # fmt: skip
    html = page.curves([told], {"c": ("caption", True), "t": ("temperature", False)})
    assert len(points_of(html.split("</figure>")[0], "line0")) == 1 and "nan" not in html


def check_gradients():
    """Areas that lie upon each other, and means by thirds."""
    parts = [(0.5, 0.25, 0.25), (0.1, 0.2, 0.7), (0.0, 1.0, 0.0)]
    rows = [
        {"step": 10 * i, "gradient_shares": dict(zip("pqr", own, strict=True))}
        for i, own in enumerate(parts, 1)
    ]
    html = page.gradients([Told("a", {}, {}, rows, {}, [])])
    top, bottom = drawing.TOP, drawing.HEIGHT - drawing.BOTTOM
    below = np.zeros(3)
    for i, own in enumerate(np.array(parts).T):
        (found,) = re.findall(rf'<polygon class="part{i}" points="(.*?)"', html)
        y = np.array([pair.split(",")[1] for pair in found.split()], float)
        part = (bottom - y) / (bottom - top)
        np.testing.assert_allclose(part[:3], below + own, atol=1e-3)
        np.testing.assert_allclose(part[3:][::-1], below, atol=1e-3)
        below = below + own
    cells = re.findall(r"<td>(.*?)</td>", html)
    assert cells == [f"{x:.1%}" for own in np.array(parts).T for x in own]


def test_parts_of_the_gradient_fill_the_frame():
    check_gradients()


def opened(uri):
    data = base64.b64decode(uri.partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def check_maps():
    """A map's pixel is red where a word is likelier for the patch, blue where it is less."""
    html = split.words(evil_looks())
    maps = [opened(uri) for uri in re.findall(r'class="map"><img src="(.*?)"', html)]
    assert len(maps) == 2
    for found in maps:
        assert found.shape == (2, 2, 4)
        assert (found[0, 0, :3] == drawing.HEAT).all() and (found[0, 1, :3] == drawing.COOL).all()
        assert found[..., 3].tolist() == [[191, 96], [0, 96]]
    assert "read most: row 1, column 1" in html


def test_pictures_are_those_that_were_looked_at():
    check_maps()
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert (opened(drawing.png(small))[..., :3] == small).all()
    large = rng.integers(0, 256, (224, 224, 3)).astype(np.uint8)
    made = drawing.png(large)
    assert opened(made).shape == (96, 96, 4) and len(made) < 16_000


@pytest.mark.parametrize("ground", ["#ffffff", "#1d1f28"], ids=["light", "dark"])
def test_parts_can_be_told_from_the_ground(ground):
    """WCAG 2.2 AA: 3 to 1 for what a drawing says."""
    assert ground in source("colours.css")
    colours = re.findall(r"--part: (#[0-9a-f]{6})", source("report.css"))
    assert len(colours) == 5 and min(contrast(colour, ground) for colour in colours) >= 3


def test_the_matrix_has_a_cell_for_each_pair():
    html = split.similarity(evil_looks())
    cells = re.findall(r'<rect( class="less")? x="(\d)" y="(\d)" .*?fill-opacity="(.*?)"', html)
    assert [(bool(less), x, y, p) for less, x, y, p in cells] == [
        (False, "1", "0", "0.90"), (True, "2", "0", "0.50"),
        (False, "1", "1", "0.10"), (False, "2", "1", "0.30"),
    ]  # fmt: skip
    assert "Of 2 of 2 pictures their own text is the nearest" in html
    assert "0.60 with their own and -0.20 with other texts" in html


BUGS = [
    (drawing, "low, high = low / 1.05, high * 1.05", "low, high = low, high * 1.05", check_curves),
    (drawing, "np.concatenate([curve.x for curve in curves])", "curves[0].x[1:]", check_curves),
    (drawing, "below = top\n", "below = own\n", check_gradients),
    (drawing, "np.where(grid[..., None] >= 0, HEAT", "np.where(grid[..., None] < 0, HEAT",
     check_maps),
]  # fmt: skip


@pytest.mark.parametrize("module, old, new, check", BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_seen(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()


def test_what_is_wrong_and_how_fast_it_was():
    """The last that stood, and medians of what was logged; nothing where nothing was."""
    rows = [
        {"step": 10 * i, "throughput": {"images_per_second": float(i), "data_ms": 2.0 * i}}
        for i in (1, 2, 9)
    ]
    rows += [{"step": 10, "advice": {"a": "old"}}, {"step": 20, "advice": {"b": "x < y"}}]
    told = [Told("one", {}, {}, rows, {}, []), Told("two", {}, {}, [], {}, [])]
    wrong, fast = page.advice(told), page.throughput(told)
    assert "x &lt; y" in wrong and "old" not in wrong and "two" not in wrong
    assert "<code>2</code></td><td>-" in fast and "<code>4</code></td><td>-" in fast
    assert page.advice(told[1:]) == page.throughput(told[1:]) == ""
