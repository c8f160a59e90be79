"""Exercises of page 18: what stands between a gradient and a step."""

import math

import numpy as np

from minicoca.config import preset
from minicoca.reference.losses import contrastive_loss, contrastive_loss_backward
from minicoca.reference.ops import l2_normalise, l2_normalise_backward

from ..exercise import Exercise, distinct

MICRO = 4

CLIP_BODY = '''
"""(gradients scaled so that their global norm is at most `limit`, the norm before).

gradients: {name: array}, flat here. A limit of 0 means no clipping.
"""'''

CACHE_FILE = '''MICRO = 4  # pairs that fit in memory at a time


def encode(weight, x):
    """(unit embeddings [b, E] of x [b, P], what encode_backward needs); MICRO rows at most."""
    if len(x) > MICRO:
        raise ValueError(f"out of memory: {len(x)} rows at once, {MICRO} fit")
    y, cache = l2_normalise(x @ weight)
    return y, (x, cache)


def encode_backward(dy, cache):
    """The gradient of the weight, from dy [b, E], of the embeddings."""
    x, normalise_cache = cache
    return x.T @ l2_normalise_backward(dy, normalise_cache)


def cached_gradients(weights, images, texts, log_temperature):
    """(loss, {"image": dweight, "text": dweight}, dlog_temperature) of the whole batch of pairs.

    weights: {"image": [P, E], "text": [R, E]}; images [B, P]; texts [B, R]. contrastive_loss and
    its backward are page 09's. Keep no cache longer than a micro-batch.
    """
    raise NotImplementedError
'''

CACHE_IMPORTS = (
    "import numpy as np  # noqa: F401\n\n"
    "from minicoca.reference.losses import contrastive_loss, contrastive_loss_backward\n"
    "from minicoca.reference.ops import l2_normalise, l2_normalise_backward"
)


def _clip_inputs(rng):
    a, b, c = distinct(rng, 3)
    shapes = {"bias": (a,), "scale": (b,), "weight": (b, c)}
    return ({name: 3 * rng.standard_normal(shape) for name, shape in shapes.items()},)


def _clip_launch(function, gradients):
    found = [function(gradients, limit) for limit in (1.5, 1e4, 0.0)]  # below the norm, above, none
    return None if found[0] is None or found[0] is Ellipsis else sum(found, ())


def _length(gradients):
    return math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))


def _factor(limit, norm):
    return min(1.0, limit / norm) if limit > 0 else 1.0


def _clip(factor=_factor, measure=_length, each=None, says=lambda limit, norm: norm):
    """A wrong clipping: one part done otherwise."""

    def wrong(gradients, limit):
        norm = measure(gradients)
        by = factor(limit, norm)
        found = {
            name: each(g, limit) if each and limit else g * by for name, g in gradients.items()
        }
        return found, says(limit, norm)

    return lambda gradients: _clip_launch(wrong, gradients)


def _rate_inputs(rng):
    peak, last = float(rng.uniform(0.5, 2)), float(rng.uniform(0.05, 0.3))
    settings = dict(warmup=int(rng.integers(3, 8)), learning_rate=peak, final_rate=last, steps=25)
    return tuple(preset("tiny", schedule=kind, **settings) for kind in ("cosine", "linear"))


def _rate_launch(function, cosine, linear):
    steps = range(cosine.steps)
    if function(0, cosine) is None:
        return None
    down = (np.array([function(n, c) for n in steps[cosine.warmup :]]) for c in (cosine, linear))
    return np.array([function(n, cosine) for n in steps[: cosine.warmup]]), *down


def _rate(up=lambda n, c: (n + 1) / c.warmup, part=None, fall=None, last=lambda c: c.final_rate):
    def wrong(n, c):
        if n < c.warmup:
            return c.learning_rate * up(n, c)
        a = part(n, c) if part else (n - c.warmup) / (c.steps - 1 - c.warmup)
        down = 1 - a if c.schedule == "linear" else (1 + math.cos(math.pi * a)) / 2
        down = fall(a) if fall else down
        return c.learning_rate * (last(c) + (1 - last(c)) * down)

    return lambda cosine, linear: _rate_launch(wrong, cosine, linear)


def _cache_inputs(rng):
    P, R, E = distinct(rng, 3)
    B = 4 * int(rng.integers(2, 5)) + int(rng.integers(1, 4))  # the last micro-batch is smaller
    weights = {"image": rng.standard_normal((P, E)), "text": rng.standard_normal((R, E))}
    images, texts = rng.standard_normal((B, P)), rng.standard_normal((B, R))
    return weights, images, texts, np.array(math.log(rng.uniform(0.1, 0.5)))


def _cached(weights, images, texts, log_temperature, seen=slice(None)):
    """The whole batch at once: (loss, gradients, dlog_temperature); the pairs `seen` only."""
    sides, caches = {"image": images, "text": texts}, {}
    for name, x in sides.items():
        sides[name], caches[name] = l2_normalise(x @ weights[name])
    loss, cache = contrastive_loss(sides["image"], sides["text"], log_temperature)
    *d, dlog_temperature = contrastive_loss_backward(1.0, cache)
    found = {}
    for name, x, dy in zip(sides, (images, texts), d, strict=True):
        dx = l2_normalise_backward(dy, caches[name])
        found[name] = x[seen].T @ dx[seen]
    return loss, found, dlog_temperature


def _parts(weights, images, texts, log_temperature):
    """[(share of the pairs, what _cached gives)] of each micro-batch by itself."""
    B = len(images)
    slices = [slice(i, min(i + MICRO, B)) for i in range(0, B, MICRO)]
    shares = [(s.stop - s.start) / B for s in slices]
    found = [_cached(weights, images[s], texts[s], log_temperature) for s in slices]
    return list(zip(shares, found, strict=True))


def _added(*arguments, weigh):
    parts = _parts(*arguments)
    factors = [weigh(share, len(parts)) for share, _ in parts]

    def total(get):
        return sum(f * get(found) for f, (_, found) in zip(factors, parts, strict=True))

    gradients = {name: total(lambda found, n=name: found[1][n]) for name in ("image", "text")}
    return total(lambda found: found[0]), gradients, total(lambda found: found[2])


def _scaled(gradients, temperature):
    """The right answer with its gradients multiplied by powers of how many micro-batches."""

    def wrong(weights, images, texts, log_temperature):
        loss, found, dlog = _cached(weights, images, texts, log_temperature)
        n = -(-len(images) // MICRO)
        found = {name: g * float(n) ** gradients for name, g in found.items()}
        return loss, found, dlog * float(n) ** temperature

    return wrong


def _last(weights, images, texts, log_temperature):
    seen = slice((len(images) - 1) // MICRO * MICRO, None)
    return _cached(weights, images, texts, log_temperature, seen)


EXERCISES = (
    Exercise(
        "18a", 1, 15, "clip by the global norm", "minicoca.reference.optim:clip_by_global_norm",
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
        "18b", 1, 15, "the learning rate of a step", "minicoca.reference.optim:learning_rate",
        ("warm-up", "cosine", "linear"), _rate_inputs,
        "peak, last = config.learning_rate, config.final_rate  # last: as a part of the peak",
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
            "The schedule \"linear\" is a straight line, not a cosine.":
                _rate(fall=lambda a: (1 + math.cos(math.pi * a)) / 2),
        },
        launch=_rate_launch, imports="import math  # noqa: F401",
    ),
    Exercise(
        "18c", 2, 30, "a contrastive gradient in micro-batches",
        "minicoca.engine.train:Trainer._accumulated", ("loss", "gradients", "dlog_temperature"),
        _cache_inputs, "",
        (
            "First encode every micro-batch and keep the embeddings alone; the loss needs them all "
            "at once.",
            "contrastive_loss_backward gives dimage, dtext [B, E] and dlog_temperature, which is "
            "finished. Then each micro-batch again: encode, and encode_backward of its rows.",
            "Add the weights' gradients up over the micro-batches; no factor, the loss is already "
            "a mean over B.",
        ),
        {
            "Each micro-batch had a loss of its own: pairs must be compared with the whole batch.":
                lambda *a: _added(*a, weigh=lambda share, n: 1 / n),
            "Micro-batches by themselves, weighed by size: the loss is no mean over samples.":
                lambda *a: _added(*a, weigh=lambda share, n: share),
            "Only the last micro-batch's gradient was kept: add them up.": _last,
            "The gradients are divided by how many micro-batches: dimage is the whole loss's.":
                _scaled(-1, 0),
            "dlog_temperature was added once a micro-batch; it comes whole, from the loss.":
                _scaled(0, 1),
        },
        expected=_cached, file=CACHE_FILE, imports=CACHE_IMPORTS,
    ),
)  # fmt: skip
