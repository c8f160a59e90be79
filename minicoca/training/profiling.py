"""Where the time of a training step goes: torch's profiler over a few steps of a run.

It only watches: what the run learns is the same to the last bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..config import Config
from ..files import read_bytes, write_atomically
from ..words import clip

TRACE = "trace.json"  # as chrome://tracing and Perfetto read it
BEFORE, WATCHED = 9, 5  # steps until all is warm, the last of them with the profiler; and then
COSTLIEST, WIDEST = 10, 60  # operations that are named; letters of a name


def check(config: Config, first: int = 0) -> None:
    """Raise ValueError where a run from step `first` on cannot be profiled."""
    if config.backend == "numpy":
        raise ValueError("--profile is of torch: the numpy backend calls none of its operations")
    if config.steps - first < BEFORE + WATCHED:
        raise ValueError(
            f"--profile watches {WATCHED} steps after {BEFORE}, and {config.steps - first} are to "
            f"be done: at least --steps {first + BEFORE + WATCHED}"
        )


@contextmanager
def profiled(
    trainer: Any, config: Config, folder: Path, first: int, say: Callable[[str], None]
) -> Iterator[Any]:
    """For a `with`: a trainer of which a few steps are watched. Afterwards the folder holds TRACE,
    and the costliest operations are said. Raises ValueError as `check`, and where there is a TRACE
    already."""
    check(config, first)
    path = folder / TRACE
    if path.exists():
        raise ValueError(f"--profile: {path} is there already: move it away")
    watched = Watched(trainer, first, lambda profile, steps: tell(profile, steps, path, say))
    try:
        yield watched
    finally:
        watched.stop()


class Watched:
    """A Trainer whose steps the profiler sees from the last of BEFORE on, as many as WATCHED."""

    def __init__(self, trainer, first, done):
        self._trainer, self._profile, self._done = trainer, None, done
        self._first = first + BEFORE

    def __getattr__(self, name):
        return getattr(self._trainer, name)

    def __setattr__(self, name, value):
        object.__setattr__(self if name.startswith("_") else self._trainer, name, value)

    def step(self, step, images, tokens):
        if step == self._first - 1:
            self._profile = started()
        report = self._trainer.step(step, images, tokens)
        if self._profile is not None:
            self._profile.step()
            if step + 1 == self._first + WATCHED:
                profile = self._profile
                self.stop()
                self._done(profile, (self._first + 1, step + 1))
        return report

    def stop(self):
        if self._profile is not None:
            self._profile.stop()
            self._profile = None


def started():
    from torch.profiler import profile, schedule

    # One step to warm the profiler itself.
    found = profile(schedule=schedule(wait=0, warmup=1, active=WATCHED, repeat=1), acc_events=True)
    found.start()
    return found


def tell(profile, steps: tuple[int, int], path: Path, say: Callable[[str], None]) -> None:
    """Keep the trace and say the table. No trouble with the file ends the run."""
    with tqdm.external_write_mode():  # the progress bar makes room
        say(table(profile.key_averages(), steps))
        say(kept(profile, path))


def kept(profile, path):
    """What became of the trace."""
    try:
        with tempfile.TemporaryDirectory() as inside:
            profile.export_chrome_trace(f"{inside}/{TRACE}")
            write_atomically(path, read_bytes(Path(inside) / TRACE))
        return f"trace:      {path} (for chrome://tracing or ui.perfetto.dev)"
    except (OSError, ValueError, RuntimeError) as error:
        return f"no trace: {error}"


def table(events: Any, steps: tuple[int, int]) -> str:
    """The costliest operations by their own time, without that of what they call: of the device
    where it has any, else of the CPU."""
    from torch.autograd import DeviceType

    events = [e for e in events if not e.key.startswith("ProfilerStep")]
    kernels = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    where, many = ("device" if kernels else "CPU"), steps[1] - steps[0] + 1
    rows = [(e.key, e.count, e.self_device_time_total) for e in kernels]
    rows = rows or [(e.key, e.count, e.self_cpu_time_total) for e in events]
    rows.sort(key=lambda row: -row[2])
    total = sum(row[2] for row in rows) or 1
    rest = rows[COSTLIEST:]
    if rest:
        sums = (sum(row[i] for row in rest) for i in (1, 2))
        rows[COSTLIEST:] = [(f"({len(rest)} others)", *sums)]
    width = min(WIDEST, max(len(row[0]) for row in rows))
    lines = [
        f"steps {steps[0]} to {steps[1]}: {total / many / 1e3:.1f} ms a step of the {where}'s time",
        f"{'operation':{width}}  calls a step  ms a step   share",
    ]
    for name, count, time in rows:
        own = f"{count / many:>12,.1f}  {time / many / 1e3:>9.2f}  {time / total:>6.1%}"
        lines.append(f"{clip(name, width):{width}}  {own}")
    return "\n".join(lines)
