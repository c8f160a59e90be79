"""What is the convolutional tower's own: kernels, norms that mix no images, pools."""

import numpy as np
import pytest
import relatives
import torch
from oracles import complex_step_error, planted
from relatives import SIDES, on
from strategies import small_config, tree_of
from test_relatives import check_gradient, check_sides

from minicoca.engine.relatives import convolution as engine_convolution
from minicoca.engine.relatives import resnet as engine_resnet
from minicoca.params import flatten, initialise, shapes, tree_map
from minicoca.reference.relatives import convolution, resnet

BOTH = pytest.mark.parametrize("which", SIDES)
CONFIG = small_config(image_width=20)
WHOLE = {"stages": 2, "depth": 2, "transformer": True, "attention_pool": True}


def convolved(which, x, params):
    """A kernel and its norm, maps as [B, Y, X, C]."""
    if which == "reference":
        return convolution.convolution(x, params)[0]
    tree = tree_map(torch.tensor, params)
    y = engine_convolution.convolution(torch.tensor(x).permute(0, 3, 1, 2), tree)
    return y.permute(0, 2, 3, 1).numpy()


def block(which, x, params, pool):
    if which == "reference":
        return convolution.residual(x, params, pool)[0]
    tree = tree_map(torch.tensor, params)
    y = engine_convolution.residual(torch.tensor(x).permute(0, 3, 1, 2), tree, pool)
    return y.permute(0, 2, 3, 1).numpy()


def check_kernel(which):
    """Spelled out: nine places, zeros beyond the edges; then 8 groups of 2 channels, each with mean
    0 and variance 1 over its channels and all places."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 4, 6, 3)), rng.standard_normal((27, 16))
    norm = {"scale": rng.standard_normal(16), "bias": rng.standard_normal(16)}
    want, kernel = np.zeros((2, 4, 6, 16)), weight.reshape(3, 3, 3, 16)
    for row, column in np.ndindex(4, 6):
        for i, j in np.ndindex(3, 3):
            y, z = row + i - 1, column + j - 1
            if 0 <= y < 4 and 0 <= z < 6:
                want[:, row, column] += x[:, y, z] @ kernel[i, j]
    for b, group in np.ndindex(2, 8):
        own = want[b, :, :, 2 * group : 2 * group + 2]
        own[:] = (own - own.mean()) / np.sqrt(own.var() + 1e-5)
    found = convolved(which, x, {"weight": weight, "norm": norm})
    np.testing.assert_allclose(found, want * norm["scale"] + norm["bias"], rtol=1e-10, atol=1e-12)
    points = rng.standard_normal((3, 5))  # five channels are one group
    found = convolved(which, x, {"weight": points, "norm": {k: v[:5] for k, v in norm.items()}})
    flat = x @ points
    flat = (flat - flat.mean((1, 2, 3), keepdims=True)) / np.sqrt(
        flat.var((1, 2, 3), keepdims=True) + 1e-5
    )
    np.testing.assert_allclose(found, flat * norm["scale"][:5] + norm["bias"][:5], rtol=1e-9,
                               atol=1e-12)  # fmt: skip


def check_block(which):
    """At first a block is its shortcut, which is pooled before its kernel."""
    settings, rng = relatives.RELATIVES["resnet"](stages=2), np.random.default_rng(0)
    tree = initialise(CONFIG, 0, np.float64, settings.specs(CONFIG))["image"]["residuals"]["1"]
    x = rng.standard_normal((2, 4, 6, 10))
    pooled = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    want = np.maximum(convolved("reference", pooled, tree["shortcut"]), 0)
    np.testing.assert_allclose(block(which, x, tree, True), want, rtol=1e-10, atol=1e-12)
    tree["second"]["norm"]["scale"][:] = 1
    assert np.abs(block(which, x, tree, True) - want).max() > 1e-3
    assert block(which, x, tree, False).shape == (2, 4, 6, 20)


def check_neighbours(which):
    """An image's vector is the same alone and among others: a batch norm would mix them."""
    for own in ({"stages": 2}, WHOLE):
        settings, params, batch = relatives.given("resnet", CONFIG, 0, **own)
        whole = SIDES[which]("resnet", params, CONFIG, settings, batch)[0]["image"]
        for b in range(4):
            row = {key: batch[key][b : b + 1] for key in ("images", "tokens")}
            alone = SIDES[which]("resnet", params, CONFIG, settings, row)[0]["image"]
            np.testing.assert_allclose(alone[0], whole[b], rtol=1e-9, atol=1e-12)


def check_places(which):
    """Every pixel reaches the image's vector; each place of the map has a position of its own, and
    the mean token one more."""
    settings, params, batch = relatives.given("resnet", CONFIG, 0, **WHOLE)
    given = "resnet", params, CONFIG, settings
    before = SIDES[which](*given, batch)[0]["image"]
    for row, column in np.ndindex(6, 6):
        images = batch["images"].copy()
        images[:, row, column] += 1
        after = SIDES[which](*given, batch | {"images": images})[0]["image"]
        assert np.abs(after - before).max() > 0
    found = shapes(settings.specs(CONFIG))
    assert found["image.position"] == (9, 20) and found["attention_pool.position"] == (10, 20)


@BOTH
@pytest.mark.parametrize("check", [check_kernel, check_block, check_neighbours, check_places])
def test_a_convolutional_tower(check, which):
    check(which)


def check_tower_gradient(**own):
    """Also of the images, which no loss asks for."""
    settings, rng = relatives.RELATIVES["resnet"](**own), np.random.default_rng(0)
    config = small_config(image_width=20, image_size=8)
    tree = tree_of(rng, settings.specs(config)["image"])
    given = {"images": rng.standard_normal((2, 8, 8, 3)), "params": tree}

    def forward(images, params):
        y, cache = resnet.tower(images, params, config, settings)
        return (y,), cache

    def backward(dy, cache):
        return dict(zip(given, resnet.tower_backward(dy[0], cache), strict=True))

    assert complex_step_error(forward, backward, given, rng) < 1e-10


def test_the_towers_gradient_is_that_of_the_complex_step():
    for own in ({"stages": 2, "stem_pools": 1}, {"stages": 3, "transformer": True}):
        check_tower_gradient(**own)


def test_the_mean_token_asks_whatever_the_order_of_the_others():
    rng = np.random.default_rng(0)
    settings = relatives.RELATIVES["resnet"](**WHOLE)
    params = initialise(CONFIG, 0, np.float64, settings.specs(CONFIG))["attention_pool"]
    x, order = rng.standard_normal((2, 9, 20)), rng.permutation(9)
    y, _ = resnet.attention_pool(x, params, 2)
    moved = params | {"position": params["position"][[0, *(1 + order)]]}
    np.testing.assert_allclose(resnet.attention_pool(x[:, order], moved, 2)[0], y, atol=1e-12)
    z = engine_resnet.attention_pool(torch.tensor(x), tree_map(torch.tensor, params), 2)
    np.testing.assert_allclose(z.numpy(), y, atol=1e-12)


def test_sizes_that_do_not_halve_are_refused():
    for options, name in (({"image_width": 10}, "image_width=10"), ({}, "image_size=6")):
        with pytest.raises(ValueError, match=f"{name} is not a multiple of 4, as stages=3"):
            relatives.RELATIVES["resnet"]().specs(small_config(**{"image_width": 20} | options))


def test_a_tower_begins_with_norms_of_one_and_last_norms_of_nothing():
    settings = relatives.RELATIVES["resnet"](stages=2)
    tree = flatten(initialise(CONFIG, 0, np.float64, settings.specs(CONFIG))["image"])
    for name, leaf in tree.items():
        if name.endswith("norm.scale"):
            assert (leaf == (0 if "second" in name else 1)).all(), name
        if name.endswith("weight"):  # the variance of what ReLU halves is kept (He et al. 2015)
            assert leaf.std() == pytest.approx((2 / len(leaf)) ** 0.5, rel=0.2)


gradient = on(check_gradient, "resnet", CONFIG, 0, **WHOLE)
small = on(check_gradient, "resnet", small_config(image_width=20, image_size=8), 0, stages=2,
           stem_pools=1)  # fmt: skip
deep = on(check_sides, "resnet", small_config(image_width=20, image_size=16), 0, stages=2, depth=2)
sides = on(check_sides, "resnet", CONFIG, 0, **WHOLE)
BUGS = [
    (convolution, "padded[:, edge : edge + Y, edge : edge + X]", "padded[:, :Y, :X]",
     on(check_tower_gradient, stages=2)),
    (convolution, "windows.transpose(0, 1, 2, 4, 5, 3)", "windows.transpose(0, 1, 2, 5, 4, 3)",
     on(check_kernel, "reference")),
    (convolution, "column : column + X] += ", "column : column + X] = ", gradient),
    (convolution, "groups, -1).swapaxes(1, 2).reshape(B, groups, -1)  # (1)",
     "groups, -1).reshape(B, groups, -1)  # (1)", on(check_kernel, "reference")),
    (convolution, "xhat, cache = layer_norm(x, {",
     "xhat, cache = layer_norm(np.roll(x, 1, 0) + x, {", on(check_neighbours, "reference")),
    (convolution, "return dx + dshort, dparams", "return dx, dparams", gradient),
    (convolution, "repeat(2, 2) / 4", "repeat(2, 2) / 2", gradient),
    (convolution, "(y, _), (short, _) = mean_pool(y), mean_pool(x_BYXC)",
     "(y, _), (short, _) = mean_pool(y), (x_BYXC[:, ::2, ::2], None)",
     on(check_block, "reference")),
    (resnet, "i > 0 and i % settings.depth == 0", "i > 0", deep),
    (resnet, "dx[:, :1] / (dx.shape[1] - 1)", "dx[:, :1] / dx.shape[1]", gradient),
    (resnet, "dx[:, :1] += dquery", "dx[:, :1] += 0 * dquery", gradient),
    (resnet, "dtokens_BSM + dread", "dtokens_BSM", gradient),
    (resnet, "    for _ in range(pools):\n        dx = mean_pool_backward(dx, None)",
     "    for _ in range(pools):\n        dx = dx.repeat(2, 1).repeat(2, 2)", small),
    (engine_convolution, "permute(3, 2, 0, 1)", "permute(3, 2, 1, 0)", on(check_kernel, "engine")),
    (engine_convolution, "F.group_norm(y_BOYX, groups_of(y_BOYX.shape[1])",
     "F.group_norm(y_BOYX, y_BOYX.shape[1]", on(check_kernel, "engine")),
    (engine_convolution, "F.avg_pool2d(x_BCYX, 2)", "F.max_pool2d(x_BCYX, 2)",
     on(check_block, "engine")),
    (engine_resnet, "multi_head_attention(x[:, :1]", "multi_head_attention(x[:, 1:2]", sides),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()
