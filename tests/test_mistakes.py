"""What a report shows of a split is what the figures of `evaluate` count."""

from dataclasses import replace
from functools import cache
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import planted
from settings_trace import draw_shapes

import minicoca
from minicoca import mistakes
from minicoca.data import shapes
from minicoca.engine.generate import CoCa
from minicoca.evaluate import WAYS, evaluate, written
from minicoca.metrics import wrong_before
from minicoca.mistakes import MAPS, PAIRS, SHOWN, WORST, look
from minicoca.params import tree_map


@cache
def pairs():
    with mock.patch.object(shapes, "STATISTICS", 8):
        return draw_shapes(0, 32, 8, 60).evaluations["compositional"]


@cache
def confused_model():
    """The model that comes with us, shaken until it makes mistakes of every kind."""
    model, rng = minicoca.load("shapes", backend="numpy"), np.random.default_rng(0)

    def shake(x):
        return np.float32(x + 0.45 * np.std(x) * rng.standard_normal(x.shape))

    config = replace(model.config, backend="torch")
    return CoCa(tree_map(shake, model.coca.params), config), model.tokenizer


def check_counts(gallery=0):
    """As many are right as the figures say."""
    looks = look(*confused_model(), pairs(), gallery)
    figures, captions = evaluate(*confused_model(), pairs(), gallery, draws=0)
    n = looks.images
    assert [one.caption for one in looks.said] == captions
    right = sum(one.right for one in looks.said)
    assert right / n == pytest.approx(figures["caption_exact"]) and 0 < right < n
    for way in WAYS:
        _, many, queries = looks.missed[way]
        assert queries >= gallery > 0 or queries == n
        assert 1 - many / queries == pytest.approx(figures[f"{way}_r1"]) and many
    top1 = 1 - looks.mistaken / looks.classified
    assert top1 == pytest.approx(figures["zero_shot_top1"]) and looks.mistaken
    assert sum(one.times for one in looks.confused) <= looks.mistaken


@pytest.mark.parametrize("gallery", [0, 16])
def test_as_many_are_right_as_the_figures_say(gallery):
    check_counts(gallery)


def test_what_is_shown_is_true_and_its_picture_is_there():
    looks = look(*confused_model(), pairs())
    model, tokenizer = confused_model()
    for one in looks.said[:6] + looks.worst:
        tokens = tokenizer.encode([one.truth, one.caption], model.config.text_length)
        log_p = model.log_likelihoods(pairs().batch([one.place]), tokens)[0].sum(-1)
        want = log_p / (tokens[:, 1:] != 0).sum(1)
        np.testing.assert_allclose([one.log_truth, one.log_caption], want, rtol=1e-5)
        assert one.truth in written(pairs(), one.place)
        assert one.right == (one.caption == one.truth)
    worst = sorted(one.log_truth for one in looks.said)[:WORST]
    assert [one.log_truth for one in looks.worst] == worst
    assert looks.cosines.shape == (PAIRS, PAIRS)
    assert looks.texts == [written(pairs(), i)[0] for i in range(PAIRS)]
    assert len(looks.explained) == MAPS and 0 in looks.explained
    shown = {*range(SHOWN), *looks.explained, *(one.place for one in looks.worst)}
    for way in WAYS:
        shown |= {one.image for one in looks.missed[way][0]}
    assert shown <= looks.pictures.keys()
    for place, picture in looks.pictures.items():
        np.testing.assert_array_equal(picture, pairs().batch([place])[0])


def test_a_wrong_thing_that_is_found_is_nearer_than_the_right_one():
    model, tokenizer = confused_model()
    looks = look(model, tokenizer, pairs())
    images = model.embed_images(pairs().images)
    texts = {t: v for t, v in zip(
        (own[0] for own in pairs().captions),
        minicoca.tasks.embed_texts(model, tokenizer, [own[0] for own in pairs().captions]),
        strict=True,
    )}  # fmt: skip
    for one in looks.missed["image_to_text"][0]:
        assert images[one.image] @ texts[one.taken] >= images[one.image] @ texts[one.text]
        assert one.text in written(pairs(), one.image) and one.taken != one.text and one.rank > 1
    for one in looks.missed["text_to_image"][0]:
        assert images[one.taken] @ texts[one.text] >= images[one.image] @ texts[one.text]
        assert one.text not in written(pairs(), one.taken) and one.rank > 1
    ranks = [one.rank for one in looks.missed["image_to_text"][0]]
    assert ranks == sorted(ranks, reverse=True)
    for one in looks.confused:
        assert one.truth != one.taken and 0 < one.times <= one.images


@given(st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=1, max_size=5))
def test_ties_count_against_the_model(rows):
    check_ties(np.array(rows, float))


def check_ties(near):
    """Queries whose similarities are `near`: two texts of two images, held by four."""
    asked = [["a"], ["b"], ["a", "b"], ["c"], ["d"]][: len(near)]
    held = [["a"], ["b"], ["c"], ["d"]]
    right = np.array([[bool({*own} & {*other}) for other in held] for own in asked])
    with mock.patch.object(mistakes, "BATCH", 2):
        rows = list(mistakes.found_wrong(near, np.eye(4), asked, held))
    before = wrong_before(near, right)
    assert [row[0] for row in rows] == np.flatnonzero(before).tolist()
    for query, taken, best, rank in rows:
        assert not right[query, taken] and right[query, best]
        assert near[query, taken] == near[query][~right[query]].max() >= near[query, best]
        assert near[query, best] == near[query][right[query]].max()
        assert rank == before[query] + 1


def check_some_ties():
    check_ties(np.array([[1, 1, 0, 0], [2, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 2], [0, 1, 1, 1]]))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["pairs", "captions"])
def test_a_model_of_one_loss(weights):
    coca, tokenizer = confused_model()
    names = ("contrastive_weight", "caption_weight")
    config = replace(coca.config, **dict(zip(names, weights, strict=True)))
    looks = look(CoCa(coca.params, config), tokenizer, pairs(), limit=10)
    assert looks.images == 10
    assert bool(looks.said) == bool(looks.explained) == (weights[1] > 0)
    assert bool(looks.missed) == (looks.cosines is not None) == (weights[0] > 0)
    with pytest.raises(ValueError, match="no images"):
        look(coca, tokenizer, pairs(), limit=0)


BUGS = [
    ("1 + int(before[row])", "int(before[row])", check_some_ties),
    ("np.where(right, -np.inf, near).argmax(1)", "near.argmax(1)", check_some_ties),
    ("yield start + int(row)", "yield int(row)", check_some_ties),
    ("wrong = np.flatnonzero(wrong_before(scores, labels))",
     "wrong = np.arange(len(labels))", check_counts),
    ("range(0, len(rights) - size + 1, size)", "range(0, len(rights) - size, size)", check_counts),
    ("right = text.split() in", "right = text.split() not in", check_counts),
]  # fmt: skip


@pytest.mark.parametrize("old, new, check", BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_seen(old, new, check):
    check()
    with planted(mistakes, old, new), pytest.raises(AssertionError):
        check()
