"""The words of a true sentence in other places: what is made of it, and who notices."""

import numpy as np
import pytest

from minicoca.data import Pairs, shapes
from minicoca.evaluate import of_order
from minicoca.tasks import word_order
from minicoca.tasks.word_order import exchanged, preferences
from minicoca.training.checkpoint import find_run, load_model

EXCHANGED = {
    "a small red cross left of a large black ring": {
        "left_right": "a small red cross right of a large black ring",
        "colours": "a small black cross left of a large red ring",
        "things": "a large black ring left of a small red cross",
    },
    "a red star above a red ring": {
        "above_below": "a red star below a red ring",
        "things": "a red ring above a red star",
    },
    "a red star right of a pink ring and below a red heart": {
        "left_right": "a red star left of a pink ring and below a red heart",
        "above_below": "a red star right of a pink ring and above a red heart",
        "colours": "a pink star right of a red ring and below a pink heart",
    },
    "a heart at the top": {"above_below": "a heart at the bottom"},
    "A dog to the left of a man.": {
        "left_right": "A dog to the right of a man.",
        "things": "a man to the left of A dog.",
    },
    "a dog on the left of a cat": {
        "left_right": "a dog on the right of a cat",
        "things": "a cat on the left of a dog",
    },
    "a dog is to the right side of a cat": {
        "left_right": "a dog is to the left side of a cat",
        "things": "a cat is to the right side of a dog",
    },
    "a dog sits just above a cat": {"above_below": "a dog sits just below a cat"},
    "the cup on the table is on left of a jar": {
        "left_right": "the cup on the table is on right of a jar"
    },
    "a red star left of a red star": {"left_right": "a red star right of a red star"},
    "the leftover of an aboveground bottomless thing": {},
}


@pytest.mark.parametrize("text", EXCHANGED)
def test_what_is_exchanged(text):
    assert exchanged(text) == EXCHANGED[text]
    for kind, other in exchanged(text).items():
        assert kind in ("things", "colours") or exchanged(other)[kind] == text


def test_exchanges_of_shapes_are_false_of_the_scene():
    """By the grammar: the sentence of another scene, or of none."""
    scenes = shapes.scenes("held_out", 200)
    truths = {shapes.caption(scene) for scene in scenes}
    for scene in scenes:
        found = exchanged(shapes.caption(scene))
        assert (
            len(scene.things) == 1
            or "colours" in found
            or len({t.colour for t in scene.things}) == 1
        )
        assert shapes.caption(scene) not in found.values() and len(truths) > 150


@pytest.mark.parametrize("split", ["held_out", "compositional"])
def test_the_model_that_comes_along_reads_order(split):
    """By the likelihood always, by the cosine mostly; and not of a picture that is not shown."""
    model, tokenizer = load_model(find_run("shapes"))
    scenes = shapes.scenes(split, 60)
    images = np.stack([shapes.draw(scene, 32) for scene in scenes])
    texts = [[shapes.caption(scene)] for scene in scenes]
    pairs = Pairs(images, tuple(map(tuple, texts)))
    found = of_order(model, tokenizer, pairs, texts)(np.ones(60, np.int64))
    kinds = ("left_right", "above_below", "colours", "things")
    assert [found[f"order_{kind}_likelihood"] for kind in kinds] == [1.0] * 4
    assert min(found[f"order_{kind}_cosine"] for kind in kinds) > 0.8
    other = of_order(model, tokenizer, Pairs(images[::-1], pairs.captions), texts)
    blind = other(np.ones(60, np.int64))
    assert np.mean([blind[f"order_{kind}_likelihood"] for kind in kinds]) < 0.85


class Config:
    text_length, image_size, task = 9, 1, "captions"
    compares = writes = True
    pixel_mean = (0.0, 0.0, 0.0)


class BagOfWords:
    """Its vectors do not know order; its captions do: of picture 1 they are the sentence known."""

    config, params = Config(), {"log_temperature": np.float32(0)}
    known = "a red star left of a blue ring"

    def embed_images(self, images):
        return np.ones((len(images), 1))

    def embed_texts(self, tokens):
        return np.ones((len(tokens), 1))

    def log_likelihoods(self, images, tokens):
        seen = 2.0 * (images[:, 0, 0, :1, None] == 2) * (tokens[None, :, 1:] == 2)
        return seen - 1.0 * (tokens[None, :, 1:] == 2) - 5.0 * (tokens[None, :, 1:] == 3)


class Tokenizer:
    """Id 2 for the known sentence, 3 for one that is rare, 1 for every other."""

    def encode(self, texts, length):
        kinds = [2 if t == BagOfWords.known else 3 if "right" in t else 1 for t in texts]
        return np.array([[1, kind] for kind in kinds])


def check_preferences():
    images = np.zeros((3, 1, 1, 3), np.uint8)
    images[1] = 2
    captions = [["a red star"], [BagOfWords.known], [BagOfWords.known]]
    found = preferences(BagOfWords(), Tokenizer(), images, captions)
    kinds = {"left_right", "colours", "things"}
    assert found.keys() == {f"{kind}_{head}" for kind in kinds for head in word_order.HEADS}
    assert all(found[f"{kind}_cosine"].tolist() == [[0, 0], [1, 2]] for kind in kinds)
    # Of image 2 it says -1, and of the others 0; what is rare is as rare without an image.
    assert found["colours_likelihood"].tolist() == [[1, 0], [1, 2]]
    assert found["left_right_likelihood"].tolist() == [[1, 1], [1, 2]]
    assert found["left_right_pmi"].tolist() == [[1, 0], [1, 2]]


def test_who_notices():
    check_preferences()


def test_an_exchange_that_is_said_too_is_no_trial():
    other = exchanged(BagOfWords.known)["colours"]
    images = np.full((1, 1, 1, 3), 2, np.uint8)
    found = preferences(BagOfWords(), Tokenizer(), images, [[BagOfWords.known, other]])
    assert "colours_cosine" not in found and found["things_pmi"].shape == (2, 2)


def test_shares_are_of_the_trials_of_drawn_images(monkeypatch):
    images = np.zeros((3, 1, 1, 3), np.uint8)
    images[1] = 2
    captions = (("a red star",), (BagOfWords.known,), (BagOfWords.known,))
    for batch in (1, 256):
        monkeypatch.setattr("minicoca.evaluate.BATCH", batch)
        measure = of_order(BagOfWords(), Tokenizer(), Pairs(images, captions), captions)
        assert measure(np.array([1, 2, 1]))["order_colours_likelihood"] == pytest.approx(2 / 3)
        assert np.isnan(measure(np.array([4, 0, 0]))["order_colours_likelihood"])
