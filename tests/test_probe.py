"""Probes of frozen features: their gradients, what they must and cannot find, how they are kept."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import SuffixTracer, complex_step_error, planted
from strategies import model_and_batch, seeds, small_config, tree_of

from minicoca.data import labelled
from minicoca.engine import probe as engine
from minicoca.engine.generate import CoCa
from minicoca.params import flatten, probe_specs, stream, tree_map
from minicoca.reference import generate as reference_generate
from minicoca.reference import ops
from minicoca.reference import probe as reference
from minicoca.tasks import probe as task
from minicoca.tasks.probe import KINDS, Features, Probe, curve, fitted, votes

WIDTH, HEADS, CLASSES, N = 6, 2, 4, 3


def example(seed, frames, told, batch=5):
    """(tokens, params, labels) of a probe; told: a vector for each frame."""
    rng = np.random.default_rng(seed)
    params = tree_of(rng, probe_specs(WIDTH, CLASSES, frames if told else 0))
    tokens = rng.standard_normal((batch, frames, N, WIDTH))
    return tokens, params, rng.integers(0, CLASSES, batch)


def check_gradient(seed, frames, told):
    tokens, params, labels = example(seed, frames, told)

    def forward(tokens, params):
        logits, cache = reference.probe(tokens, params, HEADS)
        loss, loss_cache = reference.probe_loss(logits, labels)
        return (logits, np.asarray(loss)), (cache, loss_cache)

    def backward(dy, caches):
        dlogits = dy[0] + reference.probe_loss_backward(dy[1], caches[1])
        found = reference.probe_backward(dlogits, caches[0])
        return dict(zip(("tokens", "params"), found, strict=True))

    arguments = {"tokens": tokens, "params": params}
    error = complex_step_error(forward, backward, arguments, np.random.default_rng(seed))
    assert error < 1e-10, f"complex step and backward differ by {error:.1e}"


@given(seed=seeds, frames=st.integers(1, 4), told=st.booleans())
def test_gradient(seed, frames, told):
    check_gradient(seed, frames, told)


def check_engine_equals_reference(seed, frames, told):
    tokens, params, labels = example(seed, frames, told)
    logits, cache = reference.probe(tokens, params, HEADS)
    loss, loss_cache = reference.probe_loss(logits, labels)
    _, want = reference.probe_backward(reference.probe_loss_backward(1.0, loss_cache), cache)
    tree = tree_map(lambda a: torch.tensor(a).requires_grad_(), params)
    ours = engine.probe(torch.tensor(tokens), tree, HEADS)
    our_loss = engine.probe_loss(ours, torch.tensor(labels))
    our_loss.backward()
    np.testing.assert_allclose(ours.detach().numpy(), logits, rtol=1e-10, atol=1e-10)
    assert abs(float(our_loss.detach()) - loss) < 1e-10
    for name, leaf in flatten(tree).items():
        found = 0 if leaf.grad is None else leaf.grad.numpy()  # the key bias changes nothing
        np.testing.assert_allclose(found, flatten(want)[name], rtol=1e-10, atol=1e-10, err_msg=name)


@given(seed=seeds, frames=st.integers(1, 4), told=st.booleans())
def test_engine_equals_reference(seed, frames, told):
    check_engine_equals_reference(seed, frames, told)


def test_suffixes_are_true():
    with SuffixTracer(Path(reference.__file__).parent) as tracer:
        tokens, params, labels = example(0, 4, True)
        logits, cache = reference.probe(tokens, params, HEADS)
        _, loss_cache = reference.probe_loss(logits, labels)
        reference.probe_backward(reference.probe_loss_backward(1.0, loss_cache), cache)
    assert not tracer.complaints, tracer.complaints[:5]
    assert {"x_BJNM", "x_BSM", "dtokens_BJNM", "dlog_p_BC"} <= tracer.names


def check_order_of_frames(seed):
    """Without a vector for each frame their order is nothing to the scores; with one it is much."""
    tokens, params, _ = example(seed, 4, True)
    moved = tokens[:, [2, 0, 3, 1]]
    plain = {name: part for name, part in params.items() if name != "frame"}
    before, after = (reference.probe(x, plain, HEADS)[0] for x in (tokens, moved))
    np.testing.assert_allclose(before, after, rtol=1e-9, atol=1e-12)
    before, after = (reference.probe(x, params, HEADS)[0] for x in (tokens, moved))
    assert np.abs(before - after).max() > 1e-3
    same = reference.probe(tokens, params | {"frame": np.zeros((4, WIDTH))}, HEADS)[0]
    np.testing.assert_allclose(same, reference.probe(tokens, plain, HEADS)[0], rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_only_a_vector_for_each_frame_tells_their_order(seed):
    check_order_of_frames(seed)


def test_first_values_know_nothing():
    rng = np.random.default_rng(0)
    params = tree_map(lambda spec: spec.draw(rng), probe_specs(WIDTH, CLASSES, 2))
    tokens, _, labels = example(0, 2, True)
    loss, _ = reference.probe_loss(reference.probe(tokens, params, HEADS)[0], labels)
    assert loss == pytest.approx(math.log(CLASSES), rel=1e-12)


def clouds(seed, per_class, apart=4.0, classes=CLASSES):
    """Features of classes that lie apart, vector and tokens alike."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(77).standard_normal((classes, WIDTH)) * apart
    labels = np.repeat(np.arange(classes), per_class)
    tokens = centres[labels][:, None, None] + rng.standard_normal((len(labels), 1, N, WIDTH))
    vectors = tokens.mean((1, 2))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Features(vectors.astype(np.float32), tokens.astype(np.float32), labels)


def check_linear():
    """At the minimum of a convex function its gradient is 0; and it takes x as it is."""
    known = clouds(0, 6, apart=0.5)
    mean, std = np.float32(0.3), np.linspace(0.5, 2, WIDTH, dtype=np.float32)
    tree = engine.fit_linear(known.vectors, known.labels, CLASSES, np.full(WIDTH, mean), std)
    own = tree_map(lambda leaf: leaf.astype(np.float64), tree["classifier"])
    logits, _ = ops.linear(known.vectors.astype(np.float64), own)
    _, cache = reference.probe_loss(logits, known.labels)
    x = (known.vectors.astype(np.float64) - mean) / std
    scaled = own["weight"] * std[:, None]  # of (x - mean) / std
    dlogits = reference.probe_loss_backward(1.0, cache)
    gradient = x.T @ dlogits + engine.STRENGTH / len(x) * scaled
    assert np.abs(gradient).max() < 5e-5
    assert np.abs(dlogits.sum(0)).max() < 5e-5  # of the bias, which nothing holds back
    assert np.abs(x.T @ dlogits).max() > 1e-3  # so the strength counts


def test_logistic_regression_is_at_its_minimum():
    check_linear()


def check_votes():
    """Two known vectors of one class a little farther than one of another: two voices, by hand."""
    angles = np.array([0.2, 0.25, 0.1, 3.0])
    known = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = votes(np.array([[1.0, 0.0]]), known, np.array([0, 0, 1, 2]), 4)[0]
    want = np.exp((np.cos(angles) - 1) / 0.07)
    want = np.array([want[0] + want[1], want[2], want[3], 0]) + np.exp(-2 / 0.07)
    np.testing.assert_allclose(found, want / want.sum(), rtol=1e-6)
    assert found.argmax() == 0


def test_neighbours_vote_by_their_cosines():
    check_votes()


def test_no_more_neighbours_than_twenty_vote():
    known = np.eye(2)[[0] * 20 + [1] * 400]
    found = votes(np.array([[0.8, 0.6]]), known, np.array([0] * 20 + [1] * 400), 2)
    assert found[0, 0] > 0.999  # 400 farther ones would have had more of the weight


@given(seed=seeds, shots=st.integers(1, 6))
def test_fewer_shots_are_among_more(seed, shots):
    labels = np.random.default_rng(seed).integers(0, 3, 20)
    few, more = (
        labelled.drawn(labels, many, stream("order", seed, 0)) for many in (shots, shots + 1)
    )
    assert {*few} <= {*more}
    have = np.bincount(labels, minlength=3)
    np.testing.assert_array_equal(np.bincount(labels[few], minlength=3), np.minimum(have, shots))
    assert len(labelled.drawn(labels, None, stream("order", seed, 0))) == 20


CONFIG = small_config(image_heads=2, image_width=WIDTH)


@pytest.mark.parametrize("kind", ["knn", "linear", "pooler"])
def test_a_probe_finds_classes_that_lie_apart_and_none_in_noise(kind):
    """With a test that is seen at the end alone: labels that mean nothing stay at chance."""
    known, tested = clouds(1, 12), clouds(2, 50)
    (_, few, _), (_, every, probe) = curve(kind, known, tested, "abcd", CONFIG, [1, None], 2)
    found, whole = few.mean(1), every.mean(1)
    assert min(whole) > 0.97 and min(found) > 0.8
    assert len(found) == 2 and len(whole) == (2 if kind == "pooler" else 1)
    classified = probe.classify(tested.vectors, tested.tokens, "cpu")
    logits = probe(tested.vectors, tested.tokens, "cpu")
    for one, row in zip(classified, logits, strict=True):
        e = np.exp(row - row.max())
        assert one.label == "abcd"[row.argmax()]
        assert one.probability == pytest.approx((e / e.sum()).max(), rel=1e-5)
    rng = np.random.default_rng(3)
    shuffled = known._replace(labels=rng.permutation(known.labels))
    far = tested._replace(labels=rng.permutation(tested.labels))
    noise = fitted(kind, shuffled, known.vectors, "abcd", CONFIG, 0)
    assert task.right(noise, far, "cpu").mean() < 0.25 + 4 * math.sqrt(0.25 * 0.75 / 200)


def test_a_pooler_is_a_function_of_its_seed():
    known = clouds(1, 3)
    one, same, other = (
        fitted("pooler", known, known.vectors, "abcd", CONFIG, s) for s in (0, 0, 1)
    )
    a, b, c = (flatten(probe.tree) for probe in (one, same, other))
    assert all((a[name] == b[name]).all() for name in a)
    assert any((a[name] != c[name]).any() for name in a)


@pytest.mark.parametrize("options", [{}, {"pooler": "none"}, {"stem": "clip", "embed_width": 22}])
def test_features_are_those_of_the_model_in_both_backends(options):
    config = small_config(**options)
    params = tree_map(np.float32, model_and_batch(config, 0)[0])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    models = CoCa(params, config, torch.device("cpu")), reference_generate.CoCa(params, config)
    vectors, tokens = task.features(models[1], images)
    assert tokens.shape == (4, 1, 9 + (config.stem == "clip"), config.image_width)
    np.testing.assert_allclose(vectors, models[1].embed_images(images), rtol=1e-5)
    for found, want in zip(task.features(models[0], images), (vectors, tokens), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    mean, every = task.features(models[1], images[None])
    np.testing.assert_allclose(every[0], tokens[:, 0])
    own = vectors.mean(0)
    np.testing.assert_allclose(mean[0], own / np.linalg.norm(own), rtol=1e-5)


def test_a_model_that_cannot_compare_has_the_mean_of_its_tokens():
    config = small_config(contrastive_weight=0.0)
    params, _, _ = model_and_batch(config, 0)
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    vectors, tokens = task.features(reference_generate.CoCa(params, config), images)
    want = tokens.mean((1, 2))
    want = want / np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, want, rtol=1e-9)


def test_a_linear_probe_of_tokens_is_one_of_their_mean():
    """Of all tokens of all frames; vectors, which say nothing here, are not read."""
    known, tested = (clouds(seed, 6) for seed in (0, 1))
    found = []
    for part in (known, tested):
        other = np.roll(part.tokens[:, 0], 1, -1)  # in the second frame
        tokens = np.stack([part.tokens[:, 0], other], 1)
        mean = (part.tokens[:, 0].mean(1) + other.mean(1)) / 2
        found.append((part._replace(vectors=0 * part.vectors, tokens=tokens), mean))
    (known, mean), (tested, other) = found
    probe = fitted("linear-tokens", known, known.read_by("linear-tokens"), "abcd", CONFIG, 0)
    alike = fitted("linear", known._replace(vectors=mean), mean, "abcd", CONFIG, 0)
    got, want = probe(tested.vectors, tested.tokens), alike(other, None)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert (got.argmax(1) == tested.labels).mean() > 0.8 and probe.reads_tokens


def test_too_many_tokens_are_said(monkeypatch):
    monkeypatch.setattr(task, "MOST_BYTES", 1000)
    config = small_config()
    params, _, _ = model_and_batch(config, 0)
    pairs = labelled.Part(Squares(4, side=6), np.arange(4), np.zeros(4, np.int64))
    model = reference_generate.CoCa(params, config)
    with pytest.raises(ValueError, match="of 4 of 4 images .*--by knn linear"):
        task.features_of(model, pairs, True)
    assert task.features_of(model, pairs, False).tokens is None


class Squares:
    """A split of images at random; `moved` rows show another."""

    def __init__(self, count, side, moved=None):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        self.moved = np.arange(count) if moved is None else moved

    def batch(self, rows):
        return self.images[self.moved[rows]]

    def shown(self, rows):
        return self.moved[rows]


def test_a_replaced_image_has_the_label_of_the_one_that_is_shown():
    config = small_config()
    params, _, _ = model_and_batch(config, 0)
    pairs = Squares(5, 6, moved=np.array([0, 2, 2, 4, 4]))
    part = labelled.Part(pairs, np.array([0, 1, 2, 3]), np.array([0, 1, 2, 3]))
    found = task.features_of(reference_generate.CoCa(params, config), part, False)
    np.testing.assert_array_equal(found.labels, [0, 2, 2])  # 4 is of no class: it was left out
    assert len(found.vectors) == 3


# --- saved -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_saved_probe_is_the_probe_and_of_these_weights_alone(kind, tmp_path):
    config = small_config(image_heads=2, image_width=WIDTH)
    params, _, _ = model_and_batch(config, 0)
    model = reference_generate.CoCa(params, config)
    known = clouds(0, 3)
    known = known._replace(tokens=np.repeat(known.tokens, 2, 1), frames=2)
    probe = fitted(kind, known, known.read_by(kind), "abcd", config, 0)
    path = tmp_path / "new" / "p.safetensors"
    task.save_probe(path, probe, model)
    again = task.load_probe(path, model)
    assert (again.kind, again.classes, again.frames) == (kind, tuple("abcd"), 2)
    want, found = (p(known.vectors, known.tokens, "cpu") for p in (probe, again))
    np.testing.assert_array_equal(want, found)
    other = reference_generate.CoCa(tree_map(lambda leaf: leaf + 1, params), config)
    with pytest.raises(ValueError, match="of other weights than these"):
        task.load_probe(path, other)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        task.load_probe(path, model)


def test_what_is_no_probe_is_said(tmp_path):
    import minicoca

    with pytest.raises(ValueError, match="nothing to save"):
        task.save_probe(tmp_path / "x", Probe("knn", {}, "ab", 1), None)
    shipped = minicoca.__path__[0] + "/trained/shapes/model.safetensors"
    with pytest.raises(ValueError, match="is no probe; minicoca probe --save makes one"):
        task.load_probe(shipped, None)


# --- do the tests have teeth -----------------------------------------------------------------


def gradient():
    check_gradient(0, 3, True)


def same():
    check_engine_equals_reference(0, 3, True)


def order():
    check_order_of_frames(0)


BUGS = [
    (reference, 'dparams["frame"] = dtokens_BJNM.sum((0, 2))',
     'dparams["frame"] = dtokens_BJNM.sum((0, 1))', gradient),
    (reference, "-dloss / len(labels_B)", "-dloss", gradient),
    (reference, 'x_BJNM + params["frame"][:, None]', 'x_BJNM + params["frame"].sum(0)', order),
    (engine, 'params["frame"][:, None]', 'params["frame"][:, None].flip(0)', same),
    (engine, "STRENGTH / (2 * len(x_RE))", "STRENGTH / len(x_RE)", check_linear),
    (engine, "bias_C - mean_E @ weight_EC", "bias_C", check_linear),
    (task, "(np.take_along_axis(cosines, near, 1) - 1) / SOFTNESS",
     "(np.take_along_axis(cosines, near, 1) - 1)", check_votes),
    (task, "np.argsort(-cosines", "np.argsort(cosines",
     test_no_more_neighbours_than_twenty_vote),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=[row[2] for row in BUGS])
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()


@given(st.integers(1, 4), st.integers(20, 80), seeds)
def test_an_accuracy_has_its_spread_over_draws_and_its_interval_over_images(draws, images, seed):
    right = np.random.default_rng(seed).random((draws, images)) < 0.7
    told = task.accuracy(right)
    low, high = told["interval"]
    assert told["accuracy"] == pytest.approx(right.mean()) and low <= told["accuracy"] <= high
    assert (told["spread"] is None) == (draws == 1)
    usual = 1.96 * right.mean(0).std() / images**0.5  # of a mean over images
    assert (high - low) / 2 == pytest.approx(usual, rel=0.25, abs=0.01)
    alike = task.accuracy(right[:, :1].repeat(images, 1))
    assert alike["interval"] == pytest.approx([alike["accuracy"]] * 2)
