"""What is only decoration never fails a finished run: pictures, names, whoever hears it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from trials import trial

from minicoca.training.checkpoint import load_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
TINY = ["--steps", "2", "--warmup", "0", "--image-layers", "1", "--evaluate-every", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A list with a name in which half a surrogate pair stands, among whole ones."""
    folder = tmp_path_factory.mktemp("decoration")
    for i in range(24):
        Image.new("RGB", (32, 32), (9 * i, 80, 200)).save(folder / f"{i}.png")
    entries = [{"image": f"{i}.png", "caption": f"thing {i % 5}"} for i in range(24)]
    entries.append({"image": "half \ud800.png", "caption": "no such thing"})
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return folder / "own.jsonl"


def trained(data, run, environment=None, **streams):
    command = [sys.executable, "-m", "minicoca", "train", "--data", data, "--run", run, *TINY]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    trial("decorations that fail: pictures, names, closed outputs")
    return subprocess.run(command, env=environment, cwd=run.parent, **streams)


def whole(run):
    assert load_model(run, "numpy")
    assert json.loads((run / "results.json").read_text())["steps"] == 2
    assert "half" in (run / "left_out.txt").read_text(errors="replace")


@pytest.mark.parametrize(
    ("name", "environment", "rc"),
    [
        ("no such backend", {"MPLBACKEND": "nonsense"}, ""),
        ("no TeX", {}, "text.usetex: True"),
        ("a style that is none", {}, "font.size: many\nfont.family: [\n"),
        ("words that only ASCII writes", {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, ""),
    ],
)
def test_pictures_and_names(data, tmp_path, name, environment, rc):
    (tmp_path / "matplotlibrc").write_text(rc)
    environment |= {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    done = trained(data, tmp_path / "run", environment, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr[-2000:]
    whole(tmp_path / "run")


@pytest.mark.parametrize("closed", [(1, 2), (0, 1, 2)])
def test_nobody_hears_it(data, tmp_path, closed):
    def close():
        for number in closed:
            os.close(number)

    done = trained(data, tmp_path / "run", preexec_fn=close)
    assert done.returncode == 0
    whole(tmp_path / "run")


def test_what_nobody_reads_of_a_warning_does_not_decide_how_it_ends():
    """A library's words that could not be written, and are held: Python would end with 120."""
    read, write = os.pipe()
    os.close(read)
    code = (
        "import os, sys; from minicoca.__main__ import main\n"
        "sys.stderr = os.fdopen(2, 'w', buffering=999, closefd=False)\n"
        "print('a warning', file=sys.stderr); sys.exit(main(['family']))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=write)
    os.close(write)
    assert done.returncode == 1


def test_a_reader_that_goes_away(data, tmp_path):
    """As `minicoca train | head -1` does."""
    read, write = os.pipe()
    os.close(read)
    done = trained(data, tmp_path / "run", stdout=write, stderr=write)
    os.close(write)
    assert done.returncode == 0
    whole(tmp_path / "run")
