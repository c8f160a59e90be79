"""Functions run in several gloo processes, forked, so that torch, and what a run imports as it goes
(matplotlib, torch._dynamo, FSDP2), are imported once."""

import os
import pickle
import re
import sys
import tempfile
import traceback
from pathlib import Path

import matplotlib.pyplot  # noqa: F401
import torch._dynamo
import torch.distributed as dist
import torch.distributed.fsdp  # noqa: F401

from minicoca.ranks import Ranks
from minicoca.training.distributed import processes

STORES = []  # of the processes that are running: kept here, as torchrun keeps it


def started(world, function, out=None):
    """Process numbers of `world` processes as torchrun would start them, each with function(rank).
    out: a file for what they say.

    The store's thread here asks the resolver for the name of whoever connects, under a lock: a
    process forked meanwhile would have it locked for ever. So it is let answer first, and nobody
    connects before all are forked.
    """
    store, pids = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), []
    STORES[:] = [store]
    store.set("there", "")
    store.get("there")
    all_there, forking = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    for rank in range(world):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 70
        os.close(forking)
        os.read(all_there, 1)  # its end
        os.close(all_there)
        try:
            if out:
                file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(file, 1)
                os.dup2(file, 2)
                sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
            os.environ |= dict(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
            os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
            os.environ |= dict(TORCHELASTIC_USE_AGENT_STORE="True")
            code = function(rank) or 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(forking)
    os.close(all_there)
    return pids


def ended(pids):
    """Exit codes, or minus the signals, of these processes."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def in_processes(world, function, *given):
    """[function(ranks, *given)] of each of `world` processes."""
    with tempfile.TemporaryDirectory() as folder:

        def call(rank):
            dist.init_process_group("gloo", rank=rank, world_size=world)
            found = function(Ranks(rank, world), *given)
            Path(folder, str(rank)).write_bytes(pickle.dumps(found))
            dist.destroy_process_group()

        codes = ended(started(world, call))
        assert codes == [0] * world, codes
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(world)]


def trained(world, folder, out, train, before=None, *given, **how):
    """Process numbers of a run of several processes; `train(config, folder, ...)` as runs.silent.
    before: called with the rank, in its process."""

    def call(rank):
        if before:
            before(rank)
        try:
            with processes() as ranks:
                train(*given, folder, ranks=ranks, **how)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
            return 1

    return started(world, call, out)


def said(path):
    """The lines that processes said, without the bars of progress."""
    text = re.sub(r"[^\r\n]*?\d+/\d+ \[[^\]\r\n]*\]", "", path.read_text()) if path.exists() else ""
    return [line.strip() for line in re.split("[\r\n]", text) if line.strip()]
