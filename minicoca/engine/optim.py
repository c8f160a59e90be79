"""Muon, AdamW (torch's own, fused), clipping, schedules: reference/optim.py in torch."""

import math

import torch

from ..params import flatten
from ..ranks import ALONE
from ..tuning import by_muon, paces, same_shapes
from .distributed import as_parts, own, whole

NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
EPSILON = 1e-7
STACKED = 1 << 22  # numbers at a time: enough for every product to be a large one


def optimizers(params, config, ranks=ALONE):
    """Those of torch over the leaves of a tree that learn: AdamW and, if it is to be, Muon. Only
    matrices decay: not vectors, not scales. A group's rate is to be the learning rate times its
    `factor`."""
    leaves, rates, groups = flatten(params), paces(params, config), []
    matrices = by_muon(params, config)
    for factor, decay in sorted({*rates.values()}):
        names = [n for n in rates if rates[n] == (factor, decay) and n not in matrices]
        parts = [leaves[name] for name in names]
        tables, others = [p for p in parts if p.ndim >= 2], [p for p in parts if p.ndim < 2]
        # FSDP2 parts all but scalars, and torch moves what is parted or what is whole.
        kinds = [[p for p in others if (own(p) is p) == alone] for alone in (True, False)]
        groups += [{"params": tables, "weight_decay": decay, "factor": factor}]
        groups += [{"params": some, "weight_decay": 0.0, "factor": factor} for some in kinds]
    groups, found = [group for group in groups if group["params"]], []
    if groups:
        betas = (config.beta1, config.beta2)
        found += [torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=config.epsilon, fused=True)]
    groups = [
        {
            "params": [leaves[name] for name in names],
            "factor": factor * config.muon_rate,
            "weight_decay": decay,
        }
        for names, (factor, decay) in same_shapes(leaves, rates, matrices)
    ]
    if groups:
        found += [Muon(groups, config.momentum, ranks)]
    return found


class Muon(torch.optim.Optimizer):
    """`muon` of the reference: each group's matrices, of one shape, are moved as a stack. Of
    several processes each works out its share of them, and all get all."""

    def __init__(self, groups, momentum, ranks=ALONE):
        super().__init__(groups, dict(lr=0.0, momentum=momentum))
        self.ranks = ranks

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            many = max(1, STACKED // group["params"][0].numel())
            for first in range(0, len(matrices), many):
                self._move(matrices[first : first + many], group)

    def _move(self, matrices, group):
        for p in matrices:
            if p not in self.state:
                self.state[p] = {"exp_avg": torch.zeros_like(p)}
        means, gradients = [self.state[p]["exp_avg"] for p in matrices], [p.grad for p in matrices]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, means, group["momentum"])
        ahead, ranks = torch.stack([whole(x) for x in ahead]), self.ranks
        far = -0.2 * group["lr"] * max(ahead.shape[1:]) ** 0.5
        moves = orthogonalised(ahead[ranks.mine(len(ahead))])
        moves = ranks.gather(moves, ranks.shares(len(ahead)))
        moves = [own(as_parts(move, p)) for move, p in zip(moves, matrices, strict=True)]
        parts = [own(p) for p in matrices]
        torch._foreach_mul_(parts, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parts, moves, alpha=far)


def orthogonalised(g_LRC):
    """Matrices with singular values near 1, as the reference's."""
    tall, (a, b, c) = g_LRC.shape[1] > g_LRC.shape[2], NEWTON_SCHULZ
    x = g_LRC.transpose(1, 2) if tall else g_LRC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    for _ in range(5):
        s = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


def clip_by_global_norm(leaves, limit):
    """Scale the gradients so that their global norm is at most `limit`; return it as it was."""
    gradients = [p.grad for p in leaves if p.grad is not None]
    parted = [g for g in gradients if own(g) is not g]  # FSDP2's: torch takes no mixture
    norm = torch.nn.utils.get_total_norm([g for g in gradients if own(g) is g])
    if parted:
        norm = torch.hypot(norm, whole(torch.nn.utils.get_total_norm(parted)))
    if limit > 0 and gradients:
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
        torch._foreach_mul_([own(g) for g in gradients], factor)
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
