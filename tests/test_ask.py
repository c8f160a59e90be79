"""Training on questions, and asking: from the command line and from Python."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from runs import few_shapes, metrics, short, silent, stop_after, tensors  # noqa: F401

import minicoca
from minicoca import __main__ as cli
from minicoca.config import preset
from minicoca.data import shapes
from minicoca.data.asked_shapes import of_shapes
from minicoca.evaluate import evaluate
from minicoca.mistakes import look
from minicoca.params import flatten, initialise
from minicoca.tokenizer import Tokenizer
from minicoca.training.checkpoint import load_model, read_config, read_tokenizer
from minicoca.training.loop import Stopped
from minicoca.training.run import train
from minicoca.tuning import grow

ASKS = dict(task="questions", contrastive_weight=0.0)
BACKENDS = pytest.mark.parametrize("backend", ["torch", "numpy"])


def quiet(folder, **changes):
    return silent(short(**ASKS | changes), folder)


# --- training -----------------------------------------------------------------------------------


@BACKENDS
def test_a_run_learns_words_and_head_and_tells_both(tmp_path, backend):
    results = quiet(tmp_path / "run", backend=backend)
    for split in ("held_out", "compositional"):
        names = {"answer_head", "answer_generation", "answer_most_frequent", "answer_head_count"}
        assert names <= results[split].keys() and names <= results[split]["intervals"].keys()
    steps = [record for record in metrics(tmp_path / "run") if "loss" in record]
    assert all({"caption", "answer"} <= record.keys() for record in steps)
    config = read_config(tmp_path / "run")
    assert "yes" in config.answers and len(config.answers) > 15
    assert tensors(tmp_path / "run", "model.safetensors")["head"]["classifier"]["weight"].shape == (
        64, len(config.answers),
    )  # fmt: skip


def test_both_backends_take_the_same_steps(tmp_path):
    losses = []
    for backend in ("torch", "numpy"):
        quiet(tmp_path / backend, backend=backend, optimizer="adamw")
        losses.append([r["answer"] for r in metrics(tmp_path / backend) if "answer" in r])
    np.testing.assert_allclose(*losses, rtol=1e-3)


@BACKENDS
def test_a_stopped_run_goes_on_exactly(tmp_path, monkeypatch, backend):
    quiet(tmp_path / "whole", backend=backend)
    with monkeypatch.context() as patch:
        stop_after(patch, backend, 7)
        with pytest.raises(Stopped):
            quiet(tmp_path / "parts", backend=backend)
    train(None, tmp_path / "parts", taking_up=True, say=lambda text: None)
    a, b = (flatten(tensors(tmp_path / name, "model.safetensors")) for name in ("whole", "parts"))
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_init_adds_words_and_a_head_and_touches_nothing_else(tmp_path):
    """The earlier words keep their ids and rows; at a rate of 0 all that was there stays."""
    silent(short(), tmp_path / "first")
    said = []
    config = replace(read_config(tmp_path / "first"), **ASKS, init=str(tmp_path / "first"))
    config = replace(config, learning_rate=0.0)
    train(config, tmp_path / "second", say=said.append)
    before, after = (tensors(tmp_path / n, "model.safetensors") for n in ("first", "second"))
    settings = [read_config(tmp_path / name) for name in ("first", "second")]
    old = read_tokenizer(tmp_path / "first", settings[0])
    new = read_tokenizer(tmp_path / "second", settings[1])
    known = old.vocab_size
    added = new.vocab_size - known
    assert any(line.startswith(f"{added} words are added") for line in said)
    assert not new.unseen("what colour is the star ?") and old.unseen("what colour is the star ?")
    assert old.beginning("a red star") == new.beginning("a red star")
    fresh = flatten(initialise(settings[1], settings[1].seed))
    own = flatten(after)
    assert (own["text.token"][known:] == fresh["text.token"][known:]).all()
    assert (own["head.classifier.weight"] == fresh["head.classifier.weight"]).all()
    own["text.token"] = own["text.token"][:known]
    own["decoder.head.weight"] = own["decoder.head.weight"][:, :known]
    for name, leaf in flatten(before).items():
        np.testing.assert_array_equal(own[name], leaf, err_msg=name)


def test_a_head_for_the_same_answers_is_kept_and_for_others_begun(tmp_path):
    quiet(tmp_path / "first")
    config = replace(read_config(tmp_path / "first"), init=str(tmp_path / "first"))
    silent(replace(config, learning_rate=0.0), tmp_path / "same")
    a, b = (tensors(tmp_path / n, "model.safetensors")["head"] for n in ("first", "same"))
    np.testing.assert_array_equal(a["classifier"]["weight"], b["classifier"]["weight"])
    silent(replace(config, answer_weight=0.0), tmp_path / "none")
    assert "head" not in tensors(tmp_path / "none", "model.safetensors")
    assert read_config(tmp_path / "none").answers == ()


def test_words_that_are_added():
    tokenizer = Tokenizer.train(["a red star", "a blue \u2581 thing"], 30)
    more = tokenizer.with_words(["what is red?", "a star", "x" * 300, "日本 \u2581\u2581"])
    assert more.vocab_size == tokenizer.vocab_size + 6
    text = "what is red? a " + "x" * 300 + " 日本 star \u2581\u2581"
    assert more.decode(more.encode([text], 30)[0]) == text
    assert (
        Tokenizer(more.serialised()).encode([text], 30).tolist() == more.encode([text], 30).tolist()
    )
    same = more.with_words(["a red star what"])
    assert same.vocab_size == more.vocab_size and same.serialised() == more.serialised()
    pieces = Tokenizer.train(["a red star", "a blue thing"], 30, "unigram")
    assert pieces.with_words(["what colour"]) is pieces


def test_grown_weights_are_those_of_a_fresh_model_where_they_are_new():
    small, large = preset("tiny", vocabulary=20), preset("tiny", vocabulary=27, seed=5)
    tree, fresh = initialise(small, 1), initialise(large, 5)
    grown = grow(tree, large)
    np.testing.assert_array_equal(grown["text"]["token"][:20], tree["text"]["token"])
    np.testing.assert_array_equal(grown["text"]["token"][20:], fresh["text"]["token"][20:])
    words = grown["decoder"]["head"]["weight"]
    np.testing.assert_array_equal(words[:, :20], tree["decoder"]["head"]["weight"])
    np.testing.assert_array_equal(words[:, 20:], fresh["decoder"]["head"]["weight"][:, 20:])
    assert len(tree["text"]["token"]) == 20


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(task="questions"), "contrastive_weight"),
        (dict(**ASKS, accumulate=2), "accumulate"),
        (dict(**ASKS, caption_weight=0.0, answer_weight=0.0), "both 0"),
        (dict(**ASKS, answers=("a", "a")), "answers"),
        (dict(task="pairs", contrastive_weight=0.0), "caption_weight"),
        (dict(task="question"), "did you mean 'questions'"),
    ],
)
def test_what_a_task_has_not_is_said(settings, said):
    with pytest.raises(ValueError, match=said):
        preset("tiny", **settings)


# --- asking -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asker(tmp_path_factory):
    """A run that was trained on questions, hardly; and two pictures."""
    folder, load = tmp_path_factory.mktemp("asker"), shapes.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "load", lambda seed, side, *_: load(seed, side, 60, 20))
        patch.setattr("minicoca.training.run.make_picture", lambda *given: "")
        quiet(folder / "run", steps=40)
    for i, picture in enumerate(load(3, 32, 2, 2).train.images):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


def test_what_is_asked_is_what_is_measured(asker):
    """`Model.ask`, one question at a time or all at once, says what `evaluate` counts."""
    model = minicoca.load(asker / "run")
    pairs = of_shapes("questions", 0, 32).evaluations["held_out"]
    rows = np.arange(12)
    images, texts = pairs.batch(rows), [pairs.questions[row] for row in rows]
    for by in ("head", "generation"):
        found = model.ask(images, texts, by=by)
        each = [model.ask(x, q.rstrip(" ?"), by=by) for x, q in zip(images, texts, strict=True)]
        assert [a.answer for a in found] == [a.answer for a in each]
        np.testing.assert_allclose(*([a.probability for a in x] for x in (found, each)), rtol=1e-4)
        right = [a.answer == pairs.answers[row][0] for a, row in zip(found, rows, strict=True)]
        figures, _ = evaluate(model.coca, model.tokenizer, pairs, limit=12, draws=0)
        assert figures[f"answer_{by}"] == pytest.approx(np.mean(right))


def test_the_best_answers_are_a_distribution(asker):
    model = minicoca.load(asker / "run")
    found = model.ask(asker / "0.png", "what colour is the star", best=100)
    assert {one.answer for one in found} == set(model.config.answers)
    assert sum(one.probability for one in found) == pytest.approx(1, abs=1e-4)
    assert found == sorted(found, key=lambda one: -one.probability)
    written = model.ask(asker / "0.png", "what colour is the star", by="generation", best=3)
    p = [one.probability for one in written]
    assert p == sorted(p, reverse=True) and 0 < sum(p) <= 1 and len({w.answer for w in written}) > 1


def test_the_command_says_what_python_says(asker, capsys):
    paths, question = [str(asker / "0.png"), str(asker / "1.png")], "how many things are there?"
    words = ["ask", *paths, question, "--run", str(asker / "run")]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    model = minicoca.load(asker / "run")
    want = [one.answer for one in model.ask(paths, question)]
    assert [line.split()[-1] for line in lines] == want
    assert cli.main([*words, "--json", "--best", "2", "--by", "generation"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    found = model.ask(paths, question, by="generation", best=2)
    assert [[b["answer"] for b in row["best"]] for row in rows] == [
        [one.answer for one in own] for own in found
    ]
    assert rows[0]["question"] == "how many things are there ?" and rows[0]["by"] == "generation"


def test_words_that_it_never_saw_are_said(asker, capsys):
    words = ["ask", str(asker / "0.png"), "quo vadis", "--run", str(asker / "run")]
    assert cli.main(words) == 0
    assert "never saw a word of 'quo vadis ?'" in capsys.readouterr().err


def test_what_cannot_be_asked_is_said_in_a_line(asker, tmp_path, capsys):
    words = ["ask", str(asker / "0.png"), "is it red"]
    assert cli.main([*words, "--run", "shapes"]) == 2
    assert "train --task questions --init" in capsys.readouterr().err
    assert cli.main([*words, "--run", str(asker / "run"), "--best", "0"]) == 2
    assert "best=0 is not from 1" in capsys.readouterr().err
    assert cli.main(["caption", str(asker / "0.png"), "--run", str(asker / "run")]) == 1
    assert "minicoca ask" in capsys.readouterr().err
    model = minicoca.load(asker / "run")
    with pytest.raises(ValueError, match="2 questions, but 1 to be asked"):
        model.ask([asker / "0.png"], ["a", "b"])
    with pytest.raises(ValueError, match="by='head2'"):
        model.ask(asker / "0.png", "a", by="head2")
    for changes, by, said in (
        (dict(answer_weight=0.0), "head", "has no head"),
        (dict(caption_weight=0.0), "generation", "writes no answers"),
    ):
        quiet(tmp_path / by, **changes)
        with pytest.raises(ValueError, match=said):
            minicoca.load(tmp_path / by).ask(asker / "0.png", "a", by=by)
        assert minicoca.load(tmp_path / by).ask(asker / "0.png", "is there any star").probability


def test_both_backends_answer_alike(asker):
    models = [load_model(asker / "run", backend)[0] for backend in ("torch", "numpy")]
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    a, b = (model.answer(images, np.array([[1, 9, 8, 7, 2]] * 3)) for model in models)
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_flag_begins_with_the_settings_of_the_task(tmp_path, capsys):
    run = ["train", "--task", "questions", "--steps", "2", "--batch-size", "4"]
    assert cli.main([*run, "--init", "shapes", "--run", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "words are added to the 36 tokens" in said and "answers, by the head" in said
    config = read_config(tmp_path / "a")
    assert (config.task, config.contrastive_weight, config.steps) == ("questions", 0.0, 2)
    assert "minicoca ask" in (tmp_path / "a" / "README.md").read_text()
    assert cli.main(["evaluate", str(tmp_path / "a"), "--limit", "30"]) == 0
    assert "answers, by the head" in capsys.readouterr().out
    assert cli.main([*run, "--data", "emoji", "--run", str(tmp_path / "b")]) == 1
    assert "no questions about emoji" in capsys.readouterr().err


TEXTS = {
    "pairs": "is there the same shape in both",
    "entailment": "there is a red star",
    "dialogue": "is there any red star ? no . is there a blue one",
}


@BACKENDS
@pytest.mark.parametrize("task", TEXTS)
def test_every_task_learns_and_answers(task, backend, asker, tmp_path, capsys):
    more = {"caption_weight": 0.0} if task == "pairs" else {}
    results = quiet(tmp_path / "run", task=task, backend=backend, steps=4, **more)
    assert 0 <= results["held_out"]["answer_head"] <= 1
    assert ("answer_generation" in results["held_out"]) == (task != "pairs")
    both = [str(asker / "0.png"), str(asker / "1.png")]
    words = ["ask", *both, TEXTS[task], "--run", str(tmp_path / "run")]
    assert cli.main([*words, "--json", "--backend", backend]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["file"] for row in rows] == ([" ".join(both)] if task == "pairs" else both)
    model = minicoca.load(tmp_path / "run", backend=backend)
    found = model.ask(both, TEXTS[task])
    found = [found] if task == "pairs" else found
    assert [row["answer"] for row in rows] == [one.answer for one in found]
    if task == "pairs":
        assert model.ask(both, [TEXTS[task]])[0].answer in model.config.answers
        assert cli.main([*words[:1], *words[2:]]) == 2
        assert "asked about two at a time" in capsys.readouterr().err


@pytest.mark.parametrize("task", [*TEXTS, "questions", "written"])
def test_a_task_is_reported_and_drawn(task, tmp_path, capsys, monkeypatch):
    """The report shows as many right answers as the figures say, and the worst; plot its losses."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    more = {"pairs": {"caption_weight": 0.0}, "written": {"answer_weight": 0.0}}.get(task, {})
    own = "questions" if task == "written" else task
    results = quiet(tmp_path / "runs" / "run", task=own, steps=12, **more)
    way = "answer_generation" if task == "written" else "answer_head"
    model, tokenizer = load_model(tmp_path / "runs" / "run")
    for split, pairs in of_shapes(own, 0, 32).evaluations.items():
        looks = look(model, tokenizer, pairs)
        assert looks.asked and looks.images == len(pairs) == len(looks.said)
        right = sum(one.right for one in looks.said) / looks.images
        assert right == pytest.approx(results[split][way])
        assert looks.pictures[0].shape == (32, 64 if task == "pairs" else 32, 3)
        for one in looks.said:
            question, answers = pairs.questions[one.place], pairs.answers[one.place]
            assert one.truth in [f"{question} {text}" for text in answers]
            assert one.right == (one.caption == one.truth) == (one.log_truth == one.log_caption)
            assert one.log_truth <= one.log_caption <= 0
        worst = sorted(one.log_truth for one in looks.said)[: len(looks.worst)]
        assert [one.log_truth for one in looks.worst] == worst
    assert cli.main(["report", "run", "--out", "r.html"]) == 0
    html = (tmp_path / "r.html").read_text()
    share = f"{100 * results['held_out'][way]:.1f} %"
    assert "<h3>The worst mistakes</h3>" in html and f">{share}</data>" in html
    assert "questions got an answer that somebody gave" in html
    label = "answers, written" if task == "written" else "answers, by the head"
    assert f'<th scope="row">{label}</th>' in html and f'<th scope="row">{label}: ' in html
    capsys.readouterr()
    assert cli.main(["plot", "run", "--out", "p.png"]) == 0
    panels = 6 if task in ("pairs", "written") else 8  # a loss and a figure of either way to answer
    assert f"1 run, {panels} panels" in capsys.readouterr().out
