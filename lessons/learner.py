"""What a learner has written: a file in lessons/work, and what went wrong in it."""

import importlib.util
import traceback
from pathlib import Path


def load_learners(exercise, path):
    """The function in a learner's file."""
    spec = importlib.util.spec_from_file_location(f"lesson_work_{exercise.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, exercise.function):
        raise AttributeError(f"the file has no function {exercise.function}")
    return getattr(module, exercise.function)


def said(error, path):
    """What went wrong, and the deepest line of the learner's own file that led there."""
    # Before Python 3.12 a byte of 0 is a ValueError.
    if isinstance(error, SyntaxError | ValueError) and not _decodes(path):
        return f"{path} is not UTF-8 text: save it in this encoding"
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{type(error).__name__}: {error.msg}\n({error.filename}, line {error.lineno})"
    words, line = _words(error), line_of(error, path)
    if line:
        return f"{words}\n({path}, line {line})"
    return (
        f"{words}\n(outside of your lines: look at what your function takes, and what it returns)"
    )


def _decodes(path):
    try:
        Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return "\0" not in Path(path).read_text(encoding="utf-8")  # UTF-16 may read as UTF-8


def _words(error):
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return f"{error.name} is not installed here: pip install {package}, or do without it"
    if isinstance(error, SystemExit):
        return "sys.exit() ended your file before it could be checked: take it out"
    if isinstance(error, RecursionError):
        return "RecursionError: your function calls itself without an end"
    return f"{type(error).__name__}: {error}"


def line_of(error, path):
    """The number of the deepest line of the file that an error passed through, or None."""
    while error is not None:  # inside a kernel's function: its caller stands in the outer error
        frames = traceback.extract_tb(error.__traceback__)
        own = [f.lineno for f in frames if Path(f.filename).resolve() == Path(path).resolve()]
        if own:
            return own[-1]
        error = error.__context__
    return None
