"""Runs of the version before files were sealed (earlier.tar.xz, made with it) load for ever.

torch/ is finished, numpy/ was stopped at step 50 of 60; expected.json holds what that version made
of the finished weights, and of the last checkpoint of the other.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from runs import silent

from minicoca import params
from minicoca.data import shapes
from minicoca.training.checkpoint import load_model, read_results
from minicoca.training.log import Log

ARCHIVE = Path(__file__).parent / "earlier.tar.xz"
load = shapes.load


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    how = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in Python 3.11.2
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, **how)
    return folder / "earlier"


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_it_says_what_it_said_then(earlier, name, backend):
    told = json.loads((earlier / "expected.json").read_text())
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    said = []
    model, tokenizer = load_model(earlier / name, backend, say=said.append)
    tokens = tokenizer.encode(told["texts"], model.config.text_length)
    np.testing.assert_allclose(model.embed_images(images), told[name]["images"], atol=2e-5)
    np.testing.assert_allclose(model.embed_texts(tokens), told[name]["texts"], atol=2e-5)
    for what, beams in (("captions", 0), ("beams", 3)):
        rows = model.generate(images, beams=beams)
        assert [tokenizer.decode(row) for row in rows] == told[name][what]
    stopped = ["stopped at step 50 of 60"] if name == "numpy" else []
    for words, line in zip([*stopped, "not checked for damage"], said, strict=True):
        assert words in line


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_it_goes_on(earlier, name, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "load", lambda seed, side, *_: load(seed, side, 40, 12))
    folder = shutil.copytree(earlier / name, tmp_path / "run")
    before = Log.read(folder / "metrics.jsonl")
    results = silent(None, folder, taking_up=True)
    assert results["steps"] == 60 and read_results(folder)["weights"]
    kept = [record for record in before if record["step"] <= 50]
    assert kept and Log.read(folder / "metrics.jsonl")[: len(kept)] == kept
    assert params.seal_of(folder / "model.safetensors")


def test_its_results_are_read(earlier):
    assert read_results(earlier / "torch")["steps"] == 60
