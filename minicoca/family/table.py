"""The table of the family: every row at every budget and seed, resumable, and what they reached.

In a folder: pace.json, the seconds that a step of each row takes; rate-ROW.json, the validation
losses of the rates that were tried; ROW-30s-seed0/, a run, and its figures in family.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..files import make_folder, read_json, write_json
from ..training.log import machine
from ..training.loop import Stopped
from .measure import MEASURED, measured, paces, settings, trained, validation_loss
from .rows import ROWS

PACE = "pace.json"
FACTORS = 1.0, 0.5, 2.0  # of the rate
TRIED = 100  # the seed, of weights and data, that rates are chosen with
LEAST = 100  # steps of a run
VALIDATED = ("shapes",)  # data with a split to choose by
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    row: str
    seconds: int
    seed: int
    factor: float = 1.0

    @property
    def name(self) -> str:
        tried = f"-rate{self.factor:g}" if self.seed == TRIED else ""
        return f"{self.row}-{self.seconds}s-seed{self.seed}{tried}"


class Table:
    """What is to be run, and where. rows: of ROWS, those that they begin with included."""

    def __init__(
        self, folder: Path, of: str, rows: Sequence[str], seconds: Sequence[int],
        seeds: Sequence[int], say: Say,
    ):  # fmt: skip
        wanted = {*rows} | {ROWS[name].begins for name in rows}
        self.rows = [name for name in ROWS if name in wanted and fits(name, of)]
        self.folder, self.of, self.say = folder, of, say
        self.seconds, self.seeds = sorted(seconds), list(seeds)
        make_folder(folder)

    def run(self) -> list[dict[str, Any]]:
        """All of it; what was done before is read. Raises Stopped."""
        self.pace = self._paces()
        self.rates = self._rates()
        jobs = [Job(row, s, seed) for s in self.seconds for seed in self.seeds for row in self.rows]
        jobs = [replace(job, factor=self.rates[job.row]) for job in jobs if self._own(job)]
        found, begun, spent = [], time.perf_counter(), 0
        for i, job in enumerate(jobs):
            new = not (self.folder / job.name / MEASURED).is_file()
            found.append(self._figures(job))
            spent += new * job.seconds
            if new:
                rate = (time.perf_counter() - begun) / spent
                left = rate * sum(j.seconds for j in jobs[i + 1 :] if not self._done(j)) / 60
                self.say(f"{i + 1} of {len(jobs)}: {job.name}; about {left:.0f} minutes left")
        return found

    def _own(self, job):
        """What is not trained is measured once a seed."""
        return ROWS[job.row].flags is not None or job.seconds == self.seconds[0]

    def _done(self, job):
        return (self.folder / job.name / MEASURED).is_file()

    def _figures(self, job):
        """Of a run that was measured weights are not asked for, unless another begins with them."""
        if ROWS[job.row].flags is not None and not self._done(job):
            if first := self._first(job):
                trained(self._settings(first), self.folder / first.name, _quiet)
            trained(self._settings(job), self.folder / job.name, _quiet)
        about = {"seconds": job.seconds, "factor": job.factor}
        return measured(job.row, self.folder / job.name, self.of, job.seed, about)

    def _settings(self, job):
        row = ROWS[job.row]
        steps = max(LEAST, round(job.seconds / self.pace["seconds"][job.row]))
        first = self._first(job)
        init = first and self.folder / first.name
        return settings(row, self.of, job.seed, steps, job.factor, init)

    def _first(self, job):
        begins = ROWS[job.row].begins
        return replace(job, row=begins, factor=self.rates[begins]) if begins else None

    def _paces(self):
        path = self.folder / PACE
        found = read_json(path)[0] if path.is_file() else {"seconds": {}}
        new = [row for row in self.rows if row not in found["seconds"]]
        new = [row for row in new if ROWS[row].flags is not None]
        if new:
            import torch

            self.say(f"timing a step of {len(new)} rows, in turn")
            own = {row: settings(ROWS[row], self.of, 0, 10_000) for row in new}
            found["seconds"] |= paces(own)
            found |= {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
            found |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
            write_json(path, found)
        return found

    def _rates(self):
        """{row: the best of FACTORS}, which rows that begin with another's run ask; by validation,
        so 1 for all where there is none."""
        self.rates = {}
        if self.of not in VALIDATED:
            self.say(f"{self.of} has no validation split: no rate is tried but the preset's")
        for row in self.rows:
            path = self.folder / f"rate-{row}.json"
            if ROWS[row].flags is None or self.of not in VALIDATED:
                self.rates[row] = 1.0
                continue
            if not path.is_file():
                losses = {factor: self._tried(row, factor) for factor in FACTORS}
                told = ", ".join(f"{loss:.3f} at {factor:g}" for factor, loss in losses.items())
                self.say(f"{row}: validation loss {told} of the rate")
                tried = {f"{factor:g}": loss for factor, loss in losses.items()}
                write_json(path, {"tried": tried, "best": min(losses, key=losses.get)})
            self.rates[row] = read_json(path)[0]["best"]
        return self.rates

    def _tried(self, row, factor):
        job = Job(row, self.seconds[0], TRIED, factor)
        try:
            trained(self._settings(job), self.folder / job.name, _quiet)
        except Stopped as error:
            if "keeps its last checkpoint" not in str(error):  # interrupted, not diverged
                raise
            return math.inf
        return validation_loss(self.folder / job.name)


def fits(name: str, of: str) -> bool:
    """Whether a row can be made of the data."""
    flags = ROWS[name].flags
    if flags is None:
        return of == "shapes" or name != "blind"  # there are no questions about others
    return of == "shapes" or not {"scenes", "noise"} & flags.keys()


def _quiet(text):
    pass
