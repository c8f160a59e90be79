"""Writing captions, by reference and engine, against what is neither: all captions of a small
vocabulary, whose probability a table gives, and each method as its definition reads."""

from fractions import Fraction

import numpy as np
import pytest
from backends import BACKENDS, Engine, Reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import configs, model_and_batch, seeds, small_config

from minicoca.config import END, PAD, START, UNKNOWN, preset
from minicoca.engine import generate as engine
from minicoca.params import flatten, initialise, tree_map, unflatten
from minicoca.reference import generate as reference

both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
IMAGE = np.zeros((1, 6, 6, 3))
PROMPTS = ([1], [1, 5], [1, 4, 6])


def table_of(seed, vocabulary=7):
    """Probability of each token (column) after each (row), of the never written ones too."""
    p = np.random.default_rng(seed).dirichlet(np.full(vocabulary, 0.7), vocabulary) + 0.001
    return p / p.sum(1, keepdims=True)


def by_last_token(config, table):
    """Parameters of a model for which token v is followed by w with probability table[v, w]."""
    params = flatten(initialise(config, 0, np.float64))
    for name in params:
        if name.endswith(("output.weight", "down.weight", "position")):
            params[name] = np.zeros_like(params[name])
    n = params["text.token"]
    n = (n - n.mean(-1, keepdims=True)) / np.sqrt(n.var(-1, keepdims=True) + 1e-5)
    params["decoder.head.weight"] = np.linalg.lstsq(n, np.log(table), rcond=None)[0]
    return unflatten(params)


def sparse(vocabulary, rows):
    """A table from {token: {next: probability}}; what is not named is next to impossible."""
    table = np.full((vocabulary, vocabulary), 1e-9)
    for token, row in rows.items():
        table[token, list(row)] = list(row.values())
    return table


def allowed(table, temperature=1.0, top_k=0, top_p=1.0):
    """The table of what is written: never padding, start, unknown; at a temperature; of the k
    likeliest alone and of the fewest whose sum reaches top_p."""
    p = table.copy()
    p[:, [PAD, START, UNKNOWN]] = 0
    p = p ** (1 / temperature)
    p /= p.sum(1, keepdims=True)
    for row in p:
        likeliest = sorted(range(len(row)), key=lambda v: -row[v])
        enough = next(n for n in range(1, len(row) + 1) if row[likeliest[:n]].sum() > top_p - 1e-9)
        row[likeliest[min(enough, top_k or enough) :]] = 0
    return p / p.sum(1, keepdims=True)


def captions(p, prompt, length):
    """{caption: its probability}, for all that continue the prompt until end or length."""
    whole, growing = {}, {tuple(prompt): 1.0}
    while growing:
        ids, chance = growing.popitem()
        if ids[-1] == END or len(ids) == length:
            whole[ids] = chance
        else:
            growing |= {(*ids, v): chance * p[ids[-1], v] for v in np.flatnonzero(p[ids[-1]])}
    return whole


def beam_by_definition(p, prompt, length, beams, penalty):
    """Of all continuations of what is open, the `beams` likeliest that do not end stay open, and
    those that end count if among the `beams` likeliest. No search ends early."""
    growing, ended = {tuple(prompt): 0.0}, {}
    while growing and len(next(iter(growing))) < length:
        grown = {
            (*ids, v): total + np.log(p[ids[-1], v])
            for ids, total in growing.items()
            for v in np.flatnonzero(p[ids[-1]])
        }
        likeliest = sorted(grown, key=grown.get, reverse=True)
        ended |= {ids: grown[ids] for ids in likeliest[:beams] if ids[-1] == END}
        growing = {ids: grown[ids] for ids in [i for i in likeliest if i[-1] != END][:beams]}
    written = {ids: len(ids) - len(prompt) for ids in ended or growing}
    scores = {ids: (ended or growing)[ids] / n**penalty for ids, n in written.items()}
    best = max(scores, key=scores.get)
    return list(best), scores[best]


# --- beam search ----------------------------------------------------------------------------------


def check_beam_search(backend, seed, beams, penalty, prompt, length=6):
    config, table = small_config(vocabulary=7, text_length=length), table_of(seed)
    want, score = beam_by_definition(allowed(table), prompt, length, beams, penalty)
    how = dict(beams=beams, length_penalty=penalty)
    params = by_last_token(config, table)
    ((ids, found),) = backend.beam_search(params, config, IMAGE, np.array(prompt), **how)
    assert (list(ids), found) == (want, pytest.approx(score, abs=1e-9))


@both
@given(
    seed=seeds, beams=st.integers(1, 5), penalty=st.sampled_from([0, 0.5, 1, 2]),
    prompt=st.sampled_from(PROMPTS),
)  # fmt: skip
def test_beam_search_is_its_definition(backend, seed, beams, penalty, prompt):
    for s in range(seed, seed + 5):
        check_beam_search(backend, s, beams, penalty, prompt)


def check_best_caption(backend, seed, penalty, prompt):
    """A beam wide enough finds the best of all captions that end."""
    config, table = small_config(vocabulary=7, text_length=5), table_of(seed)
    chances = captions(allowed(table), prompt, 5)
    scores = {
        ids: np.log(chance) / (len(ids) - len(prompt)) ** penalty
        for ids, chance in chances.items()
        if ids[-1] == END
    }
    how = dict(beams=200, length_penalty=penalty)
    params = by_last_token(config, table)
    ((ids, score),) = backend.beam_search(params, config, IMAGE, np.array(prompt), **how)
    assert tuple(ids) == max(scores, key=scores.get)
    assert score == pytest.approx(scores[tuple(ids)], abs=1e-9)


@both
@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
@pytest.mark.parametrize("penalty", [0, 1, 1.5])
def test_a_beam_wide_enough_finds_the_best_caption_of_all(backend, penalty, prompt):
    for seed in range(4):
        check_best_caption(backend, seed, penalty, prompt)


def check_best_by_the_model(backend, prompt, seed):
    """The same where every token matters: each caption scored by itself, as in training."""
    config = small_config(vocabulary=7, text_length=4 + len(prompt))
    params, images, _ = model_and_batch(config, seed, tokens=5, batch=5)
    calm = initialise(config, seed, np.float64)  # near uniform, so that length matters
    params = tree_map(lambda a, b: 0.3 * a + 0.7 * b, params, calm)
    uniform = np.ones((7, 7))
    whole = [c for c in captions(allowed(uniform), prompt, config.text_length) if c[-1] == END]
    best = []
    for image in images:
        scores = {}
        for caption in whole:
            ids = np.array([caption])
            logits = Reference.outputs(params, config, image[None], ids)["logits"][0]
            logits[:, [PAD, START, UNKNOWN]] = -np.inf
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            written = range(len(prompt), len(caption))
            scores[caption] = sum(log_p[i - 1, caption[i]] for i in written) / len(written)
        best.append(max(scores, key=scores.get))
    found = backend.beam_search(params, config, images, np.array(prompt), beams=100)
    assert [tuple(ids) for ids, _ in found] == best
    assert len({len(ids) for ids in best}) > 1, "all captions are as long: length is not tested"


@both
@pytest.mark.parametrize(("prompt", "seed"), [([1], 1), ([1, 5], 4)], ids=str)
def test_a_beam_wide_enough_finds_the_best_caption_there_is(backend, prompt, seed):
    check_best_by_the_model(backend, prompt, seed)


@both
def test_beams_leave_room_beside_captions_that_end(backend):
    """The likeliest end now; both others must stay open for the best of all to be found."""
    config = small_config(vocabulary=8)
    a, b, c, d, end = 4, 5, 6, 7, 2
    rows = {1: {end: 0.4, a: 0.3, b: 0.2, c: 0.1}, a: {a: 0.33, c: 0.33, d: 0.34}, b: {end: 1.0}}
    rows |= {c: {end: 0.3, c: 0.7}, d: {d: 1.0}}
    params = by_last_token(config, sparse(8, rows))
    (found,) = backend.beam_search(params, config, IMAGE, np.array([1]), beams=2)
    assert list(found[0]) == [1, b, end]
    assert found[1] == pytest.approx(np.log(0.2) / 2, abs=1e-4)


@both
def test_a_beam_is_not_given_up_while_its_length_can_save_it(backend):
    config = small_config(vocabulary=8)
    rows = {1: {2: 0.5, 4: 0.4, 5: 0.1}, 4: {2: 1.0}, 5: {2: 1.0}}
    params = by_last_token(config, sparse(8, rows))
    (found,) = backend.beam_search(params, config, IMAGE, np.array([1]), beams=1)
    assert list(found[0]) == [1, 4, 2]


@both
def test_beam_of_one_is_greedy_when_length_does_not_count(backend):
    config = small_config()
    params, images, _ = model_and_batch(config, 2)
    greedy = backend.generate(params, config, images, prompts(images))
    how = dict(beams=1, length_penalty=0.0)
    beams = backend.beam_search(params, config, images, np.array([1, 5]), **how)
    for row, (ids, _) in zip(greedy, beams, strict=True):
        np.testing.assert_array_equal(row[: len(ids)], ids)


# --- greedy and sampled ---------------------------------------------------------------------------


def prompts(images):
    return np.tile([1, 5], (len(images), 1))


def check_frequencies(backend, how, prompt=(1, 5), n=800):
    """Whole captions come as often as they should; greedy: one, always."""
    config = small_config(vocabulary=7, text_length=3 + len(prompt))
    filters = {k: v for k, v in how.items() if k != "seed"} if how else {"top_k": 1}
    for seed in range(2):
        table = table_of(seed)
        chances = captions(allowed(table, **filters), prompt, config.text_length)
        params, images = by_last_token(config, table), np.repeat(IMAGE, n, 0)
        out = backend.generate(params, config, images, np.tile(prompt, (n, 1)), **how)
        seen = dict.fromkeys(chances, 0)
        for row in out:
            ends = np.flatnonzero(row == END)
            seen[tuple(row[: ends[0] + 1] if len(ends) else row)] += 1  # KeyError: cannot be
        for ids, chance in chances.items():
            spread = np.sqrt(n * chance * (1 - chance))
            assert abs(seen[ids] - n * chance) <= 4.5 * spread + 1, f"{ids}: {seen[ids]} of {n}"


SAMPLING = [
    {},
    {"temperature": 1.0},
    {"temperature": 2.0},
    {"temperature": 0.6, "seed": 4},
    {"temperature": 1.3, "top_k": 2},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.7, "top_p": 0.8, "top_k": 3},
]


@both
@pytest.mark.parametrize("how", SAMPLING, ids=str)
def test_captions_come_as_often_as_they_should(backend, how):
    check_frequencies(backend, how)


def check_filters(backend, weights, shift):
    """Exactly at each sum of the likeliest, a little under and over it: the fewest whose sum
    reaches top_p. Sums are exact in fractions; tokens stand in an order that is not theirs."""
    whole = [Fraction(w, sum(weights)) for w in sorted(weights, reverse=True)]
    order = np.roll(np.arange(len(weights)), shift)
    for dtype in (np.float64, np.float32):
        logits = np.empty((1, len(weights)), dtype)
        logits[0, order] = np.log(np.array(whole, float))
        for count in range(1, len(whole) + 1):
            edge = sum(whole[:count])
            for top_p, want in ((edge, count), (edge - Fraction(1, 10**4), count),
                                (edge + Fraction(1, 10**4), count + 1)):  # fmt: skip
                if top_p > 1:
                    continue
                kept = np.isfinite(backend.filter_logits(logits, 1.0, 0, float(top_p))[0])
                assert kept.sum() == want, f"{weights}, top_p {top_p}: {kept.sum()} kept"
                assert kept[order[:want]].all() or len(set(weights)) < len(weights)


@both
@given(weights=st.lists(st.integers(1, 9), min_size=2, max_size=9), shift=st.integers(0, 8))
def test_top_p_keeps_the_fewest_that_reach_it(backend, weights, shift):
    check_filters(backend, weights, shift)
    check_filters(backend, [1] * len(weights), shift)


def check_nothing_is_dropped(backend):
    """By default every token of a large vocabulary can be drawn, in float32 too."""
    logits = (3 * np.random.default_rng(0).standard_normal((4, 20_000))).astype(np.float32)
    assert np.isfinite(backend.filter_logits(logits, 1.0, 0, 1.0)).all()
    np.testing.assert_allclose(backend.filter_logits(logits, 2.0, 0, 1.0), logits / 2)
    for k in (1, 7, 20_000, 30_000):
        kept = np.isfinite(backend.filter_logits(logits, 1.0, k, 1.0))
        assert (kept.sum(1) == min(k, 20_000)).all()
        lowest, highest = (np.where(kept == inside, logits, fill) for inside, fill in
                           ((True, np.inf), (False, -np.inf)))  # fmt: skip
        assert (lowest.min(1) >= highest.max(1)).all()


@both
def test_no_filter_drops_nothing_and_top_k_keeps_the_k_likeliest(backend):
    check_nothing_is_dropped(backend)


@both
def test_filters_keep_what_they_say(backend):
    logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]]))

    def kept(*how):
        return [tuple(np.flatnonzero(np.isfinite(r))) for r in backend.filter_logits(logits, *how)]

    assert kept(1.0, 2, 1.0) == [(0, 1), (2, 3)]
    assert kept(1.0, 0, 0.6) == [(0, 1), (2, 3)]
    assert kept(1.0, 0, 0.45) == [(0,), (2, 3)]
    assert kept(1.0, 0, 1e-9) == [(0,), (3,)]
    assert kept(2.0, 0, 0.45) == [(0, 1), (2, 3)]  # the temperature comes first
    assert kept(1.0, 3, 0.8) == [(0, 1, 2), (1, 2, 3)]


@both
@pytest.mark.parametrize("how", [{}, {"temperature": 1.5, "seed": 1}])
def test_generation_keeps_its_promises(backend, how):
    config = small_config()
    params, images, _ = model_and_batch(config, 5, batch=4)
    prompt = prompts(images)
    out = backend.generate(params, config, images, prompt, **how)
    np.testing.assert_array_equal(out[:, :2], prompt)  # the prompt is honoured
    assert out.shape[1] <= config.text_length
    for row in out:
        ends = np.flatnonzero(row == 2)
        assert len(ends) <= 1
        after = row[ends[0] + 1 :] if len(ends) else row[:0]
        assert not after.any(), "something follows the end"
        before = row[1 : ends[0]] if len(ends) else row[1:]
        assert not np.isin(before, [0, 1, 3]).any(), "padding, start or unknown was written"
    one = backend.generate(params, config, images[:1], prompt[:1], **how)
    first = out[0][: one.shape[1]]
    np.testing.assert_array_equal(first, one[0])  # the rest of the batch does not matter


@both
def test_a_prompt_that_leaves_no_room_or_has_ended_is_the_caption(backend):
    config = small_config(vocabulary=7, text_length=5)
    params = by_last_token(config, table_of(0))
    for prompt in ([1, 4, 5, 6, 4], [1, 5, 2]):
        out = backend.generate(params, config, IMAGE, np.array([prompt]))
        assert out.tolist() == [prompt]
    full = np.array([1, 4, 5, 6, 4])
    ((ids, score),) = backend.beam_search(params, config, IMAGE, full, beams=3)
    assert (list(ids), score) == (list(full), 0)


@both
def test_a_stream_belongs_to_its_row(backend):
    config = small_config()
    params, images, _ = model_and_batch(config, 5, batch=4)
    how = dict(temperature=1.5, seed=1)
    whole = backend.generate(params, config, images, prompts(images), **how)
    part = backend.generate(params, config, images[2:], prompts(images[2:]), first_stream=2, **how)
    length = min(whole.shape[1], part.shape[1])
    np.testing.assert_array_equal(part[:, :length], whole[2:, :length])
    assert not (np.array_equal(whole[0], whole[2]) and np.array_equal(whole[1], whole[3]))


@both
def test_the_largest_draw_there_is_stays_in_the_vocabulary(backend, monkeypatch):
    class Stream:
        def random(self):
            return 1 - 2.0**-53

    config = small_config()
    params, images, _ = model_and_batch(config, 0)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Stream())
    out = backend.generate(params, config, images, prompts(images), temperature=1.0)
    assert out.max() < config.vocabulary


# --- with a cache and without ---------------------------------------------------------------------


def check_cached(config, seed):
    params, images, _ = model_and_batch(config, seed)
    prompt = prompts(images)
    for how in ({}, {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "seed": 3}):
        a = Reference.generate(params, config, images, prompt, **how)
        b = Engine.generate(params, config, images, prompt, **how)
        np.testing.assert_array_equal(a, b)
    a = Reference.beam_search(params, config, images, prompt[0], beams=3)
    b = Engine.beam_search(params, config, images, prompt[0], beams=3)
    for (ids, score), (ids2, score2) in zip(a, b, strict=True):
        np.testing.assert_array_equal(ids, ids2)
        assert score == pytest.approx(score2, abs=1e-9)


@given(config=configs(**{"legacy_cls_mask": False}), seed=seeds)
def test_cached_generation_equals_uncached(config, seed):
    """The engine caches, the reference does not; greedy, sampled and beam agree token for token."""
    check_cached(config, seed)


@pytest.mark.parametrize("kind", [engine.CoCa, reference.CoCa], ids=["engine", "reference"])
@pytest.mark.parametrize("what", ["images", "texts", "captions", "beams"])
def test_what_is_not_finite_is_no_answer(kind, what):
    """Finite weights that are far too large: NaN is an error in words, never a caption."""
    config = preset("tiny", image_size=16, image_layers=1)
    tree = tree_map(lambda p: np.full_like(p, 3e38), initialise(config))
    model = kind(tree, config)
    images = np.full((2, 16, 16, 3), 9, np.uint8)
    ask = {
        "images": lambda: model.embed_images(images),
        "texts": lambda: model.embed_texts(np.array([[1, 5, 2]])),
        "captions": lambda: model.generate(images),
        "beams": lambda: model.generate(images, beams=2),
    }[what]
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="are not finite numbers"):
        ask()
