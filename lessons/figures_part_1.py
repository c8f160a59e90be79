"""Figures of pages 01 to 10."""

import dataclasses

import matplotlib
import numpy as np

from minicoca.config import preset
from minicoca.params import flatten, initialise, tree_map
from minicoca.reference.attention import (
    causal_mask,
    mlp_layer,
    mlp_layer_backward,
    self_attention_layer,
    self_attention_layer_backward,
    text_mask,
)
from minicoca.reference.losses import caption_loss, caption_loss_backward
from minicoca.reference.model import coca, coca_backward
from minicoca.reference.ops import gelu, layer_norm, softmax

from .drawing import BLUE, GREEN, GREY, ORANGE, arrow, box, canvas, figure


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


def up_and_down(straight):
    """Of 24 blocks: the tokens' mean cosine, and the part of a gradient that is a token's own."""
    blocks = initialise(preset("tiny", image_layers=24), dtype=np.float64)["image"]["blocks"]
    rng = np.random.default_rng(1)
    x, alike, own, caches = rng.standard_normal((1, 16, 64)), [], [], []
    for b in (blocks[str(i)] for i in range(24)):
        y, first = self_attention_layer(x, b["norm_attention"], b["attention"], 4)
        x = y if straight else y - x
        y, second = mlp_layer(x, b["norm_mlp"], b["mlp"], "tanh")
        x = y if straight else y - x
        unit = x[0] / np.linalg.norm(x[0], axis=-1, keepdims=True)
        alike.append((unit @ unit.T)[~np.eye(16, dtype=bool)].mean())
        caches.append((first, second))
    d = rng.standard_normal(x.shape)
    for first, second in caches[::-1]:
        for backward, cache in (
            (mlp_layer_backward, second),
            (self_attention_layer_backward, first),
        ):
            dx = backward(d, cache)[0]
            d = dx if straight else dx - d
        own.append(np.linalg.norm(d - d.mean(1, keepdims=True)) / np.linalg.norm(d))
    return alike, own[::-1]


@figure(7.5, 2.6, columns=2)
def page_05_alike(left, right):
    """How alike tokens become, with and without the straight path; what a gradient says of one."""
    for straight, label in ((True, "with the straight path"), (False, "without")):
        for axes, found in zip((left, right), up_and_down(straight), strict=True):
            axes.plot(range(1, 25), found, marker="o", markersize=3, label=label)
    left.set(xlabel="block", title="mean cosine of tokens", ylim=(-0.05, 1.05))
    right.set(xlabel="block", title="a token's own part of the gradient", ylim=(-0.05, 1.05))
    left.legend(loc="center right")


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
        for x, name in ((1.4, "memory"), (4.6, "contrast")):
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


@figure(6.0, 2.8)
def page_10_learning(axes):
    """The length of each loss's gradient, untrained, in the parts of the tree."""
    config = preset("tiny", vocabulary=32, text_length=8)
    params = tree_map(lambda p: p.astype(float), initialise(config))
    rng = np.random.default_rng(0)
    images, tokens = rng.standard_normal((16, 32, 32, 3)), rng.integers(4, 32, (16, 8))
    parts = ["image", "text.token", "text.blocks", "decoder.blocks", "decoder.head"]
    parts += ["pooler.contrast", "text.cls", "log_temperature"]
    for place, name in enumerate(("caption", "contrastive")):
        weights = {"caption_weight": 0.0, "contrastive_weight": 0.0, f"{name}_weight": 1.0}
        _, cache = coca(params, dataclasses.replace(config, **weights), images, tokens)
        flat = flatten(coca_backward(1.0, cache)[0])
        sums = [sum((g * g).sum() for n, g in flat.items() if n.startswith(p)) for p in parts]
        axes.barh(np.arange(8) + 0.4 * place, np.sqrt(sums), 0.4, label=f"{name} loss")
    axes.set(yticks=np.arange(8) + 0.2, yticklabels=parts, xlabel="length of the gradient")
    axes.invert_yaxis()
    axes.legend()
