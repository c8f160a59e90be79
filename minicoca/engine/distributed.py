"""What the processes of one run do together, over torch.distributed: rows are parted, sums and rows
exchanged; and the module that DDP or FSDP2 holds.

Everything here is a function of all processes: each must call it, in the same order.
"""

import time
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import nn


class Elsewhere(RuntimeError):
    """Another process of the run failed, and says why."""


class Ranks:
    """Process number `rank` of the `world` processes of a run. Alone it exchanges nothing.

    seconds: how long it was here, waiting for the others among it. What DDP and FSDP2 exchange is
    not counted, nor what a card does behind Python's back.
    """

    def __init__(self, rank=0, world=1):
        self.rank, self.world, self.seconds = rank, world, 0.0

    def _exchange(self, how, *given):
        began = time.perf_counter()
        how(*given)
        self.seconds += time.perf_counter() - began

    @property
    def first(self):
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def shares(self, n):
        """How many of n rows each process has: the first one more, where they do not come out
        even."""
        few, more = divmod(n, self.world)
        return [few + (rank < more) for rank in range(self.world)]

    def mine(self, n):
        """The slice of n rows that are this process's."""
        counts = self.shares(n)
        begin = sum(counts[: self.rank])
        return slice(begin, begin + counts[self.rank])

    def sum(self, x):
        """The sum of every process's tensor."""
        if self.world == 1:
            return x
        total = x.clone()
        self._exchange(dist.all_reduce, total)
        return total

    def any(self, flag):
        """Whether any process says so."""
        return bool(self.sum(torch.tensor(int(bool(flag)))))

    def table(self, *numbers):
        """Whole numbers of every process: a list of lists, by rank."""
        if self.world == 1:
            return [list(numbers)]
        own = torch.tensor(numbers)
        return self.gather(own[None], [1] * self.world).tolist()

    def text(self, text=""):
        """What the first process says, to all of them."""
        if self.world == 1:
            return text
        data = torch.tensor(list(text.encode()) if self.first else [], dtype=torch.uint8)
        lengths = [n for [n] in self.table(len(data))]
        return bytes(self.gather(data, lengths)[: lengths[0]].tolist()).decode()

    def gather(self, x, counts):
        """The rows of every process, of which each has counts[rank], one below the other."""
        if self.world == 1:
            return x
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        self._exchange(dist.all_gather, parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def joined(self, rows, n):
        """A NumPy array of n rows, of which each process has its share."""
        return self.gather(torch.from_numpy(rows), self.shares(n)).numpy()

    def rows(self, array):
        """The rows of every process's NumPy array, one below the other."""
        if self.world == 1:
            return array
        own = torch.from_numpy(array.copy())
        return self.gather(own, [n for [n] in self.table(len(own))]).numpy()

    def to_owners(self, x, counts):
        """Of a row for each row of the batch, every process's for our own: [world, own, ...].

        Summed over the processes it is a reduce-scatter, with as many bytes on the wire; but parts
        may be uneven, the sum has a fixed order, and gloo has it in each version of torch.
        """
        if self.world == 1:
            return x[None]
        own = counts[self.rank]
        found = x.new_empty(self.world * own, *x.shape[1:])
        sizes = [own] * self.world, counts
        self._exchange(dist.all_to_all_single, found, x.contiguous(), *sizes)
        return found.view(self.world, own, *x.shape[1:])

    def agree(self, call):
        """call(), unless it fails in a process: there its error is raised, elsewhere Elsewhere."""
        if self.world == 1:
            return call()
        try:
            found = call()
        except Exception:
            with suppress(RuntimeError):  # whoever is gone already
                self.any(True)
            raise
        if self.any(False):
            raise Elsewhere("another process of this run failed")
        return found


ALONE = Ranks()


class Tree(nn.Module):
    """A tree of parameters as a module: each leaf has its own name there. Called with a function,
    it gives what that makes of the tree."""

    def __init__(self, tree):
        super().__init__()
        for name, part in sorted(tree.items()):
            if isinstance(part, dict):
                self.add_module(name, Tree(part))
            else:
                parameter = nn.Parameter(part.detach(), requires_grad=part.requires_grad)
                self.register_parameter(name, parameter)

    def tree(self):
        """The parameters as they are now: FSDP2 puts others in their place while it computes."""
        parts = {name: part.tree() for name, part in self.named_children()}
        return parts | dict(self.named_parameters(recurse=False))

    def forward(self, function):
        return function(self.tree())


def shared(params, kind):
    """(module, tree) of parameters that every process has (`ddp`) or has a part of (`fsdp`).

    DDP and FSDP2 take the mean over the processes. What is no array of at least one axis stays
    whole under FSDP2, and so does its gradient stay this process's.
    """
    module = Tree(params)
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
        return wrapped, module.tree()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(module.parameters()).device.type
    scalars = {p for p in module.parameters() if not p.ndim}
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    return fully_shard(module, mesh=mesh, ignored_params=scalars), module.tree()


def syncing(module, last):
    """For a `with`: whether the backward pass in it exchanges gradients; else they add up."""
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(last)
    return module.no_sync() if hasattr(module, "no_sync") and not last else torch.enable_grad()


def own(x):
    """This process's part of a tensor, as a view of it."""
    return x.to_local() if hasattr(x, "to_local") else x


def whole(x):
    """The whole of a tensor of which each process has a part."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def as_parts(x, like):
    """A whole tensor that every process has, parted as `like` is."""
    if not hasattr(like, "to_local"):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)
