"""--profile: a trace, a table of the costliest operations, and the same run to the last bit."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import planted
from runs import tensors
from settings_trace import small_data

from minicoca import __main__ as cli
from minicoca.params import flatten
from minicoca.training import profiling

QUICK = ["train", "--batch-size", "4", "--image-layers", "1", "--evaluate-every", "0"]
NAMES = "plain", "watched"
ROW = re.compile(r"(.+?) +([\d,.]+) +([\d.]+) +([\d.]+)%")


def trained(folder, *flags):
    with small_data():
        return cli.main([*QUICK, "--run", str(folder), *flags])


def test_it_watches_and_changes_nothing(tmp_path, capsys):
    assert trained(tmp_path / NAMES[0], "--steps", "16") == 0
    capsys.readouterr()
    assert trained(tmp_path / NAMES[1], "--steps", "16", "--profile") == 0
    said = capsys.readouterr().out
    plain, watched = (flatten(tensors(tmp_path / n, "model.safetensors")) for n in NAMES)
    for name, value in plain.items():
        np.testing.assert_array_equal(value, watched[name])
    events = json.loads((tmp_path / NAMES[1] / "trace.json").read_text())["traceEvents"]
    assert sum(str(event.get("name")).startswith("aten::") for event in events) > 1000
    head = said.index("steps 10 to 14: ")
    rows = said[head:].splitlines()[2:13]
    found = [ROW.fullmatch(row).groups() for row in rows]
    assert len(found) == 11 and found[-1][0].endswith("others)")
    parts = [float(row[3]) for row in found]
    assert sum(parts) == pytest.approx(100, abs=1) and parts[:10] == sorted(parts[:10])[::-1]
    assert any(row[0] in ("aten::addmm", "aten::mm") for row in found)
    assert str(tmp_path / NAMES[1] / "trace.json") in said


def test_what_cannot_be_profiled_is_refused_before_anything(tmp_path, capsys):
    for flags, why in (
        (["--backend", "numpy"], "--profile is of torch: the numpy backend calls none"),
        (["--steps", "13"], "and 13 are to be done: at least --steps 14"),
    ):
        assert trained(tmp_path / "run", "--profile", *flags) == 2
        assert why in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_a_run_that_is_taken_up(tmp_path, capsys, monkeypatch):
    """Its steps are counted from where it goes on, and an earlier trace is kept."""
    folder = tmp_path / "run"
    stop = cli.main

    from minicoca.engine.train import Trainer

    original = Trainer.step

    def failing(self, step, images, tokens):
        if step == 6:
            raise KeyboardInterrupt
        return original(self, step, images, tokens)

    monkeypatch.setattr(Trainer, "step", failing)
    assert trained(folder, "--steps", "20", "--checkpoint-every", "5") == 1
    monkeypatch.setattr(Trainer, "step", original)
    (folder / "trace.json").write_text("mine")
    capsys.readouterr()
    with small_data():
        assert stop(["train", "--resume", str(folder), "--profile"]) == 1
        assert "trace.json is there already: move it away" in capsys.readouterr().err
        assert (folder / "trace.json").read_text() == "mine"
        (folder / "trace.json").unlink()
        assert stop(["train", "--resume", str(folder), "--profile"]) == 0
    assert "steps 15 to 19: " in capsys.readouterr().out


def event(key, count, cpu, device=0, kind=None, note=False):
    from torch.autograd import DeviceType

    kind = kind or DeviceType.CPU
    return SimpleNamespace(
        key=key, count=count, self_cpu_time_total=cpu, self_device_time_total=device,
        device_type=kind, is_user_annotation=note,
    )  # fmt: skip


def check_table():
    """By hand: ten rows and the rest; kernels alone where there is a device."""
    events = [event(f"op{i}", 5 * (13 - i), 1000 * i) for i in range(1, 13)]
    events.append(event("ProfilerStep*", 5, 10**9))
    lines = profiling.table(events, (10, 14)).splitlines()
    assert lines[0] == "steps 10 to 14: 15.6 ms a step of the CPU's time" and len(lines) == 13
    assert lines[2].split() == ["op12", "1.0", "2.40", "15.4%"]
    assert lines[-1].split() == ["(2", "others)", "23.0", "0.60", "3.8%"]
    from torch.autograd import DeviceType

    events += [event("kernel" * 20, 10, 0, 4000, DeviceType.CUDA)]
    events += [event("mark", 1, 0, 9000, DeviceType.CUDA, note=True)]
    lines = profiling.table(events, (1, 2)).splitlines()
    assert lines[0].endswith("2.0 ms a step of the device's time") and len(lines) == 3
    assert lines[2].startswith("kernelkernel") and lines[2].split()[1:] == ["5.0", "2.00", "100.0%"]


def test_the_table():
    check_table()


@pytest.mark.parametrize(
    "old, new",
    [
        ("key=lambda row: -row[2]", "key=lambda row: -row[1]"),
        ('if not e.key.startswith("ProfilerStep")', "if e.key"),
        ("and not e.is_user_annotation", ""),
        ("steps[1] - steps[0] + 1", "steps[1] - steps[0]"),
    ],
)
def test_a_planted_bug_is_seen(old, new):
    with planted(profiling, old, new), pytest.raises(AssertionError):
        check_table()
