"""Is an answer right, and if not: which known mistake is it, or where does it differ?"""

import copy
import importlib.util
import traceback
from dataclasses import dataclass

import numpy as np

from minicoca.params import flatten

DRAWS = 3  # fresh inputs for each check


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what to tell whoever wrote it."""

    right: bool
    words: str


def load_learners(exercise, path):
    """The function in a learner's file."""
    spec = importlib.util.spec_from_file_location(f"lesson_work_{exercise.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, exercise.function)


def check(exercise, path):
    """The Verdict on a learner's file."""
    try:
        function = load_learners(exercise, path)
        return judge(exercise, lambda arguments: exercise.run(function, arguments))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename}, line {where.lineno}"
        return Verdict(False, f"{type(error).__name__}: {error}\n({place})")


def judge(exercise, run):
    """The Verdict on what gives run(arguments) -> outputs."""
    for seed in np.random.SeedSequence().generate_state(DRAWS):
        arguments = exercise.inputs(np.random.default_rng(seed))
        expected = named(exercise, exercise.right(copy.deepcopy(arguments)))
        try:
            got = run(copy.deepcopy(arguments))
        except NotImplementedError:
            return Verdict(False, "not written yet")
        if got is None or got is Ellipsis:
            return Verdict(False, "not written yet: it gives nothing")
        words = _wrong_form(exercise, got, expected) or _mistake(
            exercise, arguments, named(exercise, got), expected
        )
        if words:
            return Verdict(False, words)
    return Verdict(True, "right")


def named(exercise, result):
    """{output's name: array}; a tree gives one for each leaf; a cache is left out."""
    parts = result if isinstance(result, tuple) else (result,)
    found = {}
    for name, part in zip(exercise.outputs, parts, strict=False):
        for key, leaf in flatten(part).items():
            found[f"{name}[{key!r}]" if key else name] = np.asarray(leaf)
    return found


def _wrong_form(exercise, got, expected):
    count = len(got) if isinstance(got, tuple) else 1
    found = named(exercise, got)
    if found.keys() != expected.keys() or count < len(exercise.outputs):
        return f"returned {', '.join(found) or 'nothing'}; expected {', '.join(expected)}"
    for name, array in found.items():
        if array.shape != expected[name].shape:
            return f"{name} has shape {array.shape}; expected {expected[name].shape}"
    return None


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


def _mistake(exercise, arguments, got, expected):
    close = exercise.close
    wrong = [name for name in expected if not same(got[name], expected[name], close)]
    if not wrong:
        return None
    for sentence, function in exercise.mistakes.items():
        other = named(exercise, function(*copy.deepcopy(arguments)))
        if all(other[n].shape == got[n].shape and same(got[n], other[n], close) for n in expected):
            return sentence
    return _evidence(exercise, wrong, got, expected)


def _evidence(exercise, wrong, got, expected):
    lines = [f"{name} is right" for name in expected if name not in wrong]
    for name in wrong:
        a, b = got[name].astype(float), expected[name].astype(float)
        with np.errstate(invalid="ignore"):
            gap = np.where(a == b, 0, np.abs(a - b))
        worst = np.unravel_index(np.argmax(np.nan_to_num(gap, nan=np.inf)), b.shape)
        place = f"[{', '.join(map(str, worst))}]" if worst else ""
        lines.append(f"{name}{place} is {a[worst]:.6g}; expected {b[worst]:.6g}")
        both = np.isfinite(a) & np.isfinite(b)
        factor = float((a * b)[both].sum() / max((b * b)[both].sum(), 1e-300))
        if factor and same(a, factor * b, exercise.close):
            lines.append(f"all of {name} is {factor:.6g} times what it should be")
    return "\n".join(lines)
