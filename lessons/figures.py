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
import torch  # noqa: E402

from minicoca.config import preset  # noqa: E402
from minicoca.kernels.bench.pictures import memory_model  # noqa: E402
from minicoca.params import initialise  # noqa: E402
from minicoca.reference.attention import (  # noqa: E402
    causal_mask,
    mlp_layer,
    self_attention_layer,
    text_mask,
)
from minicoca.reference.losses import caption_loss, caption_loss_backward  # noqa: E402
from minicoca.reference.ops import gelu, layer_norm, softmax  # noqa: E402
from minicoca.reference.optim import learning_rate  # noqa: E402

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


@figure(6.5, 2.4)
def page_03_routes(axes):
    """Layer norm's gradient for one row: the three routes and their sum."""
    rng = np.random.default_rng(2)
    x, dxhat = rng.standard_normal((2, 1, 6))
    xhat = layer_norm(x, {"scale": np.ones(6), "bias": np.zeros(6)})[0][0]
    through_mean = np.full(6, -dxhat[0].mean())
    through_spread = -xhat * (dxhat[0] * xhat).mean()
    parts = {"direct": dxhat[0], "- mean": through_mean, "- spread": through_spread}
    parts["sum = dx / r"] = sum(parts.values())
    for i, heights in enumerate(parts.values()):
        axes.bar(np.arange(6) + 8 * i, heights, color=(GREY, ORANGE, GREEN, BLUE)[i])
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks([2.5, 10.5, 18.5, 26.5], parts)
    axes.set_ylabel("gradient")


@figure(6.0, 2.4)
def page_03_gelu(axes):
    """GELU and its slope."""
    x = np.linspace(-4, 4, 161)
    y, (slope,) = gelu(x, "tanh")
    axes.plot(x, y, label="GELU")
    axes.plot(x, slope, label="its slope")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_ylim(-0.4, 2.2)
    axes.set_xlabel("x")
    axes.legend()


@figure(7.0, 2.6, columns=2)
def page_04_attention(left, right):
    """Weights under the causal mask; how many keys share the weight, by head size."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 6, 4)) * 1.5
    scores = np.where(causal_mask(6), q @ k.T / 2, -np.inf)
    p = np.ma.masked_where(~causal_mask(6), softmax(scores)[0])
    left.pcolormesh(p, cmap="Blues", vmin=-0.3, vmax=1.2, edgecolors=GREY, linewidth=0.5)
    left.set(xlabel="key", ylabel="query", title="weights, causal mask")
    left.set_xticks(np.arange(6) + 0.5, range(6))
    left.set_yticks(np.arange(6) + 0.5, range(6))
    left.invert_yaxis()
    left.set_aspect("equal")
    sizes = 4 ** np.arange(1, 6)
    for power, label in ((-0.5, "q . k / sqrt(K)"), (0, "q . k")):
        qk = [rng.standard_normal((2, 64, K)) for K in sizes]
        rows = [softmax(q @ k.T * K**power)[0] for K, (q, k) in zip(sizes, qk, strict=True)]
        keys = [np.exp(-(p * np.log(p + 1e-300)).sum(-1)).mean() for p in rows]
        right.semilogx(sizes, keys, marker="o", markersize=3, label=label)
    right.set(xlabel="K", title="keys that share the weight, of 64", ylim=(0, 64))
    right.set_xticks(sizes, sizes)
    right.minorticks_off()
    right.legend()


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


@figure(7.0, 2.0)
def page_05_block(axes):
    """The residual stream and the two halves of a block."""
    canvas(axes, 16, 3)
    arrow(axes, (0.4, 0.6), (15.6, 0.6), BLUE)
    axes.text(0.3, 0.8, "x", ha="center")
    axes.text(7.9, 0.8, "y", ha="center")
    axes.text(15.6, 0.8, "z", ha="center")
    for start, name in ((1.0, "attention"), (8.6, "MLP")):
        arrow(axes, (start, 0.6), (start, 1.9), ORANGE)
        box(axes, start + 0.9, 2.2, "norm", 1.8, ORANGE)
        arrow(axes, (start + 1.8, 2.2), (start + 2.8, 2.2), ORANGE)
        box(axes, start + 4.1, 2.2, name, 2.6, ORANGE)
        arrow(axes, (start + 5.2, 1.85), (start + 5.2, 0.75), ORANGE)
        axes.text(start + 5.2, 0.6, "+", ha="center", va="center", fontsize=14, color=ORANGE)


@figure(6.0, 2.4)
def page_05_alike(axes):
    """How alike 16 tokens are after each of 24 blocks, with and without the straight path."""
    blocks = initialise(preset("tiny", image_layers=24), dtype=np.float64)["image"]["blocks"]
    for straight, label in ((True, "with the straight path"), (False, "without")):
        x, found = np.random.default_rng(1).standard_normal((1, 16, 64)), []
        for i in range(24):
            b = blocks[str(i)]
            y = self_attention_layer(x, b["norm_attention"], b["attention"], 4)[0]
            x = y if straight else y - x
            y = mlp_layer(x, b["norm_mlp"], b["mlp"], "tanh")[0]
            x = y if straight else y - x
            unit = x[0] / np.linalg.norm(x[0], axis=-1, keepdims=True)
            found.append((unit @ unit.T)[~np.eye(16, dtype=bool)].mean())
        axes.plot(range(1, 25), found, marker="o", markersize=3, label=label)
    axes.set(xlabel="block", ylabel="mean cosine of tokens", ylim=(-0.05, 1.05))
    axes.legend(loc="center right")


@figure(7.5, 2.4, columns=4)
def page_06_wiring(*columns):
    """Which pooler reads what, in the four modes."""
    low_left, low_right = ((2.4, 0.95), (1.4, 1.75)), ((3.6, 0.95), (4.6, 1.75))
    high_left, high_right = ((1.4, 2.45), (1.4, 3.4)), ((4.6, 2.45), (4.6, 3.4))
    paths = {
        "cascade": (low_left, high_left, ((2.65, 2.1), (3.25, 2.1)), high_right),
        "parallel": (low_left, low_right, high_left, high_right),
        "shared": (((3, 0.95), (3, 1.75)), high_left, high_right),
        "none": (((1.4, 0.95), (1.4, 3.4)), low_right, high_right),
    }
    wide, both = ((3, "one pooler", 5.6),), ((1.4, "caption", 2.5), (4.6, "contrast", 2.7))
    for axes, (mode, arrows) in zip(columns, paths.items(), strict=True):
        canvas(axes, 6, 4.3)
        axes.set_title(mode)
        for x, name, width in {"shared": wide, "none": both[1:]}.get(mode, both):
            box(axes, x, 2.1, name, width, ORANGE)
        box(axes, 3, 0.6, "image tokens", 5.6)
        for x, name in ((1.4, "memory"), (4.6, "vector")):
            axes.text(x, 3.7, name, ha="center", va="center", fontsize=9)
        for start, end in arrows:
            arrow(axes, start, end, BLUE)


@figure(7.0, 3.2, columns=2)
def page_07_masks(left, right):
    """Who sees whom in a row of four tokens, two pads and CLS: open_clip's mask, and ours."""
    words = ["start", "a", "ring", "end", "pad", "pad", "CLS"]
    for axes, legacy, title in ((left, True, "shifted by one"), (right, False, "right")):
        mask = text_mask(np.array([4]), 6, legacy)[0].astype(float)
        mask[-1] *= 2
        seen = np.ma.masked_equal(mask, 0)
        colours = matplotlib.colors.ListedColormap([BLUE, ORANGE])
        axes.pcolormesh(seen, cmap=colours, edgecolors=GREY, linewidth=0.5)
        axes.set_title(title)
        axes.set_xticks(np.arange(7) + 0.5, words, size=9)
        axes.set_yticks(np.arange(7) + 0.5, words, size=9)
        axes.set_xlabel("sees")
        axes.invert_yaxis()
    right.set_yticks([])


@figure(6.0, 2.8)
def page_08_gradient(axes):
    """The captioning loss's gradient by the logits of a caption of six words and two pads."""
    rng = np.random.default_rng(1)
    targets = np.array([[4, 9, 6, 11, 7, 2, 0, 0]])
    _, cache = caption_loss(rng.standard_normal((1, 8, 12)), targets)
    shown = np.ma.masked_equal(6 * caption_loss_backward(1.0, cache)[0], 0)
    axes.pcolormesh(shown, cmap="RdBu_r", vmin=-1, vmax=1, edgecolors=GREY, linewidth=0.5)
    axes.set_title("gradient: blue pushes up, red pushes down", size=10)
    axes.set_yticks(np.arange(8) + 0.5, [f"target {t or 'pad'}" for t in targets[0]], size=9)
    axes.set_xticks(np.arange(12) + 0.5, range(12))
    axes.set_xlabel("the logit of word")
    axes.invert_yaxis()


@figure(7.0, 2.8, columns=2)
def page_15_memory(left, right):
    """Bytes against pairs; the error of a learned batch's gradient as the scale grows."""
    pairs = 2 ** np.arange(10, 18)
    reckoned = np.array([memory_model(int(n)) for n in pairs]) / 1e9
    for part, label in ((0, "eager"), (1, "in chunks")):
        left.loglog(pairs, reckoned[:, part], marker="o", markersize=3, label=label)
    left.set(xlabel="pairs", ylabel="GB, reckoned", title="beyond the embeddings, width 768")
    rng, scales = np.random.default_rng(0), np.linspace(10, 100, 19)
    pairs = learned_pairs(rng, 160, 14)
    x, y = (in_bfloat16(v / np.linalg.norm(v, axis=1)[:, None]) for v in pairs)
    found = np.array([gradient_errors(x, y, scale) for scale in scales])
    right.semilogy(scales, found[:, 0], label="logits in bfloat16")
    right.semilogy(scales, found[:, 1], label="diagonal apart")
    right.set(xlabel="scale", title="error of a learned batch's gradient")
    for axes in (left, right):
        axes.legend(fontsize=9)


def learned_pairs(rng, B, E):
    """Two sides that differ by a little noise."""
    x = rng.standard_normal((B, E))
    return x, x + 0.01 * rng.standard_normal((B, E))


def in_bfloat16(x):
    """The nearest numbers that bfloat16 has."""
    return torch.tensor(x).bfloat16().double().numpy()


def gradient_errors(x, y, scale):
    """Relative errors of the images' gradient: logits in bfloat16; G so, the diagonal apart."""
    s, eye = scale * x @ y.T, np.eye(len(x))

    def probabilities(s):
        return sum(np.exp(s - np.logaddexp.reduce(s, axis, keepdims=True)) for axis in (0, 1))

    exact, own = (probabilities(s) - 2 * eye) @ y, np.diagonal(probabilities(s))[:, None] - 2
    eager = in_bfloat16(in_bfloat16(scale * x) @ y.T)
    rounded = in_bfloat16(probabilities(eager) - 2 * eye) @ y
    apart = in_bfloat16(probabilities(s) * (1 - eye)) @ y + own * y
    return [np.linalg.norm(d - exact) / np.linalg.norm(exact) for d in (rounded, apart)]


@figure(7.0, 2.8, columns=2)
def page_16_chunks(left, right):
    """Bytes of logits against tokens; the error of dW's sum over chunks."""
    tokens, V, D = np.array([256, 1024, 4864, 9728, 19456]), 64_000, 768
    left.plot(tokens, 2 * 4 * tokens * V / 1e9, marker="o", label="logits and their gradient")
    left.plot(tokens, np.full(5, 4 * (256 * V + D * V) / 1e9), marker="s", label="a chunk, and dW")
    left.set(xlabel="tokens", ylabel="GB, float32", title="64,000 words, width 768")
    rng, counts = np.random.default_rng(0), np.arange(1, 201)
    parts = (1 + rng.standard_normal((200, 300))).astype(np.float32)
    exact = parts.astype(float).cumsum(0)
    bf16, wide = torch.zeros(300, dtype=torch.bfloat16), parts.cumsum(0)
    narrow = np.stack([bf16.add_(torch.tensor(p)).double().numpy() for p in parts])
    for total, label in ((narrow, "summed in bfloat16"), (wide, "summed in float32")):
        gap = np.linalg.norm(total - exact, axis=1) / np.linalg.norm(exact, axis=1)
        right.semilogy(counts[1:], np.maximum(gap[1:], 1e-9), label=label)
    right.set(xlabel="chunks added", title="error of the sum")
    for axes in (left, right):
        axes.legend(fontsize=9)


@figure(7.0, 2.8, columns=2)
def page_17_gates(left, right):
    """Cutting bits off against rounding; one wrong row seen by two norms."""
    x = np.linspace(1, 1 + 4 / 128, 600, dtype=np.float32)
    cut = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    for y, label in ((cut, "cut off"), (in_bfloat16(x), "nearest")):
        left.plot(x, y, drawstyle="steps-post", label=label)
    left.plot(x, x, color=GREY, linewidth=0.8, label="exact")
    left.set(xlabel="float32", ylabel="bfloat16", title="float32 to bfloat16")
    rows = 2 ** np.arange(0, 17)
    right.loglog(rows, 0.1 / np.sqrt(rows), marker="o", markersize=3, label="whole tensor")
    right.loglog(rows, np.full(len(rows), 0.1), marker="s", markersize=3, label="worst row")
    right.axhline(5e-3, color=GREY, linestyle="--", label="gate of bfloat16")
    right.set(xlabel="rows, one of them 10 % off", title="relative error")
    for axes in (left, right):
        axes.legend(fontsize=9)


@figure(7.0, 2.8, columns=2)
def page_18_rates(left, right):
    """The learning rate over a run; a weight of 1 to which 0.001 is added a thousand times."""
    steps = np.arange(3100)
    for schedule in ("cosine", "linear"):
        config = preset("tiny", schedule=schedule)
        rates = [learning_rate(int(step), config) for step in steps]
        left.plot(steps[::20], rates[::20], label=schedule)
    left.set(xlabel="step", ylabel="learning rate", title="100 steps up, then down")
    for dtype, label in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        weight, path = torch.ones(1, dtype=dtype), []
        for _ in range(1000):
            weight += 0.001
            path.append(float(weight))
        right.plot(range(1, 1001, 10), path[::10], label=label)
    right.set(xlabel="updates", ylabel="weight", title="1 + 0.001 + 0.001 + ...")
    for axes in (left, right):
        axes.legend(fontsize=9)


@figure(6.0, 2.8)
def page_09_floor(axes):
    """The lowest contrastive loss of unit vectors against the temperature."""
    sigma = np.geomspace(0.02, 2, 200)
    for size, colour in ((65536, GREEN), (256, ORANGE), (16, BLUE)):
        lowest = np.log1p((size - 1) * np.exp(-size / (size - 1) / sigma))
        axes.semilogx(sigma, lowest, color=colour, label=f"B = {size:,}")
        axes.axhline(np.log(size), color=colour, linestyle=":", linewidth=1)
    axes.axvline(0.07, color=GREY, linewidth=1)
    axes.text(0.072, 9, "0.07")
    axes.set_xticks([0.02, 0.1, 0.3, 1, 2], ["0.02", "0.1", "0.3", "1", "2"])
    axes.minorticks_off()
    axes.set_xlabel("temperature")
    axes.set_ylabel("lowest loss")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.98), title="(dotted: ln B)")


@figure(7.0, 3.0)
def page_11_roofline(axes):
    """The best rate that memory and arithmetic of an H100 allow, at CoCa's intensities."""
    peak, bandwidth = 989.0, 3.35  # Tflop/s and TB/s of the data sheet
    x = np.logspace(0, 3.5, 100)
    axes.loglog(x, np.minimum(peak, bandwidth * x), color=GREY)
    R, D, F, T, K = 256 * 257, 768, 3072, 257, 64
    points = {
        "layer norm": 2.0,
        "attention in parts, 257 tokens": T * K / (2 * (T + K)),
        "fused, 257": T / 2,
        "fused, 1024": 512.0,
        "MLP": R * D * F / (R * D + D * F + R * F),
    }
    for number, (label, at) in enumerate(points.items()):
        rate, colour = min(peak, bandwidth * at), BLUE if bandwidth * at < peak else ORANGE
        axes.plot(at, rate, marker="o", linestyle="none", color=colour)
        place = (6, -12) if number != 3 else (-30, 8)  # two names on the roof must not meet
        axes.annotate(label, (at, rate), place, textcoords="offset points", fontsize=9)
    axes.set(xlabel="operations a byte", ylabel="Tflop/s at most", ylim=(2, 4000))


@figure(7.0, 2.8, columns=2)
def page_12_online(left, right):
    """A row's running peak over tiles of keys; what is kept for the backward."""
    scores = np.random.default_rng(37).standard_normal(64) * 2
    left.plot(scores, marker=".", linestyle="none", label="score")
    left.plot(np.maximum.accumulate(scores.reshape(4, 16).max(1)).repeat(16), label="peak so far")
    left.vlines([15.5, 31.5, 47.5], -5, 7, color=GREY, linewidth=0.8, linestyle="--")
    left.set(xlabel="key, in tiles of 16", title="one query", ylim=(-5.5, 9))
    T, B, H, K = 2.0 ** np.arange(5, 11), 256, 12, 64
    right.loglog(T, 2 * B * H * T * T / 1e6, marker="s", markersize=3, label="P")
    right.loglog(T, B * H * T * (2 * K + 4) / 1e6, marker="o", markersize=3, label="o and LSE")
    right.set(xlabel="tokens", ylabel="MB", title="kept by one layer")
    for axes in (left, right):
        axes.legend(fontsize=9, ncols=2 if axes is left else 1, loc="upper left")


@figure(7.0, 2.8, columns=2)
def page_13_owners(left, right):
    """Whose sum runs along which side of the scores; one sum in 300 orders."""
    parts = ((..., GREY, 0.15), ((1, ...), BLUE, 0.45), ((..., 2), ORANGE, 0.45))
    for place, colour, alpha in parts:
        tiles = np.full((4, 4), np.nan)
        tiles[place] = 1
        left.pcolormesh(tiles, cmap=matplotlib.colors.ListedColormap([colour]), alpha=alpha)
    for label, colour in (("sum of dq", BLUE), ("sums of dk, dv", ORANGE)):
        left.plot([], [], marker="s", linestyle="none", color=colour, label=label)
    left.legend(ncols=2, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1))
    left.set(xlabel="tiles of keys", ylabel="tiles of queries", xticks=range(5), yticks=range(5))
    left.invert_yaxis()
    rng = np.random.default_rng(0)
    parts = rng.standard_normal(1000).astype(np.float32)
    sums = [np.cumsum(rng.permutation(parts))[-1] for _ in range(300)]
    right.plot((np.array(sums, float) - parts.astype(float).sum()) * 1e6, ".", markersize=3)
    right.set(xlabel="order", ylabel="error, millionths", title="the same 1,000 numbers, added")


@figure(7.0, 2.8, columns=2)
def page_14_absorbed(left, right):
    """Operations of a pooler against its queries; what it keeps for the backward."""
    N, M, D, H = 256, 768, 768, 12
    Q = 2.0 ** np.arange(0, 9)
    costs = {"keys and values": 4 * N * M * D + 4 * Q * N * D}
    costs["absorbed"] = 4 * Q * H * N * M + 2 * Q * M * D
    for (label, cost), marker in zip(costs.items(), "so", strict=True):
        left.loglog(Q, cost / 1e6, marker=marker, markersize=3, label=label)
    left.set(xlabel="queries", ylabel="million operations", title="for each image")
    left.legend(fontsize=9)
    kept = {"keys,\nvalues": 2 * N * D, "s, p, m,\nmean, std": 2 * H * N + H * M + 2 * N}
    right.bar(list(kept), [count / 1e3 for count in kept.values()], color=[BLUE, ORANGE], width=0.5)
    right.set(ylabel="thousand numbers", title="kept by one query")


def main():
    """Draw every figure."""
    FOLDER.mkdir(exist_ok=True)
    for name in DRAWN:
        (FOLDER / name).write_text(draw(name))
        print(FOLDER / name)


if __name__ == "__main__":
    main()
