"""Is an answer right, and if not: which mistake is it, or where does it differ?"""

import copy
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import naming
from .compare import leaves, named
from .exercise import Told
from .forms import wrong_form
from .learner import load_learners, said

DRAWS = 3  # fresh inputs for each check


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and what to tell whoever wrote it. Where it is wrong: the
    arguments, and by name what is right and what came out, as far as it got."""

    right: bool
    words: str
    case: naming.Case | None = None


def check(exercise, path):
    """The Verdict on a learner's file."""
    verdict = numbers(exercise, path)
    return card(exercise, path) if verdict.right and exercise.constants else verdict


def numbers(exercise, path):
    """The Verdict on what a learner's file computes."""
    try:
        function = load_learners(exercise, path)
        return judge(exercise, lambda arguments: exercise.run(function, arguments), path)
    except Told as told:
        return Verdict(False, str(told))
    except (Exception, SystemExit) as error:
        return Verdict(False, said(error, path))


def card(exercise, path):
    """The Verdict of a card's compiler on the kernel in the file, which is right in numbers."""
    done = subprocess.run(
        [sys.executable, "-m", "lessons.compiled", exercise.name, str(Path(path).resolve())],
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONIOENCODING": "utf-8"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        words = (done.stdout or done.stderr).strip()
        return Verdict(
            False, f"Right in the interpreter, but a card's compiler refuses it:\n{words}"
        )
    return Verdict(True, "right, and a card's compiler takes it too")


def judge(exercise, run, path=None):
    """The Verdict on what gives run(arguments) -> outputs; errors are told with the path's lines.

    Raises what run raises where there is no path.
    """
    for _ in range(DRAWS):
        verdict = _one_draw(exercise, run, path)
        if not verdict.right:
            return verdict
    return Verdict(True, "right")


def _draw(exercise):
    """Fresh arguments, and what is right for them, by name."""
    arguments = exercise.inputs(np.random.default_rng())
    return arguments, named(exercise, exercise.right(copy.deepcopy(arguments)))


def _one_draw(exercise, run, path):
    arguments, expected = _draw(exercise)
    empty = naming.Case(exercise, arguments, expected, {})
    given = copy.deepcopy(arguments)
    try:
        got = run(given)
    except NotImplementedError:
        return Verdict(False, "not written yet")
    except Told as told:
        return Verdict(False, str(told), empty)
    except (Exception, SystemExit) as error:
        if path is None:
            raise
        return Verdict(False, said(error, path), empty)
    over = _written_over(exercise, arguments, given)
    if got is None or got is Ellipsis:
        what = f"only {over} was written over" if over else "it gives nothing"
        return Verdict(False, f"not written yet: {what}")
    if isinstance(got, list) and len(exercise.outputs) > 1:
        got = tuple(got)
    words = wrong_form(exercise, got, expected)
    if words:
        return Verdict(False, words, empty)
    case = naming.Case(exercise, arguments, expected, named(exercise, got))
    lines = [f"{over} was written over (by += perhaps): make a new array."]
    lines = lines if over and not exercise.in_place else []
    if naming.wrong_outputs(case):
        lines.append(naming.mistake(case, lambda: _another(exercise, run)))
    return Verdict(not lines, "\n".join(lines), case if lines else None)


def _another(exercise, run):
    """A Case of another draw."""
    arguments, expected = _draw(exercise)
    got = run(copy.deepcopy(arguments))
    got = tuple(got) if isinstance(got, list) and len(exercise.outputs) > 1 else got
    return naming.Case(exercise, arguments, expected, named(exercise, got))


def _written_over(exercise, before, after):
    """The name of an argument that is not as it was, or None."""
    was, now = (exercise.given_names(arguments) for arguments in (before, after))
    for name in was:
        pairs = zip(leaves(was[name]), leaves(now[name]), strict=False)
        if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs):
            return name
    return None
