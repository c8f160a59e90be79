"""AdamW, clipping, schedules: reference/optim.py by torch's own fused implementation."""

import math

import torch

from ..params import flatten


def adamw(params, config):
    """torch's AdamW over a tree's leaves. Only matrices decay: not vectors, not scales."""
    leaves = [leaf for leaf in flatten(params).values() if leaf.requires_grad]
    groups = [
        {"params": [p for p in leaves if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in leaves if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=config.epsilon, fused=True)


def clip_by_global_norm(leaves, limit):
    """Scale the gradients so that their global norm is at most `limit`; return it as it was."""
    gradients = [p.grad for p in leaves if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit > 0:
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
