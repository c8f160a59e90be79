"""What the processes of one run do together, over torch.distributed: rows are parted, sums and rows
exchanged. A process that is alone needs no torch for it.

Everything here is a function of all processes: each must call it, in the same order.
"""

import time
from contextlib import suppress


class Elsewhere(RuntimeError):
    """Another process of the run failed, and says why."""


class Ranks:
    """Process number `rank` of the `world` processes of a run. Alone it exchanges nothing.

    seconds: how long it was here, waiting for the others among it. What DDP and FSDP2 exchange is
    not counted, nor what a card does behind Python's back.
    """

    def __init__(self, rank=0, world=1):
        self.rank, self.world, self.seconds = rank, world, 0.0

    def _exchange(self, name, *given):
        import torch.distributed as dist

        began = time.perf_counter()
        getattr(dist, name)(*given)
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
        self._exchange("all_reduce", total)
        return total

    def any(self, flag):
        """Whether any process says so."""
        return any(said for [said] in self.table(int(bool(flag))))

    def table(self, *numbers):
        """Whole numbers of every process: a list of lists, by rank."""
        if self.world == 1:
            return [list(numbers)]
        import torch

        own = torch.tensor(numbers)
        return self.gather(own[None], [1] * self.world).tolist()

    def text(self, text=""):
        """What the first process says, to all of them."""
        if self.world == 1:
            return text
        import torch

        data = torch.tensor(list(text.encode()) if self.first else [], dtype=torch.uint8)
        lengths = [n for [n] in self.table(len(data))]
        return bytes(self.gather(data, lengths)[: lengths[0]].tolist()).decode()

    def gather(self, x, counts):
        """The rows of every process, of which each has counts[rank], one below the other."""
        if self.world == 1:
            return x
        import torch

        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        self._exchange("all_gather", parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def joined(self, rows, n):
        """A NumPy array of n rows, of which each process has its share."""
        if self.world == 1:
            return rows
        import torch

        return self.gather(torch.from_numpy(rows), self.shares(n)).numpy()

    def rows(self, array):
        """The rows of every process's NumPy array, one below the other."""
        if self.world == 1:
            return array
        import torch

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
        self._exchange("all_to_all_single", found, x.contiguous(), *sizes)
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
