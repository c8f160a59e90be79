"""One run, one process: a lock on its folder that the system drops when its process ends."""

import os
import socket
import time
from contextlib import contextmanager, suppress

from ..files import saving, sync_folder

LOCK = "lock"


class TakenError(ValueError):
    """Another process trains in the folder."""


class LostError(OSError):
    """The folder of a run is not there any more, or another stands in its place."""


class ReplacedError(LostError):
    """Another stands in its place."""


@contextmanager
def owned(folder):
    """For a `with`: the folder for this process alone; gives `check`, which raises LostError.

    The lock is the system's, on a file: however the process ends, it is free again. Raises
    TakenError, which says whose it is.
    """
    path = folder / LOCK
    file = _locked(path)
    try:
        file.truncate(0)
        file.seek(0)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}")
        file.flush()

        def check():
            wrong = LostError
            with suppress(OSError):
                if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                    return
                wrong = ReplacedError
            raise wrong(
                f"{folder}, or the {LOCK} in it, was removed or replaced while its run was being "
                "trained; what it had learned since then is lost"
            )

        yield check
    finally:
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                path.unlink()
        file.close()
        with suppress(OSError):
            sync_folder(folder)


def _locked(path):
    """The lock's file, open and locked; one that was removed meanwhile is no lock."""
    while True:
        with saving(path):
            file = open(path, "a+", encoding="utf-8", errors="replace")
        try:
            if not _lock(file):
                file.seek(0)
                holder = file.read(200) or "another process"
                raise TakenError(
                    f"{path.parent} is being trained by {holder}; wait for its end, or give "
                    "another --run"
                )
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file):
    """Whether the file is ours now. Where locks are not to be had (some network drives) it is."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(2**20)  # far behind what stands in it, which others are to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
