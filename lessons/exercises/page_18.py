"""Exercises of page 18: what stands between a gradient and a step."""

import math

import numpy as np

from minicoca.config import preset

from ..exercise import Exercise, distinct, values

CLIP_BODY = '''
"""(gradients scaled so that their global norm is at most `limit`, the norm before).

gradients: {name: array}, flat here; not to be changed in place. A limit of 0 means no clipping.
"""'''

RATE_BODY = '''
"""The rate of step (from 0): config.warmup, config.steps, config.schedule ("cosine" or
"linear"), as on the page.
"""
peak, last = config.learning_rate, config.final_rate  # last: f, a part of the peak
'''


def _clip_inputs(rng):
    a, b, c = distinct(rng, 3)
    shapes = {"bias": (a,), "scale": (b,), "weight": (b, c)}
    return ({name: 3 * rng.standard_normal(shape) for name, shape in shapes.items()},)


def _clip_launch(function, gradients):
    found = ()
    for limit in (1.5, 1e4, 0.0):  # below the norm, above, none
        found += values(function(gradients, limit), "the scaled gradients", "the norm before")
    return found


def _length(gradients):
    return math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))


def _factor(limit, norm):
    return min(1.0, limit / norm) if limit > 0 else 1.0


def _clip(factor=_factor, measure=_length, each=None, always=False,
          says=lambda limit, norm: norm):  # fmt: skip
    """A wrong clipping: one part done otherwise."""

    def wrong(gradients, limit):
        norm = measure(gradients)
        by = factor(limit, norm)
        found = {
            name: each(g, limit) if each and (limit or always) else g * by
            for name, g in gradients.items()
        }
        return found, says(limit, norm)

    return lambda gradients: _clip_launch(wrong, gradients)


def _rate_inputs(rng):
    peak, last = float(rng.uniform(0.3, 0.8)), float(rng.uniform(0.05, 0.2))
    settings = dict(warmup=int(rng.integers(3, 8)), learning_rate=peak, final_rate=last, steps=25)
    return tuple(preset("tiny", schedule=kind, **settings) for kind in ("cosine", "linear"))


def _rate_launch(function, cosine, linear):
    steps = range(cosine.steps)
    if function(0, cosine) is None:
        return None
    down = (np.array([function(n, c) for n in steps[cosine.warmup :]]) for c in (cosine, linear))
    return np.array([function(n, cosine) for n in steps[: cosine.warmup]]), *down


def _rate(up=lambda n, c: (n + 1) / c.warmup, part=None, fall=None, last=lambda c: c.final_rate,
          late=0, rate=None):  # fmt: skip
    def wrong(n, c):
        if n < c.warmup + late:
            return c.learning_rate * up(n, c)
        a = part(n, c) if part else (n - c.warmup) / (c.steps - 1 - c.warmup)
        down = 1 - a if c.schedule == "linear" else (1 + math.cos(math.pi * a)) / 2
        down = fall(a) if fall else down
        if rate:
            return rate(c.learning_rate, last(c), down)
        return c.learning_rate * (last(c) + (1 - last(c)) * down)

    return lambda cosine, linear: _rate_launch(wrong, cosine, linear)


EXERCISES = (
    Exercise(
        "18a", 1, 10, "clip by the global norm", "minicoca.reference.optim:clip_by_global_norm",
        ("clipped", "norm", "below the limit", "its norm", "limit 0", "its norm again"),
        _clip_inputs, CLIP_BODY,
        (
            "One long vector: the root of the sum of all squares of all arrays.",
            "One factor for all: min(1, limit / (norm + 1e-6)), and 1 where the limit is 0.",
        ),
        {
            "Every array was clipped by its own norm: the limit is for all of them together.":
                _clip(each=lambda g, limit: g * min(1.0, limit / np.linalg.norm(g))),
            "Numbers were cut at the limit: that turns the direction. Scale all by one factor.":
                _clip(each=lambda g, limit: np.clip(g, -limit, limit)),
            "Numbers were cut at the limit, even at 0: scale all by one factor; 0 means no limit.":
                _clip(each=lambda g, limit: np.clip(g, -limit, limit), always=True),
            "A gradient below the limit was made longer: the factor is 1 at most.":
                _clip(factor=lambda limit, norm: limit / norm if limit > 0 else 1.0),
            "A limit of 0 means no clipping, not gradients of 0.":
                _clip(factor=lambda limit, norm: min(1.0, limit / norm)),
            "The norm is the one before clipping, not the one after.":
                _clip(says=lambda limit, norm: min(limit or math.inf, norm)),
            "The root is missing: that is the norm squared.":
                _clip(measure=lambda gradients: _length(gradients) ** 2),
            "The arrays' norms were added; add their squares, then take the root.":
                _clip(measure=lambda g: sum(float(np.linalg.norm(a)) for a in g.values())),
        },
        launch=_clip_launch, close=1e-5,
    ),
    Exercise(
        "18b", 1, 10, "the learning rate of a step", "minicoca.reference.optim:learning_rate",
        ("warm-up", "cosine", "linear"), _rate_inputs,
        RATE_BODY,
        (
            "Below config.warmup: peak (step + 1) / warmup. From there on a, the part of the way "
            "down, goes from 0 to 1 at step config.steps - 1.",
            "fall is 1 - a where config.schedule is \"linear\", else (1 + cos(pi a)) / 2; the rate "
            "is peak (last + (1 - last) fall).",
        ),
        {
            "Warm-up begins with a rate of 0: step counts from 0, take step + 1.":
                _rate(up=lambda n, c: n / c.warmup),
            "The fall counts from step 0; it should count from the end of warm-up.":
                _rate(part=lambda n, c: n / (c.steps - 1)),
            "The last step is steps - 1: the rate does not quite come down to its end.":
                _rate(part=lambda n, c: (n - c.warmup) / (c.steps - c.warmup)),
            "The rate falls to 0; it should fall to final_rate of the peak.":
                _rate(last=lambda c: 0.0),
            "The cosine runs from 1 to -1; the fall from 1 to 0 is half of 1 + cos.":
                _rate(fall=lambda a: math.cos(math.pi * a)),
            "Warm-up has a step too many: it is for step < warmup.": _rate(late=1),
            "final_rate is a part of the peak, not a rate: peak (last + (1 - last) fall).":
                _rate(rate=lambda peak, last, fall: last + (peak - last) * fall),
            "The fall stops where it meets final_rate; it should reach it at the last step only.":
                _rate(rate=lambda peak, last, fall: peak * max(last, fall)),
            "The schedule \"linear\" is a straight line, not a cosine.":
                _rate(fall=lambda a: (1 + math.cos(math.pi * a)) / 2),
        },
        launch=_rate_launch, imports="import math  # noqa: F401",
    ),
)  # fmt: skip
