"""A drive that is away for a while: training waits for it, says so once, and goes on."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ..images import ChangedError, ReadError

AWAY = 90.0  # seconds, by a clock that does not jump, that what cannot be read is waited for
PAUSES = 0.5, 5.0  # seconds before it is tried again: the first, each then twice the last, the most


class Patient:
    """Pairs whose `batch` is asked for again while it cannot be read, for AWAY seconds at most.

    stop: not empty once the run is to end, which it then does without waiting on. What can be read,
    and is another picture than it was, is not waited for.
    """

    def __init__(self, pairs: Any, stop: Sequence[int] = ()):
        self._pairs, self._stop = pairs, stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pairs, name)

    def __len__(self) -> int:
        return len(self._pairs)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        since, pause = None, PAUSES[0]
        while True:
            try:
                images = self._pairs.batch(indices)
                break
            except ReadError as error:
                since = since or time.monotonic()
                left = since + AWAY - time.monotonic()
                if isinstance(error, ChangedError) or left <= 0 or self._stop:
                    raise
                if pause == PAUSES[0]:
                    _say(f"{error}; training waits for it, {AWAY:.0f} s at most")
                time.sleep(min(pause, left))
                pause = min(2 * pause, PAUSES[1])
        if since:
            _say(f"it can be read again, after {time.monotonic() - since:.0f} s")
        return images


def _say(text):
    tqdm.write(text, file=sys.stderr)
