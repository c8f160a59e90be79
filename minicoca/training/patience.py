"""A drive that is away for a while, or full: training waits for it, says so once, and goes on."""

import sys
import time
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ..images import ChangedError, ReadError
from .owner import ReplacedError

AWAY = 90.0  # seconds, by a clock that does not jump, that what fails is tried for
PAUSES = 0.5, 2.0  # seconds before it is tried again: the first, each then twice the last, the most
Found = TypeVar("Found")


def patiently(
    call: Callable[[], Found],
    away: type[OSError],
    asked: Sequence[int] = (),
    over: Event | None = None,
) -> Found:
    """call(), again while it raises an error of the kind `away`, for AWAY seconds at most.

    asked: not empty once this process is asked to stop, which it then does without waiting on.
    over: after it nobody waits. What is there, and is another than it was, is not waited for.
    """
    since, pause, over = None, PAUSES[0], over or Event()
    while True:
        try:
            found = call()
            break
        except away as error:
            since = since or time.monotonic()
            left = since + AWAY - time.monotonic()
            ends = left <= 0 or asked or over.is_set()
            if ends or isinstance(error, (ChangedError, ReplacedError)):
                raise
            if pause == PAUSES[0]:
                _say(f"{error}; training waits for it, {AWAY:.0f} s at most")
            over.wait(min(pause, left))
            pause = min(2 * pause, PAUSES[1])
    if since:
        _say(f"training goes on, after {time.monotonic() - since:.0f} s")
    return found


class Wrapped:
    """Pairs of which something else is done at each batch."""

    def __init__(self, pairs: Any):
        self._pairs = pairs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pairs, name)

    def __len__(self) -> int:
        return len(self._pairs)


class Patient(Wrapped):
    """Pairs whose `batch` is asked for again while it cannot be read, as `patiently` has it; for a
    `with`, at whose end nobody waits any longer."""

    def __init__(self, pairs: Any, asked: Sequence[int] = ()):
        super().__init__(pairs)
        self._asked, self._over = asked, Event()

    def __enter__(self) -> "Patient":
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def batch(self, indices: np.ndarray) -> np.ndarray:
        return patiently(lambda: self._pairs.batch(indices), ReadError, self._asked, self._over)


def _say(text):
    tqdm.write(text, file=sys.stderr)
