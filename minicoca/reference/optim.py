"""Muon and AdamW, clipping by global norm, learning-rate schedules.

The paper trains with Adafactor; AdamW (Loshchilov and Hutter 2019) is what fits on one machine, and
Muon (Jordan et al. 2024) takes half the steps where it moves the matrices of the blocks.
"""

import math

import numpy as np

from ..params import flatten, tree_map, unflatten
from ..tuning import by_muon, decaying, paces, same_shapes

NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024: as steep at 0 as can be borne
EPSILON = 1e-7  # of a norm, so that a gradient of 0 gives a move of 0


def start(params, config):
    """Moments of zero and no step taken. Muon's matrices have no second one."""
    flat, matrices = flatten(params), by_muon(params, config)
    mean = {name: np.zeros_like(p) for name, p in flat.items()}
    square = {name: np.zeros_like(p) for name, p in flat.items() if name not in matrices}
    return {"mean": unflatten(mean), "square": unflatten(square), "step": 0}


def adamw(params, gradients, state, rate, config):
    """One step: (new params, new state). Only matrices decay: not vectors, not scales."""
    step = state["step"] + 1
    b1, b2 = config.beta1, config.beta2
    mean = tree_map(lambda m, g: b1 * m + (1 - b1) * g, state["mean"], gradients)  # (1)
    square = tree_map(lambda s, g: b2 * s + (1 - b2) * g * g, state["square"], gradients)  # (2)

    def move(p, m, s):
        if not s.any():  # a loss of weight 0 asks nothing of its part, nor does decay
            return p
        mhat, shat = m / (1 - b1**step), s / (1 - b2**step)  # (3) undo the start from zero
        decay = config.weight_decay if p.ndim >= 2 else 0.0
        return p - rate * (mhat / (np.sqrt(shat) + config.epsilon) + decay * p)  # (4)

    new = tree_map(move, params, mean, square)
    return new, {"mean": mean, "square": square, "step": step}


def orthogonalised(matrices):
    """Matrices [..., R, C] with their singular vectors kept and their singular values brought near
    1, by products alone: five times the odd polynomial a s + b s^3 + c s^5 of each of them."""
    tall, (a, b, c) = matrices.shape[-2] > matrices.shape[-1], NEWTON_SCHULZ
    x = matrices.swapaxes(-2, -1) if tall else matrices
    # No singular value is larger than the root of the sum of squares of all entries.
    x = x / np.maximum(np.sqrt((x * x).sum((-2, -1), keepdims=True)), EPSILON)
    for _ in range(5):
        s = x @ x.swapaxes(-2, -1)
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.swapaxes(-2, -1) if tall else x


def muon(params, gradients, mean, rate, config):
    """One step of matrices [L, R, C] of one shape: (new params, new mean). Jordan et al. 2024; an
    entry moves about as far as AdamW's (Liu et al. 2025), so that one rate can serve both."""
    b = config.momentum
    mean = b * mean + (1 - b) * gradients
    ahead = b * mean + (1 - b) * gradients  # Nesterov's: as if the next gradient were this one
    move = 0.2 * max(params.shape[1:]) ** 0.5 * orthogonalised(ahead)
    reached = mean.any((1, 2), keepdims=True)  # as in `adamw`
    return params - rate * (move + config.weight_decay * params) * reached, mean


def optimise(params, gradients, state, rate, config):
    """One step of each part at its own factor of the rate: `muon` for the matrices of the blocks,
    where it is the optimizer, `adamw` for all else. What is frozen stays, and its moments.

    gradients: a tree, or {name: gradient} of what learns."""
    trees = [flatten(tree) for tree in (params, state["mean"], state["square"], gradients)]
    own, matrices = paces(params, config), by_muon(params, config)
    for factor, decay in sorted({*own.values()}):
        names = [name for name in own if own[name] == (factor, decay) and name not in matrices]
        p, mean, square, g = ({name: tree[name] for name in names} for tree in trees)
        before = {"mean": mean, "square": square, "step": state["step"]}
        p, after = adamw(p, g, before, rate * factor, decaying(config, decay))
        for tree, new in zip(trees, (p, after["mean"], after["square"]), strict=False):
            tree.update(new)
    for names, (factor, decay) in same_shapes(trees[0], own, matrices):
        p, mean, g = (np.stack([trees[i][name] for name in names]) for i in (0, 1, 3))
        p, mean = muon(p, g, mean, rate * factor * config.muon_rate, decaying(config, decay))
        trees[0].update(zip(names, p, strict=True))
        trees[1].update(zip(names, mean, strict=True))
    params, mean, square = map(unflatten, trees[:3])
    return params, {"mean": mean, "square": square, "step": state["step"] + 1}


def global_norm(gradients):
    """The length of all gradients as one vector."""
    return math.sqrt(sum(float((g * g).sum()) for g in flatten(gradients).values()))


def clip_by_global_norm(gradients, limit):
    """(gradients scaled so that their global norm is at most `limit`, the norm before)."""
    norm = global_norm(gradients)
    factor = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
    return tree_map(lambda g: g * np.asarray(factor, g.dtype), gradients), norm


def learning_rate(step, config):
    """The rate of step 0, 1, ...: linear up over `warmup` steps, then cosine or linear down to
    `final_rate` of the peak at the last step."""
    peak, last = config.learning_rate, config.final_rate
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    part = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    fall = 1 - part if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * part))
    return peak * (last + (1 - last) * fall)


def clamp_temperature(params):
    """Keep 1 / sigma between 1 and 100, so that the logits stay in a range softmax can use."""
    limits = params["log_temperature"].dtype.type(-math.log(100)), 0
    return params | {"log_temperature": np.clip(params["log_temperature"], *limits)}
