"""AdamW, clipping by global norm, learning-rate schedules.

The paper trains with Adafactor; AdamW (Loshchilov and Hutter 2019) is what fits on one machine.
"""

import math

import numpy as np

from ..params import flatten, tree_map, unflatten
from ..tuning import factors


def adamw_init(params):
    """Moments of zero and no step taken."""
    zeros = tree_map(np.zeros_like, params)
    return {"mean": zeros, "square": tree_map(np.copy, zeros), "step": 0}


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


def adamw_of_parts(params, gradients, state, rate, config):
    """`adamw` on each part at its own factor of the rate; what is frozen stays, and its moments.

    gradients: a tree, or {name: gradient} of what learns."""
    trees = [flatten(tree) for tree in (params, state["mean"], state["square"], gradients)]
    own = factors(params, config)
    for factor in sorted({*own.values()} - {0}):
        names = [name for name in own if own[name] == factor]
        p, mean, square, g = ({name: tree[name] for name in names} for tree in trees)
        before = {"mean": mean, "square": square, "step": state["step"]}
        p, after = adamw(p, g, before, rate * factor, config)
        for tree, new in zip(trees, (p, after["mean"], after["square"]), strict=False):
            tree.update(new)
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
