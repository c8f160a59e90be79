"""What a model's losses are, and how much of a Trainer's gradient is whose, without learning from
it: what a run learns is the same to the last bit, whether this is asked or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..config import Config
from .generate import CoCa
from .ops import use
from .optim import clip_by_global_norm
from .relatives import objective_of, plain_batch
from .train import LOSSES, Trainer


def losses(model: CoCa, images: np.ndarray, texts: Any) -> dict[str, float]:
    """{name: loss} of a batch as `Trainer.step` takes it, not augmented, with all patches. Empty
    where memory does not suffice."""
    config = model.config
    batch = plain_batch(config, None, images, texts, model.device)
    with use(config.backend), torch.no_grad():
        try:
            outputs = objective_of(config)(model.params, config, batch)
        except torch.OutOfMemoryError:
            return {}
    return {name: float(outputs[name]) for name in LOSSES if name in outputs}


def gradient_norms(
    trainer: Trainer, alone: Mapping[str, Config], step: int, images: np.ndarray, texts: Any
) -> dict[str, float]:
    """{name: norm of the gradient} of a training batch under each of the configs `alone`: a forward
    and a backward pass each. Empty where memory does not suffice.

    No gradient is left behind, neither these nor those of the last step.
    """
    config, objective, mark = trainer.config, trainer.objective, trainer.mark
    trainer.objective = objective_of(config)  # not compiled
    trainer.mark = lambda part: None
    found = {}
    try:
        for name, trainer.config in alone.items():
            _forget(trainer)
            with use(config.backend):
                trainer._gradients(trainer.batch(step, images, texts))
            found[name] = float(clip_by_global_norm(trainer.leaves.values(), 0))
    except torch.OutOfMemoryError:
        return {}
    finally:
        trainer.config, trainer.objective, trainer.mark = config, objective, mark
        _forget(trainer)
    return found


def _forget(trainer):
    for optimizer in trainer.optimizers:
        optimizer.zero_grad()
