"""By what a class is chosen: cosine, likelihood, mutual information, both; and of which prompts."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from runs import untrained

from minicoca import __main__ as cli
from minicoca import load, params
from minicoca.data import Pairs, ZeroShot
from minicoca.evaluate import zero_shot
from minicoca.metrics import wrong_before
from minicoca.tasks import embed_texts
from minicoca.tasks.scoring import scores
from minicoca.tasks.zero_shot import BY, Judge, check_labels, probabilities
from minicoca.training.checkpoint import read_own

PROMPTS = [
    ("a small red circle", "a large red circle"),
    ("a blue star",),
    ("a ring", "a pink ring"),
]
TEXTS = [text for group in PROMPTS for text in group]
GROUPS = [[0, 1], [2], [3, 4]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """First weights, whose image tower speaks up: then pictures are not all alike."""
    folder = tmp_path_factory.mktemp("judging") / "run"
    untrained(folder)
    tree, _ = params.load(folder / "model.safetensors")
    tree["image"]["patch"]["weight"] *= 3
    tree["decoder"]["head"]["weight"] *= 9
    params.save(folder / "model.safetensors", tree, read_own(folder)[0])
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder.parent / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, backend="numpy")


@pytest.fixture(scope="module")
def pictures(folder):
    return np.stack([np.array(Image.open(folder.parent / f"{i}.png")) for i in range(3)])


def judged(model, pictures, by, rule):
    given = model.embed_images(pictures) if by == "cosine" else pictures
    return Judge(model.coca, model.tokenizer, PROMPTS, by, rule)(given)


def check_scores(model, pictures):
    """Of every prompt by itself, and of a class the best or the mean of its own."""
    found = scores(model.coca, model.tokenizer, [(None, pictures)], TEXTS)
    temperature = np.exp(float(model.coca.params["log_temperature"]))
    want = {
        "cosine": found.cosines,
        "likelihood": found.log_likelihoods / found.tokens,
        "pmi": found.log_likelihoods - found.without_image,
        "both": found.cosines / temperature + found.log_likelihoods - found.without_image,
    }
    assert set(want) == set(BY)
    for by, values in want.items():
        for rule, of in (("best", np.max), ("mean", np.mean)):
            classes, each = judged(model, pictures, by, rule)
            np.testing.assert_allclose(each, values, rtol=1e-5, atol=1e-5)
            wanted = np.stack([of(values[:, group], axis=1) for group in GROUPS], 1)
            np.testing.assert_allclose(classes, wanted, rtol=1e-5, atol=1e-5)


def test_a_class_scores_what_its_prompts_do(model, pictures):
    check_scores(model, pictures)


def check_ensemble(model, pictures):
    vectors = embed_texts(model.coca, model.tokenizer, TEXTS).astype(np.float64)
    means = np.stack([vectors[group].mean(0) for group in GROUPS])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    classes, _ = judged(model, pictures, "cosine", "ensemble")
    np.testing.assert_allclose(classes, model.embed_images(pictures) @ means.T, atol=1e-5)


def test_an_ensemble_is_the_cosine_of_the_mean_vector(model, pictures):
    check_ensemble(model, pictures)


def check_without_image(model, pictures):
    """Of the text alone: that of blank pictures, whatever is looked at beside them."""
    mean = np.round(255 * np.array(model.config.pixel_mean))
    blank = np.zeros((3, 32, 32, 3), np.uint8)
    blank[1], blank[2] = 255, mean
    found = scores(model.coca, model.tokenizer, [(None, pictures)], TEXTS)
    other = scores(model.coca, model.tokenizer, [(None, blank)], TEXTS[::-1])
    np.testing.assert_allclose(found.without_image, other.without_image[::-1], rtol=1e-5)
    np.testing.assert_allclose(other.log_likelihoods.mean(0), other.without_image, rtol=1e-5)
    np.testing.assert_allclose(other.pmi.mean(0), 0, atol=1e-4)
    assert np.abs(found.pmi).max() > 0.01


def test_the_likelihood_without_an_image_is_of_the_text_alone(model, pictures):
    check_without_image(model, pictures)


def test_from_python(model, pictures):
    described = {
        "round": ["a red circle", "a pink ring"],
        "pointed": ["a blue star", "a pink ring"],
    }
    row = model.classify(pictures[0], described)
    own = model.score(pictures[0], described[row.label]).cosines
    assert list(row.evidence) == described[row.label]
    np.testing.assert_allclose(list(row.evidence.values()), own, atol=1e-6)
    assert row.scores[row.label] == pytest.approx(np.mean(own), abs=1e-6)
    rows = model.classify(pictures, ["a red circle", "a star"], by="pmi")
    pmi = model.score(pictures, ["a red circle", "a star"]).pmi
    np.testing.assert_allclose([list(row.scores.values()) for row in rows], pmi, atol=1e-4)
    chances = probabilities(pmi).max(1)
    assert [row.probability for row in rows] == pytest.approx(chances.tolist(), abs=1e-4)
    for how, said in (
        ({"by": "sum"}, "by='sum' is none of cosine, likelihood"),
        ({"rule": "worst"}, "rule='worst' is none of best"),
        ({"by": "pmi", "rule": "ensemble"}, "by cosine, and not by pmi"),
    ):
        with pytest.raises(ValueError, match=said):
            model.classify(pictures, ["a red circle", "a star"], **how)
    with pytest.raises(ValueError, match="leave out templates"):
        model.classify(pictures, described, templates="a {}")
    for own in ([], [""]):
        with pytest.raises(ValueError, match="no sentence, or an empty one"):
            model.classify(pictures, {"a": own})


def call(capsys, *arguments):
    code = cli.main(["classify", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_on_the_command_line(folder, model, pictures, tmp_path, capsys):
    images = [folder.parent / f"{i}.png" for i in range(3)]
    described = {"round": ["a red circle", "a pink ring"], "pointed": ["a blue star"]}
    path, templates = tmp_path / "d.json", tmp_path / "t.txt"
    path.write_text(json.dumps(described))
    templates.write_text("a small {}\na large {}\n")
    how = ["--run", folder, "--backend", "numpy"]
    code, out, err = call(capsys, *images, "--descriptions", path, *how)
    lines, best = out.splitlines(), model.classify(pictures, described)
    assert code == 0 and len(lines) == 3 + sum(len(one.evidence) for one in best), err
    for text, score in best[0].evidence.items():
        assert f"  {score:7.3f}  {text}" in lines
    code, out, _ = call(capsys, *images, "--descriptions", path, *how, "--json", "--by", "both")
    rows = json.loads(out)["results"]
    want = model.classify(pictures, described, by="both")
    for row, one in zip(rows, want, strict=True):
        assert (row["label"], list(row["evidence"])) == (one.label, described[one.label])
        assert row["scores"] == pytest.approx(one.scores, abs=1e-3)
    labels = ["red circle", "ring"]
    for rule in ("mean", "ensemble", "best"):
        flags = ["--labels", *labels, "--templates-file", templates, "--rule", rule, "--json"]
        rows = json.loads(call(capsys, *images, *flags, *how)[1])["results"]
        filled = ["a small {}", "a large {}"]
        for row, one in zip(
            rows, model.classify(pictures, labels, templates=filled, rule=rule), strict=True
        ):
            assert row["scores"] == pytest.approx(one.scores, abs=1e-3) and "evidence" not in row


@pytest.mark.parametrize(
    "content, flags, said",
    [
        ('{"a": ["b"]}', ["--template", "{}"], "leave out templates"),
        ('{"a": ["b"]', [], "is no JSON"),
        ('["a"]', [], "is not of the form"),
        ('{"a": "b"}', [], "is not of the form"),
        ("{}", [], "is not of the form"),
        ('{"a": [1]}', [], "is not of the form"),
        ('{"a": []}', [], "has no sentence"),
        ('{"a": ["b"]}', ["--by", "pmi", "--rule", "ensemble"], "by cosine, and not by pmi"),
    ],
)
def test_wrong_descriptions_get_a_line(content, flags, said, folder, tmp_path, capsys):
    path = tmp_path / "d.json"
    path.write_text(content)
    image = folder.parent / "0.png"
    code, out, err = call(capsys, image, "--descriptions", path, "--run", folder, *flags)
    assert code == 2 and said in err and not out


def test_an_index_has_no_pixels(folder, tmp_path, capsys):
    code, _, err = call(capsys, "--index", tmp_path, "--labels", "a", "--by", "pmi")
    assert code == 2 and "--by pmi: an index holds no more than vectors" in err


def test_descriptions_may_share_a_sentence_and_labels_may_not(model):
    shared = [("a ring", "a star"), ("a ring",)]
    check_labels(model.coca, model.tokenizer, ["a", "b"], shared, shared=True)
    with pytest.raises(ValueError, match="are one to this model"):
        check_labels(model.coca, model.tokenizer, ["a", "b"], shared)


def check_evaluated(model, pictures):
    """All ways at once are each by itself, whatever the classes of the pictures are."""
    for of in map(np.array, itertools.permutations(range(3))):
        check_evaluated_of(of, model, pictures)


def check_evaluated_of(of, model, pictures):
    task = ZeroShot(("a", "b", "c"), tuple(PROMPTS), np.arange(3), of)
    pairs = Pairs(pictures, tuple(PROMPTS), task)
    coca, tokenizer = model.coca, model.tokenizer
    vectors = model.embed_images(pictures)
    for rule in ("best", "mean"):
        measures = zero_shot(coca, tokenizer, pairs, vectors, 3, BY, rule)
        for by, measure in zip(BY, measures, strict=True):
            ranks = wrong_before(judged(model, pictures, by, rule)[0], of)
            name = "zero_shot" if by == "cosine" else f"zero_shot_{by}"
            for i in range(3):
                assert measure(np.arange(3) == i)[f"{name}_top1"] == (ranks[i] < 1)


def test_evaluation_judges_alike(model, pictures):
    check_evaluated(model, pictures)


def check_rerank(model, paths):
    """Of the nearest, in the order of the likelihoods that `score` gives."""
    text = "a red circle"
    per_token = model.score(paths, text).per_token
    cosines = model.embed_images(paths) @ model.embed_texts(text)
    for many in (2, 3):
        nearest = np.argsort(-cosines, kind="stable")[:many]
        want = sorted(nearest, key=lambda i: -per_token[i])
        found = model.search(text, paths, k=2, rerank=many)
        assert [one.place for one in found] == want[:2]
        likelihoods = [one.likelihood for one in found]
        np.testing.assert_allclose(likelihoods, per_token[want[:2]], rtol=1e-5)


def test_search_ranks_again_by_the_likelihood(model, folder, capsys):
    paths = [folder.parent / f"{i}.png" for i in range(3)]
    check_rerank(model, paths)
    how = ["--run", folder, "--backend", "numpy", "-k", 2]
    words = ["search", folder.parent, "a red circle", *how, "--rerank", 3]
    assert cli.main([*map(str, words), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    found = model.search("a red circle", paths, k=2, rerank=3)
    assert [row["file"] for row in rows] == [str(one.image) for one in found]
    for row, one in zip(rows, found, strict=True):
        assert row["likelihood"] == pytest.approx(one.likelihood, abs=1e-3)
    assert cli.main([*map(str, words)]) == 0
    assert capsys.readouterr().out.startswith(f"{rows[0]['likelihood']:.3f}  ")


def test_an_image_that_is_gone_is_ranked_last(model, folder, tmp_path, capsys):
    for name in ("0.png", "1.png", "2.png"):
        shutil.copy(folder.parent / name, tmp_path / name)
    index, how = tmp_path / "index", ["--run", str(folder), "--backend", "numpy"]
    assert cli.main(["embed", str(tmp_path), "--index", str(index), *how]) == 0
    first = model.search("a red circle", index=index, k=3, rerank=3)
    (tmp_path / first[0].image).unlink()
    capsys.readouterr()
    words = ["search", "--index", str(index), "a red circle", "-k", "3", "--rerank", "3", *how]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith(first[0].image) and "not ranked again" in err
    with pytest.raises(ValueError, match="no such file"):
        model.search("a red circle", index=index, k=3, rerank=3)


def test_what_cannot_be_ranked_again_is_refused(model, folder, pictures, capsys):
    with pytest.raises(ValueError, match="rerank=1: at least k=2"):
        model.search("a star", pictures, k=2, rerank=1)
    with pytest.raises(ValueError, match="of sentences alone"):
        model.search([pictures[0]], pictures, k=1, rerank=2)
    with pytest.raises(ValueError, match="and not their vectors"):
        model.search("a star", model.embed_images(pictures), k=1, rerank=2)
    place = str(folder.parent)
    for words, said in (
        ([place, "a", "-k", "3", "--rerank", "2"], "--rerank 2: at least as many as -k 3"),
        ([place, f"{place}/0.png", "--rerank", "9"], "the query is an image"),
    ):
        assert cli.main(["search", *words, "--run", str(folder)]) == 2
        assert said in capsys.readouterr().err
