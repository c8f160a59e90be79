"""In which type a step is computed: float32, or bfloat16 around float32 weights.

What stays float32 in either: the weights and their moments, norms, scores and their softmax, unit
vectors, the temperature, both losses, and every sum of gradients over chunks.
"""

import re
import time
from dataclasses import replace

import torch

from ..params import count, flatten, tree_map, unflatten
from ..relatives import specs_of
from .model import coca
from .ops import pick_device, pick_dtype, use

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
    batch = min(-(-config.batch_size // config.accumulate), PAIRS)
    generator = torch.Generator().manual_seed(0)
    side, T = config.image_size, config.text_length
    images_BII3 = torch.randn(batch, side, side, 3, generator=generator)
    tokens_BT = torch.randint(4, config.vocabulary, (batch, T), generator=generator)
    tokens_BT[:, max(3, T // 4) :] = 0
    found = dict.fromkeys(("float32", "bfloat16"), float("inf"))
    for name in [*found, *found]:
        dtype, begun = pick_dtype(name, torch.device("cpu")), time.perf_counter()
        with use(config.backend):
            outputs = coca(in_type(params, dtype), config, images_BII3.to(dtype), tokens_BT)
        outputs["loss"].backward()
        found[name] = min(found[name], time.perf_counter() - begun)
        tree_map(lambda p: setattr(p, "grad", None), params)
    return found
