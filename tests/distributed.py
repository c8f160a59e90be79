"""Functions run in several gloo processes, whose results come back."""

import os
import socket
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from minicoca.engine.distributed import Ranks


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _process(rank, world, port, function, given, results):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    results[rank] = function(Ranks(rank, world), *given)
    dist.destroy_process_group()


def in_processes(world, function, *given):
    """[function(ranks, *given)] of each of `world` processes."""
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_process, (world, free_port(), function, given, results), world)
        return [results[rank] for rank in range(world)]
