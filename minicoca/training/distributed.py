"""The processes of a run as torchrun starts them: they meet, and end together with one word."""

import os
import re
import sys
from contextlib import contextmanager, suppress
from datetime import timedelta

from ..ranks import ALONE, Elsewhere, Ranks

WAIT = timedelta(minutes=10)  # for another process: as long as a look at validation data may take
# What torch says of a process that is not there any more; it has no type of its own.
GONE = re.compile(r"gloo|nccl|connection|peer|timed out|timeout", re.IGNORECASE)


class LeftError(OSError):
    """Another process of the run is not there any more."""


class Unheard:
    """The log of a process that is not the first."""

    lost, path = 0, None

    @staticmethod
    def read(path):
        return []

    def write(self, record):
        pass

    def sync(self):
        pass


def started():
    """How many processes torchrun started for this run; 1 where it started none."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def restarted():
    """Whether torchrun starts the processes of a run again, after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def may_restart():
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


@contextmanager
def processes():
    """For a `with`: the Ranks of this run, ALONE where torchrun started no others.

    An error ends every process: the first that has one to tell raises it, the others SystemExit.
    A process that is killed closes its connections, by which the others notice at once; what
    waits for WAIT ends too.
    """
    if started() == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, world = next(iter(rendezvous("env://")))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # On one machine a restart can find the addresses of those before it in the same store. On
        # several, each restart has its own store, and they need not agree on how many there were.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=WAIT)
    try:
        yield Ranks(rank, world)
    except BaseException as error:
        if isinstance(error, Elsewhere) or not _speaks(store, rank):
            raise SystemExit(1) from error
        raise
    leave()


def leave():
    """What is done from here on, each process does by itself."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def end(code):
    """End one of several processes at once. gloo's threads let go of what was exchanged last when
    they come to it; for that they take Python's lock, and where Python is ending already this
    aborts the process, which torchrun takes for a failure and kills the others (torch 2.14)."""
    if started() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _speaks(store, rank):
    """Whether no other process has said why the run ends."""
    with suppress(RuntimeError):  # the store is gone: whoever kept it had no time to say anything
        return store.compare_set("minicoca said", "", str(rank)) == str(rank).encode()
    return rank == 0


@contextmanager
def noticing(ranks):
    """For a `with`: that another process ended is a LeftError, in words."""
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or isinstance(error, Elsewhere) or not GONE.search(str(error)):
            raise
        raise LeftError(
            f"one of the {ranks.world} processes of this run ended without a word (killed, or out "
            f"of memory), or was not heard of for {WAIT.seconds // 60} minutes"
        ) from error


def agree(ranks, what, own):
    """Raise ValueError in each process that has another text than the first."""
    if ranks.text(own) != own:
        raise ValueError(
            f"process {ranks.rank} has other {what} than process 0: give each machine the same"
        )
