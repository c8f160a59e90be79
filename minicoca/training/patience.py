"""A drive that is away for a while: training waits for it, says so once, and goes on."""

import sys
import time
from collections.abc import Sequence
from threading import Event
from typing import Any

import numpy as np
from tqdm import tqdm

from ..images import ChangedError, ReadError

AWAY = 90.0  # seconds, by a clock that does not jump, that what cannot be read is waited for
PAUSES = 0.5, 2.0  # seconds before it is tried again: the first, each then twice the last, the most


class Wrapped:
    """Pairs of which something else is done at each batch."""

    def __init__(self, pairs: Any):
        self._pairs = pairs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pairs, name)

    def __len__(self) -> int:
        return len(self._pairs)


class Patient(Wrapped):
    """Pairs whose `batch` is asked for again while it cannot be read, for AWAY seconds at most; for
    a `with`, at whose end nobody waits any longer.

    asked: not empty once this process is asked to stop, which it then does without waiting on. What
    can be read, and is another picture than it was, is not waited for.
    """

    def __init__(self, pairs: Any, asked: Sequence[int] = ()):
        super().__init__(pairs)
        self._asked, self._over = asked, Event()

    def __enter__(self) -> "Patient":
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def batch(self, indices: np.ndarray) -> np.ndarray:
        since, pause = None, PAUSES[0]
        while True:
            try:
                images = self._pairs.batch(indices)
                break
            except ReadError as error:
                since = since or time.monotonic()
                left = since + AWAY - time.monotonic()
                ends = left <= 0 or self._asked or self._over.is_set()
                if ends or isinstance(error, ChangedError):
                    raise
                if pause == PAUSES[0]:
                    _say(f"{error}; training waits for it, {AWAY:.0f} s at most")
                self._over.wait(min(pause, left))
                pause = min(2 * pause, PAUSES[1])
        if since:
            _say(f"it can be read again, after {time.monotonic() - since:.0f} s")
        return images


def _say(text):
    tqdm.write(text, file=sys.stderr)
