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
def test_its_tasks_and_ours_find_the_same(run, pairs):
    """Of retrieval with one caption an image and none twice, as it counts; of classes by one
    prompt each."""
    pytest.importorskip("clip_benchmark.metrics", exc_type=ImportError)
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

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

    names = ["red star", "blue ring", "green cross", "black heart", "pink circle", "yellow star"]
    target = np.arange(len(given)) % len(names)
    labelled = torch.utils.data.TensorDataset(torch.stack(tensors), torch.from_numpy(target))
    batches = torch.utils.data.DataLoader(labelled, batch_size=7)
    # Not its `evaluate`, whose accuracy NumPy 2.4 refuses: float() of an array of one number.
    classes = zeroshot_classification.zero_shot_classifier(
        model, tokenizer, names, ["a {c}"], "cpu", amp=True
    )
    logits, true = zeroshot_classification.run_classification(model, classes, batches, "cpu")
    assert (true.numpy() == target).all()
    rows = ours.classify(given, names, templates="a {}")
    cosines = np.array([[row.cosines[name] for name in names] for row in rows])
    np.testing.assert_allclose(logits / 100, cosines, atol=0.01)  # its own product is in bfloat16
    logits, _ = zeroshot_classification.run_classification(
        model, classes.float(), batches, "cpu", False
    )
    assert [names[i] for i in logits.argmax(1)] == [row.label for row in rows]
