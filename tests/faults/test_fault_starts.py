"""Ctrl-C while a command starts, and the memory that a config asks for."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trials import trial

from minicoca import memory, params, tuning
from minicoca.config import preset

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CODE = (  # says when Python's own start is over: before, nobody can answer but Python
    "import sys; from minicoca.__main__ import main; "
    "sys.stdout.write('here'); sys.stdout.flush(); sys.exit(main(['info']))"
)


@pytest.mark.parametrize("seed", range(12))
def test_ctrl_c_at_any_moment_of_the_start_is_one_line(seed):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout.read(4) == b"here"
    time.sleep(random.Random(seed).uniform(0.02, 0.6))
    process.send_signal(signal.SIGINT)
    trial("signals at a stage of a run")
    _, err = process.communicate()
    assert (process.returncode, err) in ((1, b"minicoca: interrupted\n"), (0, b"")), err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("importing", [True, False])
def test_what_meets_the_import_of_torch_raises_nothing_in_it(importing, name):
    code = (
        "import os, signal, sys, types; from minicoca.__main__ import interrupts\n"
        "torch = sys.modules['torch'] = types.ModuleType('torch')\n"
        f"torch.__spec__ = types.SimpleNamespace(_initializing={importing})\n"
        "with interrupts():\n"
        "    try:\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "    except KeyboardInterrupt:\n"
        "        print('raised')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    said = done.returncode, done.stdout, done.stderr
    assert said == ((1, b"", b"minicoca: interrupted\n") if importing else (0, b"raised\n", b""))


def test_the_package_alone_is_light():
    code = "import minicoca.__main__, sys; assert not {'numpy', 'torch', 'PIL'} & {*sys.modules}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A system of which a test says how much memory it has, in kB, and a group's limit in bytes."""

    own = memory.available

    def make(free, limit="max", swap=0):
        files = {
            "proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {free} kB\nSwapFree: {swap} kB\n",
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
            "sys/fs/cgroup/outer/memory.max": f"{limit}\n",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, "available", lambda: own(tmp_path))

    return make


def test_what_is_there_is_the_least_that_anything_allows(machine):
    machine(1000)
    assert memory.available() == 1000 * 1024
    machine(1000, swap=7)
    assert memory.available() == 1007 * 1024
    machine(1000, 5000)
    assert memory.available() == 5000


@pytest.mark.parametrize("name", ["tiny", "base", "2b", "open_clip_l14"])
def test_a_config_is_refused_exactly_where_its_weights_do_not_fit(name, machine):
    config = preset(name)
    size = 4 * params.count(params.specs(config))
    machine(10**12, size)
    memory.check(config)
    machine(10**12, size - 1)
    with pytest.raises(
        ValueError, match="takes at least .* GB of memory, and .* GB are free"
    ) as no:
        memory.check(config)
    assert len(str(no.value)) < 300


def test_training_counts_moments_averages_images_and_drawings():
    own = {"backend": "numpy", "data": "mine", "batch_size": 1, "optimizer": "adamw"}

    def needed(**changes):
        return memory.needed(preset("tiny", **own | changes), training=True)

    weights, least = memory.needed(preset("tiny", **own)), needed()
    assert least > 4 * weights
    assert needed(batch_size=9) - least == 8 * (least - 4 * weights)
    assert needed(ema=0.9) - least == weights
    assert needed(data="shapes") - least == 63_000 * 3 * 32 * 32
    config = preset("tiny", **own | {"optimizer": "muon"})
    tree = params.specs(config)
    sizes = {name: math.prod(shape) for name, shape in params.shapes(tree).items()}
    matrices = tuning.by_muon(tree, config)
    assert matrices
    assert least - needed(optimizer="muon") == 4 * sum(sizes[name] for name in matrices)


def test_where_the_system_says_nothing_nothing_is_refused(tmp_path, monkeypatch):
    assert memory.available(tmp_path) is None
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.check(preset("2b", image_layers=1000), training=True)
