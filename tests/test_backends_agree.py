"""A training run with Triton's kernels is the training run without them."""

import numpy as np
import pytest

from minicoca.config import preset
from minicoca.engine import ops
from minicoca.engine.train import Trainer
from minicoca.params import initialise


@pytest.fixture(autouse=True)
def back_to_auto():
    yield
    ops.use("auto")


@pytest.mark.parametrize("pooler", ["cascade", "none"])
def test_five_steps_with_either_backend(pooler):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 4, 16, 16, 3)).astype(np.uint8)
    tokens = np.concatenate([np.ones((5, 4, 1), int), rng.integers(4, 60, (5, 4, 6))], 2)
    tokens[:, 1, 4:] = 0
    losses = {}
    for backend in ("torch", "triton"):
        config = preset(
            "tiny", pooler=pooler, backend=backend, image_size=16, image_layers=1, text_heads=2,
            image_heads=2, pooler_heads=2, caption_queries=8, warmup=0,
        )  # fmt: skip
        trainer = Trainer(initialise(config), config)
        losses[backend] = [trainer.step(i, images[i], tokens[i])["loss"] for i in range(5)]
    np.testing.assert_allclose(losses["triton"], losses["torch"], rtol=1e-4)
    assert losses["torch"][4] != losses["torch"][0]


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="'cuda' is not one of"):
        ops.use("cuda")
    assert "Triton" in (ops.use("triton"), ops.implementations())[1]["attention"]
