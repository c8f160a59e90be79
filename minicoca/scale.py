"""What a step takes on many cards, by a model: bytes over the links, memory, and reckoned time.

Nothing here is measured. Assumptions, each of which is named in what `report` prints:
- links at their data sheet's rate: NVLink inside a machine of 8, a 400 Gb/s InfiniBand port for
  each card beyond; every collective as a ring or a direct exchange, whichever is its least;
- kernels at the rates reckoned from their machine code (kernels/bench/reckoned.py), all other
  products at the data sheet's, so that the time is a floor;
- of activations only what the image layers keep, in bfloat16.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

from . import memory
from .config import Config
from .params import count, shapes
from .relatives import specs_of
from .tuning import by_muon, learning

FLOAT = 4  # bytes: weights, gradients, moments, embeddings and their gradients
MACHINE = 8  # cards that NVLink joins
NVLINK, INFINIBAND = 450e9, 50e9  # bytes a second each way: H100's 900 GB/s, 400 Gb/s a card
WORLDS = (1, 8, 512)
PAIRS = 65_536  # of a step: the paper's
MICRO = 128  # pairs of a micro-batch, at most
LOSS_CHUNK = 1 << 28  # bytes: kernels/info_nce.py's workspace
GATHERS = ("none", "gather_with_grad", "local_loss", "both")  # open_clip's four ways


def wire(config: Config, world: int, pairs: int = PAIRS) -> dict[str, int]:
    """Bytes that each of `world` processes sends in a step, by what they are."""
    width = config.embed_width or config.text_width
    weights = FLOAT * learning(config)
    matrices = by_muon(specs_of(config), config)
    muon = FLOAT * sum(math.prod(s) for n, s in shapes(specs_of(config)).items() if n in matrices)
    contrast = bool(config.contrastive_weight)
    whole = {
        "texts": contrast * FLOAT * pairs * width,
        "columns": contrast * 2 * FLOAT * pairs,  # each owner's, and then all
        "text gradients": contrast * FLOAT * pairs * width,
        "weights' gradients": weights * (2 if config.parallel == "ddp" else 1),
        "weights": weights * _gathers(config, world, pairs) if config.parallel == "fsdp" else 0,
        "Muon's moves": muon * (2 if config.parallel == "fsdp" else 1),
    }
    return {name: size * (world - 1) // world for name, size in whole.items()}


def open_clips(pairs: int, width: int, world: int) -> dict[str, int]:
    """Bytes of both embeddings and their gradients in the four ways of open_clip's loss: they are
    gathered, images too, and with `gather_with_grad` their gradients travel back. Of these the ways
    without it have other gradients than the whole batch's (by 1 / world, or their direction)."""
    once = 2 * FLOAT * pairs * width * (world - 1) // world
    return {way: once * (2 if way in ("gather_with_grad", "both") else 1) for way in GATHERS}


def _parts(config: Config, world: int, pairs: int) -> int:
    """Micro-batches of a step."""
    return max(config.accumulate, -(-pairs // (world * MICRO)))


def _gathers(config: Config, world: int, pairs: int) -> int:
    """How often FSDP2 gathers the weights: for each micro-batch, and once more for all embeddings,
    which follow one another without a backward pass between them."""
    parts = _parts(config, world, pairs)
    return parts + (parts > 1 and bool(config.contrastive_weight))


def kept(config: Config, world: int, pairs: int = PAIRS) -> dict[str, int]:
    """Bytes in each card's memory, by what they are; of activations the least."""
    size, width = count(specs_of(config)), config.embed_width or config.text_width
    parted = world if config.parallel == "fsdp" else 1
    moments = memory.moved(config) - FLOAT * learning(config)
    own = -(-pairs // world)
    micro = replace(config, batch_size=-(-own // _parts(config, world, pairs)), accumulate=1)
    found = {
        "weights": FLOAT * size // parted,
        "moments": moments // parted,
        "averages": bool(config.ema) * FLOAT * size // parted,
        "gradients": FLOAT * learning(config),
        "whole weights": (FLOAT * size if parted > 1 else 0) + 2 * size,  # and in bfloat16
        "loss": 0,
        "activations": memory.left(micro) // 2,
    }
    if config.contrastive_weight:  # texts, their gradients, and those of every process for ours
        found["loss"] = 3 * FLOAT * pairs * width + LOSS_CHUNK
    return found


def seconds(config: Config, world: int, pairs: int = PAIRS) -> dict[str, float]:
    """Reckoned seconds of a step on an H100, by what takes them; links beside them, not over."""
    from .kernels.bench import reckon, reckoned

    chip, shapes_ = reckon.H100, reckoned.saved()

    def rate(name):
        shape = shapes_[name]
        return sum(shape["operations"]) / sum(reckoned.seconds(shape, chip))

    own, T = -(-pairs // world), config.text_length
    parts, width = _parts(config, world, pairs), config.embed_width or config.text_width
    words = 6 * (T - 1) * config.text_width * config.vocabulary  # which model_flops always counts
    head = bool(config.caption_weight) * own * words
    contrast = bool(config.contrastive_weight) * 8 * own * pairs * width  # four products
    rest = (_operations(config) - words) * own
    attention = 12 * own * config.image_layers * config.patches**2 * config.image_width
    if parts > 1 and config.contrastive_weight:  # both encoders forward, before
        rest += (_operations(replace(config, caption_weight=0.0)) - words) / 3 * own
    link = NVLINK if world <= MACHINE else INFINIBAND
    moved = 7 * FLOAT * learning(config) / (world if config.parallel == "fsdp" else 1)
    return {
        "attention of images": attention / rate("vit 256, heads of 64"),
        "contrastive loss": contrast / rate("32,768 pairs, width 768"),
        "words": head / rate("19,456 tokens x 49,408 words"),
        "all other products": (rest - attention) / chip.products,
        "optimiser": moved / chip.bandwidth,
        "links": sum(wire(config, world, pairs).values()) / link,
    }


@lru_cache
def _operations(config: Config) -> float:
    """Of a pair, forward and backward, as torch counts them."""
    from .bench import model_flops

    few = 2  # whose comparison with each other is nothing
    return model_flops(config, few) / few


def report(config: Config, pairs: int = PAIRS) -> list[dict[str, Any]]:
    """A row for each of WORLDS."""
    return [
        {
            "GPUs": world,
            "pairs each": -(-pairs // world),
            "micro-batches": _parts(config, world, pairs),
            "sent": wire(config, world, pairs),
            "memory": kept(config, world, pairs),
            "seconds": seconds(config, world, pairs),
        }
        for world in WORLDS
    ]


def lines(config: Config, pairs: int = PAIRS) -> list[str]:
    """The report as text, with what it assumes."""
    rows = report(config, pairs)
    text = [
        f"a step of {pairs:,} pairs, by a model: nothing of it is measured",
        f"  {'GPUs (H100)':34}" + "".join(f"{row['GPUs']:>12,}" for row in rows),
    ]
    for name in ("pairs each", "micro-batches"):
        text.append(f"  {name:34}" + "".join(f"{row[name]:12,}" for row in rows))
    for name, unit, scale in (
        ("sent", "MB each", 1e6),
        ("memory", "GB each", 1e9),
        ("seconds", "s", 1),
    ):
        digits = 1 if name != "seconds" else 3
        for part in rows[0][name]:
            values = [row[name][part] / scale for row in rows]
            if any(values):
                label = f"{name}: {part}, {unit}"
                text.append(f"  {label:34}" + "".join(f"{v:12,.{digits}f}" for v in values))
        totals = [sum(row[name].values()) / scale for row in rows]
        label = f"{name}: in all, {unit}"
        text.append(f"  {label:34}" + "".join(f"{v:12,.{digits}f}" for v in totals))
    width = config.embed_width or config.text_width
    theirs = open_clips(pairs, width, WORLDS[-1])["both"] / 1e6
    return [
        *text,
        f"open_clip's exact way sends {theirs:,.1f} MB of vectors and gradients on {WORLDS[-1]}.",
        f"Assumed: {NVLINK / 1e9:.0f} GB/s each way up to {MACHINE} GPUs, {INFINIBAND / 1e9:.0f} "
        "beyond, beside nothing else; kernels as",
        "reckoned from machine code, all other products at the data sheet's rate: a floor. Of",
        f"activations only what image layers keep of {MICRO} pairs at most, in bfloat16; the loss",
        f"in chunks of {LOSS_CHUNK >> 20} MiB.",
    ]
