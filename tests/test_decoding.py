"""The controls of decoding, by reference and engine: each against its definition read aloud, and
what they promise in every way of writing."""

import functools
from collections import Counter

import numpy as np
import pytest
import torch
from backends import BACKENDS, Engine, Reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import configs, model_and_batch, seeds, small_config
from test_generation import IMAGE, PROMPTS, by_last_token, prompts, sparse

from minicoca.config import END, PAD, START, UNKNOWN
from minicoca.engine import attention as engine_attention
from minicoca.engine import cache as engine_cache
from minicoca.engine import ops as engine_ops
from minicoca.engine.decoding import largest
from minicoca.params import flatten, unflatten

both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
CONTROLS = st.fixed_dictionaries({
    "min_length": st.integers(0, 5),
    "repetition_penalty": st.sampled_from([1.0, 1.3, 4.0, 0.5]),
    "no_repeat_ngram": st.integers(0, 3),
})  # fmt: skip
BEAMS = st.fixed_dictionaries({
    "length_penalty": st.sampled_from([0.0, 1.0, 1.7, -0.5]),
    "max_length": st.integers(0, 6),
    "diversity": st.sampled_from([0.0, 0.4, 9.0]),
})  # fmt: skip
GROUPS = st.sampled_from([(1, 1), (3, 1), (4, 2), (3, 3), (6, 3), (6, 2)])


def grams(ids, n):
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def may_follow(logits, ids, written, min_length=0, repetition_penalty=1.0, no_repeat_ngram=0):
    """{token: its logit} of what may follow a text, one token after the other."""
    found, n = {}, no_repeat_ngram
    for token, logit in enumerate(logits):
        if token in (PAD, START, UNKNOWN):
            continue
        if n and token != END and tuple([*ids, token][-n:]) in grams(ids, n):
            continue
        if token in ids:
            logit = logit / repetition_penalty if logit > 0 else logit * repetition_penalty
        found[token] = logit
    if written + 1 < min_length and len(found) > 1:
        del found[END]
    return found


def check_may_follow(backend, seed, length, written, controls):
    rng = np.random.default_rng(seed)
    logits, ids = rng.normal(size=(4, 9)), rng.integers(3, 9, (4, length))
    ids[:, 0] = START
    found = backend.restrict_logits(logits, ids, written, **controls)
    for row, text, have in zip(logits, ids.tolist(), found, strict=True):
        want = may_follow(row, text, written, **controls)
        assert np.flatnonzero(np.isfinite(have)).tolist() == sorted(want)
        assert [have[token] for token in want] == pytest.approx(list(want.values()))


@both
@given(seed=seeds, length=st.integers(1, 9), written=st.integers(0, 6), controls=CONTROLS)
def test_what_may_follow_is_its_definition(backend, seed, length, written, controls):
    check_may_follow(backend, seed, length, written, controls)


@both
def test_a_text_that_can_go_on_with_nothing_ends(backend):
    logits, ids = np.zeros((2, 6)), np.array([[1, 4, 5], [1, 4, 4]])
    found = backend.restrict_logits(logits, ids, 2, min_length=9, no_repeat_ngram=1)
    assert [np.flatnonzero(np.isfinite(row)).tolist() for row in found] == [[END], [5]]


# --- beams ----------------------------------------------------------------------------------------


def beams_by_definition(next_of, prompt, limit, beams, groups, diversity, penalty):
    """[(score, ids)], the best first: of every group the beams/groups likeliest stay, and those
    that end count if among them; a token is as much less likely as earlier groups chose it. No
    search ends early."""
    size = beams // groups
    opened, ended = [{tuple(prompt): 0.0} for _ in range(groups)], [{} for _ in range(groups)]
    for _ in range(len(prompt), limit):
        chosen = Counter()
        for g in range(groups):
            grown = {
                (*ids, v): total + log_p
                for ids, total in opened[g].items()
                for v, log_p in next_of(ids).items()
            }
            key = lambda ids: grown[ids] - diversity * chosen[ids[-1]]  # noqa: B023, E731
            likeliest = sorted(grown, key=key, reverse=True)
            ended[g] |= {ids: grown[ids] for ids in likeliest[:size] if ids[-1] == END}
            stay = [ids for ids in likeliest if ids[-1] != END][:size]
            opened[g] = {ids: grown[ids] for ids in stay}
            chosen.update(ids[-1] for ids in stay)
    best = {}
    for own in ended if any(ended) else opened:
        scores = {ids: t / max(1, len(ids) - len(prompt)) ** penalty for ids, t in own.items()}
        best |= {ids: scores[ids] for ids in sorted(scores, key=scores.get, reverse=True)[:size]}
    return sorted(((score, ids) for ids, score in best.items()), reverse=True)


def check_beams(backend, seed, prompt, shape, controls, how, length=7):
    config = small_config(vocabulary=8, text_length=length)
    params, images = attentive(config, seed, 1)

    @functools.cache
    def next_of(ids):
        tokens = np.array([[*ids, UNKNOWN]])
        logits = Reference.outputs(params, config, images, tokens)["logits"][0, -1]
        logits = may_follow(logits, list(ids), len(ids) - len(prompt), **controls)
        total = np.logaddexp.reduce(list(logits.values()))
        return {token: logit - total for token, logit in logits.items()}

    most = min(length, len(prompt) + (how["max_length"] or length))
    want = beams_by_definition(
        next_of, prompt, most, *shape, how["diversity"], how["length_penalty"]
    )
    how = dict(beams=shape[0], beam_groups=shape[1], **controls, **how)
    (found,) = backend.n_best(params, config, images, np.array(prompt), **how)
    assert [tuple(ids) for ids, _ in found] == [ids for _, ids in want]
    assert [score for _, score in found] == pytest.approx([score for score, _ in want], abs=1e-8)


@both
@given(
    seed=seeds, prompt=st.sampled_from(PROMPTS), shape=GROUPS, controls=CONTROLS, how=BEAMS
)  # fmt: skip
def test_all_that_beams_find_is_the_definition(backend, seed, prompt, shape, controls, how):
    check_beams(backend, seed, prompt, shape, controls, how)


@both
def test_groups_that_are_punished_enough_begin_apart(backend):
    config = small_config(vocabulary=9)
    row = dict(zip(range(4, 9), (0.6, 0.2, 0.1, 0.06, 0.04), strict=True))
    params = by_last_token(config, sparse(9, dict.fromkeys(range(9), row)))

    def first(**how):
        (found,) = backend.n_best(params, config, IMAGE, np.array([1]), beams=4, **how)
        return sorted(ids[1] for ids, _ in found)

    assert first(beam_groups=4, diversity=9.0) == [4, 5, 6, 7]
    assert first(beam_groups=4, diversity=0.0) == [4]  # each found the same: told once
    assert first(beam_groups=2, diversity=9.0)[0] < first(beam_groups=2, diversity=9.0)[-1]


def attentive(config, seed, batch):
    """A model to which the image and all tokens matter much, and images."""
    params, images, _ = model_and_batch(config, seed, batch=batch)
    flat = flatten(params)
    for name in flat:
        if "attention." in name or "cross." in name:
            flat[name] = 4 * flat[name]
    return unflatten(flat), images


def check_same(config, seed, shape, controls, how, batch=4):
    """Cached and in a batch, uncached and each image by itself: the same captions."""
    params, images = attentive(config, seed, batch)
    prompt = np.array([1, 5])
    how = dict(beams=shape[0], beam_groups=shape[1], **controls, **how)
    a = Reference.n_best(params, config, images, prompt, **how)
    b = Engine.n_best(params, config, images, prompt, **how)
    few = Engine.n_best(params, config, images, prompt, best=2, **how)
    for own, others, first in zip(a, b, few, strict=True):
        assert [list(ids) for ids, _ in own] == [list(ids) for ids, _ in others]
        scores = [score for _, score in own]
        assert scores == pytest.approx([score for _, score in others], abs=1e-9)
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(ids) for ids, _ in own}) == len(own) <= shape[0]
        assert all(list(ids[:2]) == [1, 5] for ids, _ in own)
        assert [list(ids) for ids, _ in own[:2]] == [list(ids) for ids, _ in first[:2]]


@given(
    config=configs(**{"legacy_cls_mask": False}), seed=seeds, shape=GROUPS, controls=CONTROLS,
    how=BEAMS,
)  # fmt: skip
def test_the_engine_finds_what_the_reference_finds(config, seed, shape, controls, how):
    check_same(config, seed, shape, controls, how)


def check_batches(seed):
    """Images whose captions end at different times, together and each by itself."""
    config = small_config(vocabulary=7, text_length=12)
    params, images = attentive(config, seed, 9)
    rows = Engine.generate(params, config, images, prompts(images), temperature=1.0)
    ends = [row.tolist().index(END) for row in rows if END in row]
    assert len(set(ends)) > 1, "all end at once: nothing is tested"
    for way in ({}, {"temperature": 1.0}):
        a, b = (s.generate(params, config, images, prompts(images), **way) for s in BACKENDS)
        np.testing.assert_array_equal(a, b)
    for beams in (1, 2, 3):
        check_same(config, seed, (beams, 1), {}, {"length_penalty": 0.0}, batch=9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_captions_that_end_early_leave_the_others_alone(seed):
    check_batches(seed)


# --- every way of writing -------------------------------------------------------------------------

WAYS = [
    {},
    {"temperature": 1.5, "seed": 1},
    {"beams": 3},
    {"beams": 4, "beam_groups": 2, "diversity": 0.5},
]
every_way = pytest.mark.parametrize("way", WAYS, ids=str)


def written(backend, params, config, images, way, **controls):
    """The texts without start and padding: prompt, what was written, perhaps the end."""
    if "beams" in way:
        found = backend.n_best(params, config, images, np.array([1, 5]), **way, **controls)
        return [list(ids[1:]) for own in found for ids, _ in own]
    rows = backend.generate(params, config, images, prompts(images), **way, **controls)
    return [[token for token in row[1:].tolist() if token != PAD] for row in rows]


@both
@every_way
def test_lengths_are_honoured(backend, way):
    config = small_config(text_length=12)
    params, images, _ = model_and_batch(config, 3, batch=4)
    for low, high in ((0, 3), (4, 4), (3, 6), (6, 0), (1, 1)):
        how = dict(min_length=low, max_length=high)
        for text in written(backend, params, config, images, way, **how):
            assert text[0] == 5
            assert low <= len(text) - 1 <= (high or 10)
            assert END not in text[:-1]
            assert text[-1] == END or len(text) - 1 == (high or 10)


@both
@every_way
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_stands_twice(backend, way, n):
    config = small_config(vocabulary=8, text_length=14)
    params, images, _ = model_and_batch(config, 3, batch=4)
    plain = written(backend, params, config, images, way, min_length=12)
    assert n == 3 or any(len(set(grams(text, n))) < len(grams(text, n)) for text in plain)
    how = dict(min_length=12, no_repeat_ngram=n)
    for text in written(backend, params, config, images, way, **how):
        assert len(set(grams(text, n))) == len(grams(text, n))


@both
@every_way
def test_what_controls_nothing_changes_nothing(backend, way):
    config = small_config(text_length=12)
    params, images, _ = model_and_batch(config, 3, batch=4)
    none = dict(min_length=0, max_length=0, repetition_penalty=1.0, no_repeat_ngram=0)
    plain = written(backend, params, config, images, way)
    assert plain == written(backend, params, config, images, way, **none)
    assert plain == written(backend, params, config, images, way, max_length=100, min_length=1)
    if "beams" in way and "beam_groups" not in way:
        one = {**way, "beam_groups": 1, "diversity": 3.0}
        assert plain == written(backend, params, config, images, one)


@both
@every_way
def test_a_punished_repetition_is_rarer(backend, way):
    config = small_config(text_length=14)
    params, images, _ = model_and_batch(config, 3, batch=6)

    def repeated(penalty):
        how = dict(min_length=12, repetition_penalty=penalty)
        texts = written(backend, params, config, images, way, **how)
        return sum(len(text) - len(set(text)) for text in texts) / len(texts)

    assert repeated(0.5) > repeated(1.0) > repeated(20.0)


# --- the few largest ------------------------------------------------------------------------------


def check_largest(seed, rows, width, count, kinds):
    """Of few different values, so that many are equal at the edge too; some are impossible."""
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.integers(0, kinds, (rows, width)) * 0.5)
    x[x == 0] = -torch.inf if seed % 2 else 0
    want, places = x.sort(descending=True, stable=True)
    values, found = largest(x, count)
    finite = want[:, :count] > -torch.inf
    assert torch.equal(values, want[:, :count])
    assert torch.equal(found[finite], places[:, :count][finite])


@given(seed=seeds, rows=st.integers(1, 4), width=st.integers(1, 12), count=st.integers(1, 14),
       kinds=st.integers(1, 6))  # fmt: skip
def test_the_largest_are_those_of_a_stable_sort(seed, rows, width, count, kinds):
    check_largest(seed, rows, width, count, kinds)


def check_ties(seed, groups=1):
    """Words that are equally likely: the lowest ids first, by both, in every place."""
    config = small_config(vocabulary=13, text_length=6)
    params, images, _ = model_and_batch(config, seed)
    head = params["decoder"]["head"]["weight"]
    head[:] = 0  # one number a word, so that no order of adding up tells equals apart
    head[[0, 1, 2, 3, 4, 5], [2, 4, 5, 6, 7, 3]] = 1.5
    head[:, 8:] = head[:, [6, 6, 7, 7, 6]]
    for beams in (1, 2, 4, 6):
        how = dict(beams=beams * groups, beam_groups=groups, diversity=0.3)
        a, b = (side.n_best(params, config, images, np.array([1]), **how) for side in BACKENDS)
        for own, others in zip(a, b, strict=True):
            assert [list(ids) for ids, _ in own] == [list(ids) for ids, _ in others]
    a, b = (side.generate(params, config, images, prompts(images)) for side in BACKENDS)
    np.testing.assert_array_equal(a, b)
    assert a.max() <= 7


@pytest.mark.parametrize("groups", [1, 2])
def test_of_equals_the_lowest_ids_come_first(groups):
    for seed in range(4):
        check_ties(seed, groups)


# --- what makes the engine fast -------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"pooler": "none"}, {"multimodal_mlps": 2}], ids=str)
def test_not_forming_keys_changes_no_caption(changes, monkeypatch):
    config = small_config(image_size=14, caption_queries=49, text_heads=1, **changes)
    taken, absorb = [], engine_cache.absorbed_attention
    monkeypatch.setattr(
        engine_cache, "absorbed_attention", lambda *given: taken.append(1) or absorb(*given)
    )
    params, images, _ = model_and_batch(config, 0, batch=4)
    for least in (1 << 60, 0):
        monkeypatch.setattr(engine_attention, "ABSORB_FROM", least)
        for controls, how in (({}, {}), ({"no_repeat_ngram": 2}, {"max_length": 4})):
            check_same(config, 0, (2, 1), controls, how)
        a, b = (side.generate(params, config, images, prompts(images)) for side in BACKENDS)
        np.testing.assert_array_equal(a, b)
        assert bool(taken) == (least == 0)


@pytest.mark.skipif(not engine_ops.ONEDNN, reason="this torch has no oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_without_gradients_is_torchs(bias):
    """Of as many rows as beams, and of more; bits may differ, the function does not."""
    torch.manual_seed(0)
    params = {"weight": torch.randn(512, 520), "bias": torch.randn(520)}
    if not bias:
        del params["bias"]
    for rows, by_onednn in ((1, False), (4, True), (64, True), (65, False)):
        x = torch.randn(rows, 512)
        want = x.double() @ params["weight"].double() + params.get("bias", torch.zeros(1))
        with torch.inference_mode():
            assert engine_ops._has_onednn(x, params["weight"]) == by_onednn
            y = engine_ops.linear(x, params)
        assert (y - want).norm() <= 1e-6 * want.norm()
