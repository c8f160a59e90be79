"""Is what a function returned of the right form: how many values, which kind, which shapes?"""

import numpy as np

from minicoca.params import flatten

from .compare import are_numbers, named, same
from .relations import of_form


def wrong_form(exercise, got, expected):
    """What is wrong with the form, in words; None where it is right."""
    parts = got if isinstance(got, tuple) else (got,)
    return (
        _wrong_count(exercise.outputs, parts)
        or _wrong_parts(exercise.outputs, parts, expected)
        or _wrong_shapes(exercise, got, expected)
    )


def _wrong_count(outputs, parts):
    if len(parts) >= len(outputs):
        return None
    were = "was" if len(parts) == 1 else "were"
    return f"{len(outputs)} values are wanted ({', '.join(outputs)}); {len(parts)} {were} returned"


def _wrong_parts(outputs, parts, expected):
    for name, part in zip(outputs, parts, strict=False):
        keys = [key[len(name) + 2 : -2] for key in expected if key.startswith(f"{name}['")]
        words = _wrong_keys(name, part, keys, len(outputs) == 1)
        if words:
            return words
        for leaf in flatten(part).values() if keys else [part]:
            if not are_numbers(leaf):
                what = "numbers" if keys else "an array or a number"
                return f"{name} should be {what}; {_kind(leaf)}"
    return None


def _wrong_keys(name, part, keys, alone):
    what = "return one dict" if alone else f"{name} should be a dict"
    if keys and not isinstance(part, dict):
        return f"{what} with the keys {', '.join(keys)}"
    if keys and sorted(flatten(part)) != keys:
        given = ", ".join(flatten(part)) or "none"
        return f"{what} with the keys {', '.join(keys)}; it has {given}"
    return None


def _kind(leaf):
    if getattr(leaf, "requires_grad", False):
        return f"a {type(leaf).__name__} with a gradient: detach() it"
    if str(getattr(leaf, "dtype", "")) == "torch.bfloat16":
        return "this one is bfloat16, which has 3 digits"
    return f"a {type(leaf).__name__} was returned"


def _wrong_shapes(exercise, got, expected):
    for name, array in named(exercise, got).items():
        right = expected[name]
        if array.shape != right.shape:
            alike = _alike(exercise.close)
            with np.errstate(all="ignore"):
                reason = of_form(array, right, alike)
            words = f"{name} has shape {array.shape}; expected {right.shape}"
            return words + (f"\n({reason})" if reason else "")
    return None


def _alike(close):
    return lambda a, b: a.shape == b.shape and same(np.asarray(a), np.asarray(b), close)
