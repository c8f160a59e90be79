"""The head that answers questions: gradients, reference and engine, what it must not see."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import SuffixTracer, complex_step_error, planted
from strategies import configs, model_and_batch, seeds, small_config

import minicoca
from minicoca.engine import answers as engine
from minicoca.engine import text as engine_text
from minicoca.engine import towers as engine_towers
from minicoca.engine.generate import CoCa as EngineCoCa
from minicoca.params import flatten, initialise, specs, tree_map, unflatten
from minicoca.reference import answers as reference
from minicoca.reference import towers
from minicoca.reference.generate import CoCa as ReferenceCoCa

ANSWERS = ("yes", "no", "red", "two", "left", "heart", "ring")
NAMED = ("about", "lengths", "shares")
PAIR = dict(task="pairs", caption_weight=0.0)
WHOLE = dict(task="questions", answers=ANSWERS, contrastive_weight=0.0, answer_weight=0.7)


@st.composite
def askers(draw):
    """A config of a task with a head, any other option drawn."""
    pairs = draw(st.booleans())
    fixed = WHOLE | {"caption_loss": draw(st.sampled_from(["all", "answer"]))}
    return draw(configs(**fixed | (PAIR if pairs else {})))


def questions_of(config, seed, batch_size=3):
    """float64 (params, images, {tokens, lengths, shares}): the shares sum to 1 at most."""
    params, images, tokens = model_and_batch(config, seed, batch_size, fewest=3)
    rng = np.random.default_rng(seed)
    if config.pictures > 1:
        images = rng.standard_normal((batch_size, config.pictures, *images.shape[1:]))
    shares = rng.dirichlet(np.ones(len(ANSWERS)), batch_size) * rng.uniform(0.3, 1, (batch_size, 1))
    batch = {"tokens": tokens, "lengths": rng.integers(1, (tokens != 0).sum(1)), "shares": shares}
    return params, images, batch | {"about": rng.integers(0, batch_size, batch_size)}


def given_to(batch):
    """As the objectives take it: (tokens, what goes by name)."""
    return batch["tokens"], {name: batch[name] for name in NAMED}


def check_gradient(config, seed):
    params, images, batch = questions_of(config, seed)
    tokens, more = given_to(batch)

    def forward(params, images):
        outputs, cache = reference.questions(params, config, images, tokens, **more)
        return (np.asarray(outputs["loss"]),), cache

    def backward(dy, cache):
        dparams, dimages = reference.questions_backward(dy[0], cache)
        return {"params": dparams, "images": dimages.reshape(images.shape)}

    given_ = {"params": params, "images": images}
    error = complex_step_error(forward, backward, given_, np.random.default_rng(seed))
    assert error < 1e-10, f"differ by {error:.1e}"


@given(config=askers(), seed=seeds)
def test_the_gradient_is_that_of_the_complex_step(config, seed):
    check_gradient(config, seed)


def engines(params, config, images, batch):
    """The engine's (losses, gradients) as NumPy."""
    leaves = {k: torch.tensor(v, requires_grad=True) for k, v in flatten(params).items()}
    tokens, more = ({k: torch.tensor(v) for k, v in batch.items()}, {})
    more = {name: tokens.pop(name) for name in NAMED}
    tree, images = unflatten(leaves), torch.tensor(images)
    outputs = engine.questions(tree, config, images, tokens["tokens"], **more)
    outputs["loss"].backward()
    grads = {k: np.zeros(v.shape) if v.grad is None else v.grad.numpy() for k, v in leaves.items()}
    return {k: float(v.detach()) for k, v in outputs.items()}, grads


def check_sides(config, seed):
    params, images, batch = questions_of(config, seed)
    tokens, more = given_to(batch)
    ours, cache = reference.questions(params, config, images, tokens, **more)
    wanted = flatten(reference.questions_backward(1.0, cache)[0])
    theirs, found = engines(params, config, images, batch)
    for name, value in theirs.items():
        np.testing.assert_allclose(value, ours[name], rtol=1e-10, err_msg=name)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        gap = np.abs(gradient - found[name]).max()
        assert gap <= 1e-8 * max(np.abs(gradient).max(), 1e-6), f"{name}: off by {gap:.1e}"


@given(config=askers(), seed=seeds)
def test_the_engine_is_the_reference(config, seed):
    check_sides(config, seed)


@pytest.mark.parametrize("packed", [0.0, 2.0])
def test_rows_of_padding_may_be_left_out_or_not(packed, monkeypatch):
    monkeypatch.setattr(engine_text, "PACK_BELOW", packed)
    for more in ({}, PAIR, {"caption_loss": "answer"}):
        check_sides(small_config(**WHOLE | more), 3)


def logits_of(side, params, config, images, tokens, lengths):
    if side is reference:
        return reference.answer_logits(params, config, images, tokens, lengths)
    tree = tree_map(torch.tensor, params)
    given_ = (torch.tensor(x) for x in (images, tokens, lengths))
    return engine.answer_logits(tree, config, *given_).detach().numpy()


def check_answers_are_unseen(side, config, seed):
    """Whatever follows the question, padding or an answer of any length, the head says the same."""
    params, images, batch = questions_of(config, seed)
    tokens, lengths = batch["tokens"], batch["lengths"]
    want = logits_of(side, params, config, images, tokens, lengths)
    rng = np.random.default_rng(seed)
    after = np.arange(tokens.shape[1]) >= lengths[:, None]
    other = np.where(after, rng.integers(4, config.vocabulary, tokens.shape), tokens)
    other[:, -1] = 2
    np.testing.assert_allclose(
        logits_of(side, params, config, images, other, lengths), want, rtol=1e-12, atol=1e-12
    )
    ends = np.where(after, 0, tokens)
    ends[np.arange(len(ends)), lengths] = 2
    np.testing.assert_allclose(
        logits_of(side, params, config, images, ends, lengths), want, rtol=1e-12, atol=1e-12
    )
    short = [
        logits_of(
            side, params, config, images[i : i + 1], ends[i : i + 1, : n + 1], lengths[i:][:1]
        )
        for i, n in enumerate(lengths)
    ]
    np.testing.assert_allclose(np.concatenate(short), want, rtol=1e-12, atol=1e-12)


def check_question_is_seen(side, config, seed):
    """Each of its tokens, the last too, and each of the pictures, can change the answer."""
    params, images, batch = questions_of(config, seed)
    tokens, lengths = batch["tokens"], np.full(3, 3)
    tokens = np.concatenate([tokens[:, :1], np.full((3, 2), 5), np.full((3, 1), 2)], 1)
    want = logits_of(side, params, config, images, tokens, lengths)
    for place in (1, 2):
        other = tokens.copy()
        other[:, place] = 7
        assert np.abs(logits_of(side, params, config, images, other, lengths) - want).min() > 1e-9
    for picture in range(config.pictures):
        moved = images.copy()
        moved.reshape(3, config.pictures, -1)[:, picture] += 1
        assert np.abs(logits_of(side, params, config, moved, tokens, lengths) - want).min() > 1e-9


SIDES = pytest.mark.parametrize("side", [reference, engine], ids=["reference", "engine"])


@SIDES
@pytest.mark.parametrize("task", [{}, PAIR], ids=["questions", "pairs"])
def test_the_head_reads_the_question_and_nothing_after_it(side, task):
    for seed in range(3):
        check_answers_are_unseen(side, small_config(**WHOLE | task), seed)
        check_question_is_seen(side, small_config(**WHOLE | task), seed)


def check_losses_by_hand(side, config, seed):
    """Every term spelled out: shares x log p of the head; log p of each word that counts."""
    params, images, batch = questions_of(config, seed)
    tokens, lengths, shares = (batch[name] for name in ("tokens", "lengths", "shares"))
    shown = images[batch["about"]]
    logits = logits_of(side, params, config, shown, tokens, lengths)
    want = 0
    for row, share in zip(logits, shares, strict=True):
        want -= sum(s * (x - np.log(np.exp(row).sum())) for s, x in zip(share, row, strict=True))
    if side is reference:
        own = reference.questions(params, config, images, tokens, **given_to(batch)[1])[0]
    else:
        own = engines(params, config, images, batch)[0]
    np.testing.assert_allclose(own["answer"], want / len(tokens), rtol=1e-10)
    log_p = np.concatenate([
        ReferenceCoCaOfFloats(params, config).log_p(shown[i : i + 1], tokens[i : i + 1])
        for i in range(len(tokens))
    ])  # fmt: skip
    counted = tokens[:, 1:] != 0
    if config.caption_loss == "answer":
        counted &= np.arange(1, tokens.shape[1]) >= lengths[:, None]
    want = -(log_p * counted).sum() / counted.sum()
    np.testing.assert_allclose(own["caption"], want, rtol=1e-10)
    total = config.caption_weight * own["caption"] + config.answer_weight * own["answer"]
    np.testing.assert_allclose(own["loss"], total, rtol=1e-12)


class ReferenceCoCaOfFloats:
    """log P of every token, of images that are floats already."""

    def __init__(self, params, config):
        self.params, self.config = params, config

    def log_p(self, images, tokens):
        from minicoca.reference.generate import log_likelihoods

        return log_likelihoods(self.params, self.config, images, tokens)[0]


@SIDES
@pytest.mark.parametrize("counts", ["all", "answer"])
def test_losses_are_what_they_say(side, counts):
    for seed in range(3):
        check_losses_by_hand(side, small_config(**WHOLE, caption_loss=counts), seed)


def test_a_pair_in_the_other_order_is_another_question():
    """And the same one to a classifier whose parts change places too; that of the product stays."""
    config = small_config(**WHOLE | PAIR)
    params, images, batch = questions_of(config, 0)
    given_, turned = (batch["tokens"], batch["lengths"]), images[:, ::-1]
    one, other = (logits_of(reference, params, config, x, *given_) for x in (images, turned))
    assert np.abs(one - other).max() > 1e-6
    classifier = params["head"]["classifier"]
    parts = classifier["weight"].reshape(3, config.text_width, -1)
    classifier["weight"] = np.concatenate(parts[[1, 0, 2]])
    found = logits_of(reference, params, config, turned, *given_)
    np.testing.assert_allclose(found, one, rtol=1e-12)


def test_models_of_both_sides_answer_alike():
    for task in ({}, PAIR):
        config = small_config(**WHOLE | task)
        params = initialise(config, 0)
        rng = np.random.default_rng(0)
        shape = (3,) + (2,) * (config.pictures == 2) + (6, 6, 3)
        images, tokens = rng.integers(0, 256, shape).astype(np.uint8), np.array([[1, 5, 9, 2]] * 3)
        tokens[2] = [1, 7, 2, 0]
        ours, theirs = (
            C(params, config).answer(images, tokens) for C in (ReferenceCoCa, EngineCoCa)
        )
        np.testing.assert_allclose(np.exp(ours).sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        alone = EngineCoCa(params, config).answer(images[2:], tokens[2:, :3])
        np.testing.assert_allclose(alone, theirs[2:], rtol=1e-4, atol=1e-5)


def test_a_head_changes_no_other_first_weight():
    """It is drawn last: with it or without, all else begins the same, to the last bit."""
    plain = initialise(small_config(), 3)
    other = initialise(small_config(**WHOLE), 3)
    assert other.pop("head")
    tree_map(np.testing.assert_array_equal, plain, other)
    assert "head" not in specs(small_config(**WHOLE | {"answers": ()}))


def test_without_a_head_only_words_are_learned():
    config = small_config(**WHOLE | {"answers": ()})
    params, images, batch = questions_of(config, 0)
    tokens, more = given_to(batch)
    outputs, cache = reference.questions(params, config, images, tokens, **more)
    assert "answer" not in outputs
    found, grads = engines(params, config, images, batch)
    np.testing.assert_allclose(found["loss"], outputs["loss"], rtol=1e-12)
    assert flatten(reference.questions_backward(1.0, cache)[0]).keys() == grads.keys()


def test_names_tell_the_truth_and_floats_stay_narrow():
    folder = minicoca.reference.__path__[0]
    for task in ({}, PAIR):
        config = small_config(**WHOLE | task)
        params, images, batch = questions_of(config, 0)
        tokens, more = given_to(batch)
        with SuffixTracer(folder) as tracer:
            _, cache = reference.questions(params, config, images, tokens, **more)
            reference.questions_backward(1.0, cache)
        assert not tracer.complaints, tracer.complaints[:3]
        narrow = tree_map(lambda a: a.astype(np.float32), params)
        more["shares"] = more["shares"].astype(np.float32)
        outputs, cache = reference.questions(
            narrow, config, images.astype(np.float32), tokens, **more
        )
        grads = flatten(reference.questions_backward(1.0, cache)[0])
        assert {g.dtype for g in grads.values()} == {np.dtype(np.float32)}
        assert outputs["loss"].dtype == np.float32


def gradient():
    for seed, task in enumerate(({}, PAIR, {"caption_loss": "answer"})):
        check_gradient(small_config(**WHOLE | task), seed)


def sides():
    for seed, task in enumerate(({}, PAIR, {"caption_loss": "answer"})):
        check_sides(small_config(**WHOLE | task), seed)


def unseen(side):
    def check():
        for task in ({}, PAIR):
            check_answers_are_unseen(side, small_config(**WHOLE | task), 0)
            check_question_is_seen(side, small_config(**WHOLE | task), 0)

    check.__name__ = "test_the_head_reads_the_question_and_nothing_after_it"
    return check


def by_hand(side):
    def check():
        for counts in ("all", "answer"):
            check_losses_by_hand(side, small_config(**WHOLE, caption_loss=counts), 0)

    check.__name__ = "test_losses_are_what_they_say"
    return check


BUGS = [
    (reference, "< lengths_R[:, None, None]", "<= lengths_R[:, None, None]", unseen(reference)),
    (reference, "< lengths_R[:, None, None]", "< lengths_R[:, None, None] - 1", unseen(reference)),
    (reference, "params[\"head\"], lengths_R, config)[0]",
     "params[\"head\"], lengths_R * 0 + n.shape[1], config)[0]", unseen(reference)),
    (reference, "[dproduct * other, dproduct * one]", "[dproduct * one, dproduct * other]",
     gradient),
    (engine, "one * other], -1)", "one * one], -1)", sides),
    (reference, "/ len(shares_BA), (cache", "/ shares_BA.sum(), (cache", by_hand(reference)),
    (reference, "-dloss / len(shares_BA) * shares_BA", "-dloss * shares_BA", gradient),
    (reference, "dn = dn + dread", "dn = dread", gradient),
    (reference, "answer_loss_backward(config.answer_weight * dloss",
     "answer_loss_backward(dloss", gradient),
    (towers, "dx_RTD[:, :-1] = dinputs", "dx_RTD[:, 1:] = dinputs", gradient),
    (reference, "lengths_R[:, None] - 1\n", "lengths_R[:, None]\n", by_hand(reference)),
    (reference, "np.repeat(of_text, config.pictures, 0)",
     "np.tile(of_text, (config.pictures,) + (1,) * (of_text.ndim - 1))", sides),
    (towers, "np.add.at(dmemory, about_R, dread)", "dmemory[about_R] = dread", gradient),
    (reference, "about_B[:, None] * config.pictures + np", "about_B[:, None] + np", sides),
    (engine_towers, "index_select(0, about_R)", "index_select(0, about_R.sort().values)", sides),
    (engine, "< lengths_R[:, None, None]", "<= lengths_R[:, None, None]", unseen(engine)),
    (engine, "return -(shares_BA * log_p_BA).sum() / len(shares_BA)",
     "return -(shares_BA * log_p_BA).sum() / shares_BA.sum()", by_hand(engine)),
    (engine, "places_T < lengths_R[:, None] - 1", "places_T < lengths_R[:, None]", by_hand(engine)),
    (engine, "x.repeat_interleave(config.pictures, 0)",
     "x.repeat(config.pictures, *(1,) * (x.dim() - 1))", sides),
    (engine, "\"answer\": config.answer_weight", "\"answer\": 1.0", by_hand(engine)),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()
