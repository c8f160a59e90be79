"""What a function returned, by name, and when two such results are the same."""

import numpy as np

from minicoca.params import flatten

UNWRITTEN = 0x7FC0BAD1  # the bits of a NaN that stand where no kernel has written


def same(got, expected, close):
    """Whether two arrays are equal but for rounding; infinities must stand in the same places, and
    so must NaN (a mistake may make some; what is right has none)."""
    finite = np.isfinite(expected)
    alike = np.array_equal(got[~finite], expected[~finite], equal_nan=True)
    if not alike or not np.isfinite(got[finite]).all():
        return False
    a, b = got[finite].astype(float), expected[finite].astype(float)
    scale = max(float(np.abs(b).max(initial=0)), 1e-300)
    return float(np.abs(a - b).max(initial=0)) <= close * scale


def named(exercise, result):
    """{output's name: array}; a tree gives one for each leaf; a cache is left out."""
    parts = result if isinstance(result, tuple) else (result,)
    found = {}
    for name, part in zip(exercise.outputs, parts, strict=False):
        for key, leaf in flatten(part).items():
            found[f"{name}[{key!r}]" if key else name] = np.asarray(leaf)
    return found


def leaves(value):
    """Every array, or number, of nested tuples, lists and dicts; what is neither is left out."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in leaves(part)]
    if isinstance(value, (bool, int, float)) or hasattr(value, "__array__"):
        return [np.asarray(value)]
    return []


def are_numbers(value):
    """Whether it can stand for an array of real numbers."""
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except (TypeError, ValueError, RuntimeError):  # a ragged list; a tensor with a gradient
        return False
