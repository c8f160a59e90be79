"""What a model's losses are, and how much of a Trainer's gradient is whose, without learning from
it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config import Config
from ..params import flatten
from .generate import CoCa
from .optim import clip_by_global_norm
from .relatives import batch_of, objective_of, reported
from .train import Trainer


def losses(model: CoCa, images: np.ndarray, texts: Any) -> dict[str, float]:
    """{name: loss} of a batch as `Trainer.step` takes it, not augmented, with all patches."""
    config = model.config
    forward, _ = objective_of(config)
    batch = batch_of(config, None, images, texts)
    return reported(forward(model.params, config, batch)[0], config)


def gradient_norms(
    trainer: Trainer, alone: Mapping[str, Config], step: int, images: np.ndarray, texts: Any
) -> dict[str, float]:
    """{name: norm of the gradient} of a training batch under each of the configs `alone`."""
    found = {}
    for name, config in alone.items():
        forward, backward = objective_of(config)
        _, cache = forward(trainer.params, config, batch_of(config, step, images, texts))
        gradients = flatten(backward(1.0, cache))
        gradients = {leaf: gradients[leaf] for leaf in trainer.learns}
        found[name] = float(clip_by_global_norm(gradients, 0)[1])
    return found
