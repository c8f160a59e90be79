"""How two arrays that should be equal belong together: one turned, shifted, scaled, exchanged.

Each function is given what came out, what is right and whether two arrays are the same, and gives
words, or None where it knows none.
"""

import itertools

import numpy as np

FORMS = {
    "the square of": np.square,
    "the root of": np.sqrt,
    "exp of": np.exp,
    "the logarithm of": np.log,
    "the absolute value of": np.abs,
    "1 minus": lambda b: 1 - b,
    "1 divided by": lambda b: 1 / b,
    "the running sum of": lambda b: np.cumsum(b, -1),
    "the logarithm in base 2 of the exp of": lambda b: b / np.log(2),
}
REDUCED = {"sum": np.sum, "mean": np.mean, "largest": np.max}


def of_form(got, expected, same):
    """What is known of two arrays of different shapes."""
    if got.size == expected.size:
        for axes in itertools.permutations(range(got.ndim)):
            moved = got.transpose(axes)
            if moved.shape == expected.shape and same(moved, expected):
                return f"its axes should stand in the order {axes}: transpose them"
        if same(got.reshape(expected.shape), expected):
            return "the numbers are right: reshape them"
    for axis in range(got.ndim):
        for word, reduce in REDUCED.items():
            less = reduce(got, axis)
            if less.shape == expected.shape and same(less, expected):
                return f"its {word} over axis {axis} would be right"
    for axis in range(expected.ndim):
        for word, reduce in REDUCED.items():
            less = reduce(expected, axis)
            if less.shape == got.shape and same(got, less):
                return f"it is the {word} over axis {axis} of what is wanted: keep that axis"
        if got.shape == expected[:1].shape[1:] and same(got, expected[0]):
            return "it is the first of axis 0 alone"
    return None


def of_places(got, expected, same):
    """The right numbers in the wrong places."""
    for axes in itertools.permutations(range(got.ndim)):
        moved = expected.transpose(axes)
        if moved.shape == got.shape and same(got, moved):
            return f"has its axes exchanged: it should be transposed by {axes}"
    for axis in range(got.ndim):
        if same(got, np.flip(expected, axis)):
            return f"runs backwards along axis {axis}"
        for step in (1, -1):
            if same(got, np.roll(expected, step, axis)):
                return f"is shifted by {step} along axis {axis}"
    if got.size > 1 and same(np.sort(got, None), np.sort(expected, None)):
        return "has the right numbers in the wrong order: look at its reshape and transpose"
    return None


def of_numbers(got, expected, same):
    """The right numbers, changed in the same way all over."""
    if not got.any():
        return "is 0 everywhere"
    gap = got.astype(float) - expected
    if got.size > 1 and same(gap, np.broadcast_to(gap.mean(), gap.shape)):
        return f"is {gap.mean():.6g} too large everywhere"
    with np.errstate(all="ignore"):
        for word, form in FORMS.items():
            if same(got, form(expected.astype(float))):
                return f"is {word} what it should be"
    return None


def of_lines(got, expected, same):
    """A factor, or a term, that each row has of its own."""
    for axis in range(got.ndim):
        if got.shape[axis] < 3 or got.size == got.shape[axis]:
            continue
        own = (np.abs(expected).argmax(axis, keepdims=True), axis)
        a, b = (np.take_along_axis(x.astype(float), *own) for x in (got, expected))
        with np.errstate(all="ignore"):
            if b.all() and a.any() and same(got, expected * (a / b)):
                return f"is wrong by a factor that is the same along axis {axis}: a norm, perhaps"
        if same(got, expected + (a - b)):
            return f"is wrong by a term that is the same along axis {axis}: a sum, perhaps"
    return None


def of_parts(got, expected, same):
    """Right but for some places of one axis."""
    if got.ndim == 0:
        return None
    for axis in range(got.ndim):
        pairs = zip(np.moveaxis(got, axis, 0), np.moveaxis(expected, axis, 0), strict=True)
        wrong = [i for i, (a, b) in enumerate(pairs) if not same(a, b)]
        if len(wrong) <= got.shape[axis] // 2:
            places = ", ".join(map(str, wrong[:4])) + (" ..." if len(wrong) > 4 else "")
            return f"is right but for {places} of axis {axis} ({got.shape[axis]} long)"
    return None


def of_digits(got, expected, same):
    """Right to as many digits as a narrower type has."""
    if str(got.dtype) in ("float16", "bfloat16"):
        return f"is {got.dtype}, which has 3 digits: compute in {expected.dtype}"
    with np.errstate(all="ignore"):
        if same(got, expected.astype(np.float16)):
            return "was rounded to float16, which has 3 digits"
    scale = max(float(np.abs(expected).max(initial=0)), 1e-300)
    gap = float(np.abs(got.astype(float) - expected).max(initial=0)) / scale
    if gap < 3e-3:
        digits = -int(np.floor(np.log10(gap)))
        return f"is right to {digits} digits: something is rounded, or added to a divisor"
    return None


RELATIONS = (of_digits, of_places, of_numbers, of_lines, of_parts)
