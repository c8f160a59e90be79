"""AdamW, clipping, schedules: reference/optim.py by torch's own fused implementation."""

import math

import torch

from ..params import flatten
from ..tuning import factors


def adamw(params, config):
    """torch's AdamW over those of a tree's leaves that learn. Only matrices decay: not vectors, not
    scales. A group's rate is to be the learning rate times its `factor`."""
    leaves, own, groups = flatten(params), factors(params, config), []
    for factor in sorted({*own.values()} - {0}):
        parts = [leaves[name] for name in own if own[name] == factor]
        matrices, others = [p for p in parts if p.ndim >= 2], [p for p in parts if p.ndim < 2]
        groups += [
            {"params": matrices, "weight_decay": config.weight_decay, "factor": factor},
            {"params": others, "weight_decay": 0.0, "factor": factor},
        ]
    groups = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=config.epsilon, fused=True)


def clip_by_global_norm(leaves, limit):
    """Scale the gradients so that their global norm is at most `limit`; return it as it was."""
    gradients = [p.grad for p in leaves if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit > 0 and gradients:
        torch._foreach_mul_(gradients, torch.clamp(limit / (norm + 1e-6), max=1.0))
    return norm


def learning_rate(step, config):
    """The rate of step 0, 1, ...: linear up over `warmup` steps, then cosine or linear down to
    `final_rate` of the peak at the last step."""
    peak, last = config.learning_rate, config.final_rate
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    part = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    fall = 1 - part if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * part))
    return peak * (last + (1 - last) * fall)


@torch.no_grad()
def clamp_temperature(params):
    """Keep 1 / sigma between 1 and 100, so that the logits stay in a range softmax can use."""
    params["log_temperature"].clamp_(-math.log(100), 0)
