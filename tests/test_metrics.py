"""Metrics against cases worked by hand and against slow, plain definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicoca import metrics

small = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


def test_recall_by_hand():
    similarity = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.3], [0.1, 0.7, 0.6]])
    assert metrics.recall_at_k(similarity, [0, 1, 2], (1, 2, 3)) == {1: 1 / 3, 2: 2 / 3, 3: 1.0}
    right = np.eye(3, dtype=bool)
    assert metrics.recall_at_k(similarity.T, right.T, (1, 2)) == {1: 2 / 3, 2: 1.0}


def test_recall_with_several_captions_per_image():
    captions = [("a dog", "the dog"), ("a cat",), ("a dog",)]
    texts = ["a dog", "the dog", "a cat", "a dog", "a bird"]
    right = metrics.right_texts(captions, texts)
    assert right.tolist() == [
        [True, True, False, True, False],
        [False, False, True, False, False],
        [True, False, False, True, False],
    ]
    # Image 0 finds the other "a dog": equal words, so right; image 2 ranks "the dog" first.
    similarity = np.array([[1, 0, 2, 9, 0], [0, 0, 5, 1, 0], [3, 9, 0, 3, 0]])
    assert metrics.recall_at_k(similarity, right, (1, 2)) == {1: 2 / 3, 2: 1.0}
    # No image is right for "a bird".
    assert metrics.recall_at_k(similarity.T, right.T, (3,)) == {3: 4 / 5}


@given(small, small, seeds)
def test_ties_count_against_the_model(n, m, seed):
    right = np.random.default_rng(seed).random((n, m)) < 0.3
    wrong = (~right).sum(axis=1)
    found = metrics.recall_at_k(np.zeros((n, m)), right, range(1, m + 1))
    for k, share in found.items():
        assert share == ((wrong < k) & right.any(1)).mean()


@given(small, small, seeds, st.sampled_from([np.float32, np.float64, np.int64]))
def test_recall_is_the_rank_among_all_orders(n, m, seed, dtype):
    """The share of queries for which every order that sorts the scores has a right one in time."""
    random = np.random.default_rng(seed)
    similarity = random.integers(-2, 3, (n, m)).astype(dtype)
    right = random.random((n, m)) < 0.4
    for k, share in metrics.recall_at_k(similarity, right, range(1, m + 2)).items():
        hits = 0
        for scores, rights in zip(similarity, right, strict=True):
            worst_first = sorted(range(m), key=lambda j: (-scores[j], rights[j]))  # noqa: B023
            hits += any(rights[j] for j in worst_first[:k])
        assert share == hits / n


def test_minus_infinity_is_no_find():
    assert metrics.recall_at_k([[-np.inf, -np.inf]], [0])[1] == 0
    assert metrics.recall_at_k([[0.0, 1.0]], [[False, False]], (5,)) == {5: 0.0}


@pytest.mark.parametrize(
    "similarity, right",
    [
        ([[np.nan, 1.0]], [0]),
        ([1.0, 2.0], [0]),
        (np.zeros((0, 3)), []),
        (np.zeros((2, 3)), [0, 3]),
        (np.zeros((2, 3)), [0, -1]),
        (np.zeros((2, 3)), [0]),
        (np.zeros((2, 3)), np.ones((3, 2), bool)),
    ],
)
def test_what_cannot_be_ranked_is_refused(similarity, right):
    with pytest.raises(ValueError):
        metrics.recall_at_k(similarity, right)


def test_top_k_accuracy():
    scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.2]]
    assert metrics.top_k_accuracy(scores, [1, 1, 0], (1, 2, 3)) == {1: 1 / 3, 2: 2 / 3, 3: 1.0}


def test_exact_match():
    references = [("a red circle", "the circle"), ("a star",), ("a ring",), ("a cross",)]
    generated = ["the  circle ", "a star at", "A ring", "a cross"]
    assert metrics.exact_match(generated, references) == 0.5


@pytest.mark.parametrize("score", [metrics.exact_match, metrics.bleu_4, metrics.cider_d])
def test_captions_that_cannot_be_scored_are_refused(score):
    for generated, references in (([], []), (["a"], []), (["a"], [()]), (["a"], ["a"])):
        with pytest.raises(ValueError):
            score(generated, references)


def test_bleu_by_hand():
    # 6 words against 7; hits 5 of 6, 4 of 5, 3 of 4, 2 of 3.
    score = metrics.bleu_4(["a red circle left of star"], [["a red circle left of a star"]])
    hits = 6 / 6 * 4 / 5 * 3 / 4 * 2 / 3
    assert score == pytest.approx(math.exp(1 - 7 / 6) * hits**0.25)
    # A word counts only as often as one reference has it, in whichever has it most.
    repeated = metrics.bleu_4(
        ["the the the the cat sat on the mat"], [["the cat sat on the mat", "the the rug"]]
    )
    assert repeated == pytest.approx((6 / 9 * 6 / 8 * 4 / 7 * 3 / 6) ** 0.25)


def test_bleu_of_a_corpus_adds_counts_before_dividing():
    generated, references = ["a b c d e", "x y z w"], [["a b c d e"], ["x y q w"]]
    hits = (8 / 9) * (5 / 7) * (3 / 5) * (2 / 3)
    assert metrics.bleu_4(generated, references) == pytest.approx(hits**0.25)


def test_bleu_takes_the_nearest_length():
    text = "a b c d e"
    assert metrics.bleu_4([text], [[text, text + " f g h"]]) == pytest.approx(1)
    assert metrics.bleu_4([text], [[text + " f", "a b c d"]]) == pytest.approx(1)  # 4 and 6: 4
    assert metrics.bleu_4([text], [[text + " f"]]) == pytest.approx(math.exp(-0.2))
    assert metrics.bleu_4(["A b, c d."], [["a b c d"]]) == pytest.approx(1)
    assert metrics.bleu_4([""], [[text]]) == 0 == metrics.bleu_4(["a b c"], [[text]])


def test_cider_by_hand():
    references = [["a red circle"], ["a blue star"]]
    # "a" is in both images and weighs nothing; there are no sequences of four words.
    assert metrics.cider_d(["a red circle", "a blue star"], references) == pytest.approx(7.5)
    # One of two rare words; one of two pairs ("a red" of "a red", "red star"); no threes.
    score = metrics.cider_d(["a red star", "nothing"], references)
    assert score == pytest.approx(10 * (0.5 + 0.5) / 4 / 2)
    # Too long by one word: the length's penalty, on top of longer vectors.
    score = metrics.cider_d(["red circle a circle", "nothing"], references)
    # Clipped: two "circle" count as one; norms sqrt(1 + 4) and sqrt(2). Pairs 1 of 3 and 2.
    expected = (2 / math.sqrt(10) + 1 / math.sqrt(6)) / 4 * math.exp(-1 / 72)
    assert score == pytest.approx(10 * expected / 2)


def test_cider_averages_references_and_counts_images_not_references():
    references = [["x y", "x y", "p q"], ["s t"], ["u v"]]
    # Each word is in one of three images, so all weigh alike; two of three references are hit.
    score = metrics.cider_d(["x y", "-", "-"], references)
    assert score == pytest.approx(10 * (2 / 3) * 0.5 / 3)
    # "x" is in one image's captions twice and "p" once, and both weigh the same.
    assert metrics.cider_d(["x p", "-", "-"], references) == pytest.approx(10 * 0.25 * 0.5 / 3)


words = st.lists(st.sampled_from("a red blue circle star ring".split()), min_size=4, max_size=9)


@given(st.lists(words.map(" ".join), min_size=2, max_size=5))
def test_scores_of_the_truth_are_the_best(captions):
    truth = metrics.caption_scores(captions, [[caption] for caption in captions])
    assert set(truth) == {"exact_match", "bleu_4", "cider_d"}
    assert truth["exact_match"] == 1 and truth["bleu_4"] == pytest.approx(1)
    worse = metrics.caption_scores([c + " zebra" for c in captions], [[c] for c in captions])
    assert worse["exact_match"] == 0 and worse["bleu_4"] < 1
    assert worse["cider_d"] <= truth["cider_d"] <= 10 + 1e-9
