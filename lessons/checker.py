"""Is an answer right, and if not: which known mistake is it, or where does it differ?"""

import copy
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicoca.params import flatten

from .compare import same
from .exercise import Told
from .learner import load_learners

DRAWS = 3  # fresh inputs for each check


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what to tell whoever wrote it."""

    right: bool
    words: str


def check(exercise, path):
    """The Verdict on a learner's file."""
    try:
        function = load_learners(exercise, path)
        verdict = judge(exercise, lambda arguments: exercise.run(function, arguments))
        if verdict.right and exercise.constants:
            _try_compiler(exercise, path)
            return Verdict(True, "right, and a card's compiler takes it too")
        return verdict
    except Told as told:
        return Verdict(False, str(told))
    except Exception as error:
        return Verdict(False, _raised(error, path))


def _try_compiler(exercise, path):
    """Raises Told, with the compiler's words, where it refuses the kernel in the file."""
    done = subprocess.run(
        [sys.executable, "-m", "lessons.compiled", exercise.name, str(Path(path).resolve())],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        words = (done.stdout or done.stderr).strip()
        raise Told(f"Right in the interpreter, but a card's compiler refuses it:\n{words}")


def _raised(error, path):
    """What went wrong, and the deepest line of the learner's own file that led there."""
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{type(error).__name__}: {error.msg}\n({error.filename}, line {error.lineno})"
    while error is not None:  # inside a kernel's function: its caller stands in the outer error
        frames = traceback.extract_tb(error.__traceback__)
        own = [f.lineno for f in frames if Path(f.filename).resolve() == Path(path).resolve()]
        if own:
            return f"{words}\n({path}, line {own[-1]})"
        error = error.__context__
    return (
        f"{words}\n(outside of your lines: look at what your function takes, and what it returns)"
    )


def judge(exercise, run):
    """The Verdict on what gives run(arguments) -> outputs."""
    for seed in np.random.SeedSequence().generate_state(DRAWS):
        arguments = exercise.inputs(np.random.default_rng(seed))
        expected = named(exercise, exercise.right(copy.deepcopy(arguments)))
        try:
            got = run(copy.deepcopy(arguments))
        except NotImplementedError:
            return Verdict(False, "not written yet")
        except Told as told:
            return Verdict(False, str(told))
        if got is None or got is Ellipsis:
            return Verdict(False, "not written yet: it gives nothing")
        if isinstance(got, list) and len(exercise.outputs) > 1:
            got = tuple(got)
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
    """How many values, of which kind, with which keys and shapes; None where that is right."""
    outputs, alone = exercise.outputs, len(exercise.outputs) == 1
    count = len(got) if isinstance(got, tuple) else 1
    if count < len(outputs):
        were = "was" if count == 1 else "were"
        names = ", ".join(outputs)
        return f"{len(outputs)} values are wanted ({names}); {count} {were} returned"
    for name, part in zip(outputs, got if isinstance(got, tuple) else (got,), strict=False):
        keys = [key[len(name) + 2 : -2] for key in expected if key.startswith(f"{name}['")]
        what = "return one dict" if alone else f"{name} should be a dict"
        if keys and not isinstance(part, dict):
            return f"{what} with the keys {', '.join(keys)}"
        if keys and sorted(flatten(part)) != keys:
            given = ", ".join(flatten(part)) or "none"
            return f"{what} with the keys {', '.join(keys)}; it has {given}"
        for leaf in flatten(part).values() if keys else [part]:
            if not _numbers(leaf):
                kind = type(leaf).__name__
                carries = getattr(leaf, "requires_grad", False)
                return f"{name} should be {'numbers' if keys else 'an array or a number'}; " + (
                    f"a {kind} {'with a gradient: detach() it' if carries else 'was returned'}"
                )
    for name, array in named(exercise, got).items():
        if array.shape != expected[name].shape:
            return f"{name} has shape {array.shape}; expected {expected[name].shape}"
    return None


def _numbers(value):
    """Whether it can stand for an array of real numbers."""
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except (TypeError, ValueError, RuntimeError):  # a ragged list; a tensor with a gradient
        return False


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
    right = [name for name in expected if name not in wrong]
    lines = [f"right: {', '.join(right)}"] if right else []
    for name in wrong:
        a, b = got[name].astype(float), expected[name].astype(float)
        with np.errstate(invalid="ignore"):
            gap = np.where(a == b, 0, np.abs(a - b))
        worst = np.unravel_index(np.argmax(np.nan_to_num(gap, nan=np.inf)), b.shape)
        place = f"[{', '.join(map(str, worst))}]" if worst else ""
        lines.append(f"{name}{place} is {a[worst]:.6g}; expected {b[worst]:.6g}")
        both = np.isfinite(a) & np.isfinite(b)
        factor = float((a[both] * b[both]).sum() / max((b[both] ** 2).sum(), 1e-300))
        if (a.size > 1 or _plain(factor)) and factor and same(a, factor * b, exercise.close):
            lines.append(f"all of {name} is {factor:.6g} times what it should be")
    return "\n".join(lines)


def _plain(factor):
    """-1, 2, 1/2 and the like: for a single number, any other factor says nothing."""
    larger = max(abs(factor), 1 / max(abs(factor), 1e-300))
    return larger < 100 and abs(larger - round(larger)) < 1e-6 * larger
