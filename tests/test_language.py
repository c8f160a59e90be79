"""A language model of captions: written with a cache or without, and measured beside counts and the
grammar, whose entropy is known."""

import itertools
import json
import math
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import relatives
import torch
from oracles import planted
from relatives import on
from runs import few_shapes, load, untrained  # noqa: F401
from strategies import small_config

from minicoca import __main__ as cli
from minicoca import evaluate as evaluate_module
from minicoca import params as params_module
from minicoca.config import END, PAD, START
from minicoca.data import grammar, shapes
from minicoca.engine import cache as engine_cache
from minicoca.engine import generate as engine_generate
from minicoca.engine.relatives import gpt as engine_gpt
from minicoca.evaluate import evaluate
from minicoca.params import tree_map
from minicoca.reference import generate
from minicoca.reference.relatives import gpt
from minicoca.tasks import language
from minicoca.tasks.captioning import no_images
from minicoca.tasks.language import Counts, surprise
from minicoca.tokenizer import Tokenizer
from minicoca.training.checkpoint import read_config

SIDES = {"reference": generate, "engine": engine_generate}
both = pytest.mark.parametrize("which", SIDES)
tied = pytest.mark.parametrize("tied", [False, True])


def model(which, params, config):
    params = tree_map(np.float32, params)
    given = (torch.device("cpu"),) if which == "engine" else ()
    return SIDES[which].CoCa(params, config, *given)


def given(tied, **options):
    config = small_config(objective="gpt", settings=(("tied", tied),), **options)
    return config, *relatives.given("gpt", config, 0, tied=tied)


# --- what it writes, and how likely it finds it ---------------------------------------------------


def check_cached_is_uncached(tied):
    """Greedily, sampled, by beams, with a prompt for each or for all; one row as many."""
    config, _, params, _ = given(tied)
    ours, theirs = (model(which, params, config) for which in SIDES)
    prompts = np.array([[1, 5], [1, 9], [1, 12]])
    for how in ({}, {"temperature": 1.5, "seed": 3}, {"repetition_penalty": 2.0}):
        want = ours.generate(no_images(3), prompts, **how)
        np.testing.assert_array_equal(theirs.generate(no_images(3), prompts, **how), want)
        one = theirs.generate(no_images(1), prompts[:1], **how)[0]
        np.testing.assert_array_equal(one, want[0, : len(one)])
    want, found = (m.beam_search(no_images(1), (START, 5), beams=4)[0] for m in (ours, theirs))
    assert [ids.tolist() for ids, _ in found] == [ids.tolist() for ids, _ in want]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in want], rtol=1e-4)


@tied
def test_cached_is_uncached(tied):
    check_cached_is_uncached(tied)


def check_likelihoods(which, tied):
    """They sum to minus what the definition's loss sums; padding counts nowhere, the end does."""
    config, settings, params, batch = given(tied)
    batch["tokens"][1:, 2:] = [2, 0, 0, 0, 0]
    outputs, _ = relatives.SIDES["reference"]("gpt", params, config, settings, batch)
    tokens, images = batch["tokens"], no_images(1).astype(float)
    if which == "engine":
        params, tokens, images = (
            tree_map(torch.tensor, params),
            *map(torch.tensor, (tokens, images)),
        )
    log_p = np.asarray(SIDES[which].log_likelihoods(params, config, images, tokens))[0]
    real = batch["tokens"][:, 1:] != PAD
    assert (log_p[~real] == 0).all() and (log_p[real] < 0).all()
    np.testing.assert_allclose(-log_p.sum() / real.sum(), outputs["caption"], rtol=1e-9)


@both
@tied
def test_likelihoods_are_those_of_the_loss(which, tied):
    check_likelihoods(which, tied)


# --- counts ---------------------------------------------------------------------------------------

TEXTS = Counter({"a b": 3, "a c b": 1, "b": 2})


@pytest.fixture(scope="module")
def words():
    return Tokenizer.train(["a b c d"] * 3, 64)


def check_counts(words):
    """By hand: of START a a a a b b; of a b b b c; of b END x 6; of c b."""
    counts = Counts(words, 9, TEXTS)
    choices, N = words.vocab_size - 2, 3 * 3 + 4 + 2 * 2
    found = counts.surprise(["a b", "d"])
    bigram = [(4 + 1) / (6 + choices), (3 + 1) / (4 + choices), (6 + 1) / (6 + choices)]
    unigram = [(4 + 1) / (N + choices), (6 + 1) / (N + choices), (6 + 1) / (N + choices)]
    np.testing.assert_allclose(found["bigram"][0], -np.log(bigram).sum())
    np.testing.assert_allclose(found["unigram"][0], -np.log(unigram).sum())
    np.testing.assert_allclose(found["uniform"], [3 * np.log(choices), 2 * np.log(choices)])
    unseen = [1 / (6 + choices), 1 / (0 + choices)]  # d after START, END after d
    np.testing.assert_allclose(found["bigram"][1], -np.log(unseen).sum())


def test_counts(words):
    check_counts(words)


def check_sums(words):
    """Whatever came before, what may come next has probability 1 in all."""
    counts = Counts(words, 9, TEXTS)
    alone = {v: counts.surprise([text])["bigram"][0] for v, text in enumerate("abcd")}
    assert len(set(alone.values())) > 1
    choices, size = words.vocab_size - 2, words.vocab_size
    assert np.isclose(((counts.alone[3:] + 1) / (counts.alone.sum() + choices)).sum() +
                      (counts.alone[END] + 1) / (counts.alone.sum() + choices), 1)  # fmt: skip
    for v in range(size):
        own = counts.pairs // size == v
        assert counts.times[own].sum() == counts.before[v]
    assert counts.alone[[PAD, START]].sum() == 0 == counts.before[END]
    assert counts.before.sum() == counts.alone.sum() == 17


def test_probabilities_of_counts_sum_to_one(words):
    check_sums(words)


def test_nothing_to_count(words):
    assert Counts(words, 9, {}).surprise(["a b"]).keys() == {"uniform"}
    assert len(Counts(words, 9, TEXTS).surprise([])["bigram"]) == 0


# --- the grammar ----------------------------------------------------------------------------------


def check_every_scene(first, kinds):
    """Of few kinds of things all draws are gone through, each with its caption."""
    things = [("small", colour, "star") for colour in list(shapes.COLOURS)[:kinds]]
    counts, chance = (1, 2, 2, 3), Counter()
    for n in counts:
        for one, *rest in itertools.permutations(things, n):
            if one not in things[:first]:
                continue
            for seats in shapes.LAYOUTS[n]:
                made = [
                    shapes.Thing(*kind, *seat, 0.1, (0, 0, 0))
                    for kind, seat in zip((one, *rest), seats, strict=True)
                ]
                drawn = first * math.perm(kinds - 1, n - 1) * len(shapes.LAYOUTS[n])
                text = shapes.caption(shapes.Scene(tuple(made), (255, 255, 255)))
                chance[text] += 1 / len(counts) / drawn
    p = np.array([*chance.values()])
    np.testing.assert_allclose(p.sum(), 1)
    layouts = {n: len(own) for n, own in shapes.LAYOUTS.items()}
    groups = grammar.caption_groups(counts, first, kinds, layouts)
    assert sum(many for many, _ in groups.values()) == len(p)
    listed = np.concatenate([np.full(many, each) for many, each in groups.values()])
    np.testing.assert_allclose(np.sort(listed), np.sort(p))
    entropy = grammar.caption_entropy(counts, first, kinds, layouts)
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum())


@pytest.mark.parametrize(("first", "kinds"), [(4, 4), (1, 3), (2, 5)])
def test_the_entropy_is_that_of_all_scenes(first, kinds):
    check_every_scene(first, kinds)


def group_of(text, kept):
    """(things that a caption names, those of them that may be drawn first)."""
    words = text.split()
    named = [words[i + 2 : i + 4] for i, word in enumerate(words) if word == "a"]
    assert all(len(pair) == 2 for pair in named)
    return len(named), sum(tuple(pair) in kept for pair in named)


def check_drawn_scenes(split, count=4000):
    """Scenes that are drawn fall into the groups as often as they should, and within a group no
    caption is likelier: as many different ones are seen as of so many equally likely ones."""
    texts = [shapes.caption(scene) for scene in shapes.scenes(split, count)]
    kept = shapes.KEPT_PAIRS if split == "compositional" else shapes.SEEN_PAIRS
    groups = grammar.caption_groups(*shapes.drawn_from(split))
    np.testing.assert_allclose(sum(many * p for many, p in groups.values()), 1)
    seen = Counter(group_of(text, kept) for text in texts)
    assert seen.keys() <= groups.keys()
    for key, (many, p) in groups.items():
        spread = math.sqrt(count * many * p * (1 - many * p))
        assert abs(seen[key] - count * many * p) <= 4 * spread + 1, key
        different = len({text for text in texts if group_of(text, kept) == key})
        want = many * -math.expm1(seen[key] * math.log1p(-1 / many)) if many > 1 else 1
        assert abs(different - want) <= 5 * math.sqrt(max(seen[key] - want, 1)), key
    nats = np.array([-math.log(groups[group_of(text, kept)][1]) for text in texts])
    entropy = grammar.caption_entropy(*shapes.drawn_from(split))
    assert abs(nats.mean() - entropy) <= 4 * nats.std() / math.sqrt(count)


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_the_entropy_is_that_of_drawn_scenes(split):
    check_drawn_scenes(split)


def test_data_say_their_entropy():
    data = load(0, 32, 4, 4)
    assert data.evaluations["held_out"].entropy > data.validation.entropy == data.train.entropy > 9


# --- figures and commands -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of weights at random."""
    folder = tmp_path_factory.mktemp("language") / "gpt"
    untrained(folder, 0.1, objective="gpt", settings=(("tied", True),))
    return folder


def check_figures(run):
    """e to the mean over tokens, not over texts or batches; the grammar's over the same tokens."""
    tokenizer, config = Tokenizer.load(run / "tokenizer.model"), read_config(run)
    tree, _ = params_module.load(run / "model.safetensors")
    ours, pairs = model("engine", tree, config), load(0, 32, 60, 20).evaluations["held_out"]
    known = Counter(text for own in load(0, 32, 60, 20).train.captions for text in own)
    figures, captions = evaluate(ours, tokenizer, pairs, known=known, draws=0)
    texts = [own[0] for own in pairs.captions]
    nats, sizes = surprise(ours, tokenizer, texts)
    assert (sizes == [len(text.split()) + 1 for text in texts]).all() and not captions
    alone = np.concatenate([surprise(ours, tokenizer, [text])[0] for text in texts])
    np.testing.assert_allclose(nats, alone, rtol=1e-5)
    counted = Counts(tokenizer, config.text_length, known).surprise(texts)
    whole = {"": nats, "_grammar": len(texts) * [pairs.entropy]}
    whole |= {f"_{name}": own for name, own in counted.items()}
    assert {f"perplexity{name}" for name in whole} | {"images"} == figures.keys()
    for name, own in whole.items():
        want = math.exp(sum(own) / sum(sizes))
        assert figures[f"perplexity{name}"] == pytest.approx(want), name
    named = [figures[f"perplexity_{n}"] for n in ("grammar", "bigram", "unigram", "uniform")]
    assert named == sorted(named)


def test_figures(run):
    check_figures(run)


def test_the_commands(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    found = []
    for backend in ("torch", "numpy"):
        assert cli.main(["evaluate", "gpt", "--json", "--backend", backend]) == 0
        found.append(json.loads(capsys.readouterr().out)["results"])
    for ours, theirs in zip(*found, strict=True):
        for name, value in ours["metrics"].items():
            assert theirs["metrics"][name] == pytest.approx(value, rel=1e-3), name
        low, high = ours["intervals"]["perplexity"]
        assert low < ours["metrics"]["perplexity"] < high
    assert cli.main(["evaluate", "gpt"]) == 0
    assert "perplexity a token" in capsys.readouterr().out
    for command in ("caption", "explain"):
        assert cli.main([command, "x.png", "--run", "gpt"]) == 1
        assert "Traceback" not in capsys.readouterr().err


def written(capsys, *words, code=0):
    assert cli.main(["write", *words]) == code
    return capsys.readouterr()


def test_it_writes(run, capsys, monkeypatch):
    """Greedily, sampled as of one batch whatever the batches, by beams; and says what it cannot."""
    monkeypatch.chdir(run.parent)
    own = ["--run", "gpt"]
    greedy = written(capsys, *own, "--prompt", "a small").out
    assert greedy.startswith("a small ") and greedy.count("\n") == 1
    assert written(capsys, *own, "--prompt", "a small", "--backend", "numpy").out == greedy
    sampled = ["--count", "5", "--temperature", "3", "--seed", "2"]
    whole = written(capsys, *own, *sampled).out
    assert len(set(whole.splitlines())) > 1 and len(whole.splitlines()) == 5
    with mock.patch("minicoca.tasks.BATCH", 2):
        assert written(capsys, *own, *sampled).out == whole
    rows = json.loads(written(capsys, *own, "--best", "3", "--json").out)["results"]
    [[*best]] = [row["best"] for row in rows]
    assert len(best) == 3 and best == sorted(best, key=lambda one: -one["score"])
    said = written(capsys, *own, "--best", "3").out.splitlines()
    assert [line.split(None, 1)[1] for line in said] == [one["caption"] for one in best]
    assert "give --temperature, to sample" in written(capsys, *own, "--count", "2", code=2).err
    assert "--count 0 is not from 1" in written(capsys, *own, "--count", "0", code=2).err
    assert "minicoca caption" in written(capsys, "--run", "shapes", code=1).err


BUGS = [
    (gpt, "if settings.tied else", "if not settings.tied else",
     on(check_cached_is_uncached, False)),
    (gpt, "return None, _read(params, config, tokens_BT)[0]",
     "return None, _read(params, config, tokens_BT)[0][::-1]", on(check_cached_is_uncached, True)),
    (engine_gpt, "tokens_BT[:, :-1]", "tokens_BT[:, 1:]", on(check_likelihoods, "engine", True)),
    (engine_gpt, '"norm": norm,', '"norm": params["text"]["blocks"]["0"]["norm_mlp"],',
     on(check_cached_is_uncached, True)),
    (engine_cache, 'range(len(self.params["text"]["blocks"]))', "range(1)",
     on(check_cached_is_uncached, False)),
    (grammar, "m * math.factorial(n - 1)", "math.factorial(n)", on(check_every_scene, 2, 5)),
    (grammar, "math.perm(kinds - 1, n - 1)", "kinds ** (n - 1)", on(check_every_scene, 4, 4)),
    (grammar, "math.comb(n, m) * ", "", on(check_every_scene, 2, 5)),
    (shapes, 'first = KEPT_PAIRS if split == "compositional" else every', "first = every",
     on(check_drawn_scenes, "compositional")),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises((AssertionError, RuntimeError, KeyError)):
        check()


MISCOUNTED = [
    ("self.times[place_P], 0)", "self.times[place_P], 1)", check_counts),
    ("(self.before[v_P] + choices)", "(self.alone[v_P] + choices)", check_counts),
    ("self.size - NEVER", "self.size", check_counts),
    ("tokens[:, 1:] != PAD", "tokens[:, 1:] >= PAD", check_sums),
    ("int64)[row_P]", "int64)[row_P] * 0 + 1", check_sums),
]


@pytest.mark.parametrize(("old", "new", "check"), MISCOUNTED, ids=range(len(MISCOUNTED)))
def test_a_miscount_is_caught(old, new, check, words):
    check(words)
    with planted(language, old, new), pytest.raises(AssertionError):
        check(words)


def test_a_mean_over_texts_is_caught(run):
    slips = ("(own @ sizes)", "own.sum()")
    with planted(evaluate_module, *slips), pytest.raises(AssertionError):
        check_figures(run)
