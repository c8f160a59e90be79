"""Figures worked by hand: galleries, best prompts, temperatures, nearest neighbours."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicoca import evaluate as evaluate_module
from minicoca import report
from minicoca.data import Pairs, ZeroShot
from minicoca.evaluate import (
    WAYS,
    evaluate,
    nearest_truth,
    of_captions,
    of_classes,
    retrieval,
    written,
    zero_shot,
)
from minicoca.intervals import intervals
from minicoca.metrics import bleu_4, cider_d, recall_at_k, rouge_l, wrong_before
from minicoca.tasks import embed_texts
from minicoca.tasks.captioning import caption
from minicoca.tasks.retrieval import nearest
from minicoca.tasks.zero_shot import Judge, fill_templates, probabilities

WORDS = {"red": (1.0, 0.0), "blue": (0.0, 1.0), "purple": (0.8, 0.6)}


class Config:
    text_length, task, objective = 9, "captions", "coca"
    compares = writes = True
    matches = continues = False


class Model:
    """Knows three words, and sees an image as the word whose number its first pixel is."""

    config = Config()
    params = {"log_temperature": np.log(0.1)}

    def embed_images(self, images):
        return np.array([list(WORDS.values())[i] for i in images[:, 0, 0, 0]])

    def embed_texts(self, tokens):
        return np.array([list(WORDS.values())[max(0, i - 1)] for i in tokens[:, 0]])

    def generate(self, images, prompt, **how):
        return images[:, 0, 0, :1].astype(int) + 1


class Tokenizer:
    pad = 9

    def encode(self, texts, length):
        return np.array(
            [[list(WORDS).index(text) + 1, 0] if text in WORDS else [0, 0] for text in texts]
        )

    def decode(self, ids):
        return ["", *WORDS][ids[0]]

    def beginning(self, text):
        return [0, *text.split()]

    def unseen(self, text):
        return [word for word in text.split() if word not in (*WORDS, "word")]


def pairs(*names, task=None, captions=None):
    images = np.zeros((len(names), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = [list(WORDS).index(name) for name in names]
    return Pairs(images, captions or tuple((name,) for name in names), task)


def test_a_model_that_knows_scores_one():
    figures, captions = evaluate(Model(), Tokenizer(), pairs("red", "blue", "purple"))
    assert captions == ["red", "blue", "purple"]
    assert figures["caption_exact"] == 1 == figures["image_to_text_r1"] == figures["caption_bleu_4"]
    assert figures["caption_bleu_order"] == 1 and figures["gallery_captions"] == 3


def test_captions_are_compared_with_what_was_written():
    for text, right in (("red", 1), (" red\n", 1), ("Red", 0), ("ｒｅｄ", 0)):
        figures, _ = evaluate(Model(), Tokenizer(), pairs("red", captions=((text,),)))
        assert figures["caption_exact"] == right


def test_every_caption_of_an_image_counts_in_retrieval():
    """Of each image the second caption is right and the first one says something else."""
    captions = (("blue", "red"), ("purple", "blue"), ("red", "purple"))
    figures, _ = evaluate(Model(), Tokenizer(), pairs("red", "blue", "purple", captions=captions))
    assert figures["image_to_text_r1"] == 1 and figures["gallery_captions"] == 6
    # Each word is said of two images, and the one that it shows is the nearest.
    assert figures["text_to_image_r1"] == 1 == figures["caption_exact"]
    captions = (("blue",), ("purple", "blue"), ("red", "purple"))
    figures, _ = evaluate(Model(), Tokenizer(), pairs("red", "blue", "purple", captions=captions))
    assert figures["image_to_text_r1"] == pytest.approx(2 / 3)
    # "red" is said of the purple image alone, and the red one is nearer.
    assert figures["text_to_image_r1"] == pytest.approx(4 / 5)


def once(found, count):
    """The figures where each of `count` images counts once."""
    return found.figures(np.ones(count, int))


random_sets = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), min_size=1)


@given(random_sets, st.integers(0, 5), st.integers(1, 4), st.integers(0, 99))
def test_retrieval_in_chunks_is_that_of_whole_galleries(own, gallery, chunk, seed):
    rng = np.random.default_rng(seed)
    texts = [text for captions in own for text in captions]
    which = np.repeat(np.arange(len(own)), [len(captions) for captions in own])
    images = rng.integers(-2, 3, (len(own), 3)).astype(float)
    vectors = {text: rng.integers(-2, 3, 3).astype(float) for text in "abcdefgh"}
    said = np.array([vectors[text] for text in texts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_module, "BATCH", chunk)
        figures = once(retrieval(images, said, own, gallery), len(own))
    size, found, ranks = min(gallery or len(own), len(own)), ([], []), ([], [])
    for start in range(0, len(own) - size + 1, size):
        inside = (which >= start) & (which < start + size)
        mine = own[start : start + size]
        similarity = images[start : start + size] @ said[inside].T
        right = np.array([[text in m for t, text in enumerate(texts) if inside[t]] for m in mine])
        for way, sides in enumerate([(similarity, right), (similarity.T, right.T)]):
            found[way].append(recall_at_k(*sides)[1] * len(sides[0]))
            ranks[way].extend(wrong_before(*sides))
    for way, name in enumerate(WAYS):
        assert figures[f"{name}_r1"] == pytest.approx(np.sum(found[way]) / len(ranks[way]))
        assert figures[f"{name}_median_rank"] == 1 + np.median(ranks[way])


def test_retrieval_never_holds_all_similarities():
    n = 1500
    vectors = np.ones((n, 2), np.float32)
    captions = [[f"{i}"] for i in range(n)]
    tracemalloc.start()
    retrieval(vectors, vectors, captions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * n * 4 / 2, f"{peak:,} bytes; all similarities are {n * n * 4:,}"


def test_the_table_says_what_its_figures_are():
    """A caption that is the second right one is right; BLEU of two words is no BLEU-4."""
    captions = (("a thing", "red"), ("blue", "x"), ("red", "y"))
    split = pairs("red", "blue", "purple", captions=captions)
    figures, said = evaluate(Model(), Tokenizer(), split)
    assert figures["caption_exact"] == pytest.approx(2 / 3)
    samples = [
        {"caption": text, "truth": nearest_truth(text, written(split, i))}
        for i, text in enumerate(said)
    ]
    results = {"held_out": figures, "samples": samples, "train_seconds": 1, "folder": "x"}
    shown = report.table(results | {"images_per_second": 1}).splitlines()
    assert "= red" in shown and "= blue" in shown and "x purple" in shown
    assert shown[shown.index("x purple") + 1] == "  truth: red"
    assert "(R@1: found first among 3 images and their 6 captions)" in shown
    assert "(held out: no caption has more than 1 words, so BLEU-4 is BLEU-1)" in shown


def test_limit_looks_at_the_first_and_leaves_out_the_rest():
    task = ZeroShot(tuple(WORDS), tuple((w,) for w in WORDS), np.array([2]), np.array([2]))
    figures, _ = evaluate(Model(), Tokenizer(), pairs("red", "blue", "purple", task=task), limit=2)
    assert figures["images"] == 2 and "zero_shot_top1" not in figures


def test_zero_shot_by_hand():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    prompts = (("red",), ("blue",))
    task = ZeroShot(("a", "b"), prompts, np.array([0, 1, 2]), np.array([0, 1, 0]))
    split = pairs("red", "blue", "purple", task=task)
    (measure,) = zero_shot(Model(), Tokenizer(), split, vectors, 3)
    assert measure(np.ones(3, int)) == pytest.approx(
        {"zero_shot_top1": 2 / 3, "zero_shot_top5": 1.0, "zero_shot_mean_per_class": 3 / 4}
    )
    assert zero_shot(Model(), Tokenizer(), split, vectors, 0) == []


def test_a_class_scores_its_best_prompt():
    judge = Judge(Model(), Tokenizer(), [("blue", "purple"), ("red",)])
    scores, each = judge(np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(scores, [[0.8, 1.0]])
    np.testing.assert_allclose(each, [[0.0, 0.8, 1.0]])


def test_galleries_are_averaged_and_the_rest_is_left_out():
    image = np.eye(5)
    text = np.eye(5)[[0, 1, 3, 2, 4]]  # images 2 and 3 are taken for each other
    words = [[word] for word in "abcde"]
    found = retrieval(image, text, words, gallery=2)
    assert once(found, 5)["image_to_text_r1"] == 0.5 and found.gallery == 2
    assert once(retrieval(image, text, words), 5)["text_to_image_r1"] == 0.6


def test_a_gallery_holds_all_captions_of_its_images_and_no_others():
    image = np.eye(4)
    text = np.eye(4)[[0, 0, 0, 1, 3, 2, 2]]  # of image 2 and of image 3: taken for each other
    words = [["a", "b", "c"], ["d"], ["e"], ["f", "g"]]
    found = retrieval(image, text, words, gallery=2)
    figures = once(found, 4)
    # Every caption is a query as good as another: the four of the first gallery are all right.
    assert figures["image_to_text_r1"] == 0.5 and figures["text_to_image_r1"] == 4 / 7
    assert (found.gallery, found.captions) == (2, 3)
    assert once(retrieval(image, text, words), 4)["text_to_image_r1"] == 4 / 7


def test_probabilities_use_the_temperature():
    judge = Judge(Model(), Tokenizer(), [("red",), ("blue",)])
    p = probabilities(np.array([[0.5, 0.4]]) * judge.sharpness)
    np.testing.assert_allclose(p, [[np.e / (np.e + 1), 1 / (np.e + 1)]])


def test_templates():
    assert fill_templates(["a", "b"], ["{} x", "y {}"]) == [("a x", "y a"), ("b x", "y b")]


def test_nearest_is_best_first():
    order, cosines = nearest(
        np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]]), 2
    )
    assert order.tolist() == [[1, 2]] and cosines.tolist() == [[1.0, 0.6]]


def test_a_model_is_not_asked_for_what_it_did_not_learn():
    model = Model()
    model.config = type("Config", (Config,), {"compares": False, "writes": False})
    with pytest.raises(ValueError, match="caption_weight 0"):
        caption(model, Tokenizer(), pairs("red").images)
    with pytest.raises(ValueError, match="contrastive_weight 0"):
        embed_texts(model, Tokenizer(), ["red"])
    with pytest.raises(ValueError, match="prompt has 12 tokens; at most 7"):
        caption(Model(), Tokenizer(), pairs("red").images, "word " * 12)


def test_figures_of_drawn_images_are_those_of_a_set_that_holds_them_so_often():
    """All captions of an image go with it; the rarity of words and the galleries stay."""
    rng = np.random.default_rng(0)
    references = [
        ["a red cat", "a cat"],
        ["the cat lies on a mat"],
        ["a red dog", "dog", "a red thing"],
    ]
    said, times = ["a red cat", "a cat lies on a mat", "a dog"], np.array([0, 3, 1])
    chosen = np.repeat(np.arange(3), times)
    measure = of_captions(said, references, known=["a red cat"])(times)
    again = [said[i] for i in chosen], [references[i] for i in chosen]
    assert measure["caption_bleu_4"] == pytest.approx(bleu_4(*again)) and 0 < bleu_4(*again) < 1
    assert measure["caption_rouge_l"] == pytest.approx(rouge_l(*again))
    assert measure["caption_novel"] == 1 and measure["caption_words"] == (3 * 6 + 2) / 4
    whole = of_captions(said, references)(np.ones(3, int))
    assert whole["caption_cider_d"] == pytest.approx(cider_d(said, references))
    assert "caption_novel" not in whole
    vectors = rng.standard_normal((3, 4)), rng.standard_normal((6, 4))
    found = retrieval(*vectors, references)
    texts, owners = found.ranks[1], np.repeat([0, 1, 2], [2, 1, 3])
    hits = np.concatenate([texts[owners == i] < 1 for i in chosen])
    assert found.figures(times)["text_to_image_r1"] == pytest.approx(hits.mean())
    assert found.figures(times)["image_to_text_r1"] == (found.ranks[0][chosen] < 1).mean()
    labels, ranks = np.array([2, 0, 2]), np.array([0, 6, 3])
    shares = of_classes(ranks, np.arange(3), labels)(times)
    assert shares == {
        "zero_shot_top1": 0, "zero_shot_top5": 1 / 4, "zero_shot_mean_per_class": 0,
    }  # fmt: skip
    assert of_classes(ranks, np.arange(3), labels)(np.array([3, 0, 1])) == pytest.approx(
        {"zero_shot_top1": 3 / 4, "zero_shot_top5": 1, "zero_shot_mean_per_class": 3 / 4}
    )


def test_of_a_set_without_a_queried_image_nothing_is_said():
    found = retrieval(np.eye(3), np.eye(3), [["a"], ["b"], ["c"]], gallery=2)
    assert all(np.isnan(x) for x in found.figures(np.array([0, 0, 3])).values())
    shares = of_classes(np.array([0]), np.array([1]), np.array([4]))(np.array([2, 0, 1]))
    assert all(np.isnan(x) for x in shares.values())


def test_an_interval_is_that_of_a_share():
    """Of 700 right among 1,000: 0.7 give or take 1.96 standard errors."""
    right = np.arange(1000) < 700
    measure = lambda times: {"share": times @ right / times.sum(), "none": np.nan}  # noqa: E731
    found = intervals(measure, 1000)
    error = (0.7 * 0.3 / 1000) ** 0.5
    assert found["share"] == pytest.approx([0.7 - 1.96 * error, 0.7 + 1.96 * error], abs=0.003)
    assert "none" not in found and found == intervals(measure, 1000) != intervals(
        measure, 1000, seed=1
    )


def test_captions_of_an_image_are_drawn_together():
    """Ten images with a hundred captions each, all right or all wrong: no better known than ten."""
    ranks = np.repeat(np.arange(10) < 5, 100).astype(float)
    images = np.eye(10)
    found = retrieval(images, np.repeat(images, 100, axis=0), [[f"{i}"] * 100 for i in range(10)])
    found = found._replace(ranks=(found.ranks[0], ranks))
    low, high = intervals(found.figures, 10)["text_to_image_r1"]
    assert low == pytest.approx(0.2, abs=0.11) and high == pytest.approx(0.8, abs=0.11)


def test_every_figure_has_an_interval_around_it():
    captions = (("red", "blue"), ("red",), ("purple",), ("blue",))
    split = pairs("red", "blue", "purple", "blue", captions=captions)
    figures, _ = evaluate(Model(), Tokenizer(), split, known=["red"])
    ends = figures.pop("intervals")
    fixed = {"images", "gallery", "gallery_captions", "caption_bleu_order"}
    assert ends.keys() == figures.keys() - fixed
    assert all(low <= figures[name] <= high for name, (low, high) in ends.items())
    assert ends["caption_exact"][0] < figures["caption_exact"] < ends["caption_exact"][1]
    assert "intervals" not in evaluate(Model(), Tokenizer(), split, draws=0)[0]
