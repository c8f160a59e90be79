"""Which pairs a training step sees: a function of the seed and the step, and of nothing else."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np

from ..params import stream

PATIENCE = 10  # moves for each pair that clashes, at most


class Order:
    """Every pair once per epoch, in an order drawn from (seed, epoch), and at most once in a step.

    same: for each pair the first that shows the same image, such as a byte-equal copy: a step holds
        an image once. distinct: nor does a step hold pairs that share a caption, since to a
        contrastive loss the second would be a wrong answer; equal ones are spread over the epoch.
    Where too many are equal for that, `crowded` is over 0.

    Raises ValueError if there are fewer pairs than a step holds.
    """

    def __init__(self, captions, batch_size, seed, distinct=False, same=None):
        n = len(captions)
        if not n:
            raise ValueError("there are no training pairs")
        if batch_size > n:
            raise ValueError(f"a step of {batch_size} pairs cannot be made of {n}")
        self.captions, self.batch_size, self.seed = captions, batch_size, seed
        same = range(n) if same is None else map(int, same)
        numbers = {}  # of captions, from n on
        # What no step may hold twice: images and, if distinct, captions.
        self._labels = [
            (
                first,
                *(numbers.setdefault(x, n + len(numbers)) for x in dict.fromkeys(own) if distinct),
            )
            for first, own in zip(same, captions, strict=True)
        ]
        self._total = Counter(chain.from_iterable(self._labels))
        self._alike = max(self._total.values()) > 1
        leading = [own[1] if distinct else own[0] for own in self._labels]
        self._group = np.unique(leading, return_inverse=True)[1]
        self._drawn, self.crowded = {}, 0

    def indices(self, step):
        """Which pairs step 0, 1, ... sees: int64 [batch_size]."""
        n = len(self.captions)
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.array([self._epoch(int(place // n))[place % n] for place in places])

    def chosen(self, step, indices):
        """One right caption for each pair of a step."""
        draws = stream("captions", self.seed, step).integers(0, 1 << 30, len(indices))
        own = (self.captions[i] for i in indices)
        return [texts[draw % len(texts)] for texts, draw in zip(own, draws, strict=True)]

    def once(self, pairs):
        """The places in `pairs` [B] of those that share nothing with one before them."""
        return np.setdiff1d(np.arange(len(pairs)), self._clashes(list(pairs)))

    def _epoch(self, epoch):
        """The pairs of an epoch in order, int64 [n]; kept until another is asked for."""
        first = epoch  # the last that begins with a step, or follows one that is known
        while first not in self._drawn and first * len(self.captions) % self.batch_size:
            first -= 1
        for each in range(first, epoch + 1):
            if each not in self._drawn:
                earlier = self._drawn.get(each - 1)
                self._drawn = {each - 1: earlier} if each - 1 in self._drawn else {}
                self._drawn[each] = self._draw(each, self._before(each, earlier))
        return self._drawn[epoch]

    def _before(self, epoch, earlier):
        """The pairs of the earlier epoch that are in a step with the first of this one."""
        count = epoch * len(self.captions) % self.batch_size
        return earlier[-count:] if count else np.zeros(0, np.int64)

    def _draw(self, epoch, before):
        rng = stream("order", self.seed, epoch)
        order = rng.permutation(len(self.captions))
        if self._alike:
            order = spread(order, self._group, rng)
        pairs, held = [*before.tolist(), *order.tolist()], len(before)
        if self._alike or not set(pairs[:held]).isdisjoint(pairs[held : self.batch_size]):
            self._part(pairs, held, rng)
            self.crowded = max(self.crowded, len(self._clashes(pairs)))
        return np.array(pairs[held:])

    def _part(self, pairs, fixed, rng):
        """Let pairs that clash change places until none does, or none can; the first `fixed` stay.
        One that fits where no other fits its place goes there all the same, and the other goes on.
        """
        size, labels = self.batch_size, self._labels
        held = [
            Counter(chain.from_iterable(labels[pair] for pair in pairs[begin : begin + size]))
            for begin in range(0, len(pairs), size)
        ]
        clashes = [place for place in self._clashes(pairs) if place >= fixed]
        for _ in range(PATIENCE * len(clashes)):
            if not clashes:
                break
            place = clashes.pop()
            step, own = held[place // size], labels[pairs[place]]
            too_many = max(self._total[label] for label in own) > len(held)
            if too_many or all(step[label] == 1 for label in own):
                continue
            other, settled = self._seat(pairs, held, place, fixed, rng)
            if not settled:
                clashes.append(place)
            for left, came in ((place, other), (other, place)):
                held[left // size].subtract(labels[pairs[left]])
                held[left // size].update(labels[pairs[came]])
            pairs[place], pairs[other] = pairs[other], pairs[place]

    def _seat(self, pairs, held, place, fixed, rng):
        """(a place in another step for the pair at `place`, whether the pair there fits here)."""
        size, here, own = self.batch_size, place // self.batch_size, self._labels[pairs[place]]
        taken, seats = (held[here] - Counter(own)).keys(), [place]
        for step in chain(range(here + 1, len(held)), range(here)):
            if not any(held[step][label] for label in own):
                inside = range(max(fixed, step * size), min(step * size + size, len(pairs)))
                for other in inside:
                    if taken.isdisjoint(self._labels[pairs[other]]):
                        return other, True
                seats += inside
        return seats[rng.integers(1, len(seats))] if len(seats) > 1 else place, len(seats) == 1

    def _clashes(self, pairs):
        """The places of pairs that share a label with an earlier one of their step."""
        found = []
        for begin in range(0, len(pairs), self.batch_size):
            seen = set()
            for place, pair in enumerate(pairs[begin : begin + self.batch_size], begin):
                if not seen.isdisjoint(self._labels[pair]):
                    found.append(place)
                seen.update(self._labels[pair])
        return found


def spread(order, group, rng):
    """The same pairs in another order: the members of each group evenly over all places."""
    groups = group[order]
    by_group, sizes = np.argsort(groups, kind="stable"), np.bincount(groups)
    rank = np.empty(len(order), np.int64)
    rank[by_group] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[np.argsort((rank + rng.random(len(order))) / sizes[groups], kind="stable")]


def batches(pairs, order, encode, first, last, ranks=None):
    """(step, uint8 images, encode(texts, rows, step)) of steps first to last - 1, made a step ahead
    in a thread; rows: whose texts they are.

    ranks: the processes that share each step (ranks.py), where there are several: each
    decodes its own rows. Raises ValueError where none of them can be used.
    """

    def make(step):
        indices = order.indices(step)
        mine = ranks.mine(len(indices)) if ranks else slice(0, len(indices))
        own = indices[mine]
        images, shown = pairs.batch(own), pairs.shown(own)
        return indices, mine, images, shown, encode(order.chosen(step, indices)[mine], own, step)

    def settle(step, indices, mine, images, shown, texts):
        if ranks:
            shown = ranks.joined(shown, len(indices))
        if np.array_equal(shown, indices):
            return step, images, texts
        # Another image stands in for a damaged one: not beside itself.
        theirs = shown != indices
        theirs[mine] = False
        if theirs.any():  # each process is to know of all that are damaged
            pairs.batch(indices[theirs])
        once = order.once(shown)
        here = (once >= mine.start) & (once < mine.stop)
        if not here.any():
            raise ValueError(f"step {step}: every image of a process's share of it is damaged")
        texts = [
            text for text, own in zip(order.chosen(step, shown[once]), here, strict=True) if own
        ]
        own = once[here]
        return step, images[own - mine.start], encode(texts, shown[own], step)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, first) if first < last else None
        for step in range(first, last):
            made = ranks.agree(ahead.result) if ranks else ahead.result()
            batch = settle(step, *made)
            ahead = pool.submit(make, step + 1) if step + 1 < last else None
            yield batch
