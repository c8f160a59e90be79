"""The third exercise of page 18: a batch that does not fit."""

import math

import numpy as np

from minicoca.reference.losses import contrastive_loss, contrastive_loss_backward
from minicoca.reference.ops import l2_normalise, l2_normalise_backward

from ..compare import same
from ..exercise import Exercise, Told, distinct, values

MICRO = 4

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
    its backward are page 09's. Keep no cache longer than its micro-batch.
    """
    raise NotImplementedError
'''

CACHE_IMPORTS = (
    "import numpy as np  # noqa: F401\n\n"
    "from minicoca.reference.losses import contrastive_loss, contrastive_loss_backward\n"
    "from minicoca.reference.ops import l2_normalise, l2_normalise_backward"
)


def _cache_inputs(rng):
    P, R, E = distinct(rng, 3)
    B = 4 * int(rng.integers(2, 5)) + int(rng.integers(1, 4))  # the last micro-batch is smaller
    weights = {"image": rng.standard_normal((P, E)), "text": rng.standard_normal((R, E))}
    images, texts = rng.standard_normal((B, P)), rng.standard_normal((B, R))
    return weights, images, texts, np.array(math.log(rng.uniform(0.1, 0.5)))


def _cache_launch(function, weights, images, texts, log_temperature):
    """Counts how often the file's `encode` is called: twice for each micro-batch, of both sides."""
    calls, names = [], function.__globals__
    original = names.get("encode")

    def encode(*arguments):
        calls.append(1)
        return original(*arguments)

    names["encode"] = encode
    try:
        found = function(weights, images, texts, log_temperature)
    finally:
        names["encode"] = original
    loss, gradients, dlog = values(found, "loss", "gradients", "dlog_temperature")
    if len(calls) < 4 * -(-len(images) // MICRO) and _all_right(
        loss, gradients, dlog, *_cached(weights, images, texts, log_temperature)
    ):
        raise Told(
            "All is right, but the caches of the whole batch were kept: encode each micro-batch "
            "again before its encode_backward."
        )
    return loss, gradients, dlog


def _all_right(loss, gradients, dlog, *right):
    pairs = [(loss, right[0]), (dlog, right[2])]
    try:
        pairs += [(gradients[name], right[1][name]) for name in right[1]]
        return all(same(np.asarray(a), np.asarray(b), 1e-6) for a, b in pairs)
    except (KeyError, TypeError, ValueError):  # of another form
        return False


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


def _whole_ones(weights, images, texts, log_temperature):
    """Pairs of complete micro-batches only."""
    n = len(images) // MICRO * MICRO
    return _cached(weights, images[:n], texts[:n], log_temperature)


def _swapped(weights, images, texts, log_temperature):
    """dimage given to the text's encoder, and dtext to the image's."""
    (u, u_cache), (v, v_cache) = (
        l2_normalise(x @ weights[name]) for name, x in (("image", images), ("text", texts))
    )
    loss, cache = contrastive_loss(u, v, log_temperature)
    dimage, dtext, dlog_temperature = contrastive_loss_backward(1.0, cache)
    found = {
        "image": images.T @ l2_normalise_backward(dtext, u_cache),
        "text": texts.T @ l2_normalise_backward(dimage, v_cache),
    }
    return loss, found, dlog_temperature


def _last(weights, images, texts, log_temperature):
    seen = slice((len(images) - 1) // MICRO * MICRO, None)
    return _cached(weights, images, texts, log_temperature, seen)


EXERCISES = (
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
            "dlog_temperature was divided by the parts; it comes whole, from the loss.":
                _scaled(0, -1),
            "The last micro-batch, which is smaller, was left out: ceil(B / MICRO) of them.":
                _whole_ones,
            "The last micro-batch has embeddings but no backward: it has a share in the gradients.":
                lambda *a: _cached(*a, seen=slice(0, len(a[1]) // MICRO * MICRO)),
            "dimage and dtext are swapped: dimage is the image encoder's.": _swapped,
        },
        launch=_cache_launch, expected=_cached, file=CACHE_FILE, imports=CACHE_IMPORTS,
    ),
)  # fmt: skip
