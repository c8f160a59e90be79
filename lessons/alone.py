"""A check in a process of its own: nothing that a learner's file does there ends anything else.

`python -m lessons.alone NAME FILE FOLDER SECONDS [KEEP]` leaves its verdict in the folder.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FRAME = re.compile(r'File "(.*)", line (\d+) in')
VERDICT, TRACE = "verdict.json", "trace.txt"


def check(name, path, seconds, keep=None):
    """(whether the answer in the file is right, what to tell); ended after so many seconds. The
    inputs of a wrong answer are written to `keep`, if given."""
    path = Path(path).resolve()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [name, path, folder, seconds, *([keep] if keep else [])]
        command = [sys.executable, "-m", "lessons.alone", *map(str, arguments)]
        code = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode
        verdict, trace = Path(folder, VERDICT), Path(folder, TRACE)
        if verdict.exists():
            return tuple(json.loads(verdict.read_text(encoding="utf-8")))
        frames = FRAME.findall(trace.read_text(encoding="ascii")) if trace.exists() else []
    if frames:
        return False, f"ended after {seconds:g} s{_at(path, frames)}"
    how = f"signal {-code}" if code < 0 else f"code {code}"
    return False, f"your file ended the whole process ({how}) before it could be checked"


def _at(path, frames):
    """The line of the file that a stack, its deepest frame first, stands at."""
    escaped = str(path).encode("ascii", "backslashreplace").decode()
    own = [int(line) for name, line in frames if name == escaped]
    if not own:
        return ", outside of your lines: --seconds gives it more time"
    line = path.read_text(encoding="utf-8", errors="replace").splitlines()[own[0] - 1].strip()
    return (
        f", at line {own[0]}: {line}\nDoes a loop go on for ever? If not, --seconds gives it more "
        f"time\n({path}, line {own[0]})"
    )


def main(name, path, folder, seconds, keep=None):
    """Check, within so many seconds; a card's compiler has as long as it needs."""
    import faulthandler

    from . import checker, kept
    from .exercises import EXERCISES

    exercise = EXERCISES[name]
    with open(Path(folder, TRACE), "w") as trace:
        faulthandler.dump_traceback_later(float(seconds), exit=True, file=trace)
        verdict = checker.numbers(exercise, path)
        faulthandler.cancel_dump_traceback_later()
    if verdict.right and exercise.constants:
        verdict = checker.card(exercise, path)
    words = verdict.words
    if keep and not verdict.right:
        words += "\n" + (kept.keep(keep, verdict.case) if verdict.case else "nothing to keep yet")
    Path(folder, VERDICT).write_text(json.dumps([verdict.right, words]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
