"""The engine is the reference: outputs, losses, gradients, optimiser, generation, names."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from backends import BACKENDS, Engine, Reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import configs, model_and_batch, seeds, small_config

import minicoca
from minicoca.engine import optim as engine_optim
from minicoca.engine import text as engine_text
from minicoca.kernels import caption_loss as caption_kernel
from minicoca.params import flatten, initialise, tree_map, unflatten
from minicoca.reference import optim as reference_optim

both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
ROOT = Path(minicoca.__file__).parent


def check_engine_equals_reference(config, seed, **batch):
    params, images, tokens = model_and_batch(config, seed, **batch)
    a = Reference.outputs(params, config, images, tokens)
    b = Engine.outputs(params, config, images, tokens)
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-10, atol=1e-10, err_msg=name)
    g = flatten(Reference.gradients(params, config, images, tokens))
    h = flatten(Engine.gradients(params, config, images, tokens))
    assert g.keys() == h.keys()
    for name in g:
        gap = np.abs(g[name] - h[name]).max()
        assert gap <= 1e-8 * max(np.abs(g[name]).max(), 1e-6), f"{name}: off by {gap:.1e}"


@given(config=configs(), seed=seeds, batch=st.integers(2, 4), tokens=st.integers(3, 8))
def test_engine_equals_reference(config, seed, batch, tokens):
    check_engine_equals_reference(config, seed, batch=batch, tokens=tokens)


@pytest.mark.parametrize("mode", ["cascade", "parallel", "shared", "none"])
@pytest.mark.parametrize("packed", [False, True])
def test_engine_equals_reference_in_every_pooler_mode(mode, packed, monkeypatch):
    monkeypatch.setattr(engine_text, "PACK_BELOW", 2.0 if packed else 0.0)
    check_engine_equals_reference(small_config(pooler=mode), 3)


def test_caption_loss_in_chunks_is_the_caption_loss(monkeypatch):
    config = small_config()
    whole = Engine.gradients(*[config if i == 1 else x for i, x in enumerate(_batch(config))])
    monkeypatch.setattr(caption_kernel, "CHUNK", 2)
    chunked = Engine.gradients(*[config if i == 1 else x for i, x in enumerate(_batch(config))])
    tree_map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), whole, chunked)


def _batch(config):
    params, images, tokens = model_and_batch(config, 0)
    return params, config, images, tokens


# What one side has alone, or elsewhere: pieces that torch has, masks where they are used, the
# cache's own step, and what the engine's packing, precision and devices need.
ONLY_REFERENCE = {
    "ops.py": {"erf", "softmax", "log_softmax"},
    "attention.py": {"attention", "text_mask"},
    "optim.py": {"adamw_init", "global_norm"},
    "generate.py": {"next_log_probabilities"},
}
ONLY_ENGINE = {
    "ops.py": {"attention", "contrastive_loss", "caption_loss",
               "attention_pool", "pick_device", "pick_dtype", "use", "has_kernels",
               "implementations", "complaint"},
    "attention.py": {"Packing"},
    "text.py": {"TextRows", "text_mask"},
    "model.py": {"total_loss"},
    "generate.py": {"Cache"},
}  # fmt: skip


def test_both_have_the_same_names_in_the_same_files():
    def names(side):
        found = {}
        for path in sorted((ROOT / side).glob("*.py")):
            kinds = (ast.FunctionDef, ast.ClassDef)
            all_ = {n.name for n in ast.parse(path.read_text()).body if isinstance(n, kinds)}
            found[path.name] = {n for n in all_ if not n.startswith("_")}
            found[path.name] -= {n for n in all_ if n.endswith("_backward")}
        return found

    reference, engine = names("reference"), names("engine")
    for file in reference:
        missing = reference[file] - engine[file] - ONLY_REFERENCE.get(file, set())
        extra = engine[file] - reference[file] - ONLY_ENGINE.get(file, set())
        assert not missing and not extra, f"{file}: engine lacks {missing}, has also {extra}"


def check_optimizer(seed, config):
    """Five steps of AdamW, clipped and scheduled, leave both with the same parameters."""
    params, _, _ = model_and_batch(config, seed)
    leaves = tree_map(lambda a: torch.tensor(a, requires_grad=True), params)
    optimizer, state = engine_optim.adamw(leaves, config), reference_optim.adamw_init(params)
    rng = np.random.default_rng(seed)
    for step in range(5):
        gradients = tree_map(lambda a: rng.standard_normal(a.shape), params)
        for name, leaf in flatten(leaves).items():
            leaf.grad = torch.tensor(flatten(gradients)[name])
        rate = reference_optim.learning_rate(step, config)
        assert engine_optim.learning_rate(step, config) == rate
        gradients, norm = reference_optim.clip_by_global_norm(gradients, config.clip_norm)
        flat = list(flatten(leaves).values())
        assert float(engine_optim.clip_by_global_norm(flat, config.clip_norm)) == pytest.approx(
            norm
        )
        params, state = reference_optim.adamw(params, gradients, state, rate, config)
        params = reference_optim.clamp_temperature(params)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        engine_optim.clamp_temperature(leaves)
    a, b = flatten(params), flatten(leaves)
    for name in a:
        np.testing.assert_allclose(b[name].detach().numpy(), a[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_optimizer(schedule, clip):
    settings = dict(weight_decay=0.3, warmup=2, steps=5, learning_rate=0.1)
    check_optimizer(0, small_config(schedule=schedule, clip_norm=clip, **settings))


def check_adamw_by_hand():
    """One parameter, two steps, worked by hand from Loshchilov and Hutter's Algorithm 2."""
    config = small_config(beta1=0.5, beta2=0.75, weight_decay=0.1, epsilon=0.0)
    params = {"w": np.array([[2.0]]), "v": np.array([2.0])}
    state = reference_optim.adamw_init(params)
    for g in (1.0, 3.0):
        gradients = {"w": np.array([[g]]), "v": np.array([g])}
        params, state = reference_optim.adamw(params, gradients, state, 0.1, config)
    # Step 1: m = .5, s = .25, corrected 1 and 1:            v = 2 - .1 = 1.9
    # Step 2: m = 1.75, s = 2.4375, corrected 7/3, 39/7:     v = 1.9 - .1 (7/3) / sqrt(39/7)
    v = 1.9 - 0.1 * (7 / 3) / np.sqrt(39 / 7)
    assert params["v"][0] == pytest.approx(v, abs=1e-12)  # a vector does not decay
    w1 = 2 - 0.1 * (1 + 0.1 * 2)
    w2 = w1 - 0.1 * ((7 / 3) / np.sqrt(39 / 7) + 0.1 * w1)
    assert params["w"][0, 0] == pytest.approx(w2, abs=1e-12)


def test_adamw_by_hand():
    check_adamw_by_hand()


def check_schedules():
    config = small_config(learning_rate=1.0, warmup=4, steps=14, final_rate=0.1)
    rates = [reference_optim.learning_rate(s, config) for s in range(14)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1, 1])
    assert rates[-1] == pytest.approx(0.1) and all(np.diff(rates[4:]) < 0)
    middle = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * 3 / 9))
    assert rates[7] == pytest.approx(middle)
    linear = small_config(learning_rate=1.0, warmup=4, steps=14, final_rate=0.1, schedule="linear")
    assert reference_optim.learning_rate(7, linear) == pytest.approx(0.1 + 0.9 * (1 - 3 / 9))


def test_schedules():
    check_schedules()


def check_clipping():
    gradients = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    clipped, norm = reference_optim.clip_by_global_norm(gradients, 1.0)
    assert norm == 5 and reference_optim.global_norm(clipped) == pytest.approx(1, abs=1e-6)
    same, _ = reference_optim.clip_by_global_norm(gradients, 10.0)
    assert same["a"][0] == 3


def test_clipping():
    check_clipping()


# --- generation -----------------------------------------------------------------------------------


def _prompts(images):
    return np.tile([1, 5], (len(images), 1))


@given(config=configs(**{"legacy_cls_mask": False}), seed=seeds)
def test_cached_generation_equals_uncached(config, seed):
    """The engine caches, the reference does not; greedy, sampled and beam agree token for token."""
    params, images, _ = model_and_batch(config, seed)
    prompt = _prompts(images)
    for how in ({}, {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "seed": 3}):
        a = Reference.generate(params, config, images, prompt, **how)
        b = Engine.generate(params, config, images, prompt, **how)
        np.testing.assert_array_equal(a, b)
    a = Reference.beam_search(params, config, images, prompt[0], beams=3)
    b = Engine.beam_search(params, config, images, prompt[0], beams=3)
    for (ids, score), (ids2, score2) in zip(a, b, strict=True):
        np.testing.assert_array_equal(ids, ids2)
        assert score == pytest.approx(score2, abs=1e-9)


@both
@pytest.mark.parametrize("how", [{}, {"temperature": 1.5, "seed": 1}])
def test_generation_keeps_its_promises(backend, how):
    config = small_config()
    params, images, _ = model_and_batch(config, 5, batch=4)
    prompt = _prompts(images)
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
def test_beam_of_one_is_greedy_when_length_does_not_count(backend):
    config = small_config()
    params, images, _ = model_and_batch(config, 2)
    greedy = backend.generate(params, config, images, _prompts(images))
    beams = backend.beam_search(
        params, config, images, np.array([1, 5]), beams=1, length_penalty=0.0
    )
    for row, (ids, _) in zip(greedy, beams, strict=True):
        np.testing.assert_array_equal(row[: len(ids)], ids)


@both
def test_a_beam_wide_enough_finds_the_best_caption_there_is(backend):
    """Against every caption of up to three tokens, scored one by one."""
    config = small_config(vocabulary=7, text_length=5)
    params, images, _ = model_and_batch(config, 1, tokens=5, batch=5)
    calm = initialise(config, 1, np.float64)  # near uniform, so that length matters
    params = tree_map(lambda a, b: 0.3 * a + 0.7 * b, params, calm)
    prompt = np.array([1])
    best = []
    for image in images:
        scores = {}
        words = range(4, 7)
        bodies = [()] + [(a,) for a in words] + [(a, b) for a in words for b in words]
        bodies += [(a, b, c) for a in words for b in words for c in words]
        for body in bodies:
            ids = np.array([[1, *body, 2]])
            logits = Reference.outputs(params, config, image[None], ids)["logits"][0]
            logits[:, [0, 1, 3]] = -np.inf
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            total = sum(log_p[i, ids[0, i + 1]] for i in range(ids.shape[1] - 1))
            scores[tuple(ids[0])] = total / (ids.shape[1] - 1)
        best.append(max(scores, key=scores.get))
    found = backend.beam_search(params, config, images, prompt, beams=100)
    assert [tuple(ids) for ids, _ in found] == best
    assert len({len(ids) for ids in best}) > 1, "all captions are as long: length is not tested"


def by_last_token(config, table):
    """Parameters of a model for which token v is followed by w with probability table[v][w]."""
    params = flatten(initialise(config, 0, np.float64))
    for name in params:
        if name.endswith(("output.weight", "down.weight", "position")):
            params[name] = np.zeros_like(params[name])
    n = params["text.token"]
    for _ in range(2):  # the norms that end both halves of the decoder
        n = (n - n.mean(-1, keepdims=True)) / np.sqrt(n.var(-1, keepdims=True) + 1e-5)
    logits = np.full((config.vocabulary,) * 2, -20.0)
    for v, row in table.items():
        for w, p in row.items():
            logits[v, w] = np.log(p)
    params["decoder.head.weight"] = np.linalg.lstsq(n, logits, rcond=None)[0]
    return unflatten(params)


@both
def test_beams_leave_room_beside_captions_that_end(backend):
    """The likeliest end now; both others must stay open for the best of all to be found."""
    config = small_config(vocabulary=8)
    a, b, c, d, end = 4, 5, 6, 7, 2
    table = {1: {end: 0.4, a: 0.3, b: 0.2, c: 0.1}, a: {a: 0.33, c: 0.33, d: 0.34}, b: {end: 1.0}}
    table |= {c: {end: 0.3, c: 0.7}, d: {d: 1.0}}
    image = np.zeros((1, 6, 6, 3))
    (found,) = backend.beam_search(by_last_token(config, table), config, image, [1], beams=2)
    assert list(found[0]) == [1, b, end]
    assert found[1] == pytest.approx(np.log(0.2) / 2, abs=1e-4)


@both
def test_a_beam_is_not_given_up_while_its_length_can_save_it(backend):
    config = small_config(vocabulary=8)
    table = {1: {2: 0.5, 4: 0.4, 5: 0.1}, 4: {2: 1.0}, 5: {2: 1.0}}
    image = np.zeros((1, 6, 6, 3))
    (found,) = backend.beam_search(by_last_token(config, table), config, image, [1], beams=1)
    assert list(found[0]) == [1, 4, 2]


@both
def test_a_stream_belongs_to_its_row(backend):
    config = small_config()
    params, images, _ = model_and_batch(config, 5, batch=4)
    how = dict(temperature=1.5, seed=1)
    whole = backend.generate(params, config, images, _prompts(images), **how)
    part = backend.generate(params, config, images[2:], _prompts(images[2:]), first_stream=2, **how)
    length = min(whole.shape[1], part.shape[1])
    np.testing.assert_array_equal(part[:, :length], whole[2:, :length])
    assert not (np.array_equal(whole[0], whole[2]) and np.array_equal(whole[1], whole[3]))


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
    hot = backend.filter_logits(logits, 2.0, 0, 1.0)
    np.testing.assert_allclose(hot, logits / 2)


@both
def test_the_largest_draw_there_is_stays_in_the_vocabulary(backend, monkeypatch):
    class Stream:
        def random(self):
            return 1 - 2.0**-53

    config = small_config()
    params, images, _ = model_and_batch(config, 0)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Stream())
    out = backend.generate(params, config, images, _prompts(images), temperature=1.0)
    assert out.max() < config.vocabulary


@both
def test_sampling_draws_from_the_distribution(backend):
    """The first token of many draws follows p, at a temperature."""
    config = small_config(vocabulary=8, text_length=3, pooler="none")
    params, images, _ = model_and_batch(config, 0, batch=1, tokens=3)
    n = 600
    many = np.repeat(images, n, 0)
    out = backend.generate(params, config, many, np.ones((n, 1), np.int64), temperature=2.0)
    ids = np.array([[1, 4, 2]])
    logits = Reference.outputs(params, config, images, ids)["logits"][0, 0]
    logits[[0, 1, 3]] = -np.inf
    p = np.exp(logits / 2) / np.exp(logits / 2).sum()
    seen = np.bincount(out[:, 1], minlength=8) / n
    assert np.abs(seen - p).max() < 4 * np.sqrt(0.25 / n)
