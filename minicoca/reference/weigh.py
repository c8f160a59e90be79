"""What a Trainer's losses are, and how much of the gradient is whose, without learning from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..config import Config
from ..params import flatten
from ..tuning import kept_tokens
from .answers import questions, questions_backward
from .model import coca, coca_backward
from .optim import clip_by_global_norm
from .train import LOSSES, Trainer
from .vision import normalise


def losses(trainer: Trainer, images: np.ndarray, texts: Any) -> dict[str, float]:
    """{name: loss} of a batch as `Trainer.step` takes it, not augmented, with all patches."""
    config = replace(trainer.config, patch_keep=1.0)
    outputs, _, _ = _forward(trainer, config, 0, images, texts)
    weighed = (name for name in LOSSES if getattr(config, f"{name}_weight"))
    return {name: float(outputs[name]) for name in ("loss", *weighed) if name in outputs}


def gradient_norms(
    trainer: Trainer, alone: Mapping[str, Config], step: int, images: np.ndarray, texts: Any
) -> dict[str, float]:
    """{name: norm of the gradient} of a training batch under each of the configs `alone`."""
    found = {}
    for name, config in alone.items():
        _, cache, backward = _forward(trainer, config, step, images, texts)
        gradients = flatten(backward(1.0, cache)[0])
        gradients = {leaf: gradients[leaf] for leaf in trainer.learns}
        found[name] = float(clip_by_global_norm(gradients, 0)[1])
    return found


def _forward(trainer, config, step, images, texts):
    more = dict(texts) if isinstance(texts, dict) else {"tokens": texts}
    batch = normalise(images, config), more.pop("tokens"), kept_tokens(config, step, len(images))
    forward, backward = (questions, questions_backward) if more else (coca, coca_backward)
    return *forward(trainer.params, config, *batch, **more), backward
