"""Which pairs a training step sees: a function of the seed and the step, and of nothing else."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..params import stream


class Order:
    """Every pair once per epoch, in an order drawn from (seed, epoch).

    With `distinct`, pairs of equal captions are spread over the epoch, so that a batch seldom holds
    a caption twice: to a contrastive loss the second would be a wrong answer.
    """

    def __init__(self, captions, batch_size, seed, distinct=False):
        if not len(captions):
            raise ValueError("there are no training pairs")
        self.captions, self.batch_size, self.seed = captions, batch_size, seed
        groups = {}
        for i, own in enumerate(captions if distinct else ()):
            groups.setdefault(own[0], []).append(i)
        self.groups = list(groups.values())
        self._epoch = functools.lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch):
        rng = stream("order", self.seed, epoch)
        if not self.groups:
            return rng.permutation(len(self.captions))
        # Deal each group's members to rounds; a round holds a caption at most once.
        rounds = {}
        for group in self.groups:
            for place, i in enumerate(rng.permutation(group)):
                rounds.setdefault(place, []).append(i)
        return np.concatenate([rng.permutation(members) for members in rounds.values()])

    def indices(self, step):
        """Which pairs step 0, 1, ... sees: int64 [batch_size]."""
        n = len(self.captions)
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.array([self._epoch(int(place // n))[place % n] for place in places])

    def chosen(self, step, indices):
        """One right caption for each pair of a step."""
        rng = stream("captions", self.seed, step)
        draws = rng.integers(0, 1 << 30, len(indices))
        own = (self.captions[i] for i in indices)
        return [texts[draw % len(texts)] for texts, draw in zip(own, draws, strict=True)]


def batches(pairs, order, encode, first, last):
    """(step, uint8 images, token ids) of steps first to last - 1, made a step ahead in a thread."""

    def make(step):
        indices = order.indices(step)
        return step, pairs.batch(indices), encode(order.chosen(step, indices))

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, first) if first < last else None
        for step in range(first, last):
            batch, ahead = ahead.result(), pool.submit(make, step + 1) if step + 1 < last else None
            yield batch
