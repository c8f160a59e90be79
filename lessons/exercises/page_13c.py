"""The third exercise of page 13: keys that share a large part."""

import numpy as np

from minicoca.reference.ops import softmax

from ..exercise import IMPORTS, Exercise, distinct

FILE = '''def rounded(x):
    """x as bfloat16 has it: eight leading bits, to nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & 0xFFFF0000).view(np.float32).astype(np.float64)


def centred_dq(ds_TS, k_SK):
    """The gradient dq [T, K] = ds k of one head, from keys that share a large part.

    A tensor core takes ds as `rounded` has it, and keys as they are: a difference of keys would be
    rounded once more. Everything else is float64. It is to be the product of the rounded ds with
    the keys less their mean.
    """
    raise NotImplementedError
'''


def rounded(x):
    """The stub's."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & 0xFFFF0000).view(np.float32).astype(np.float64)


def _inputs(rng):
    """dS of a softmax whose delta is a little off, as one from a rounded o is."""
    T, S, K = (n + 3 for n in distinct(rng, 3))
    p, _ = softmax(rng.standard_normal((T, S)))
    dp = rng.standard_normal((T, S)) * 3
    delta = (p * dp).sum(1, keepdims=True) + rng.uniform(0.05, 0.1, (T, 1))
    k = rounded(rng.standard_normal((S, K)) + 30 * np.sign(rng.standard_normal(K)))
    return p * (dp - delta), k


def _centred(ds, k, product=rounded, summed=rounded, keys=lambda k: k, mean=lambda k: k.mean(0),
             factor=1.0):  # fmt: skip
    return product(ds) @ keys(k) - factor * summed(ds).sum(1, keepdims=True) * mean(k)


def _mistake(**changes):
    return lambda ds, k: _centred(ds, k, **changes)


EXERCISES = (
    Exercise(
        "13c", 2, 20, "the gradient of a query whose keys share a large part",
        "minicoca.kernels.attention_general:attention_bwd_dq_kernel", ("dq",), _inputs, "",
        (
            "ds (k - m) = ds k - (ds 1) m: the product stays as it is, and what a row of ds adds "
            "up to, times the mean key, is taken off.",
            "r = rounded(ds_TS) is what the product has, so its rows are what to add up: "
            "r @ k_SK - r.sum(1, keepdims=True) * k_SK.mean(0).",
        ),
        {
            "Keys are not centred: what rounding leaves of a row's sum meets their common part.":
                _mistake(factor=0.0),
            "The rows of ds were added up before rounding: take the ds that the product has.":
                _mistake(summed=lambda ds: ds),
            "ds is not rounded: a tensor core takes 16 bits.":
                _mistake(product=lambda ds: ds, summed=lambda ds: ds),
            "The product has ds unrounded; only the sum was rounded.":
                _mistake(product=lambda ds: ds),
            "Centred keys were rounded: leave the keys as they are, and take the mean off after.":
                _mistake(keys=lambda k: rounded(k - k.mean(0)), factor=0.0),
            "The mean was added: it is taken off.": _mistake(factor=-1.0),
            "The first key was taken off: it carries noise of its own, take their mean.":
                _mistake(mean=lambda k: k[0]),
            "The sum of the keys was taken off: take their mean, over S.":
                _mistake(mean=lambda k: k.sum(0)),
            "Each key was centred by its own mean, over K: take the mean over the keys, S.":
                _mistake(keys=lambda k: k - k.mean(1, keepdims=True), factor=0.0),
            "The mean of a row of ds was taken: it is the row's sum.":
                lambda ds, k: _centred(ds, k, factor=1 / ds.shape[1]),
        },
        expected=_centred, file=FILE, imports=IMPORTS,
    ),
)  # fmt: skip
