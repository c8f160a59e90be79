"""The order of pairs: each once an epoch, none twice in a step, a function of seed and step."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicoca.data.order import Order, batches
from minicoca.data.pairs import Pairs

SIZES = st.integers(1, 12).flatmap(lambda b: st.tuples(st.just(b), st.integers(b, 4 * b + 2)))


def own_captions(n, each=2):
    return [tuple(f"{each} of {i}: {j}" for j in range(each)) for i in range(n)]


@settings(max_examples=20)
@given(SIZES, st.integers(0, 2**40), st.booleans())
def test_a_step_holds_a_pair_once_and_an_epoch_each(sizes, seed, distinct):
    """Sets a little larger than a batch and the ends of epochs included."""
    size, n = sizes
    order = Order(own_captions(n), size, seed, distinct)
    steps = [order.indices(step) for step in range(4 * n // size + 1)]
    assert all(len(step) == size == len(set(step.tolist())) for step in steps)
    whole = np.concatenate(steps)
    for epoch in range(len(whole) // n):
        assert sorted(whole[epoch * n : epoch * n + n]) == list(range(n))
    assert order.crowded == 0


@given(SIZES, st.integers(0, 9), st.booleans())
def test_order_is_a_function_of_seed_and_step(sizes, seed, distinct):
    """Whatever was asked for before, and how much of it: a resumed run asks from the middle on."""
    size, n = sizes
    captions = [(f"{i % (n // 2 + 1)}",) for i in range(n)]
    order = Order(captions, size, seed, distinct)
    whole = [(order.indices(step), order.chosen(step, order.indices(step))) for step in range(30)]
    for step in (29, 3, 4, 17):
        asked = Order(captions, size, seed, distinct)
        for again in (asked, order):
            indices = again.indices(step)
            np.testing.assert_array_equal(indices, whole[step][0])
            assert again.chosen(step, indices) == whole[step][1]
    if n > 8:
        other = Order(captions, size, seed + 1, distinct)
        assert any((other.indices(s) != whole[s][0]).any() for s in range(30))


@given(SIZES, st.integers(0, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9))
def test_ranks_share_an_epoch_and_others_go_on_in_its_middle(sizes, seed, ranks, later, stop):
    """Every rank has an order of its own, in which nothing is known but seed and step; after `stop`
    steps, wherever in an epoch that is, another number of ranks takes up the run."""
    size, n = sizes
    captions, steps = own_captions(n), 4 * n // size + 1

    def slices(rank, count, first, last):
        order = Order(captions, size, seed)
        return [order.indices(step)[rank::count] for step in range(first, last)]

    seen = []
    for count, first, last in ((ranks, 0, min(stop, steps)), (later, min(stop, steps), steps)):
        parts = [slices(rank, count, first, last) for rank in range(count)]
        for own in zip(*parts, strict=True):
            whole = np.empty(size, np.int64)
            for rank, part in enumerate(own):
                whole[rank::count] = part
            seen.append(whole)
    alone = Order(captions, size, seed)
    np.testing.assert_array_equal(seen, [alone.indices(step) for step in range(steps)])
    seen = np.concatenate(seen)
    for epoch in range(len(seen) // n):
        assert sorted(seen[epoch * n : epoch * n + n]) == list(range(n))


@st.composite
def groups(draw):
    """(batch size, sizes of groups of equal captions that can be kept apart in every step)."""
    size = draw(st.integers(2, 10))
    sizes = draw(st.lists(st.integers(1, 6), min_size=size, max_size=3 * size))
    while max(sizes) > max(sum(sizes) // size, 1):
        sizes = [min(each, max(sum(sizes) // size, 1)) for each in sizes]
    return size, sizes


@settings(max_examples=60)
@given(groups(), st.integers(0, 9), st.sampled_from(["caption", "second", "image"]))
def test_equal_pairs_are_kept_apart(grouped, seed, equal):
    """By an equal caption, an equal one among several, or the same image under another name."""
    size, sizes = grouped
    of = [group for group, count in enumerate(sizes) for _ in range(count)]
    same = None
    if equal == "caption":
        captions = [(f"caption {group}",) for group in of]
    elif equal == "second":
        captions = [(f"own {i}", f"caption {group}") for i, group in enumerate(of)]
    else:
        captions, same = own_captions(len(of)), [of.index(group) for group in of]
    order = Order(captions, size, seed, distinct=equal != "image", same=same)
    whole = []
    for step in range(3 * len(of) // size + 1):
        indices = order.indices(step)
        assert len({of[i] for i in indices}) == size, (step, order.crowded)
        whole += indices.tolist()
    for epoch in range(len(whole) // len(of)):
        assert sorted(whole[epoch * len(of) :][: len(of)]) == list(range(len(of)))
    assert order.crowded == 0


@given(st.integers(2, 8), st.integers(1, 40), st.integers(0, 3))
def test_where_equal_pairs_cannot_be_kept_apart_it_is_said(kinds, extra, seed):
    size = kinds + extra  # more than there are captions
    captions = [(f"caption {i % kinds}",) for i in range(3 * size + 1)]
    order, whole = Order(captions, size, seed, distinct=True), []
    for step in range(10):
        indices = order.indices(step).tolist()
        assert Counter(captions[i] for i in indices).most_common(1)[0][1] > 1
        whole += indices
    for epoch in range(3):  # none is lost or doubled for it
        assert sorted(whole[epoch * len(captions) :][: len(captions)]) == [*range(len(captions))]
    assert order.crowded >= 3 * extra
    anyhow = Order(captions, size, seed, distinct=False)
    assert len(anyhow.indices(0)) == size and anyhow.crowded == 0  # nobody asked for it


def test_equal_captions_are_spread_over_the_epoch():
    """A caption of a tenth of all pairs turns up in every tenth of the epoch."""
    captions = [("often",) if i < 100 else (f"once {i}",) for i in range(1000)]
    order = Order(captions, 5, 0, distinct=True)
    whole = np.concatenate([order.indices(step) for step in range(200)])
    often = np.add.reduceat(whole < 100, np.arange(0, 1000, 100))
    assert often.min() >= 8 and often.max() <= 12


def test_a_step_is_never_larger_than_the_data():
    with pytest.raises(ValueError, match="a step of 8 pairs cannot be made of 7"):
        Order(own_captions(7), 8, 0)
    with pytest.raises(ValueError, match="no training pairs"):
        Order([], 8, 0)


class Damaged(Pairs):
    """Row 3 is damaged: row 4 stands in for it."""

    def batch(self, indices):
        return super().batch(self.shown(indices))

    def shown(self, indices):
        return np.where(indices == 3, 4, indices)


@given(st.integers(2, 8))
def test_a_stand_in_is_not_beside_itself(size):
    images = np.arange(8, dtype=np.uint8)[:, None, None, None] + np.zeros((8, 2, 2, 3), np.uint8)
    pairs = Damaged(images, tuple((f"{i}",) for i in range(8)))
    order = Order(pairs.captions, size, 0)
    for step, shown, texts in batches(pairs, order, lambda texts, *rest: texts, 0, 20):
        rows = shown[:, 0, 0, 0].tolist()
        assert [str(row) for row in rows] == texts and len(set(rows)) == len(rows)
        asked = set(order.indices(step).tolist())
        assert set(rows) == {4 if row == 3 else row for row in asked}
