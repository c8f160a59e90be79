"""The nearest of many vectors: exactly those that a full sort would put first."""

import tracemalloc

import numpy as np
import pytest
import searching
from hypothesis import given, settings
from hypothesis import strategies as st

from minicoca.index import Growing, Index
from minicoca.tasks import retrieval

WIDTH = 3


@settings(max_examples=150)
@given(st.integers(0, 40), st.integers(1, 45), st.integers(1, 20), st.integers(1, 2), st.data())
def test_the_nearest_are_those_of_a_full_stable_sort(n, k, block, queries, data):
    """Of small whole numbers, whose products are exact, so that many are equal."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    vectors = rng.integers(-1, 2, (n, WIDTH)).astype(np.float32)
    asked = rng.integers(-1, 2, (queries, WIDTH)).astype(np.float32)
    dead = np.flatnonzero(rng.random(n) < data.draw(st.sampled_from([0, 0.1, 1])))
    alive = np.setdiff1d(np.arange(n), dead)
    similarity = asked @ vectors[alive].T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "BLOCK", block)
        got, cosines = retrieval.nearest(asked, vectors, k, dead)
    np.testing.assert_array_equal(got, alive[order])
    np.testing.assert_array_equal(cosines, np.take_along_axis(similarity, order, 1))


def test_no_query_finds_nothing():
    order, cosines = retrieval.nearest(np.zeros((0, 3)), np.zeros((4, 3)), 2)
    assert order.shape == cosines.shape == (0, 0)


def test_a_search_is_timed(tmp_path):
    taken = searching.seconds(searching.made(tmp_path / "index", 300))
    assert len(taken) == searching.REPEATS and min(taken) > 0


@pytest.mark.slow
def test_a_million_vectors_are_searched_where_they_lie(tmp_path):
    """Against what was planted among noise, with a fraction of their two gigabytes in memory."""
    count, width, k = 1_000_000, 512, 10
    rng = np.random.default_rng(0)
    index = Growing.begin(tmp_path / "i", width, "w", "crop", "run")
    query = rng.standard_normal(width, np.float32)
    query /= np.linalg.norm(query)
    planted = rng.permutation(count)[: 2 * k]
    piece = 50_000
    for start in range(0, count, piece):
        vectors = rng.standard_normal((piece, width), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for place, row in enumerate(planted):
            if start <= row < start + piece:
                vectors[row - start] = query * (1 - place // 2 / 64)  # each twice
        names = [f"/pictures/{i}.jpg" for i in range(start, start + piece)]
        index.add(names, [(i, i) for i in range(piece)], vectors)
    dead = planted[:2]
    index.drop(sorted(dead.tolist()))
    opened = Index(tmp_path / "i")
    tracemalloc.start()
    order, cosines = retrieval.nearest(query[None], opened.vectors, k, opened.dead)
    names = [opened.name(row) for row in order[0].tolist()]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pairs = planted[2:].reshape(-1, 2)[: k // 2]
    assert order[0].tolist() == [row for pair in pairs for row in sorted(pair.tolist())]
    assert names == [f"/pictures/{row}.jpg" for row in order[0]]
    np.testing.assert_allclose(cosines[0], np.repeat(1 - np.arange(1, 6) / 64, 2), atol=1e-5)
    assert peak < 20_000_000, f"{peak:,} bytes"
    whole = opened.vectors @ query  # a full stable sort of all
    whole[opened.dead] = -np.inf
    assert np.argsort(-whole, kind="stable")[:k].tolist() == order[0].tolist()
