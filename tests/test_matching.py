"""A head that says whether an image and a text belong together: asked pair by pair, it ranks again
what the cosine found."""

import json
import warnings
from unittest import mock

import numpy as np
import pytest
import relatives
import torch
from oracles import planted
from PIL import Image
from relatives import on
from runs import few_shapes, load, untrained  # noqa: F401
from strategies import small_config

import minicoca
from minicoca import __main__ as cli
from minicoca import evaluate as evaluate_module
from minicoca.data import Pairs
from minicoca.engine import relatives as engine_relatives
from minicoca.engine.relatives import vlmo as engine_vlmo
from minicoca.evaluate import evaluate
from minicoca.params import tree_map
from minicoca.reference import relatives as reference_relatives
from minicoca.reference.relatives import vlmo
from minicoca.tasks import matching, scoring

SIDES = {"reference": reference_relatives, "engine": engine_relatives}
EVERY = [row for row in relatives.ALL if row[0] in ("matching", "vlmo")]
both = pytest.mark.parametrize("which", SIDES)
every = pytest.mark.parametrize(("name", "own", "options"), EVERY)


def match(which, params, config, batch, image, text):
    """Log-odds of pairs, in float64."""
    given = batch["images"], batch["tokens"], np.array(image), np.array(text)
    if which == "engine":
        params, given = tree_map(torch.tensor, params), map(torch.tensor, given)
    logits = np.asarray(SIDES[which].match(params, config, *given))
    return logits[:, 1] - logits[:, 0]


def given(name, own, options, batch=4):
    config = small_config(objective=name, settings=tuple(sorted(own.items())), **options)
    return config, *relatives.given(name, config, 0, batch, **own)


def check_it_says_what_it_learned(which, name, own, options):
    """The matching loss is that of the log-odds of the pairs that it asks about."""
    own = own | ({"capacity": 0.0} if own.get("experts") else {})
    config, settings, params, batch = given(name, own, options)
    outputs, _ = relatives.SIDES[which](name, params, config, settings, batch)
    scores = np.exp(-params["log_temperature"]) * (outputs["image"] @ outputs["text"].T)
    module = relatives.side("reference", "matching")
    image, text = module.rows_asked(scores, batch["tokens"], batch["noise"])
    odds = match(which, params, config, batch, image, text)
    losses = np.logaddexp(0, np.where(np.arange(len(odds)) < 4, -odds, odds))
    np.testing.assert_allclose(losses.mean(), outputs["matching"], rtol=1e-9)
    assert len(odds) == 12


@both
@every
def test_it_says_what_it_learned(which, name, own, options):
    check_it_says_what_it_learned(which, name, own, options)


def check_one_by_one(which, name, own, options):
    """A pair is what it is, whatever is asked beside it, however long the other texts are."""
    config, _, params, batch = given(name, own, options)
    image, text = np.indices((4, 4)).reshape(2, -1)
    with mock.patch.object(SIDES[which], "PAIRS", 3):
        odds = match(which, params, config, batch, image, text)
    for i, t, whole in zip(image, text, odds, strict=True):
        count = (batch["tokens"][t] != 0).sum()
        one = {"images": batch["images"][i : i + 1], "tokens": batch["tokens"][t : t + 1, :count]}
        np.testing.assert_allclose(match(which, params, config, one, [0], [0]), whole, rtol=1e-8)
    assert np.ptp(odds) > 1e-3


@both
@every
def test_a_pair_does_not_depend_on_others(which, name, own, options):
    check_one_by_one(which, name, own, options)


def test_who_matches():
    """Those that have a head for it, unless its loss weighed nothing."""
    for name in relatives.RELATIVES:
        heads = {hasattr(relatives.side(which, name), "matcher") for which in SIDES}
        assert heads == {small_config(objective=name).matches}
    own = (("matching_weight", 0.0),)
    assert not small_config(objective="matching", settings=own).matches


# --- what is ranked again -------------------------------------------------------------------------

OWN = {"matching": {}, "vlmo": {"experts": 2}, "resnet": {"stages": 2}, "simclr": {}}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A run of each, of weights at random, and pictures."""
    folder, dataset = tmp_path_factory.mktemp("matching"), load(0, 32, 60, 20)
    for name, own in OWN.items():
        untrained(folder / name, 0.1, objective=name, settings=tuple(own.items()))
    (folder / "pictures").mkdir()
    for i, image in enumerate(dataset.train.images[:9]):
        Image.fromarray(image).save(folder / "pictures" / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)


def opened(name, backend="torch"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the files were not checked for damage
        return minicoca.load(name, backend=backend)


def of_data(count=12):
    data = load(0, 32, 60, 20).train
    return Pairs(data.images[:count], data.captions[:count])


@pytest.mark.parametrize("name", ["matching", "vlmo"])
def test_probabilities_in_both_backends(name):
    images, texts = list(of_data(3).images), ["a small red star", "a ring", "a"]
    found, want = (opened(name, backend).match(images, texts) for backend in ("torch", "numpy"))
    assert found.shape == (3, 3) and (found > 0).all() and (found < 1).all()
    np.testing.assert_allclose(found, want, atol=1e-4)
    one = opened(name).match(images[1], texts[2])
    assert np.ndim(one) == 0 and one == pytest.approx(found[1, 2], abs=1e-5)
    assert opened(name).match(images, texts[0]).shape == (3,)
    assert opened(name).match([], texts).shape == (0, 3)


def brute(model, pairs, many):
    """R@1 both ways after re-ranking, from all cosines and all probabilities."""
    texts = list(dict.fromkeys(t for own in pairs.captions for t in own))
    images = list(pairs.images)
    cosines = model.embed_images(images) @ model.embed_texts(texts).T
    p = model.match(images, texts)
    right = np.array([[text in own for text in texts] for own in pairs.captions])
    found = []
    for c, q, r in ((cosines, p, right), (cosines.T, p.T, right.T)):
        top = np.argsort(-c, 1, kind="stable")[:, :many]
        best = np.take_along_axis(q, top, 1).argmax(1)
        found.append(r[np.arange(len(r)), top[np.arange(len(r)), best]])
    place = [texts.index(t) for own in pairs.captions for t in own]
    return found[0].mean(), found[1][place].mean()


def figures_of(name, pairs, many, gallery=0):
    model = opened(name)
    with mock.patch.object(matching, "RERANKED", many), mock.patch.object(matching, "FEW", 5):
        figures, _ = evaluate(model.coca, model.tokenizer, pairs, gallery, draws=0)
    return figures


def check_the_figure(name):
    """By its definition, for any number of candidates; of one it is R@1."""
    pairs = of_data()
    captions = tuple(
        (*own, pairs.captions[(i + 1) % 12][0]) for i, own in enumerate(pairs.captions)
    )
    pairs = Pairs(pairs.images, captions)
    for many in (1, 2, 5, 50):
        figures = figures_of(name, pairs, many)
        want = brute(opened(name), pairs, many)
        got = [figures[f"{way}_reranked_r1"] for way in evaluate_module.WAYS]
        np.testing.assert_allclose(got, want, atol=1e-9)
    one = figures_of(name, pairs, 1)
    for way in evaluate_module.WAYS:
        assert one[f"{way}_reranked_r1"] == one[f"{way}_r1"]


@pytest.mark.parametrize("name", ["matching", "vlmo"])
def test_the_figure_is_its_definition(name):
    check_the_figure(name)


def check_galleries():
    """Each by itself: the mean of what the halves say."""
    pairs = of_data()
    whole = figures_of("matching", pairs, 3, gallery=6)
    halves = [
        figures_of("matching", Pairs(pairs.images[own], pairs.captions[own]), 3)
        for own in (slice(6), slice(6, 12))
    ]
    for way in evaluate_module.WAYS:
        key = f"{way}_reranked_r1"
        assert whole[key] == pytest.approx(np.mean([half[key] for half in halves]))


def test_galleries_are_ranked_by_themselves():
    check_galleries()


def test_a_head_that_knows_finds_whatever_is_among_the_nearest(monkeypatch):
    """R@1 after it is R@K before; a head that is always wrong finds nothing."""
    pairs, model = of_data(), opened("matching")
    numbers = {image.tobytes(): i for i, image in enumerate(pairs.images)}
    for sign, key in ((1, "_r5"), (-1, None)):

        def odds(model, tokenizer, images, texts, places, sign=sign):
            rows = [numbers[images[i].tobytes()] for i in places[0]]
            right = [texts[t] in pairs.captions[i] for i, t in zip(rows, places[1], strict=True)]
            return sign * np.array(right, np.float32)

        monkeypatch.setattr(matching, "log_odds", odds)
        monkeypatch.setattr(matching, "RERANKED", 5)
        figures, _ = evaluate(model.coca, model.tokenizer, pairs, draws=0)
        for way in evaluate_module.WAYS:
            want = figures[f"{way}{key}"] if key else 0
            assert figures[f"{way}_reranked_r1"] == want
    assert not any("reranked" in name for name in evaluate(
        model.coca, model.tokenizer, pairs, draws=0, rerank=False
    )[0])  # fmt: skip


def call(capsys, *words):
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def check_order(name):
    """The nearest by the cosine, in the order of the head; each with what the head says."""
    model, paths = opened(name), [f"pictures/{i}.png" for i in range(9)]
    text = "a small red star"
    found = model.search(text, paths, k=4, rerank=6)
    nearest = model.search(text, paths, k=6)
    p = model.match([one.image for one in nearest], text)
    order = [nearest[i].place for i in np.argsort(-p, kind="stable")][:4]
    assert [one.place for one in found] == order
    assert [one.log_odds for one in found] == sorted((x.log_odds for x in found), reverse=True)
    odds = np.array([one.log_odds for one in found])
    want = {near.place: q for near, q in zip(nearest, p, strict=True)}
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), [want[o] for o in order], atol=1e-5)


@pytest.mark.parametrize("name", ["matching", "vlmo"])
def test_a_search_is_ranked_by_the_head(name, capsys):
    check_order(name)
    words = ["search", "pictures", "a small red star", "--run", name, "-k", 3]
    code, out, err = call(capsys, *words, "--rerank", 5, "--json")
    rows = json.loads(out)["results"]
    assert code == 0 and "the 5 nearest are ranked again, by whether it belongs" in err
    found = opened(name).search("a small red star", ["pictures"], k=3, rerank=5)
    assert [row["file"] for row in rows] == [str(one.image) for one in found]
    assert [row["log_odds"] for row in rows] == [round(one.log_odds, 4) for one in found]
    code, out, err = call(capsys, *words, "--rerank")
    assert code == 0 and "the 9 nearest" in err and len(out.splitlines()) == 3


def test_who_has_no_head_says_so(capsys):
    with pytest.raises(ValueError, match="objective resnet: it has no head that matches"):
        opened("resnet").match("pictures/0.png", "a star")
    code, out, err = call(capsys, "search", "pictures", "a star", "--run", "resnet", "--rerank", 9)
    assert code == 0 and "by likelihood" in err
    code, _, err = call(capsys, "search", "pictures", "a star", "--run", "simclr", "--rerank", 9)
    assert code == 1 and "objective simclr" in err


def test_a_table_shows_it(capsys):
    words = ["matching", "--split", "held_out", "--limit", 8]
    code, out, _ = call(capsys, "evaluate", *words)
    assert code == 0 and "image to text, re-ranked" in out
    code, out, _ = call(capsys, "evaluate", "resnet", *words[1:])
    assert code == 0 and "re-ranked" not in out


def test_what_others_read_has_no_head(here, capsys):
    """A page leaves it out, and says so; where a model has nothing else, nothing is exported."""
    code, out, err = call(capsys, "page", "matching", "--out", "page.html")
    assert code == 0 and "left out: matching, for a page is of CoCa's own parts" in err
    assert "matching.classifier" not in (here / "page.html").read_text()
    code, _, err = call(capsys, "export", "torch", "simclr", "--out", "exported")
    assert code == 1 and "objective simclr: it has nothing to export" in err


VLMO = ("vlmo", {"masked": 0.4}, relatives.ONE_WIDTH)
EXPERTS = ("vlmo", {"experts": 3, "capacity": 0.8}, relatives.ONE_WIDTH)
BUGS = [
    (vlmo, "real_RS[text_P]", "np.ones_like(real_RS[text_P])",
     on(check_one_by_one, "reference", *VLMO)),
    (engine_vlmo, "real_RS[text_P]", "torch.ones_like(real_RS[text_P])",
     on(check_one_by_one, "engine", *VLMO)),
    (vlmo, "together(words, image, params, config, used(settings)",
     "together(words, image, params, config, settings",
     on(check_one_by_one, "reference", *EXPERTS)),
    (engine_vlmo, "linear(n[:, tokens_RT.shape[1]]", "linear(n[:, 0]",
     on(check_it_says_what_it_learned, "engine", *VLMO)),
    (reference_relatives, "text_P[part]) for part", "text_P[parts[0]]) for part",
     on(check_one_by_one, "reference", *VLMO)),
    (matching, "np.where(right_P, -np.inf, odds_P)", "np.where(right_P, -np.inf, 0 * odds_P)",
     on(check_the_figure, "matching")),
    (matching, "[texts[u] for u in used]", "texts[: len(used)]", on(check_the_figure, "matching")),
    (matching, "shape)[said]", "shape)", on(check_the_figure, "matching")),
    (evaluate_module, "pairs.batch(start + rows)", "pairs.batch(rows)", check_galleries),
    (scoring, "key=lambda one: -getattr(one, by)", "key=lambda one: -one.cosine",
     on(check_order, "matching")),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check, here):
    check()
    with planted(module, old, new), pytest.raises((AssertionError, RuntimeError, ValueError)):
        check()
