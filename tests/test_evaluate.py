"""Figures worked by hand: galleries, best prompts, temperatures, nearest neighbours."""

import numpy as np
import pytest

from minicoca.data import Pairs, ZeroShot
from minicoca.evaluate import evaluate, retrieval, zero_shot
from minicoca.tasks import embed_texts
from minicoca.tasks.captioning import caption
from minicoca.tasks.retrieval import nearest
from minicoca.tasks.zero_shot import class_scores, fill_templates, probabilities

WORDS = {"red": (1.0, 0.0), "blue": (0.0, 1.0), "purple": (0.8, 0.6)}


class Config:
    text_length, caption_weight, contrastive_weight = 9, 1.0, 1.0


class Model:
    """Knows three words, and sees an image as the word whose number its first pixel is."""

    config = Config()

    def embed_images(self, images):
        return np.array([list(WORDS.values())[i] for i in images[:, 0, 0, 0]])

    def embed_texts(self, tokens):
        return np.array([list(WORDS.values())[i] for i in tokens[:, 0]])

    def generate(self, images, prompt, **how):
        return images[:, 0, 0, :1].astype(int)


class Tokenizer:
    def encode(self, texts, length):
        return np.array(
            [[list(WORDS).index(text), 0] if text in WORDS else [0, 0] for text in texts]
        )

    def decode(self, ids):
        return list(WORDS)[ids[0]]

    def count(self, text):
        return len(text.split())

    def normalise(self, text):
        return text.lower()


def pairs(*names, task=None):
    images = np.zeros((len(names), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = [list(WORDS).index(name.lower()) for name in names]
    return Pairs(images, tuple((name,) for name in names), task)


def test_a_model_that_knows_scores_one():
    figures, captions = evaluate(Model(), Tokenizer(), pairs("Red", "blue", "purple"))
    assert captions == ["red", "blue", "purple"]
    assert figures["caption_exact"] == 1 == figures["image_to_text_r1"]  # "Red" is "red"


def test_limit_looks_at_the_first_and_leaves_out_the_rest():
    task = ZeroShot(tuple(WORDS), tuple((w,) for w in WORDS), np.array([2]), np.array([2]))
    figures, _ = evaluate(Model(), Tokenizer(), pairs("red", "blue", "purple", task=task), limit=2)
    assert figures["images"] == 2 and "zero_shot_top1" not in figures


def test_zero_shot_by_hand():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    prompts = (("red",), ("blue",))
    task = ZeroShot(("a", "b"), prompts, np.array([0, 1, 2]), np.array([0, 1, 0]))
    assert zero_shot(Model(), Tokenizer(), vectors, task)["zero_shot_top1"] == pytest.approx(2 / 3)


def test_a_class_scores_its_best_prompt():
    scores = class_scores(
        Model(), Tokenizer(), np.array([[1.0, 0.0]]), [("blue", "purple"), ("red",)]
    )
    np.testing.assert_allclose(scores, [[0.8, 1.0]])


def test_galleries_are_averaged_and_the_rest_is_left_out():
    image = np.eye(5)
    text = np.eye(5)[[0, 1, 3, 2, 4]]  # images 2 and 3 are taken for each other
    words = list("abcde")
    figures = retrieval(image, text, [[w] for w in words], words, gallery=2)
    assert figures["image_to_text_r1"] == 0.5 and figures["gallery"] == 2
    assert retrieval(image, text, [[w] for w in words], words)["text_to_image_r1"] == 0.6


def test_probabilities_use_the_temperature():
    p = probabilities(np.array([[0.5, 0.4]]), np.log(0.1))
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
    model.config = type("Config", (Config,), {"caption_weight": 0.0, "contrastive_weight": 0.0})
    with pytest.raises(ValueError, match="caption_weight 0"):
        caption(model, Tokenizer(), pairs("red").images)
    with pytest.raises(ValueError, match="contrastive_weight 0"):
        embed_texts(model, Tokenizer(), ["red"])
    with pytest.raises(ValueError, match="prompt has 12 tokens; at most 7"):
        caption(Model(), Tokenizer(), pairs("red").images, "word " * 12)
