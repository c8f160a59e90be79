"""How fast a run is, where the time of its steps goes, and what its batches are like."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..config import PAD, Config
from ..ranks import ALONE
from .flops import flops, peak
from .patience import Wrapped

SAMPLED = 256  # numbers of a picture that are looked at
Numbers = dict[str, float]


class Meter:
    """Of the steps since it was last read: how long they took, and what they took in.

    `data` is how long steps waited for their batches; the trainer tells when its own parts begin
    (`tell_parts`). A CUDA device computes behind Python's back and would have to be waited for, so
    there its parts are those of the steps that are logged alone.
    """

    def __init__(self, trainer: Any, config: Config, logged: Callable[[int], bool], ranks=ALONE):
        """logged: whether a step is. ranks: the processes that share the steps."""
        self.trainer, self.config, self.logged, self.cuda = trainer, config, logged, None
        self.ranks, self.exchanged = ranks, ranks.seconds
        if config.backend != "numpy" and trainer.device.type == "cuda":
            import torch

            self.cuda = torch.cuda
        self.took, self.seen, self.lengths, self.peak = Counter(), Counter(), [], None
        trainer.tell_parts(self._begins)

    def steps(self, made: Iterable[Any]) -> Iterator[Any]:
        """The batches of `made`; each one's step ends with `count`."""
        began = time.perf_counter()
        for batch in made:
            self.part, self.since = None, time.perf_counter()
            self.took["data"] += self.since - began
            self.began, self.watches = self.since, not self.cuda or self.logged(batch[0])
            yield batch
            began = time.perf_counter()

    def count(self, images: np.ndarray, texts: Any) -> None:
        self._begins(None)
        self.took["step"] += time.perf_counter() - self.began
        tokens = texts["tokens"] if isinstance(texts, dict) else texts
        lengths = (tokens != PAD).sum(1)
        self.seen.update(steps=1, watched=int(self.watches), images=len(images))
        if self.config.objective == "coca":  # a relative may read less, or more than once
            patches = len(images) * self.config.pictures * self.config.kept_patches
            self.seen["tokens"] += patches + int(lengths.sum())
        self.lengths.append(lengths)

    def _begins(self, part: str | None) -> None:
        """A part of a step begins, and the one before it ends."""
        if not self.watches:
            return
        if self.cuda:
            self.cuda.synchronize()
        now = time.perf_counter()
        self.took[self.part] += now - self.since
        self.part, self.since = part, now

    def decoding(self, pairs: Any) -> Any:
        """The same pairs, whose decoding is timed, in whatever thread it is done."""
        return Timed(pairs, self)

    def read(self) -> Numbers:
        """`images_per_second`; `tokens_per_second`, patches that are read and texts' tokens without
        padding; `decoding_per_second`, images that reading and decoding alone could give;
        `flop_utilisation`, `flops` against `peak`; `memory_mb`, the most that was held; and the
        milliseconds of a step in `data`, `forward`, `backward`, `optimiser`, and within these in
        `communication` of ours (Ranks.seconds); `gradients_ms` is DDP's (`exchange_ms`). Of several
        processes: what they did together, and the times and the memory of the first. What is not
        known is left out."""
        took, seen, lengths = self.took, self.seen, np.concatenate(self.lengths)
        self.took, self.seen, self.lengths = Counter(), Counter(), []
        whole = took["data"] + took["step"]
        counted = (self.config.task, self.config.objective) == ("captions", "coca")
        self.peak = self.peak or self.ranks.world * peak(self.config, self.trainer)
        parts = {p: took[p] for p in ("forward", "backward", "optimiser") if took[p]}
        work = flops(self.config, lengths) if counted else 0
        of_each = self.ranks.table(seen["images"], seen["tokens"], seen["decoded"], int(work))
        images, tokens, decoded, work = map(sum, zip(*of_each, strict=True))
        waited, self.exchanged = self.ranks.seconds - self.exchanged, self.ranks.seconds
        found = {
            "images_per_second": images / whole,
            "tokens_per_second": tokens / whole,
            "decoding_per_second": decoded / (took["decoding"] or math.inf),
            "flop_utilisation": work / whole / self.peak,
            "memory_mb": self._memory() / 1e6,
            "data_ms": 1e3 * took["data"] / seen["steps"],
            **{f"{p}_ms": 1e3 * time / seen["watched"] for p, time in parts.items()},
            "communication_ms": 1e3 * waited / seen["steps"],
            "gradients_ms": self._gradients(),
        }
        return {name: float(f"{value:.4g}") for name, value in found.items() if value}

    def _gradients(self) -> float:
        if self.ranks.world == 1:
            return 0.0
        from ..engine.distributed import exchange_ms

        return exchange_ms(self.trainer.module)

    def _memory(self) -> int:
        """Bytes: of a card the most that tensors took, else the most that the process held."""
        if self.cuda:
            return self.cuda.max_memory_allocated()
        try:
            import resource
        except ImportError:  # Windows
            return 0
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return held if sys.platform == "darwin" else 1024 * held


class Timed(Wrapped):
    """Pairs that tell a Meter how long their batches took."""

    def __init__(self, pairs: Any, meter: Meter):
        super().__init__(pairs)
        self._meter = meter

    def batch(self, indices: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        images = self._pairs.batch(indices)
        self._meter.took["decoding"] += time.perf_counter() - began
        self._meter.seen["decoded"] += len(images)
        return images


def of_batch(images: np.ndarray, texts: Any, longest: int = 0, ranks=ALONE) -> Numbers:
    """Of the rows of all processes, texts of at most `longest` tokens: `pixel_mean` of a batch, the
    same in whatever order its pictures are; `pixel_spread`, how far its pictures are from each
    other, at a place in the mean (both 0 to 255, at SAMPLED places at most); and
    `contrastive_floor` of its captions."""
    pixels = images.reshape(len(images), -1)
    apart = max(1, pixels.shape[1] // SAMPLED)
    pixels = ranks.rows(pixels[:, :: apart + (apart % 3 == 0)].copy())  # of all three colours
    spread = pixels.max(0).astype(np.int64) - pixels.min(0)
    found = {"pixel_mean": int(pixels.sum()) / pixels.size, "pixel_spread": float(spread.mean())}
    if isinstance(texts, dict):
        return found
    if ranks.world > 1:  # which pad their texts each as far as it must
        short = longest - texts.shape[1]
        texts = ranks.rows(np.pad(texts, ((0, 0), (0, short)), constant_values=PAD))
    return found | {"contrastive_floor": floor_of(texts)}


def floor_of(tokens: np.ndarray) -> float:
    """The least contrastive loss, in nats, of pairs with these captions [B, T]: of k equal ones
    none can be told from the others, ln k for each, both ways (lesson 09)."""
    groups = Counter(row.tobytes() for row in np.ascontiguousarray(tokens))
    return sum(k * math.log(k) for k in groups.values()) / len(tokens)
