"""What is wrong with an answer, in words: a listed mistake, a slip, or how its numbers are off."""

import copy
import re
from dataclasses import dataclass

import numpy as np

from . import relations
from .compare import UNWRITTEN, named, same
from .slips import named_slip

NARROW = 5e-3  # how near two float16 numbers of one value are


@dataclass(frozen=True)
class Case:
    """An exercise on one draw: its arguments, what is right, and what came out; both by name."""

    exercise: object
    arguments: tuple
    expected: dict
    got: dict

    @property
    def close(self):
        narrow = any(x.dtype == np.float16 for x in self.got.values())
        return NARROW if narrow else self.exercise.close

    def is_right(self, name):
        """Whether an output is right but for rounding, to float16 where that came out."""
        return same(self.got[name], self.expected[name], self.close)

    def is_got(self, result):
        """Whether a result is, in every output, what came out."""
        other = named(self.exercise, result)
        return all(
            other[n].shape == self.got[n].shape and same(self.got[n], other[n], self.close)
            for n in self.expected
        )


def mistake(case, other):
    """Words for a wrong answer. `other()` gives a second Case, of fresh arguments."""
    narrow = [name for name, x in case.got.items() if x.dtype == np.float16]
    lines = [f"{', '.join(narrow)}: float16, which has 3 digits; compute in float64."]
    wrong = [n for n in wrong_outputs(case) if not case.is_right(n)]
    return "\n".join((lines if narrow else []) + (_named(case, wrong, other) if wrong else []))


def _named(case, wrong, other):
    """Lines on outputs that are more than rounded."""
    both = _both_draws(case, other)
    sentence = _listed(case.exercise, both)
    if sentence:
        return [sentence]
    known = (
        _exchanged(case, wrong)
        or any(_unwritten(case.got[name]).any() for name in wrong)
        or all(_factor(case, name) for name in wrong)
    )
    slip = None if known else _slip(case.exercise, both)
    return [slip, *_evidence(case, wrong, shown=1)] if slip else _evidence(case, wrong, shown=4)


def wrong_outputs(case):
    """The names of the outputs that are not what is right."""
    close = case.exercise.close
    return [n for n, right in case.expected.items() if not same(case.got[n], right, close)]


def _both_draws(case, other):
    """Whether run(arguments) gives what came out, on this draw and on a second one: on a single one
    two mistakes may agree (3 tokens are as many as the first caption has)."""
    cases = [case]

    def gives(run):
        for number in range(2):
            if number == len(cases):
                cases.append(other())
            at = cases[number]
            if not at.is_got(run(copy.deepcopy(at.arguments))):
                return False
        return True

    return gives


def _listed(exercise, gives):
    for sentence, function in exercise.mistakes.items():
        if gives(lambda arguments, function=function: function(*arguments)):
            return sentence
    return None


def _slip(exercise, gives):
    for functions, run in exercise.slipped():
        words = named_slip(
            functions,
            lambda function, run=run: gives(lambda arguments: run(function, arguments)),
        )
        if words:
            return f"One slip makes these numbers. {words}"
    return None


def _evidence(case, wrong, shown):
    """Which outputs are right; of some others the worst number and how it is off."""
    right = [name for name in case.expected if name not in wrong]
    lines = [f"right: {', '.join(right)}"] if right else []
    exchanged = _exchanged(case, wrong)
    lines += [exchanged] if exchanged else []
    for name in wrong[:shown]:
        lines.append(_worst(name, case.got[name], case.expected[name]))
        words = None if exchanged or shown == 1 else _related(case, name)
        lines += [words] if words else []
    more = wrong[shown:]
    return lines + ([f"wrong too: {', '.join(more)}"] if more else [])


def _worst(name, got, expected):
    a, b = got.astype(float), expected.astype(float)
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0, np.abs(a - b))
    worst = np.unravel_index(np.argmax(np.nan_to_num(gap, nan=np.inf)), b.shape)
    place = f"[{', '.join(map(str, worst))}]" if worst else ""
    return f"{name}{place} is {a[worst]:.6g}; expected {b[worst]:.6g}"


def _exchanged(case, wrong):
    """Two outputs that stand in each other's place."""
    for i, one in enumerate(wrong):
        for two in wrong[i + 1 :]:
            got, expected = case.got, case.expected
            if got[one].shape == expected[two].shape and got[two].shape == expected[one].shape:
                ahead = same(got[one], expected[two], case.close)
                if ahead and same(got[two], expected[one], case.close):
                    return f"{one} and {two} are exchanged"
    return None


def _related(case, name):
    """How an output is off, in words; None where nothing is known."""
    got, expected = case.got[name], case.expected[name]
    words = _not_numbers(name, got, expected) or _factor(case, name)
    if words:
        return words
    if not np.isfinite(got.astype(float)).all() or not np.isfinite(expected.astype(float)).all():
        return None
    if _given(case, got):
        return f"{name} is {_given(case, got)} as it was given"

    def alike(a, b):
        return a.shape == b.shape and same(a, b, case.close)

    for relation in relations.RELATIONS:
        words = relation(got, expected, alike)
        if words:
            return f"{name} {words}"
    return None


def _unwritten(got):
    """Where no kernel has written."""
    if got.dtype != np.float32:
        return np.zeros(got.shape, bool)
    return np.ascontiguousarray(got).view(np.uint32).reshape(got.shape) == UNWRITTEN


def _not_numbers(name, got, expected):
    """NaN and infinities, and memory that was never written."""
    unwritten = _unwritten(got)
    if unwritten.any():
        first = ", ".join(map(str, np.argwhere(unwritten)[0]))
        count = f"{unwritten.sum()} of {got.size}"
        return f"{name}: {count} numbers were never written, the first is [{first}]"
    nan, infinite = np.isnan(got.astype(float)), np.isinf(got.astype(float))
    wrong = nan & ~np.isnan(expected.astype(float))
    if wrong.any():
        return (
            f"{name}: {wrong.sum()} of {got.size} numbers are NaN: inf - inf, 0 * inf or 0 / 0; "
            "does an exp overflow, or a row see nothing?"
        )
    if (infinite & np.isfinite(expected.astype(float))).any():
        count = f"{infinite.sum()} of {got.size}"
        return f"{name}: {count} numbers are infinite: an exp overflows, or 1 / 0"
    return None


def _given(case, got):
    """The name of an argument of the same numbers."""
    for name, value in case.exercise.given(case.arguments).items():
        if hasattr(value, "__array__") and value.shape == got.shape and got.size > 1:
            if same(got, np.asarray(value), case.close):
                return name
    return None


def _factor(case, name):
    a, b = case.got[name].astype(float), case.expected[name].astype(float)
    both = np.isfinite(a) & np.isfinite(b)
    factor = float((a[both] * b[both]).sum() / max((b[both] ** 2).sum(), 1e-300))
    reason = _reason(case, factor)
    if not factor or not (a.size > 1 or _plain(factor) or reason):
        return None
    if not same(a, factor * b, case.close):
        return None
    words = f"all of {name} is {factor:.6g} times what it should be"
    return words + (f": {reason}" if reason else "")


def _plain(factor):
    """-1, 2, 1/2 and the like: for a single number, any other factor says nothing."""
    larger = max(abs(factor), 1 / max(abs(factor), 1e-300))
    return larger < 100 and abs(larger - round(larger)) < 1e-6 * larger


def _reason(case, factor):
    """What a factor is made of: "the sign is turned", "1 / B", "sqrt(K)"."""
    if abs(factor + 1) < 1e-6:
        return "the sign is turned"
    found, sizes = {}, _sizes(case)
    for one, x in sizes.items():
        found |= {one: x, f"1 / {one}": 1 / x, f"-{one}": -x, f"-1 / {one}": -1 / x}
        found |= {f"sqrt({one})": abs(x) ** 0.5, f"1 / sqrt({one})": abs(x) ** -0.5}
        for two, y in sizes.items():
            found |= {f"{one} / {two}": x / y, f"{one} {two}": x * y}
            found[f"1 / ({one} {two})"] = 1 / x / y
    near = [name for name, x in found.items() if abs(x - factor) < 1e-6 * abs(factor)]
    return near and min(near, key=len)


def _sizes(case):
    """{letter of an axis, or name of a number: its value}, of what the function is given."""
    found = {}
    for name, value in case.exercise.given(case.arguments).items():
        shape = getattr(value, "shape", ())
        letters = re.search(r"_([A-Z]+)$", name)
        if letters and len(letters[1]) == len(shape):
            found |= dict(zip(letters[1], shape, strict=True))
        elif not shape and isinstance(value, (int, float, np.number, np.ndarray)) and float(value):
            found[name] = float(value)
        elif shape:
            found |= {f"len({name})": shape[0]} if shape[0] else {}
    return {name: float(x) for name, x in found.items() if x not in (1, 0, -1)}
