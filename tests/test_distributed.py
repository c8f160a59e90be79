"""Several gloo processes do what one does with the whole batch: losses, every gradient, weights."""

import numpy as np
import pytest
import torch
from distributed import in_processes
from strategies import model_and_batch, small_config

from minicoca.engine import train as engine_train
from minicoca.engine.distributed import ALONE

ROWS = 7  # comes out even for no number of processes but 1
WEIGHTS = dict(both={}, contrastive=dict(caption_weight=0.0), caption=dict(contrastive_weight=0.0))
WAYS = dict(
    whole={},
    parts=dict(accumulate=2),
    fsdp=dict(parallel="fsdp"),
    fsdp_parts=dict(parallel="fsdp", accumulate=3, recompute=True),
    muon=dict(optimizer="muon", augment=1.0, patch_keep=0.5),
    frozen=dict(freeze="image.blocks.0,log_temperature", augment=1.0),
)
CASES = {
    f"{way} {what}": dict(clip_norm=0.05, **changes, **weights)
    for way, changes in WAYS.items()
    for what, weights in WEIGHTS.items()
}


def drawn(config, rows=ROWS):
    """Pictures and captions of very unequal lengths."""
    rng, T = np.random.default_rng(0), config.text_length
    images = rng.integers(0, 256, (rows, *2 * [config.image_size], 3)).astype(np.uint8)
    tokens = np.zeros((rows, T), np.int64)
    for i, own in enumerate(tokens):
        own[: 2 + i % (T - 2)] = rng.integers(4, config.vocabulary, 2 + i % (T - 2))
    return images, tokens


def one_step(ranks, changes, dtype=torch.float64):
    """(what a step says, {name: gradient}) of this process's rows."""
    config = small_config(**changes)
    params, _, _ = model_and_batch(config, 0)
    images, tokens = drawn(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_train, "pick_dtype", lambda *given: dtype)
        if dtype == torch.float32:
            params = engine_train.tree_map(lambda a: a.astype(np.float32), params)
        trainer = engine_train.Trainer(params, config, ranks)
    mine = ranks.mine(len(images))
    report = trainer.step(3, images[mine], tokens[mine])
    report |= {f"part of {name}": x for name, x in trainer.gradient_shares().items()}
    gradients = {name: engine_train.whole(p.grad) for name, p in trainer.leaves.items()}
    return report, {n: g.numpy() for n, g in gradients.items() if g is not None}


def steps_of(ranks, cases, dtype=torch.float64):
    return [one_step(ranks, changes, dtype) for changes in cases]


def check_as_one(world, names=CASES, dtype=torch.float64, tolerance=1e-10):
    cases = [CASES[name] for name in names]
    want = steps_of(ALONE, cases, dtype)
    for rank, found in enumerate(in_processes(world, steps_of, cases, dtype)):
        for name, (report, gradients), (said, own) in zip(names, want, found, strict=True):
            assert gradients.keys() == own.keys(), name
            for key, value in report.items():
                assert said[key] == pytest.approx(value, rel=tolerance, abs=tolerance), (name, key)
            for leaf, gradient in gradients.items():
                far = np.abs(own[leaf] - gradient).max()
                assert far <= tolerance * max(1, np.abs(gradient).max()), (world, rank, name, leaf)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_losses_and_every_gradient_are_those_of_one_process(world):
    check_as_one(world)
