"""Is an answer right, and if not: which known mistake is it, or where does it differ?"""

import importlib
import importlib.util
import traceback
from dataclasses import dataclass

import numpy as np

CLOSE = 1e-6  # relative to the largest number of an output
DRAWS = 3  # fresh inputs for each check


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what to tell whoever wrote it."""

    right: bool
    words: str


def load_answer(exercise):
    """The project's own function."""
    module, _, name = exercise.answer.partition(":")
    return getattr(importlib.import_module(module), name)


def load_learners(exercise, path):
    """The function in a learner's file."""
    spec = importlib.util.spec_from_file_location(f"lesson_work_{exercise.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, exercise.function)


def check(exercise, path):
    """The Verdict on a learner's file."""
    try:
        return judge(exercise, load_learners(exercise, path))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename}, line {where.lineno}"
        return Verdict(False, f"{type(error).__name__}: {error}\n({place})")


def judge(exercise, function):
    """The Verdict on a function."""
    answer = load_answer(exercise)
    for seed in np.random.SeedSequence().generate_state(DRAWS):
        arguments = exercise.inputs(np.random.default_rng(seed))
        expected = named(exercise, answer(*arguments))
        try:
            got = function(*arguments)
        except NotImplementedError:
            return Verdict(False, "not written yet")
        if got is None or got is Ellipsis:
            return Verdict(False, "not written yet: it returns nothing")
        words = _wrong_form(exercise, got, expected) or _mistake(
            exercise, arguments, named(exercise, got), expected
        )
        if words:
            return Verdict(False, words)
    return Verdict(True, "right")


def named(exercise, result):
    """{output's name: array}; a dict gives one for each key; a cache is left out."""
    parts = result if isinstance(result, tuple) else (result,)
    found = {}
    for name, part in zip(exercise.outputs, parts, strict=False):
        inner = part if isinstance(part, dict) else {"": part}
        for key in sorted(inner):
            found[f"{name}[{key!r}]" if key else name] = np.asarray(inner[key])
    return found


def _wrong_form(exercise, got, expected):
    count = len(got) if isinstance(got, tuple) else 1
    found = named(exercise, got)
    if count < len(exercise.outputs) or found.keys() != expected.keys():
        return f"returned {', '.join(found) or 'nothing'}; expected {', '.join(expected)}"
    for name, array in found.items():
        if array.shape != expected[name].shape:
            return f"{name} has shape {array.shape}; expected {expected[name].shape}"
    return None


def same(got, expected):
    """Whether two arrays are equal but for rounding."""
    scale = max(float(np.abs(expected).max(initial=0)), 1e-300)
    return np.isfinite(got).all() and float(np.abs(got - expected).max(initial=0)) <= CLOSE * scale


def _mistake(exercise, arguments, got, expected):
    wrong = [name for name in expected if not same(got[name], expected[name])]
    if not wrong:
        return None
    for sentence, function in exercise.mistakes.items():
        other = named(exercise, function(*arguments))
        if all(other[n].shape == got[n].shape and same(got[n], other[n]) for n in expected):
            return sentence
    return _evidence(wrong, got, expected)


def _evidence(wrong, got, expected):
    lines = [f"{name} is right" for name in expected if name not in wrong]
    for name in wrong:
        a, b = got[name], expected[name]
        worst = np.unravel_index(np.argmax(np.abs(a - b)), b.shape)
        place = f"[{', '.join(map(str, worst))}]" if worst else ""
        lines.append(f"{name}{place} is {a[worst]:.6g}; expected {b[worst]:.6g}")
        factor = float((a * b).sum() / max((b * b).sum(), 1e-300))
        if same(a, factor * b) and factor:
            lines.append(f"all of {name} is {factor:.6g} times what it should be")
    return "\n".join(lines)
