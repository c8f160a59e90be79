"""What `make mutants` stands on: slips are slips, and the tests of a line are asked about it."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slips import Source

SPOILT = '''"""x = 1 + 2"""
EDGE = 5


def half(x, most=3):
    """Not 7, nor x < y."""
    if not x < most and x:
        return divide(x, 2, exact=True)
    for a, b in zip(x, x, strict=True):
        x.total -= a[1] * b
    raise ValueError(f"{x + 1} is too much")
'''
# Lines as they are spoilt, from each kind of slip.
EXPECTED = {
    7: {
        "if (not (not x < most and x)):", "if (x < most) and x:", "if not x <= most and x:",
        "if not x < most or x:",
    },
    8: {
        "pass", "return divide(2, x, exact=True)", "return divide(x, 3, exact=True)",
        "return divide(x, 1, exact=True)", "return divide(x, 2, exact=False)",
        "return divide(x, 2)",
    },
    10: {
        "pass", "x.total += a[1] * b", "x.total -= a[2] * b", "x.total -= a[0] * b",
        "x.total -= a[1] / b",
    },
    11: {"pass"},
}  # fmt: skip


def test_slips_are_in_what_functions_do_and_of_every_kind(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(SPOILT)
    source, found = Source(path), {}
    for line, slips in source.slips.items():
        for slip in slips:
            patch = source.diff("x.py", slip).splitlines()
            new = [text[1:].strip() for text in patch if text[0] == "+" and text[:3] != "+++"]
            found.setdefault(line, set()).update(new)
    assert {line: new for line, new in found.items() if new} == EXPECTED


@pytest.mark.slow
def test_a_slip_dies_by_the_tests_of_its_line_or_lives(tmp_path):
    """In a repository of its own: what is tested, what is not, what never ends; and again."""
    here = Path(__file__).parent
    files = {
        "minicoca/__init__.py": "",
        "minicoca/seen.py": "def double(x):\n    return x * 2\n",
        "minicoca/unseen.py": "def triple(x):\n    return x * 3\n",
        "minicoca/loop.py": "def count(n):\n    while n > 0:\n        n -= 1\n    return n\n",
        "tests/test_x.py": "from minicoca import loop, seen, unseen\n"
        "def test_seen(): assert seen.double(3) == 6\n"
        "def test_unseen(): unseen.triple(3)\n"
        "def test_loop(): assert loop.count(3) == 0\n",
        "kernels/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("mutants.py", "slips.py"):
        shutil.copy(here / name, tmp_path / "tests")
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]
    for arguments in (["init", "-q"], ["add", "."], commit):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    command = [sys.executable, "tests/mutants.py", "--count", "9", "--least-seconds", "15"]
    for _ in range(2):  # the second time there is nothing left to do
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        lines = (tmp_path / "mutants.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        came = {record["place"].split(":")[0]: record["outcome"] for record in records}
        assert len(records) == 5
        assert came["minicoca/unseen.py"] == "survived" and came["minicoca/seen.py"] == "killed"
        assert f"exit -{signal.SIGKILL:d}" in {record["by"] for record in records}
