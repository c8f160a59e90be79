"""Read, run and check the lessons: `python -m lessons list | start | run | check | hint | peek`."""

import argparse
import inspect
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on any CPU; Triton reads it on import

from . import pages  # noqa: E402
from .checker import check  # noqa: E402
from .exercises import EXERCISES, WITHOUT_TRITON  # noqa: E402

WORK = Path(__file__).parent / "work"
LINUX = "needs Triton, which is made for Linux alone"


class Mistake(Exception):
    """Something a learner can put right; its message says how."""


def exercise(name):
    """The exercise of that name. Raises Mistake with those there are."""
    if f"page_{name[:-1]}" in WITHOUT_TRITON or f"page_{name}" in WITHOUT_TRITON:
        raise Mistake(f"exercise {name} {LINUX}")
    if name not in EXERCISES:
        raise Mistake(f"no exercise {name!r}; there are {', '.join(EXERCISES)}")
    return EXERCISES[name]


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
            if it := EXERCISES.get(name):
                print(f"      [{_mark(name)}] {name}  {it.dots}  {it.minutes:>3} min  {it.task}")
    if WITHOUT_TRITON:
        print(f"\nThe kernels' exercises are not shown: this {LINUX}")
    print("\n[x] done  [ ] begun  [-] not begun.  Begin one: python -m lessons start 1a")


def _mark(name):
    path = WORK / f"{name}.py"
    if not path.exists():
        return "-"
    passed = WORK / f".{name}.right"
    return "x" if passed.exists() and passed.read_text() == path.read_text() else " "


def do_start(arguments):
    """Write your own copy of an exercise; one that you have begun is left as it is."""
    it, path = exercise(arguments.name), WORK / f"{arguments.name}.py"
    if path.exists():
        print(f"{path} is there already; delete it to begin anew")
        return
    WORK.mkdir(exist_ok=True)
    path.write_text(it.stub())
    print(f"{path}\nFill it in, then: python -m lessons check {arguments.name}")


def do_run(arguments):
    """Run a page's code, saying what it prints; stops where it prints something else."""
    path = page(arguments.page)
    try:
        pages.run(path, section=arguments.section, show=print)
    except pages.Differs as difference:
        raise Mistake(str(difference)) from None
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] != "triton":
            raise
        raise Mistake(f"page {arguments.page} {LINUX}") from None
    print("all as printed on the page")


def do_check(arguments):
    """Say whether your answer is right, or which mistake it makes."""
    it, path = exercise(arguments.name), WORK / f"{arguments.name}.py"
    if not path.exists():
        raise Mistake(f"not begun; python -m lessons start {arguments.name}")
    verdict = check(it, path)
    print(verdict.words)
    if verdict.right:
        (WORK / f".{arguments.name}.right").write_text(path.read_text())
    return 0 if verdict.right else 1


def do_hint(arguments):
    """A nudge; asked again, a stronger one."""
    it, count = exercise(arguments.name), WORK / f".{arguments.name}.hints"
    WORK.mkdir(exist_ok=True)
    asked = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(asked))
    for number, hint in enumerate(it.hints[:asked], 1):
        print(f"hint {number} of {len(it.hints)}: {hint}")
    if asked > len(it.hints):
        print("no more; `peek` shows the answer")


def do_peek(arguments):
    """The answer: the project's own code."""
    answer = exercise(arguments.name).load_answer()
    function = inspect.unwrap(getattr(answer, "fn", answer))  # a kernel's, or a decorated one's
    print(f"# {function.__module__}\n\n{inspect.getsource(function)}")


def do_notebook(arguments):
    """Write a page as a notebook, with jupytext."""
    try:
        import jupytext
    except ImportError:
        raise Mistake("notebooks need jupytext: pip install jupytext") from None
    path = page(arguments.page)
    out = WORK / f"{path.stem}.ipynb"
    WORK.mkdir(exist_ok=True)
    jupytext.write(jupytext.reads(pages.for_notebook(path), fmt="md"), out)
    print(out)


COMMANDS = {
    f.__name__[3:]: f for f in (do_list, do_start, do_run, do_check, do_hint, do_peek, do_notebook)
}


def main(argv=None):
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lessons", description=__doc__.split(":")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        text = function.__doc__.splitlines()[0]
        sub = commands.add_parser(name, help=text, description=text)
        if name in ("run", "notebook"):
            sub.add_argument("page", help="a page's number, as 4 or 11b")
        elif name != "list":
            sub.add_argument("name", help="an exercise, as 4a")
        if name == "run":
            sub.add_argument("--section", help="only up to the section whose title begins so")
    arguments = parser.parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments) or 0
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `list | head` ends without a word
    sys.exit(main())
