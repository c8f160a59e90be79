"""Figures of pages 11 to 18."""

import matplotlib
import numpy as np
import torch

from minicoca.config import preset
from minicoca.kernels.bench.pictures import memory_model
from minicoca.kernels.info_nce import info_nce
from minicoca.reference.losses import contrastive_loss, contrastive_loss_backward
from minicoca.reference.optim import learning_rate

from .drawing import BLUE, GREY, ORANGE, canvas, figure


def in_bfloat16(x):
    """The nearest numbers that bfloat16 has."""
    return torch.tensor(x).bfloat16().double().numpy()


def learned_batch(seed):
    """160 pairs of unit vectors in 14 dimensions, text near image, in bfloat16."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((160, 14))
    pairs = x, x + 0.01 * rng.standard_normal((160, 14))
    return [torch.tensor(v / np.linalg.norm(v, axis=1)[:, None]).bfloat16() for v in pairs]


def eager_loss(x, y, scale):
    """The contrastive loss from a whole matrix of logits, rounded to the type of x."""
    logits, labels = scale.to(x.dtype) * x @ y.T, torch.arange(len(x))
    return sum(torch.nn.functional.cross_entropy(z.float(), labels) for z in (logits, logits.T)) / 2


LOSSES = {
    "logits in bfloat16": eager_loss,
    "logits in float32": lambda x, y, scale: eager_loss(x.float(), y.float(), scale),
    "diagonal apart": lambda x, y, scale: info_nce(x, y, scale, fused=False),
}


def gradient_errors(batch, scale):
    """The loss, and the relative error of each way's gradient."""
    x, y = (t.double().numpy() for t in batch)
    loss, cache = contrastive_loss(x, y, -np.log(scale))
    right, found = np.concatenate(contrastive_loss_backward(1.0, cache)[:2]), []
    for way in LOSSES.values():
        leaves = [t.clone().requires_grad_() for t in batch]
        (1e6 * way(*leaves, torch.tensor(float(scale)))).backward()  # far from the smallest float
        got = np.concatenate([leaf.grad.double().numpy() for leaf in leaves]) / 1e6
        found.append(np.linalg.norm(got - right) / np.linalg.norm(right))
    return loss, *found


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
    exp = 4 * 32 * 3.9  # a head of 32: so many operations for each of 3.9e12 exponentials a second
    axes.axhline(exp, color=GREY, linewidth=1, linestyle="--")
    axes.annotate("exp, heads of 32", (1, exp), (0, 5), textcoords="offset points", fontsize=9)
    axes.annotate("exp, heads of 64", (1, peak), (0, 5), textcoords="offset points", fontsize=9)
    axes.axhline(peak, color=GREY, linewidth=1, linestyle="--")
    axes.set(xlabel="operations a byte", ylabel="Tflop/s at most", ylim=(2, 4000))


@figure(7.0, 2.8, columns=2)
def page_11b_tiles(left, right):
    """A product's tile and what its program reads; operations a byte against the tile's side."""
    canvas(left, 12, 9)
    x, w, y = ((0.5, 0.5), (3, 4)), ((4.5, 5.2), (6.5, 3)), ((4.5, 0.5), (6.5, 4))
    for (corner, (width, height)), name in ((x, "x [R, D]"), (w, "w [D, F]"), (y, "y [R, F]")):
        left.add_patch(matplotlib.patches.Rectangle(corner, width, height, fill=False, ec=GREY))
        top = corner[1] + height + 0.15
        left.text(corner[0] + width / 2, top, name, ha="center", fontsize=9)
    strips = (((0.5, 2.5), 3, 1, BLUE), ((7.5, 5.2), 1, 3, BLUE), ((7.5, 2.5), 1, 1, ORANGE))
    for corner, width, height, colour in strips:
        left.add_patch(matplotlib.patches.Rectangle(corner, width, height, color=colour, alpha=0.7))
    sides = 2.0 ** np.arange(4, 10)
    right.loglog(sides, sides / 2, marker="o", markersize=3, label="read anew by each program")
    right.axhline(989 / 3.35, color=GREY, linestyle="--", label="an H100's 295")
    right.set(xlabel="side of the tile", title="operations a byte, bfloat16", ylim=(4, 2000))
    right.set_xticks(sides, [f"{side:.0f}" for side in sides])
    right.minorticks_off()
    right.legend(fontsize=9, loc="upper left")


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


@figure(7.0, 2.8, columns=2)
def page_15_memory(left, right):
    """Bytes against pairs; the error of learned batches' gradients against their loss."""
    pairs = 2 ** np.arange(10, 18)
    reckoned = np.array([memory_model(int(n)) for n in pairs]) / 1e9
    for part, label in ((0, "eager"), (1, "in chunks")):
        left.loglog(pairs, reckoned[:, part], marker="o", markersize=3, label=label)
    left.set(xlabel="pairs", ylabel="GB, reckoned", title="beyond the embeddings, width 768")
    batches, scales = [learned_batch(seed) for seed in range(5)], np.linspace(10, 100, 7)
    found = np.array([gradient_errors(batch, scale) for batch in batches for scale in scales])
    for place, (name, marker) in enumerate(zip(LOSSES, "o^s", strict=True), 1):
        right.loglog(
            found[:, 0], found[:, place], marker=marker, markersize=3, linestyle="none", label=name
        )
    right.invert_xaxis()
    right.set(xlabel="loss", title="error of the gradient, five batches", ylim=(1e-3, 30))
    left.legend(fontsize=9)
    right.legend(fontsize=9, loc="upper left")


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
        config = preset("tiny", schedule=schedule, steps=len(steps))
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
