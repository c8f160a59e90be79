"""How many operations a training step takes, and how many a second the machine can do."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np

from ..config import Config
from ..params import shapes, specs

# Dense bfloat16 operations a second by NVIDIA's data sheets; "HBM3" is the SXM form.
PEAKS = {"H200": 989e12, "H100 80GB HBM3": 989e12, "A100": 312e12}
SIDE, TRIES = 512, 5  # of the product that says what a CPU reaches


def flops(config: Config, lengths: np.ndarray) -> float:
    """Multiplications and additions of a training step on captions of these lengths [B] in tokens,
    start and end included, as PaLM counts them (Chowdhery et al. 2022, appendix B): 6 for each
    number of a matrix and each token that is multiplied by it, 2 forward and 4 backward; and
    12 x width for each pair of tokens in attention, causal or not.

    Padding is no token. Every pooler forms its keys and values, as its equations say. What is
    computed twice to save memory counts once, what is frozen as if it learned, and what is neither
    a matrix nor attention not at all.
    """
    B, image = len(lengths), config.kept_patches + (config.stem == "clip")
    read, queries = tokens_of(config, image)
    text, predicts = int(lengths.sum()) + B, int(lengths.sum()) - B  # with CLS; without the last
    total = 0.0
    for name, shape in _matrices(config).items():
        part = name.split(".")
        if part[0] == "pooler":
            own = read[part[1]] if part[3] in ("key", "value") else queries[part[1]]
            tokens = B * own
        elif "cross" in part and part[-2] in ("key", "value"):
            tokens = B * read["decoder"]
        else:
            tokens = {"image": B * image, "text": text, "decoder": predicts}.get(part[0], B)
        total += 6.0 * shape[0] * shape[1] * tokens
    squares = float(((lengths + 1) ** 2).sum()), float(((lengths - 1) ** 2).sum())
    pairs = config.image_width * config.image_layers * B * image**2
    pairs += config.text_width * config.unimodal_layers * squares[0]
    pairs += config.text_width * config.multimodal_layers * squares[1]
    pairs += config.text_width * config.multimodal_layers * predicts * read["decoder"]
    pairs += config.text_width * sum(B * queries[p] * read[p] for p in queries)
    return total + 12.0 * pairs


def tokens_of(config: Config, image: int) -> tuple[dict[str, int], dict[str, int]]:
    """Of `image` tokens of the encoder: ({who: how many tokens it reads}, {pooler: queries})."""
    many = config.caption_queries
    read = {"contrast": image, "caption": image, "shared": image, "decoder": many}
    queries = {"contrast": 1}
    if config.pooler == "shared":
        return read, {"shared": 1 + many}
    if config.pooler == "none":
        return read | {"decoder": image}, queries
    read["contrast"] = many if config.pooler == "cascade" else image
    return read, queries | {"caption": many}


@cache
def _matrices(config):
    """{name: shape} of all that tokens are multiplied by."""
    found = shapes(specs(config))
    return {name: shape for name, shape in found.items() if name.endswith(".weight")}


def peak(config: Config, trainer: Any) -> float:
    """Operations a second that are the most there can be: of a card that computes in bfloat16 and
    is in PEAKS what its maker states; of a CPU what a large product in the compute type reaches
    here, measured once; infinite where it is not known."""
    if config.backend == "numpy":
        return measured("numpy", "float32")
    if trainer.device.type == "cpu":
        return measured("torch", str(trainer.dtype).removeprefix("torch."))
    import torch

    if trainer.device.type != "cuda" or trainer.dtype != torch.bfloat16:
        return float("inf")
    name = torch.cuda.get_device_name(trainer.device)
    return next((own for card, own in PEAKS.items() if card in name), float("inf"))


@cache
def measured(module: str, dtype: str) -> float:
    """Operations a second of the fastest of a few products of two square matrices on the CPU."""
    if module == "numpy":
        a = np.ones((SIDE, SIDE), dtype)
    else:
        import torch

        a = torch.ones(SIDE, SIDE, dtype=getattr(torch, dtype))
    took = []
    for _ in range(TRIES):
        began = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - began)
    return 2.0 * SIDE**3 / min(took)
