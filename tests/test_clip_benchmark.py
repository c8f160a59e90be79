"""clip_benchmark's own tasks find of a run what ours do."""

import numpy as np
import pytest
import torch
from PIL import Image
from runs import edited, load, untrained

import minicoca
from minicoca import params
from minicoca.evaluate import evaluate
from minicoca.interop.clip_benchmark import load_minicoca
from minicoca.metrics import top_k_accuracy
from minicoca.training.checkpoint import read_config, read_own


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """First weights, whose image tower speaks up: then pictures are not all alike."""
    folder = tmp_path_factory.mktemp("bench") / "run"
    untrained(folder)
    tree, _ = params.load(folder / "model.safetensors")
    tree["image"]["patch"]["weight"] *= 3
    params.save(folder / "model.safetensors", tree, read_own(folder)[0])
    return folder


@pytest.fixture(scope="module")
def pairs():
    return load(0, 32, 40, 30).evaluations["held_out"]


def pictures(pairs):
    return [Image.fromarray(image) for image in pairs.batch(np.arange(len(pairs)))]


@pytest.mark.parametrize("amp", [False, True])
def test_its_vectors_are_the_models(run, pairs, amp):
    model, transform, tokenizer = load_minicoca("", str(run), device="cpu")
    ours = minicoca.load(run, "cpu")
    given = [*pictures(pairs)[:4], Image.new("L", (50, 34), 90)]
    texts = [own[0] for own in pairs.captions[:4]]
    with torch.autocast("cpu", enabled=amp):
        images = model.encode_image(torch.stack([transform(one) for one in given]))
        words = model.encode_text(tokenizer(texts))
    np.testing.assert_allclose(images.numpy(), ours.embed_images(given), atol=1e-6)
    np.testing.assert_allclose(words.numpy(), ours.embed_texts(texts), atol=1e-6)
    np.testing.assert_array_equal(tokenizer(texts[0])[0], tokenizer(texts[:1])[0])
    assert float(model.logit_scale.exp()) == pytest.approx(1 / 0.07, rel=1e-5)


def test_a_model_that_cannot_compare_is_refused(tmp_path):
    untrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    edited(tmp_path, contrastive_weight=0.0)
    config = read_config(tmp_path)
    params.save(tmp_path / "model.safetensors", params.initialise(config), config)
    with pytest.raises(ValueError, match="it cannot compare"):
        load_minicoca(str(tmp_path))


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_its_retrieval_and_ours_find_the_same(run, pairs):
    """One caption an image and none twice, as it counts."""
    pytest.importorskip("clip_benchmark.metrics", exc_type=ImportError)
    from clip_benchmark.metrics import zeroshot_retrieval

    model, transform, tokenizer = load_minicoca("", str(run), device="cpu")
    ours = minicoca.load(run, "cpu")
    want, _ = evaluate(ours.coca, ours.tokenizer, pairs)
    given, texts = pictures(pairs), [own[0] for own in pairs.captions]
    assert len(set(texts)) == len(texts)
    tensors = [transform(one) for one in given]
    batches = [
        (torch.stack(tensors[i : i + 7]), [[text] for text in texts[i : i + 7]])
        for i in range(0, len(given), 7)
    ]
    found = zeroshot_retrieval.evaluate(
        model, batches, tokenizer, "cpu", amp=True, recall_k_list=[1, 5, 10]
    )
    for k in (1, 5, 10):
        for way, theirs in (("image_to_text", "text"), ("text_to_image", "image")):
            have = found[f"{theirs}_retrieval_recall@{k}"]
            assert have == pytest.approx(want[f"{way}_r{k}"], abs=1e-6), (way, k)
    assert 0 < found["text_retrieval_recall@10"] < 1


NAMES = ["red star", "blue ring", "green cross", "black heart", "pink circle", "yellow star"]


@pytest.fixture
def labelled(pairs):
    """(pictures, their classes at random, a loader as its tasks want it: `classes` too)."""
    given = pictures(pairs)
    target = np.arange(len(given)) % len(NAMES)

    def loader(transform):
        tensors = torch.stack([transform(one) for one in given])
        data = torch.utils.data.TensorDataset(tensors, torch.from_numpy(target))
        data.classes = NAMES
        return torch.utils.data.DataLoader(data, batch_size=7)

    return given, target, loader


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_its_classes_score_as_ours(run, labelled):
    """By one prompt each."""
    pytest.importorskip("clip_benchmark.metrics", exc_type=ImportError)
    from clip_benchmark.metrics import zeroshot_classification

    given, target, loader = labelled
    model, transform, tokenizer = load_minicoca("", str(run), device="cpu")
    classes = zeroshot_classification.zero_shot_classifier(
        model, tokenizer, NAMES, ["a {c}"], "cpu", amp=True
    )
    logits, true = zeroshot_classification.run_classification(
        model, classes, loader(transform), "cpu"
    )
    assert (true.numpy() == target).all()
    rows = minicoca.load(run, "cpu").classify(given, NAMES, templates="a {}")
    cosines = np.array([[row.scores[name] for name in NAMES] for row in rows])
    np.testing.assert_allclose(logits / 100, cosines, atol=0.01)  # its own product is in bfloat16
    logits, _ = zeroshot_classification.run_classification(
        model, classes.float(), loader(transform), "cpu", amp=False
    )
    assert [NAMES[i] for i in logits.argmax(1)] == [row.label for row in rows]


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_its_classification_and_ours_find_the_same(run, labelled):
    pytest.importorskip("clip_benchmark.metrics", exc_type=ImportError)
    from clip_benchmark.metrics import zeroshot_classification

    try:
        zeroshot_classification.accuracy(torch.eye(2), torch.arange(2))
    except TypeError as error:
        pytest.skip(f"clip_benchmark's own accuracy needs NumPy below 2.4: {error}")
    given, target, loader = labelled
    model, transform, tokenizer = load_minicoca("", str(run), device="cpu")
    found = zeroshot_classification.evaluate(
        model, loader(transform), tokenizer, NAMES, ["a {c}"], "cpu", amp=False
    )
    rows = minicoca.load(run, "cpu").classify(given, NAMES, templates="a {}")
    want = top_k_accuracy(np.array([list(row.scores.values()) for row in rows]), target, (1, 5))
    assert (found["acc1"], found["acc5"]) == pytest.approx((want[1], want[5]), abs=1e-6)
    labels = np.array([row.label for row in rows])
    right = [np.mean(labels[target == i] == name) for i, name in enumerate(NAMES)]
    assert found["mean_per_class_recall"] == pytest.approx(np.mean(right), abs=1e-6)
    assert 0 < want[1] < want[5] < 1
