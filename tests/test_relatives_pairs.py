"""What is SigLIP's and matching's own: which images and texts are held to be pairs."""

import numpy as np
import pytest
import relatives
import torch
from backends import Reference
from oracles import planted
from relatives import SIDES, on
from strategies import small_config
from test_relatives import check_gradient, check_sides

from minicoca.engine import ops as engine_ops
from minicoca.engine import towers as engine_towers
from minicoca.engine.relatives import layers as engine_layers
from minicoca.engine.relatives import matching as engine_matching
from minicoca.engine.relatives import siglip as engine_siglip
from minicoca.params import initialise, tree_map
from minicoca.reference.relatives import layers, matching, siglip

BOTH = pytest.mark.parametrize("which", SIDES)


def sigmoid_loss(which, *given, captions):
    """(loss, gradients of the four inputs)."""
    if which == "reference":
        counted = (captions[:, None] != captions) | np.eye(len(captions), dtype=bool)
        loss, cache = siglip.sigmoid_loss(*given, counted)
        return loss, siglip.sigmoid_loss_backward(1.0, cache)
    tensors = [torch.tensor(x, requires_grad=True) for x in given]
    loss = engine_siglip.sigmoid_loss(*tensors, torch.tensor(captions))
    loss.backward()
    return loss.item(), [t.grad.numpy() for t in tensors]


def vectors(seed=0, batch=5):
    """(unit vectors, a log-temperature, a bias), and captions of which some are equal."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, batch, 7))
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    return (x, y, np.array(-1.3), np.array(-0.8)), np.array([3, 1, 3, 2, 1])


def check_spelled_out(which):
    (x, y, log_temperature, bias), captions = vectors()
    want = 0
    for i in range(5):
        for j in range(5):
            logit = x[i] @ y[j] / np.exp(log_temperature) + bias
            p = 1 / (1 + np.exp(-logit))
            if i == j or captions[i] != captions[j]:
                want -= np.log(p if i == j else 1 - p)
    loss, _ = sigmoid_loss(which, x, y, log_temperature, bias, captions=captions)
    np.testing.assert_allclose(loss, want / 5, rtol=1e-12)


def check_first_loss(which):
    """At right angles only the bias speaks; with the first one a loss is small at any size."""
    for batch in (2, 64):
        x, y = np.eye(2 * batch)[:batch], np.eye(2 * batch)[batch:]
        config = small_config(batch_size=batch)
        tree = initialise(config, 0, np.float64, relatives.RELATIVES["siglip"]().specs(config))
        bias, log_temperature = tree["sigmoid_bias"], tree["log_temperature"]
        captions = np.arange(batch)
        loss, _ = sigmoid_loss(which, x, y, log_temperature, bias, captions=captions)
        want = np.log(1 + np.exp(-bias)) + (batch - 1) * np.log(1 + np.exp(bias))
        np.testing.assert_allclose(loss, want, rtol=1e-12)
    assert loss == pytest.approx(5.15, abs=0.005) and np.exp(-log_temperature) == pytest.approx(10)


def check_extremes(which):
    """Of a bias far below, positives alone have a gradient; nothing overflows."""
    (x, y, log_temperature, _), captions = vectors()
    given = which, x, y, log_temperature
    loss, grads = sigmoid_loss(*given, np.array(-2000.0), captions=captions)
    own = np.exp(-log_temperature) * (x * y).sum(1).mean()
    np.testing.assert_allclose(loss, 2000 - own, rtol=1e-12)
    np.testing.assert_allclose(grads[0], -np.exp(-log_temperature) * y / 5, atol=1e-15)
    loss, grads = sigmoid_loss(*given, np.array(2000.0), captions=captions)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in grads)


def check_equal_captions(which):
    """Where all captions are one, no pair is a negative: each image is told of its own text alone.
    One word more makes negatives of them."""
    settings, params, batch = relatives.given("siglip", config := small_config(), 0)
    batch["tokens"][:] = batch["tokens"][0]
    outputs, _ = SIDES[which]("siglip", params, config, settings, batch)
    scale, bias = np.exp(-params["log_temperature"]), params["sigmoid_bias"]
    own = scale * (outputs["image"] * outputs["text"]).sum(1) + bias
    np.testing.assert_allclose(outputs["contrastive"], np.log1p(np.exp(-own)).mean(), rtol=1e-10)
    tokens = np.array([[1, 5, 2, 0], [1, 5, 6, 2], [1, 5, 2, 0]])
    given = tokens if which == "reference" else torch.tensor(tokens)
    first, other, again = relatives.side(which, "layers").caption_numbers(given).tolist()
    assert first == again != other
    wanted = [[True, True, False], [True, True, True], [False, True, True]]
    assert siglip.counted_pairs(tokens).tolist() == wanted


SIGMOID = [check_spelled_out, check_first_loss, check_extremes, check_equal_captions]


@BOTH
@pytest.mark.parametrize("check", SIGMOID)
def test_a_yes_or_no_of_every_pair(check, which):
    check(which)


def rows_asked(which, scores, tokens, noise):
    if which == "reference":
        return matching.rows_asked(scores, tokens, noise)
    rows = engine_matching.rows_asked(*map(torch.tensor, (scores, tokens, noise)))
    return tuple(x.numpy() for x in rows)


CAPTIONS = np.array([[1, 5, 2, 0], [1, 5, 6, 2], [1, 5, 2, 0], [1, 9, 2, 0]])


def check_never_an_equal_caption(which):
    """Whatever is drawn; and each pair is asked three times, twice with one half exchanged."""
    rng, other = np.random.default_rng(0), CAPTIONS.copy()
    for _ in range(50):
        scores = 30 * rng.standard_normal((4, 4))
        image, text = rows_asked(which, scores, other, rng.random((2, 4)))
        assert image[:8].tolist() == [0, 1, 2, 3] * 2 and text[:4].tolist() == [0, 1, 2, 3]
        assert text[8:].tolist() == [0, 1, 2, 3]
        for i, t in zip(image[4:], text[4:], strict=True):
            assert (other[i] != other[t]).any()
    other[:] = other[0]  # nothing else to ask about
    image, text = rows_asked(which, np.zeros((4, 4)), other, np.full((2, 4), 0.99))
    assert image.tolist() == text.tolist() == [0, 1, 2, 3]


def check_the_alike_are_likelier(which):
    """In the long run as the softmax says, of images by columns and of texts by rows."""
    scores = np.array([[9.0, 0, 9, 1], [1, 9, 1, -1], [9, -1, 9, 0.5], [0, 2, 0, 9]])
    grid = (np.arange(4000) + 0.5) / 4000
    noise = np.stack([np.stack([grid] * 4), np.stack([grid[::-1]] * 4)])
    drawn = [rows_asked(which, scores, CAPTIONS, noise[:, :, k]) for k in range(0, 4000, 10)]
    for row, allowed in enumerate([[1, 3], [0, 2, 3], [1, 3], [0, 1, 2]]):
        for part, of in ((1, scores[row]), (0, scores[:, row])):
            found = [d[part][4 + 4 * (1 - part) + row] for d in drawn]
            want = np.exp(of[allowed]) / np.exp(of[allowed]).sum()
            counts = [found.count(column) / len(found) for column in allowed]
            np.testing.assert_allclose(counts, want, atol=0.005)


def match(which, params, config, images, tokens):
    """Logits of no and yes, of one pair, with padding after the text and a short one beside it."""
    tokens = np.pad(np.concatenate([tokens, 0 * tokens]), ((0, 0), (0, 1)))
    tokens[1, :2] = 1, 2
    images = np.concatenate([images, -images])
    first = np.zeros(1, int), np.zeros(1, int)
    if which == "reference":
        return matching.matcher(params, config, None, images, tokens)(*first)[0]
    given = config, None, torch.tensor(images), torch.tensor(tokens)
    matches = engine_matching.matcher(tree_map(torch.tensor, params), *given)
    return matches(*map(torch.tensor, first))[0].numpy()


def check_asked_one_by_one(which):
    """The loss of a batch is that of its questions, each asked alone: of pairs yes, else no."""
    settings, params, batch = relatives.given("matching", config := small_config(), 1)
    outputs, _ = SIDES[which]("matching", params, config, settings, batch)
    scores = np.exp(-params["log_temperature"]) * (outputs["image"] @ outputs["text"].T)
    asked, losses = rows_asked(which, scores, batch["tokens"], batch["noise"]), []
    for k, (i, t) in enumerate(zip(*asked, strict=True)):
        tokens = batch["tokens"][t : t + 1]
        alone = {"images": batch["images"][i : i + 1], "noise": np.zeros((2, 1))}
        alone["tokens"] = tokens[:, : (tokens != 0).sum()]
        own = SIDES[which]("matching", params, config, settings, alone)[0]["matching"]
        losses.append(own if k < 4 else -np.log(1 - np.exp(-own)))
        says = match(which, params, config, alone["images"], alone["tokens"])
        np.testing.assert_allclose(np.exp(-own), 1 / (1 + np.exp(says[0] - says[1])), rtol=1e-9)
    assert len(losses) == 12
    np.testing.assert_allclose(outputs["matching"], np.mean(losses), rtol=1e-9)


def check_a_head_of_zeros(which):
    """Knows nothing: ln 2, however many are asked. The rest of the loss is CoCa's. The second of
    its two is yes."""
    settings, params, batch = relatives.given("matching", config := small_config(), 0)
    classifier = params["matching"]["classifier"]
    classifier["weight"][:], classifier["bias"][:] = 0, 0
    outputs, _ = SIDES[which]("matching", params, config, settings, batch)
    np.testing.assert_allclose(outputs["matching"], np.log(2), rtol=1e-12)
    own = {name: leaf for name, leaf in params.items() if name != "matching"}
    cocas = Reference.outputs(own, config, batch["images"], batch["tokens"])
    for name in ("contrastive", "caption"):
        np.testing.assert_allclose(outputs[name], cocas[name], rtol=1e-10)
    np.testing.assert_allclose(outputs["loss"], cocas["loss"] + np.log(2), rtol=1e-10)
    classifier["bias"][:] = 0, 20
    outputs, _ = SIDES[which]("matching", params, config, settings, batch)
    np.testing.assert_allclose(outputs["matching"], 20 * 2 / 3, rtol=1e-6)  # yes to all
    classifier["bias"][:] = 0, np.log(1 / 2)  # the best that knows nothing but how many are pairs
    outputs, _ = SIDES[which]("matching", params, config, settings, batch)
    np.testing.assert_allclose(outputs["matching"], 0.6365, atol=1e-4)


MATCHING = [check_never_an_equal_caption, check_the_alike_are_likelier, check_asked_one_by_one,
            check_a_head_of_zeros]  # fmt: skip


@BOTH
@pytest.mark.parametrize("check", MATCHING)
def test_do_they_match(check, which):
    check(which)


BUGS = [
    (siglip, "/ len(logits_BB)  # (4)", "/ logits_BB.size  # (4)",
     on(check_spelled_out, "reference")),
    (siglip, "- np.where(z_BB.real > 0, 0, z_BB)", "- np.where(z_BB.real > 0, z_BB, 0)",
     on(check_spelled_out, "reference")),
    (siglip, "np.where(z_BB.real > 0, -z_BB, z_BB)", "-z_BB", on(check_extremes, "reference")),
    (siglip, "sign_BB * (logits_BB + bias)", "sign_BB * logits_BB + bias",
     on(check_first_loss, "reference")),
    (siglip, "dlog_temperature, dlogits_BB.sum()", "dlog_temperature, dz_BB.sum()",
     on(check_gradient, "siglip", small_config(), 0)),
    (siglip, "* no_BB * counted_BB", "* no_BB", on(check_gradient, "siglip", small_config(), 0)),
    (siglip, "own_BB | ~same_captions", "~same_captions",
     on(check_equal_captions, "reference")),
    (layers, "np.unique(tokens_BT, axis=0", "np.unique(tokens_BT[:, :2], axis=0",
     on(check_equal_captions, "reference")),
    (engine_siglip, 'caption_numbers(batch["tokens"])', "None",
     on(check_equal_captions, "engine")),
    (engine_layers, "torch.unique(tokens_BT, dim=0", "torch.unique(tokens_BT[:, :2], dim=0",
     on(check_equal_captions, "engine")),
    (engine_ops, "torch.exp(-widened(log_temperature))", "torch.exp(widened(log_temperature))",
     on(check_spelled_out, "engine")),
    (engine_towers, "total_loss(outputs, config)", "outputs['contrastive']",
     on(check_sides, "siglip", small_config(), 0)),
    (matching, "[(own_B, own_B), (own_B, text_B), (image_B, own_B)]",
     "[(own_B, own_B), (own_B, text_B), (own_B, image_B)]",
     on(check_never_an_equal_caption, "reference")),
    (matching, "~same_captions(tokens_BT)", "~np.eye(len(tokens_BT), dtype=bool)",
     on(check_never_an_equal_caption, "reference")),
    (matching, "before_BB <= noise_B", "before_BB < noise_B",
     on(check_never_an_equal_caption, "reference")),
    (matching, "drawn(scores_BB.T, allowed_BB", "drawn(scores_BB, allowed_BB",
     on(check_the_alike_are_likelier, "reference")),
    (matching, "lengths_of(tokens_BT)[text_R] - 1", "lengths_of(tokens_BT)[image_R] - 1",
     on(check_asked_one_by_one, "reference")),
    (matching, "np.arange(asked) < pairs", "np.arange(asked) >= pairs",
     on(check_a_head_of_zeros, "reference")),
    (matching, "lengths_of(tokens_RT) - 1", "lengths_of(tokens_RT)",
     on(check_asked_one_by_one, "reference")),
    (engine_matching, "lengths_of(tokens_RT) - 1", "lengths_of(tokens_RT)",
     on(check_asked_one_by_one, "engine")),
    (matching, "np.add.at(dmemory, image_R, dread)", "dmemory[image_R] = dread",
     on(check_gradient, "matching", small_config(), 0)),
    (matching, "dn[: len(dpairs)] += dpairs", "dn[-len(dpairs) :] += dpairs",
     on(check_gradient, "matching", small_config(), 0)),
    (engine_matching, "~same_captions(tokens_BT)", "same_captions(tokens_BT)",
     on(check_never_an_equal_caption, "engine")),
    (engine_matching, ".masked_fill(~allowed_BB, 0)", "",
     on(check_never_an_equal_caption, "engine")),
    (engine_matching, "torch.exp(-log_temperature) * (image", "torch.exp(log_temperature) * (image",
     on(check_asked_one_by_one, "engine")),
    (engine_matching, "torch.stack([~pair_R, pair_R], 1)", "torch.stack([pair_R, ~pair_R], 1)",
     on(check_a_head_of_zeros, "engine")),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises((AssertionError, RuntimeWarning)):
        check()
