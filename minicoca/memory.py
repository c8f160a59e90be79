"""The memory that a config asks for, counted before anything is made, and the memory that there is.

What is counted is the least that will be needed: whoever is refused could not have been served.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .config import Config
from .params import count, shapes
from .relatives import specs_of
from .tuning import by_muon, factors

FLOAT = 4  # bytes of a number: weights, gradients and moments are float32
DRAWN = 63_000  # pictures that `shapes` draws and keeps
ROOT = Path("/")
FREE = ("MemAvailable:", "SwapFree:")
LIMITS = ("memory.max", "memory.limit_in_bytes")  # of a control group, of either version


def check(config: Config, training: bool = False, known: bool = True) -> None:
    """Raise ValueError, with both figures, where a config asks for more memory than there is.

    known: the data and the tokenizer have said how large a batch and the vocabulary are; before,
    both can turn out far smaller, and are not counted. Says nothing where the system does not tell
    what it has (it is asked in the ways of Linux).
    """
    need, have = needed(config, training, known), available()
    if have is not None and need > have:
        numbers = count(specs_of(config))
        what = "training" if training else "using"
        advice = (
            "fewer layers, less width, image_size or batch_size" if training else "a smaller model"
        )
        raise ValueError(
            f"{what} a model of {numbers:,} parameters with these settings takes at least "
            f"{need / 1e9:,.1f} GB of memory, and {have / 1e9:,.1f} GB are free: take {advice}, or "
            "a machine with more"
        )


def needed(config: Config, training: bool = False, known: bool = True) -> int:
    """The fewest bytes for a model's weights; in training also for averaged weights, for gradients
    and moments of what learns, for what a micro-batch leaves for the backward pass on a
    CPU, and for the pictures of data that are drawn at the start. known: as in `check`."""
    if not known:
        config = replace(config, vocabulary=5, batch_size=1)
    weights = FLOAT * count(specs_of(config))
    if not training:
        return weights
    pictures = 3 * DRAWN * config.image_size**2 if config.data == "shapes" else 0
    kept = (1 + bool(config.ema)) * weights + moved(config)
    return kept + pictures + (left(config) if _on_cpu(config) else 0)


def moved(config: Config) -> int:
    """Bytes of gradients and moments: AdamW's two, and one of what Muon moves."""
    tree = specs_of(config)
    sizes = {name: math.prod(shape) for name, shape in shapes(tree).items()}
    # In NumPy what is frozen has them too.
    learn = {
        n for n, factor in factors(tree, config).items() if factor or config.backend == "numpy"
    }
    matrices = by_muon(tree, config)
    return FLOAT * sum((2 if name in matrices else 3) * sizes[name] for name in learn)


def left(config: Config) -> int:
    """Bytes of the pixels of a micro-batch, and of the inputs and hidden layers of image layers; of
    a relative nothing is counted."""
    if config.objective != "coca":
        return 0
    images, layers = -(-config.batch_size // config.accumulate), _passed(config)
    hidden = min(layers, 1) if config.recompute else layers
    layer = config.kept_patches * (layers * config.image_width + hidden * config.image_hidden)
    return FLOAT * images * (3 * config.image_size**2 + layer)


def _passed(config: Config) -> int:
    """How many image layers the backward pass goes through: down to the first that learns."""
    if config.backend == "numpy":
        return config.image_layers
    found = factors(specs_of(config), config)
    learn = (name.split(".") for name, factor in found.items() if factor)
    image = [words for words in learn if words[0] == "image"]
    first = [int(words[2]) if words[1] == "blocks" else 0 for words in image]
    return config.image_layers - min(first, default=config.image_layers)


def _on_cpu(config: Config) -> bool:
    if config.backend == "numpy" or config.device != "auto":
        return config.backend == "numpy" or config.device.startswith("cpu")
    import torch

    return not torch.cuda.is_available()


def available(root: Path = ROOT) -> int | None:
    """Bytes that this process may still take, as the system and the limits of its control groups
    say (a container's is one); None where nothing says so."""
    return min(_said(root), default=None)


def _said(root: Path) -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = [line.split()[1] for line in lines if line.startswith(FREE)]
        if free:
            yield 1024 * sum(map(int, free))
    with suppress(OSError, UnicodeError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, own = line.split(":", 2)
            yield from _limits(root / "sys/fs/cgroup" / ("memory" if kinds else ""), own)


def _limits(groups: Path, own: str) -> Iterator[int]:
    """Those of a control group and of all above it."""
    group = groups / own.strip("/")
    for folder in (group, *group.parents):
        for name in LIMITS:
            with suppress(OSError, ValueError):  # ValueError: "max", no limit
                yield int((folder / name).read_text())
        if folder == groups:
            break
