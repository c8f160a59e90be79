"""What takes minutes, as a person would start it: the second stage runs it, `make test-slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lessons import pages
from minicoca.kernels.bench import suite

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def run(module, *arguments, cwd):
    """What a command prints, in a process of its own; it must end well."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_kernel_is_timed_after_its_tests(tmp_path):
    printed = run("minicoca", "bench", "kernels", "--json", "kernels.json", cwd=tmp_path)
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert set(report["tests"].values()) == {"green"}
    assert {row["op"] for row in report["rows"]} == set(report["tests"])
    assert suite.memory_table() in printed


def test_pages_run_up_to_a_section():
    for path in pages.all_pages():
        section = pages.blocks(path)[0][0]
        number = path.stem.split("_")[0]
        printed = run("lessons", "run", number, "--section", section, cwd=ROOT)
        assert printed.endswith("all as printed on the page\n")


@pytest.mark.extras
def test_a_page_becomes_a_notebook(tmp_path):
    jupytext = pytest.importorskip("jupytext")
    for path in pages.all_pages():
        cells = jupytext.reads(pages.for_notebook(path), fmt="md").cells
        assert any(cell.cell_type == "code" for cell in cells), path
