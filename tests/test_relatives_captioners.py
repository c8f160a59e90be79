"""What is GPT's, SimVLM's and CapPa's own: who sees whom, and which words count."""

import numpy as np
import pytest
import relatives
from backends import Reference
from oracles import planted
from relatives import SIDES, on, value
from strategies import small_config
from test_relatives import check_gradient, check_sides

from minicoca import masks
from minicoca.engine.relatives import cappa as engine_cappa
from minicoca.engine.relatives import gpt as engine_gpt
from minicoca.engine.relatives import simvlm as engine_simvlm
from minicoca.params import flatten
from minicoca.reference.relatives import cappa, captioner, gpt, layers, simvlm

BOTH = pytest.mark.parametrize("which", SIDES)
MORE = {"gpt": [{}], "simvlm": [{"prefix": p} for p in range(4)],
        "cappa": [{"parallel": False}, {"parallel": True}]}  # fmt: skip
WRITES = [(name, more) for name, cases in MORE.items() for more in cases]


def alone(name, more, config, seed, tokens, **own):
    """(settings, params, batch) of one caption; padding, which is no target, is never likely."""
    settings, params, batch = relatives.given(name, config, seed, **own)
    params["decoder"]["norm"] = {"scale": np.ones(12), "bias": np.ones(12)}
    if not own.get("tied"):
        params["decoder"]["head"]["weight"][:, 0] = -5  # its logit: -5 x 12
    tokens = np.array([tokens])
    more = {key: np.array([what]) for key, what in more.items()}
    return settings, params, {"images": batch["images"][:1], "tokens": tokens} | more


def total(which, name, more, config, seed, tokens):
    """-log of the probability of what is written: the loss times the words that count."""
    settings, params, batch = alone(name, more, config, seed, tokens)
    count = len(tokens) - max(1, more.get("prefix", 0))
    return count * value(which, name, params, config, settings, batch)


def check_words_are_probabilities(which, name, more):
    """Over all words that a caption can end with, they sum to 1. So no word sees itself, none sees
    a later one, and each counts once."""
    config, begun = small_config(), [1, 5, 9, 6]
    before = total(which, name, more, config, 0, begun)
    after = [total(which, name, more, config, 0, [*begun, v]) for v in range(1, 17)]
    np.testing.assert_allclose(np.exp(before - np.array(after)).sum(), 1, rtol=1e-9)


@BOTH
@pytest.mark.parametrize(("name", "more"), WRITES)
def test_words_are_probabilities(which, name, more):
    check_words_are_probabilities(which, name, more)


def check_is_cocas(which, name, more):
    """What no word of is given, or one, is CoCa's captioning loss; the whole gradient too."""
    for seed, options in enumerate([{}, {"pooler": "shared"}, {"pooler": "none"}]):
        config = small_config(contrastive_weight=0.0, caption_weight=1.0, **options)
        settings, params, batch = relatives.given(name, config, seed)
        batch |= {key: np.full(4, what) for key, what in more.items()}
        own = {k: v for k, v in params.items() if k != "word_mask"}
        pair = own, config, batch["images"], batch["tokens"]
        outputs, gradients = SIDES[which](name, params, config, settings, batch)
        np.testing.assert_allclose(outputs["loss"], Reference.outputs(*pair)["loss"], rtol=1e-12)
        for leaf, wanted in flatten(Reference.gradients(*pair)).items():
            np.testing.assert_allclose(gradients[leaf], wanted, rtol=1e-8, atol=1e-12)
        assert not np.any(gradients.get("word_mask", 0))


CAUSAL = [("simvlm", {"prefix": 0}), ("simvlm", {"prefix": 1}), ("cappa", {"parallel": False})]


@BOTH
@pytest.mark.parametrize(("name", "more"), CAUSAL)
def test_without_its_own_it_is_cocas_captioner(which, name, more):
    check_is_cocas(which, name, more)


def check_prefix(which):
    """A given word changes what the rest is, and is itself not written."""
    config, captions = small_config(), ([1, 5, 9, 6, 7], [1, 5, 8, 6, 7])
    for prefix in (2, 3, 4):
        more = {"prefix": prefix}
        one, other = (total(which, "simvlm", more, config, 0, c) for c in captions)
        assert abs(one - other) > 1e-6
    # Of a prefix that is all, nothing is left to write.
    settings, params, batch = alone("simvlm", {"prefix": 5}, config, 0, captions[0])
    outputs, gradients = SIDES[which]("simvlm", params, config, settings, batch)
    assert outputs["loss"] == 0 and not any(np.any(g) for g in gradients.values())


@BOTH
def test_a_prefix_is_given_and_not_written(which):
    check_prefix(which)


def check_both_ways(which):
    """Each way: what follows is another than after the same words read by a causal mask."""
    config, seen = small_config(), []
    for prefix in (1, 3):
        settings, params, batch = alone("simvlm", {"prefix": prefix}, config, 0, [1, 5, 9, 6])
        mask = masks.prefix_mask(np.arange(3), batch["prefix"])
        seen.append(mask[0].tolist())
    assert seen == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 1, 1]] * 3]
    # The last word alone counts, with and without a prefix: the mask is all that differs.
    fewer = total(which, "simvlm", {"prefix": 0}, config, 0, [1, 5, 9])
    causal = total(which, "simvlm", {"prefix": 0}, config, 0, [1, 5, 9, 6]) - fewer
    given = total(which, "simvlm", {"prefix": 3}, config, 0, [1, 5, 9, 6])
    assert abs(causal - given) > 1e-6


@BOTH
def test_given_words_see_one_another(which):
    check_both_ways(which)


def check_blind(which):
    """Written at once, a word's probability depends on no other word, and on no longer caption
    beside it; no word of the table has a gradient."""
    config, more = small_config(), {"parallel": True}

    def gain(rest):
        one, other = (total(which, "cappa", more, config, 0, [1, v, *rest]) for v in (5, 9))
        return one - other

    np.testing.assert_allclose(gain([6, 7]), gain([8, 4]), rtol=1e-9)
    np.testing.assert_allclose(gain([6, 7]), gain([6, 7, 4, 8, 9]), rtol=1e-9)
    settings, params, batch = alone("cappa", more, config, 0, [1, 5, 9, 2, 0])
    _, gradients = SIDES[which]("cappa", params, config, settings, batch)
    assert not np.any(gradients["text.token"]) and np.any(gradients["word_mask"])
    batch["tokens"] = np.array([[1, 5]])  # one word, and every place is seen from its place
    _, gradients = SIDES[which]("cappa", params, config, settings, batch)
    assert np.all(np.any(gradients["text.position"][:-1], 1))


@BOTH
def test_what_is_written_at_once_sees_no_word(which):
    check_blind(which)


def check_tied(which):
    """A tied head is an untied one of the same numbers, and the table has both gradients."""
    config = small_config()
    settings, params, batch = relatives.given("gpt", config, 0, tied=True)
    table = params["text"]["token"]
    head = {"norm": params["decoder"]["norm"], "head": {"weight": table.T.copy()}}
    apart = params | {"decoder": head}
    loose = relatives.RELATIVES["gpt"](tied=False)
    one, ours = SIDES[which]("gpt", params, config, settings, batch)
    two, theirs = SIDES[which]("gpt", apart, config, loose, batch)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-12)
    wanted = theirs["text.token"] + theirs["decoder.head.weight"].T
    np.testing.assert_allclose(ours["text.token"], wanted, rtol=1e-9, atol=1e-12)


@BOTH
def test_a_tied_head_is_the_table(which):
    check_tied(which)


def test_a_head_of_zeros_has_the_perplexity_of_the_vocabulary():
    settings, params, batch = relatives.given("gpt", config := small_config(), 0)
    params["decoder"]["head"]["weight"][:] = 0
    for which in SIDES:
        loss = value(which, "gpt", params, config, settings, batch)
        np.testing.assert_allclose(np.exp(loss), config.vocabulary, rtol=1e-12)


def test_a_later_word_changes_no_earlier_prediction_by_a_bit():
    settings, params, batch = relatives.given("gpt", config := small_config(), 0)
    given = params, config, settings
    one = value("reference", "gpt", *given, batch, "logits")
    other = batch["tokens"].copy()
    other[:, 4] = 5
    two = value("reference", "gpt", *given, {"tokens": other}, "logits")
    np.testing.assert_array_equal(one[:, :4], two[:, :4])
    assert np.abs(one[:, 4:] - two[:, 4:]).max() > 1e-6


def test_draws_leave_something_to_write():
    tokens = np.array([[1, 2, 0, 0], [1, 5, 9, 2]] * 200)
    rng, batch = np.random.default_rng(0), {"tokens": tokens}
    prefix = relatives.RELATIVES["simvlm"]().draw(rng, None, batch)["prefix"]
    assert {*prefix[::2]} == {0, 1} and {*prefix[1::2]} == {0, 1, 2, 3}
    parallel = relatives.RELATIVES["cappa"](parallel_part=0.75).draw(rng, None, batch)["parallel"]
    assert 0.65 < parallel.mean() < 0.85
    with pytest.raises(ValueError, match="parallel_part=1.5; it must be over 0 and at most 1"):
        relatives.RELATIVES["cappa"](parallel_part=1.5)


def probabilities(name, which="reference"):
    def check():
        for more in MORE[name]:
            check_words_are_probabilities(which, name, more)

    return check


def cocas(name, which="reference"):
    def check():
        for case in CAUSAL:
            if case[0] == name:
                check_is_cocas(which, *case)

    return check


def gradients(name, **own):
    return on(check_gradient, name, small_config(), 0, **own)


BUGS = [
    (masks, "places_T <= places_T[:, None]", "places_T < places_T[:, None]", cocas("simvlm")),
    (masks, "places_T < prefix_B[:, None, None]", "places_T <= prefix_B[:, None, None]",
     cocas("simvlm")),
    (masks, "places_T < prefix_B[:, None, None]", "places_T[:, None] < prefix_B[:, None, None]",
     probabilities("simvlm")),
    (masks, "return before_TT | (places_T < prefix_B[:, None, None])",
     "return before_TT | (prefix_B[:, None, None] < 0)", on(check_both_ways, "reference")),
    (gpt, 'batch["tokens"][:, 1:]', 'batch["tokens"][:, :-1]', probabilities("gpt")),
    (gpt, "causal_mask(tokens_BT.shape[1])", "None", probabilities("gpt")),
    (gpt, 'dtext["token"] + dhead["weight"].T', 'dtext["token"]', gradients("gpt", tied=True)),
    (engine_gpt, "causal=True", "causal=False", probabilities("gpt", "engine")),
    (engine_gpt, "table_VD.to(kind).T}", "table_VD.to(kind).T.detach()}", on(check_tied, "engine")),
    (simvlm, "prefix_B[:, None] - 1, PAD", "prefix_B[:, None], PAD", cocas("simvlm")),
    (simvlm, "prefix_B[:, None] - 1, PAD", "prefix_B[:, None] - 2, PAD",
     on(check_prefix, "reference")),
    (simvlm, "inputs_BT, targets_BT, mask_BTT)", "inputs_BT, batch['tokens'][:, 1:], mask_BTT)",
     on(check_prefix, "reference")),
    (engine_simvlm, "prefix_B[:, None] - 1, PAD", "prefix_B[:, None], PAD",
     cocas("simvlm", "engine")),
    (engine_simvlm, "prefix_mask(places_T, prefix_B)", "prefix_mask(places_T, 0 * prefix_B)",
     on(check_both_ways, "engine")),
    (cappa, "config.vocabulary, inputs_BT)", "inputs_BT, inputs_BT)", on(check_blind, "reference")),
    (cappa, "length * parallel_B)", "0 * parallel_B)", on(check_blind, "reference")),
    (cappa, "missing = config.text_length - tokens.shape[1]", "missing = 0",
     on(check_blind, "reference")),
    (cappa, "\"word_mask\": dtable[-1]", "\"word_mask\": dtable[0]", gradients("cappa")),
    (engine_cappa, "masked_fill(parallel_B[:, None], config.vocabulary)",
     "masked_fill(parallel_B[:, None], 3)", on(check_blind, "engine")),
    (engine_cappa, "(0, config.text_length - tokens.shape[1])", "(0, 0)",
     on(check_blind, "engine")),
    (captioner, "transformer(x_BTD, params[\"text\"][\"blocks\"], *given)",
     "(x_BTD, [])", cocas("simvlm")),
    (captioner, "params[\"decoder\"], config, mask)", "params[\"decoder\"], config)",
     on(check_sides, "cappa", small_config(), 0)),
    (layers, "((0, 0), (0, 1), (0, 0))", "((0, 0), (1, 0), (0, 0))", gradients("gpt")),
    (layers, "reversed(range(len(caches)))", "range(len(caches))", gradients("gpt")),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()
