"""At the edge of what numbers hold, and where they come in: reference and engine alike."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from backends import BACKENDS
from PIL import Image
from strategies import model_and_batch, small_config

from minicoca.engine.model import coca
from minicoca.engine.train import Trainer
from minicoca.params import flatten, initialise, tree_map, unflatten

both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


def check_pixels(backend):
    """uint8 in, by each channel's own mean and spread, is what the encoder reads; and a text."""
    mean, std = (0.2, 0.5, 0.6), (0.5, 0.25, 0.1)
    config = small_config(pixel_mean=mean, pixel_std=std)
    params, _, tokens = model_and_batch(config, 0, batch=2)
    params = tree_map(np.float32, params)
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)
    images[0, 0, 0] = 0, 255, 128
    model = backend.CoCa(params, config)
    plain = (images / 255.0 - np.array(mean)) / np.array(std)
    want = backend.outputs(params, config, plain.astype(np.float32), tokens)
    np.testing.assert_allclose(model.embed_images(images), want["image"], atol=2e-5)
    np.testing.assert_allclose(model.embed_texts(tokens), want["text"], atol=2e-5)


@both
def test_a_model_to_use_reads_pixels_as_they_are(backend):
    check_pixels(backend)


def check_extremes(backend):
    """Scores of tens of thousands, the sharpest temperature, vectors of zeros: all stays finite."""
    for seed, config in enumerate((small_config(), small_config(pooler="none", embed_width=22))):
        params, images, tokens = model_and_batch(config, seed)
        flat = flatten(params)
        for name in flat:
            if name.endswith(("query.weight", "key.weight", "head.weight")):
                flat[name] = 1000 * flat[name]
        flat["log_temperature"] = np.array(-math.log(100))
        for name in ("image_projection.weight", "text_projection.weight"):
            if name in flat:
                flat[name] = np.zeros_like(flat[name])
        wild = unflatten(flat)
        outputs = backend.outputs(wild, config, images, tokens)
        assert np.abs(outputs["logits"]).max() > 1000
        gradients = flatten(backend.gradients(wild, config, images, tokens))
        for name, value in (outputs | gradients).items():
            assert np.isfinite(value).all(), name


@both
def test_nothing_overflows_at_the_edge(backend):
    check_extremes(backend)


def check_float32_where_it_matters(accumulate):
    """In bfloat16 the unit vectors and the temperature stay float32: cosines are divided by a
    number as small as 0.01, and bfloat16 has no steps of log sigma under a hundredth."""
    config = small_config(precision="bfloat16", device="cpu", accumulate=accumulate)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 6, 6, 3)).astype(np.uint8)
    tokens = np.concatenate([np.ones((4, 1), int), rng.integers(4, 17, (4, 5))], 1)
    trainer = Trainer(initialise(config), config)
    assert trainer.dtype == torch.bfloat16

    def losses():
        for leaf in trainer.leaves.values():
            leaf.grad = None
        found = trainer._gradients(trainer.batch(0, images, tokens))
        return float(found["contrastive"]), float(trainer.leaves["log_temperature"].grad)

    with torch.no_grad():
        x, y = trainer._images(0, images), torch.from_numpy(tokens)
        outputs = coca(trainer._compute_params(), config, x, y)
        pair = [outputs["image"], outputs["text"]]
        assert {v.dtype for v in pair} == {torch.float32}
        for vectors in pair:
            assert (vectors.double().norm(dim=1) - 1).abs().max() < 1e-6
    loss, slope = losses()
    with torch.no_grad():
        trainer.leaves["log_temperature"] += 1e-3
    moved, _ = losses()
    assert (moved - loss) / 1e-3 == pytest.approx(slope, rel=0.02)
    start = float(initialise(config)["log_temperature"])
    sigma = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    logits, labels = pair[0].double() @ pair[1].double().T / sigma.exp(), torch.arange(4)
    cross_entropy = torch.nn.functional.cross_entropy
    want = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    want.backward()
    assert loss == pytest.approx(want.item(), rel=1e-5)
    assert slope == pytest.approx(sigma.grad.item(), rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_unit_vectors_and_temperature_are_float32(accumulate):
    check_float32_where_it_matters(accumulate)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # to import it is an error
from minicoca.__main__ import main
sys.exit(main())
"""


def test_the_numpy_backend_needs_no_torch(tmp_path):
    """Not even installed: from the command line to captions."""
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"picture number {i}")
    small = "--image-size 16 --image-layers 1 --batch-size 8 --steps 2 --tokenizer word".split()
    train = ["train", "--backend", "numpy", "--data", tmp_path, "--run", tmp_path / "run", *small]
    caption = ["caption", tmp_path / "0.png", "--run", tmp_path / "run", "--backend", "numpy"]
    for command in (train, caption):
        command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, command)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
