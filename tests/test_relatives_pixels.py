"""What is SimCLR's, MAE's and SimMIM's own: which views are one image's, which patches are read,
and which are drawn."""

import numpy as np
import pytest
import relatives
import torch
from oracles import planted
from relatives import SIDES, on
from strategies import small_config
from test_relatives import check_gradient, check_sides

from minicoca.engine.relatives import layers as engine_layers
from minicoca.engine.relatives import mae as engine_mae
from minicoca.engine.relatives import simclr as engine_simclr
from minicoca.reference import losses, ops, vision
from minicoca.reference.relatives import layers, mae, simclr, simmim

BOTH = pytest.mark.parametrize("which", SIDES)
DRAWS = pytest.mark.parametrize("name", ["mae", "simmim"])
CONFIG = small_config()  # 9 patches of 2 x 2


def unit(seed, shape=(8, 7)):
    return ops.l2_normalise(np.random.default_rng(seed).standard_normal(shape))[0]


def nt_xent(which, z, temperature=0.5):
    if which == "reference":
        return simclr.nt_xent(z, temperature)[0]
    return engine_simclr.nt_xent(torch.tensor(z), temperature).item()


def check_nt_xent(which):
    """Eq. 1 spelled out; ln(2 N - 1) where all are alike; whoever is first, whichever is which."""
    z, want = unit(0), 0
    for i in range(8):
        others = [np.exp(z[i] @ z[k] / 0.5) for k in range(8) if k != i]
        want -= np.log(np.exp(z[i] @ z[(i + 4) % 8] / 0.5) / sum(others))
    np.testing.assert_allclose(nt_xent(which, z), want / 8, rtol=1e-12)
    np.testing.assert_allclose(nt_xent(which, np.tile(z[:1], (8, 1))), np.log(7), rtol=1e-12)
    turned = z[[4, 1, 6, 3, 0, 5, 2, 7]]  # the two views of images 0 and 2 change places
    np.testing.assert_allclose(nt_xent(which, turned), want / 8, rtol=1e-12)
    moved = z[[2, 0, 3, 1, 6, 4, 7, 5]]
    np.testing.assert_allclose(nt_xent(which, moved), want / 8, rtol=1e-12)
    # CoCa's loss of the same vectors has fewer negatives for the same positives.
    clip, _ = losses.contrastive_loss(z[:4], z[4:], np.log(0.5))
    assert clip < want / 8


def check_views(which):
    """The views of an image may change places; those of another image may not come between."""
    settings, params, batch = relatives.given("simclr", CONFIG, 0)
    loss = SIDES[which]("simclr", params, CONFIG, settings, batch)[0]["loss"]
    turned = SIDES[which](
        "simclr", params, CONFIG, settings, {"views": batch["views"][::-1].copy()}
    )
    np.testing.assert_allclose(turned[0]["loss"], loss, rtol=1e-10)
    mixed = {"views": np.stack([batch["views"][0], np.roll(batch["views"][1], 1, 0)])}
    assert abs(SIDES[which]("simclr", params, CONFIG, settings, mixed)[0]["loss"] - loss) > 1e-6


@BOTH
@pytest.mark.parametrize("check", [check_nt_xent, check_views])
def test_a_view_is_to_find_the_other(check, which):
    check(which)


def drawing(which, name, seed=0, **own):
    """(settings, params, batch, which patches are to be drawn [B, N], outputs)."""
    settings, params, batch = relatives.given(name, CONFIG, seed, **own)
    hole = batch.get("masked")
    if hole is None:
        hole = np.ones((4, 9), bool)
        np.put_along_axis(hole, batch["seen"], False, 1)
    return settings, params, batch, hole, SIDES[which](name, params, CONFIG, settings, batch)[0]


def spoilt(batch, where):
    """The batch with other pixels in some patches."""
    patches = vision.patchify(batch["images"], 2)
    other = np.where(where[..., None], 3 * patches[::-1] + 1, patches)
    return batch | {"images": vision.unpatchify(other, 2)}


def check_unread(which, name, **own):
    """What is to be drawn is not read, not by a bit; what is seen is; and each counts in the loss
    where it should."""
    settings, params, batch, hole, outputs = drawing(which, name, **own)
    given = name, params, CONFIG, settings
    unread = SIDES[which](*given, spoilt(batch, hole))[0]
    np.testing.assert_array_equal(unread["pixels"], outputs["pixels"])
    assert abs(unread["loss"] - outputs["loss"]) > 1e-3
    read = SIDES[which](*given, spoilt(batch, ~hole))[0]
    assert np.abs(read["pixels"] - outputs["pixels"]).max(-1)[hole].min() > 1e-9


def check_loss(which, name, **own):
    """Spelled out, patch by patch; and no more than that: the whole batch is the mean of its
    images."""
    settings, params, batch, hole, outputs = drawing(which, name, **own)
    patches, errors = vision.patchify(batch["images"], 2), []
    for b, n in np.argwhere(hole):
        true = patches[b, n]
        if own.get("normalise_patches"):
            true = (true - true.mean()) / np.sqrt(((true - true.mean()) ** 2).sum() / 11 + 1e-6)
        gap = outputs["pixels"][b, n] - true
        errors.append(np.mean(gap**2 if name == "mae" else np.abs(gap)))
    np.testing.assert_allclose(outputs["loss"], np.mean(errors), rtol=1e-10)
    alone = []
    for b in range(4):
        row = {key: array[b : b + 1] for key, array in batch.items() if key != "views"}
        alone.append(SIDES[which](name, params, CONFIG, settings, row)[0])
    np.testing.assert_allclose(outputs["loss"], np.mean([a["loss"] for a in alone]), rtol=1e-10)
    for a, pixels in zip(alone, outputs["pixels"], strict=True):
        np.testing.assert_allclose(a["pixels"][0], pixels, rtol=1e-9, atol=1e-12)


def check_nothing_to_draw(which, name):
    """Is a loss of 0 without a gradient; and the tower reads as CoCa's does."""
    settings, params, batch, hole, _ = drawing(which, name)
    every = {"seen": np.tile(np.arange(9), (4, 1)), "masked": np.zeros((4, 9), bool)}
    outputs, gradients = SIDES[which](name, params, CONFIG, settings, batch | every)
    assert outputs["loss"] == 0 and not any(np.any(g) for g in gradients.values())
    own = params["drawing"]
    x, _ = vision.image_encoder(batch["images"], params["image"], CONFIG)
    n, _ = ops.layer_norm(x, own["norm"])
    if name == "mae":
        e = ops.linear(n, own["enter"])[0] + own["position"]
        e, _ = layers.transformer(e, own["blocks"], settings.decoder_heads, CONFIG.gelu)
        n, _ = ops.layer_norm(e, own["norm_output"])
    pixels, _ = ops.linear(n, own["pixels"])
    np.testing.assert_allclose(outputs["pixels"], pixels, rtol=1e-9, atol=1e-12)


def check_order(which, **own):
    """MAE's patches may be read in any order: their positions tell where they were."""
    settings, params, batch, _, outputs = drawing(which, "mae", masked=0.5, **own)
    turned = batch | {"seen": batch["seen"][:, ::-1].copy()}
    again = SIDES[which]("mae", params, CONFIG, settings, turned)[0]
    np.testing.assert_allclose(again["pixels"], outputs["pixels"], rtol=1e-9, atol=1e-12)
    wrong = batch | {"seen": (batch["seen"] + 1) % 9}
    again = SIDES[which]("mae", params, CONFIG, settings, wrong)[0]
    assert np.abs(again["pixels"] - outputs["pixels"]).max() > 1e-3


@BOTH
@DRAWS
@pytest.mark.parametrize("check", [check_unread, check_loss, check_nothing_to_draw])
def test_what_is_masked_is_drawn_and_not_read(check, name, which):
    check(which, name)


@BOTH
def test_of_patches_one_by_one(which):
    check_order(which)
    check_order(which, mask_tokens=True)
    check_unread(which, "mae", mask_tokens=True)
    check_loss(which, "mae", normalise_patches=True)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="decoder_width=9 is not a multiple of decoder_heads=2"):
        relatives.RELATIVES["mae"](decoder_width=9)


def test_as_many_are_masked_in_every_image_and_everywhere():
    for name, part, count in (("mae", 0.75, 7), ("simmim", 0.6, 5), ("mae", 0.01, 1),
                              ("simmim", 1.0, 8)):  # fmt: skip
        own = relatives.RELATIVES[name](masked=part)
        images = np.zeros((300, 1))
        batch = own.draw(np.random.default_rng(0), CONFIG, {"images": images})
        if name == "mae":
            assert batch["seen"].shape == (300, 9 - count)
            assert (np.diff(batch["seen"], axis=1) > 0).all()
            found = np.ones((300, 9), bool)
            np.put_along_axis(found, batch["seen"], False, 1)
        else:
            found = batch["masked"]
        assert (found.sum(1) == count).all()
        assert np.abs(found.mean(0) - count / 9).max() < 0.1


@DRAWS
def test_a_class_token_is_refused(name):
    with pytest.raises(ValueError, match="stem=clip has a class token"):
        relatives.RELATIVES[name]().specs(small_config(stem="clip"))


def gradient(name):
    return on(check_gradient, name, CONFIG, 0)


BUGS = [
    (simclr, "np.where(own_RR, -np.inf, logits_RR)", "logits_RR", on(check_nt_xent, "reference")),
    (simclr, "len(z_RE) // 2)[:, None]", "1)[:, None]", on(check_nt_xent, "reference")),
    (simclr, "(dlogits_RR + dlogits_RR.T)", "(2 * dlogits_RR)", gradient("simclr")),
    (simclr, "dh_RD[:, None] / shape[1]", "dh_RD[:, None]", gradient("simclr")),
    (simclr, 'np.concatenate([*batch["views"]])',
     'batch["views"].swapaxes(0, 1).reshape(-1, *batch["views"].shape[2:])',
     on(check_views, "reference")),
    (engine_simclr, "places_R.roll(len(z_RE) // 2)", "places_R.roll(1)",
     on(check_nt_xent, "engine")),
    (mae, "params[\"image\"], config, seen_BL)",
     "params[\"image\"], config, seen_BL[:, ::-1])", on(check_nothing_to_draw, "reference", "mae")),
    (mae, "np.ones((len(seen_BL), patches), bool)", "np.zeros((len(seen_BL), patches), bool)",
     on(check_unread, "reference", "mae")),
    (mae, "hole_BN, 2)", "~hole_BN, 2)", on(check_loss, "reference", "mae")),
    (mae, "ddof=1", "ddof=0", on(check_loss, "reference", "mae", normalise_patches=True)),
    (mae, "dparams[\"position\"] = dy_BNM.sum(0)", "dparams[\"position\"] = dy_BNM[0]",
     gradient("mae")),
    (mae, "y_BNM + params[\"position\"]", "y_BNM", on(check_nothing_to_draw, "reference", "mae")),
    (engine_mae, "scatter(1, seen_BL, False)", "scatter(1, seen_BL, True)",
     on(check_unread, "engine", "mae")),
    (mae, "config, hole_BN, own[\"mask_read\"]", "config, ~hole_BN, own[\"mask_read\"]",
     on(check_unread, "reference", "mae", mask_tokens=True)),
    (engine_mae, 'own["mask_read"]', '2 * own["mask_read"]',
     on(check_sides, "mae", CONFIG, 0, mask_tokens=True)),
    (engine_mae, "scatter(1, seen_BL[..., None]", "scatter(1, seen_BL.sort(1)[0][..., None]",
     on(check_order, "engine")),
    (layers, "cache = fill(x_BND, hole_BN", "cache = fill(x_BND, ~hole_BN",
     on(check_unread, "reference", "simmim")),
    (layers, "x_BND = x_BND + params[\"position\"]", "x_BND = x_BND",
     on(check_nothing_to_draw, "reference", "simmim")),
    (simmim, "patches_BNP, masked_BN, 1)", "patches_BNP, masked_BN, 2)",
     on(check_loss, "reference", "simmim")),
    (layers, "(slope_BNP * gap_BNP * weight_BN1).sum() / power",
     "(slope_BNP * gap_BNP * weight_BN1).sum()", on(check_loss, "reference", "mae")),
    (layers, "count = max(1, int(counted_BN.sum()))", "count = counted_BN.size",
     on(check_loss, "reference", "simmim")),
    (layers, "np.where(hole_BN[..., None], 0, dy_BND)", "dy_BND", gradient("simmim")),
    (engine_layers, "counted_BN[..., None]).sum()", "~counted_BN[..., None]).sum()",
     on(check_loss, "engine", "simmim")),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises((AssertionError, RuntimeWarning)):
        check()
