"""Read, run and check the lessons: `python -m lessons list | next | start | run | check | ...`."""

import argparse
import importlib.util
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on any CPU; Triton reads it on import

from . import alone, pages  # noqa: E402
from .exercises import EXERCISES  # noqa: E402

WORK = Path(__file__).parent / "work"
SECONDS = 60  # that a check may take
LINUX = "needs Triton, which is made for Linux alone"


class Mistake(Exception):
    """Something a learner can put right; its message says how."""


def listed(name):
    """What is listed of an exercise: "4a", also as "4A" or "04a". Raises Mistake."""
    found = EXERCISES.listed.get(name.lower().lstrip("0"))
    if not found:
        raise Mistake(f"no exercise {name!r}; there are {', '.join(EXERCISES)}")
    return found


def exercise(name):
    """The exercise of that name. Raises Mistake, also where it needs what is not installed."""
    name = listed(name).name
    try:
        return EXERCISES[name]
    except ModuleNotFoundError as error:
        raise Mistake(f"exercise {name} {_missing(error)}") from None


def _missing(error):
    package = error.name.partition(".")[0]
    return LINUX if package == "triton" else f"needs {package}: pip install {package}"


def page(number):
    """The page of that number. Raises Mistake."""
    try:
        return pages.find(number)
    except ValueError as error:
        raise Mistake(str(error)) from None


def do_list(arguments):
    """Every page with its exercises; what you have done is ticked."""
    for path in pages.all_pages():
        print(f"{pages.label(path):<3} {pages.title(path)}")
        for name in pages.exercises(path):
            print(f"      [{_mark(name)}] {_line(EXERCISES.listed[name])}")
    for package in ("torch", "triton"):
        if not importlib.util.find_spec(package):
            print(f"\n{package} is not installed: exercises that need it cannot be checked here.")
    print("\n[x] done  [ ] begun  [-] not begun.  Begin one: python -m lessons start 1a")
    print(_total())


def _line(it):
    dots = "●" * it.level + "○" * (3 - it.level)
    try:
        dots.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a console of one byte a letter
        dots = "*" * it.level + "." * (3 - it.level)
    return f"{it.name:<3} {dots}  {it.minutes:>3} min  {it.task}"


def _total():
    """How much is done, and how much time the rest takes."""
    marks = {name: _mark(name) for name in EXERCISES}
    left = sum(it.minutes for name, it in EXERCISES.listed.items() if marks[name] != "x")
    done = [*marks.values()].count("x")
    return f"{done} of {len(marks)} exercises done; the others take {left // 60} h {left % 60} min"


def _mark(name):
    path = WORK / f"{name}.py"
    if not path.exists():
        return "-"
    passed = WORK / f".{name}.right"
    return "x" if passed.exists() and passed.read_bytes() == path.read_bytes() else " "


def do_next(arguments):
    """The exercise to go on with: the first that you have begun, or else the first of all."""
    marks = {name: _mark(name) for path in pages.all_pages() for name in pages.exercises(path)}
    for mark, command in ((" ", "check"), ("-", "start")):
        for name in marks:
            if marks[name] == mark:
                where = next(p for p in pages.all_pages() if name in pages.exercises(p))
                print(f"{_line(EXERCISES.listed[name])}\nof page {pages.label(where)}", end="")
                print(f" · {pages.title(where)}: python -m lessons {command} {name}")
                return
    print("all exercises are done")


def do_start(arguments):
    """Write your own copy of an exercise; one that you have begun is left as it is."""
    it = exercise(arguments.name)
    path = WORK / f"{it.name}.py"
    _write_new(path, it.stub(), "delete it to begin anew")
    print(f"{path}\nFill it in, then: python -m lessons check {it.name}")


def _write_new(path, text, otherwise):
    """Raises Mistake where the file is there: it may hold somebody's work."""
    WORK.mkdir(exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Mistake(f"{path} is there already; {otherwise}") from None


def do_run(arguments):
    """Run a page's code, saying what it prints; stops where it prints something else."""
    path = page(arguments.page)
    try:
        pages.run(path, section=arguments.section, show=print)
    except pages.Differs as difference:
        raise Mistake(str(difference)) from None
    except ModuleNotFoundError as error:
        raise Mistake(f"page {arguments.page} {_missing(error)}") from None
    print("all as printed on the page")


def do_check(arguments):
    """Say whether your answer is right, or which mistake it makes."""
    it = exercise(arguments.name)
    path = WORK / f"{it.name}.py"
    if not path.exists():
        raise Mistake(f"not begun; python -m lessons start {it.name}")
    keep = WORK / f"{it.name}.failed.npz" if arguments.keep else None
    before = path.read_bytes()
    right, words = alone.check(it.name, path, arguments.seconds, keep)
    print(words)
    if right:
        (WORK / f".{it.name}.right").write_bytes(before)
    return 0 if right else 1


def do_hint(arguments):
    """A nudge; asked again, a stronger one."""
    it = exercise(arguments.name)
    count = WORK / f".{it.name}.hints"
    WORK.mkdir(exist_ok=True)
    asked = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(asked))
    for number, hint in enumerate(it.hints[:asked], 1):
        print(f"hint {number} of {len(it.hints)}: {hint}")
    if asked > len(it.hints):
        print("no more; `peek` shows the answer")


def do_peek(arguments):
    """The answer: the project's own code, or one for the exercise where ours does more."""
    print(exercise(arguments.name).shown_answer())


def do_notebook(arguments):
    """Write a page as a notebook, with jupytext; one that is there is left as it is."""
    try:
        import jupytext
    except ImportError:
        raise Mistake("notebooks need jupytext: pip install jupytext") from None
    path = page(arguments.page)
    out = WORK / f"{path.stem}.ipynb"
    notebook = jupytext.reads(pages.for_notebook(path), fmt="md")
    _write_new(out, jupytext.writes(notebook, fmt="ipynb"), "rename it, or delete it for a new one")
    print(out)


COMMANDS = {
    f.__name__[3:]: f
    for f in (
        do_list, do_next, do_start, do_run, do_check, do_hint, do_peek, do_notebook
    )
}  # fmt: skip


def _parser():
    parser = argparse.ArgumentParser(prog="python -m lessons", description=__doc__.split(":")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        text = function.__doc__.splitlines()[0]
        sub = commands.add_parser(name, help=text, description=text)
        if name in ("run", "notebook"):
            sub.add_argument("page", help="a page's number, as 4 or 11b")
        elif name not in ("list", "next"):
            sub.add_argument("name", help="an exercise, as 4a")
        if name == "run":
            sub.add_argument("--section", help="only up to the section whose title begins so")
        if name == "check":
            text = f"how long your function may take (standard: {SECONDS})"
            sub.add_argument("--seconds", type=float, default=SECONDS, help=text)
            text = "write the inputs it fails on, what is right and what came out to a file"
            sub.add_argument("--keep", action="store_true", help=text)
    return parser


def main(argv=None):
    """Run a command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments) or 0
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `list | head` ends without a word
    sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
