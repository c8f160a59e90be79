"""A training run with Triton's kernels is the training run without them."""

import functools
import importlib

import numpy as np
import pytest
import torch

from minicoca.config import preset
from minicoca.engine import ops
from minicoca.engine.train import Trainer
from minicoca.params import initialise

KERNELS = {
    name: getattr(importlib.import_module(f"minicoca.kernels.{name}"), name)
    for name in ("attention", "attention_pool", "info_nce", "caption_loss")
}


def test_heads_that_no_kernel_serves_are_left_to_torch():
    q, k = torch.randn(2, 3, 1, 144), torch.randn(2, 4, 1, 144)
    want = torch.softmax(torch.einsum("bthk,bshk->bhts", q, k) / 12, -1) @ k.transpose(1, 2)
    with ops.use("triton"):
        torch.testing.assert_close(ops.attention(q, k, k), want.transpose(1, 2))
        assert "torch for heads over 128" in ops.implementations()["attention"]


@pytest.mark.parametrize("pooler", ["cascade", pytest.param("none", marks=pytest.mark.slow)])
def test_three_steps_with_either_backend(pooler, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 16, 16, 3)).astype(np.uint8)
    tokens = np.concatenate([np.ones((3, 3, 1), int), rng.integers(4, 60, (3, 3, 6))], 2)
    tokens[:, 1, 4:] = 0
    losses, called = {}, []
    for name, op in KERNELS.items():
        counted = functools.partial(
            lambda op, name, *a, **k: called.append(name) or op(*a, **k), op
        )
        module = importlib.import_module(f"minicoca.kernels.{name}")
        monkeypatch.setattr(module, name, functools.partial(counted, name))
    for backend in ("torch", "triton"):
        config = preset(
            "tiny", pooler=pooler, backend=backend, image_size=16, image_layers=1, text_heads=2,
            image_heads=2, pooler_heads=2, caption_queries=4, warmup=0,
        )  # fmt: skip
        trainer = Trainer(initialise(config), config)
        losses[backend] = [trainer.step(i, images[i], tokens[i])["loss"] for i in range(3)]
        if backend == "torch":
            assert set(called) == {"caption_loss"}  # whose torch form is the kernel's module too
            called.clear()
    assert set(called) == set(KERNELS)
    np.testing.assert_allclose(losses["triton"], losses["torch"], rtol=1e-4)
    assert losses["torch"][2] != losses["torch"][0]


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="'cuda' is not one of"):
        ops.use("cuda")
    with ops.use("triton"):
        assert "Triton" in ops.implementations()["attention"]
    assert ops.implementations()["attention"].startswith("torch") or torch.cuda.is_available()
