"""In which type a step is computed: float32, or bfloat16 around float32 weights.

What stays float32 in either: the weights and their moments, norms, scores and their softmax, unit
vectors, the temperature, both losses, and every sum of gradients over chunks.
"""

import re
import time
from dataclasses import replace

import numpy as np
import torch

from ..config import PAD
from ..params import count, flatten, tree_map, unflatten
from ..relatives import specs_of
from .ops import pick_device, pick_dtype, use
from .relatives import by_objective, plain_batch

# Of each type of weights: norms and the temperature, and the table of which few rows are read.
WIDE = re.compile(r"(.*\.norm(_\w+)?\.\w+|log_temperature|text\.token)")
LARGE = 10**7  # weights; smaller models gain little, and their figures are the same on every CPU
PAIRS = 16  # of the steps that are timed, at most
GAIN = 1.1  # how many times as fast a step must be


def in_type(params, dtype):
    """The tree to compute with in a dtype; gradients flow back to its float32 leaves."""
    if dtype == torch.float32:
        return params
    flat = flatten(params)
    return unflatten({n: p if WIDE.fullmatch(n) else p.to(dtype) for n, p in flat.items()})


def has_bfloat16():
    """Whether this CPU multiplies bfloat16 itself (AVX512-BF16, AMX), rather than emulating it."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def settled(config, weights, say):
    """The config of a run that begins, `auto` settled where a CPU may gain from bfloat16.

    On a CPU that has it a model of LARGE is timed, forward and backward at its own shapes, in both
    types. What is found stands in the run's config: a run that goes on is computed as it began.
    weights: its tree of NumPy arrays.
    """
    device = pick_device(config.device)
    asked = config.precision == "auto" and device.type == "cpu"
    if not (asked and has_bfloat16() and count(specs_of(config)) >= LARGE):
        return config
    leaf = lambda array: torch.tensor(array).requires_grad_()  # noqa: E731
    seconds = _seconds(config, tree_map(leaf, weights))
    gain = seconds["float32"] / seconds["bfloat16"]
    chosen = "bfloat16" if gain >= GAIN else "float32"
    say(f"--precision {chosen}: in bfloat16 a step is {gain:.1f} times as fast on this CPU")
    return replace(config, precision=chosen)


def _seconds(config, params):
    """{type: seconds} of a step of few pairs and short captions; the faster of two."""
    pairs, rng = min(-(-config.batch_size // config.accumulate), PAIRS), np.random.default_rng(0)
    images = rng.integers(0, 256, (pairs, *2 * [config.image_size], 3), np.uint8)
    tokens_BT = rng.integers(4, config.vocabulary, (pairs, config.text_length))
    tokens_BT[:, max(3, config.text_length // 4) :] = PAD
    device = torch.device("cpu")
    loss = by_objective("loss", config)  # of questions that of captions, which costs as much
    found = dict.fromkeys(("float32", "bfloat16"), float("inf"))
    for name in [*found, *found]:
        dtype = pick_dtype(name, device)
        batch, begun = plain_batch(config, 0, images, tokens_BT, device, dtype), time.perf_counter()
        with use(config.backend):
            outputs = loss(in_type(params, dtype), config, batch)
        outputs["loss"].backward()
        found[name] = min(found[name], time.perf_counter() - begun)
        tree_map(lambda p: setattr(p, "grad", None), params)
    return found
