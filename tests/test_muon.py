"""Muon: what it does to a matrix, which matrices it moves, and that it is torch's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import model_and_batch, small_config

from minicoca.config import PRESETS, preset
from minicoca.engine import optim as engine_optim
from minicoca.engine.train import Trainer as EngineTrainer
from minicoca.params import flatten, specs, tree_map
from minicoca.reference import optim
from minicoca.reference.train import Trainer
from minicoca.tuning import by_muon

WIDE = dict(optimizer="muon", weight_decay=0.3, momentum=0.8, muon_rate=2.0, embed_width=22)


def drawn(seed, shape, decades):
    """A matrix whose singular values fall by so many powers of ten, and its singular vectors."""
    rng = np.random.default_rng(seed)
    u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return u, np.logspace(0, -decades, min(shape)), v


def check_orthogonalised(side=optim):
    """Singular vectors stay; singular values, whatever they were, come near 1. (The polynomial's
    extremes on [0, 1], after five rounds, are 0.68 and 1.14 for what is not lost in the norm.)"""
    for seed, shape in enumerate([(5, 5), (3, 11), (11, 3), (1, 7), (64, 16)]):
        for decades, scale in ((0.0, 1.0), (1.0, 1e-6), (1.5, 1e6)):
            u, s, v = drawn(seed, shape, decades)
            move = side.orthogonalised(_as(side, (scale * (u * s) @ v)[None]))
            kept = u.T @ np.asarray(move)[0] @ v.T
            found = np.diagonal(kept)
            np.testing.assert_allclose(kept - np.diag(found), 0, atol=1e-12)
            assert ((found > 0.67) & (found < 1.15)).all(), (shape, decades, found)
            # Each value by itself, by the polynomial of one number.
            want = s / np.sqrt((s * s).sum())
            for _ in range(5):
                want = 3.4445 * want - 4.7750 * want**3 + 2.0315 * want**5
            np.testing.assert_allclose(found, want, rtol=1e-9)


def _as(side, array):
    return torch.tensor(array) if side is engine_optim else array


@pytest.mark.parametrize("side", [optim, engine_optim])
def test_orthogonalised(side):
    check_orthogonalised(side)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
def test_a_stack_is_its_matrices(seed, many, rows, columns):
    g = np.random.default_rng(seed).standard_normal((many, rows, columns))
    stacked = optim.orthogonalised(g)
    for one, move in zip(g, stacked, strict=True):
        np.testing.assert_allclose(optim.orthogonalised(one), move, atol=1e-12)
    found = engine_optim.orthogonalised(torch.tensor(g)).numpy()
    np.testing.assert_allclose(found, stacked, atol=1e-11)


def check_muon_by_hand():
    """Two steps of a matrix of one row, whose one singular value is its length."""
    config = preset("tiny", momentum=0.5, weight_decay=0.1)
    p, mean, by = np.array([[[3.0, 4.0]]]), np.zeros((1, 1, 2)), 0.2 * 2**0.5
    near_one = 1.0
    for _ in range(5):
        near_one = 3.4445 * near_one - 4.7750 * near_one**3 + 2.0315 * near_one**5
    p, mean = optim.muon(p, np.array([[[1.0, 0.0]]]), mean, 0.1, config)
    # mean = g / 2, ahead = mean / 2 + g / 2: along (1, 0).
    want = np.array([3.0, 4.0]) * (1 - 0.1 * 0.1) - 0.1 * by * near_one * np.array([1.0, 0.0])
    np.testing.assert_allclose(p[0, 0], want, rtol=1e-12)
    p, mean = optim.muon(p, np.array([[[0.0, 2.0]]]), mean, 0.1, config)
    # mean = (1/4, 1), ahead = (1/8, 1/2 + 1).
    along = np.array([0.125, 1.5]) / np.hypot(0.125, 1.5)
    want = want * (1 - 0.1 * 0.1) - 0.1 * by * near_one * along
    np.testing.assert_allclose(p[0, 0], want, rtol=1e-12)
    np.testing.assert_allclose(mean[0, 0], [0.25, 1.0])


def test_muon_by_hand():
    check_muon_by_hand()


def check_as_torch(shape=(6, 10)):
    """torch.optim.Muon itself, in float64: it multiplies in bfloat16 otherwise."""
    rng, config = np.random.default_rng(0), preset("tiny", momentum=0.9, weight_decay=0.2)
    p = torch.tensor(rng.standard_normal(shape), requires_grad=True)
    ours, mean = p.detach().numpy()[None].copy(), np.zeros((1, *shape))
    theirs = torch.optim.Muon(
        [p], lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "bfloat16", lambda x: x)
        for _ in range(4):
            g = rng.standard_normal(shape)
            p.grad = torch.tensor(g)
            theirs.step()
            ours, mean = optim.muon(ours, g[None], mean, 0.1, config)
    np.testing.assert_allclose(p.detach().numpy(), ours[0], rtol=1e-10)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_as_torch(shape):
    check_as_torch(shape)


@pytest.mark.parametrize("name", PRESETS)
def test_what_it_moves(name):
    """The matrices of blocks, and nothing else: no embedding, head, projection, pooler, vector."""
    tree = specs(preset(name, optimizer="muon"))
    moved, flat = by_muon(tree, preset(name, optimizer="muon")), flatten(tree)
    for leaf, spec in flat.items():
        inside = leaf.split(".")[0] in ("image", "text", "decoder") and ".blocks." in leaf
        assert (leaf in moved) == (inside and len(spec.shape) == 2), leaf
    assert not by_muon(tree, preset(name, optimizer="adamw"))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_leaf_has_one_optimizer(optimizer):
    config = small_config(optimizer=optimizer, freeze="image.blocks.0", text_rate=0.5)
    trainer = EngineTrainer(model_and_batch(config, 0)[0], config)
    groups = [g for one in trainer.optimizers for g in one.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in trainer.leaves.values() if p.requires_grad}
    names = {id(p): name for name, p in trainer.leaves.items()}
    moved = by_muon(trainer.params, config)
    for one in trainer.optimizers:
        own = {names[id(p)] for group in one.param_groups for p in group["params"]}
        assert isinstance(one, engine_optim.Muon) == bool(own & moved) == (own <= moved)


@pytest.mark.parametrize("kind", [Trainer, EngineTrainer])
def test_what_no_loss_reaches_stays(kind):
    """Neither moved nor decayed, as with AdamW: captioning's blocks when only contrast counts."""
    config = small_config(**WIDE, caption_weight=0.0, steps=3, warmup=0, learning_rate=0.1)
    params, images, tokens = model_and_batch(config, 0)
    images = (255 * np.abs(np.sin(images))).astype(np.uint8)
    params = tree_map(lambda a: a.astype(np.float32), params)
    trainer = kind(params, config)
    for step in range(3):
        trainer.step(step, images, tokens)
    before, after = flatten(params), flatten(trainer.weights())
    moved = {name for name, value in before.items() if not np.array_equal(value, after[name])}
    assert not any(name.startswith("decoder.") for name in moved)
    assert {n for n in by_muon(params, config) if not n.startswith("decoder.")} <= moved


def test_the_state_is_one_moment_a_matrix():
    """Half of AdamW's: no mean of squares for what Muon moves, in either backend."""
    for module, kind, part in (
        ("engine", EngineTrainer, "exp_avg_sq"),
        ("reference", Trainer, "adam.square"),
    ):
        config = small_config(**WIDE)
        state = flatten(kind(model_and_batch(config, 0)[0], config).state())
        squares = {n.removeprefix(f"{part}.") for n in state if n.startswith(f"{part}.")}
        assert squares == {*flatten(specs(config))} - by_muon(specs(config), config), module
