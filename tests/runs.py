"""Short runs, and how they are stopped and looked at."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from minicoca import params
from minicoca.config import preset
from minicoca.data import shapes
from minicoca.engine import train as engine_train
from minicoca.reference import train as reference_train
from minicoca.relatives import specs_of
from minicoca.tokenizer import Tokenizer
from minicoca.training import patience
from minicoca.training.checkpoint import save_config
from minicoca.training.run import train

SHORT = dict(steps=14, checkpoint_every=5, evaluate_every=6, batch_size=8, warmup=3, image_layers=1)
SEALS = ("minicoca", "of", "sha256")
AWAY = patience.AWAY
load = shapes.load
TRAINERS = {"torch": engine_train.Trainer, "numpy": reference_train.Trainer}


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    """60 scenes instead of 60,000."""
    load = shapes.load
    monkeypatch.setattr(shapes, "load", lambda seed, side, *_: load(seed, side, 60, 20))


def short(**changes):
    return preset("tiny", **{**SHORT, **changes})


def untrained(folder, spread=0.0, **changes):
    """A run folder as training leaves it, but for the training; its weights moved at random by so
    much."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [own[0] for own in load(0, 32, 60, 20).train.captions]
    tokenizer = Tokenizer.train(texts, 64)
    config, rng = short(vocabulary=tokenizer.vocab_size, **changes), np.random.default_rng(0)
    tree = params.initialise(config, tree=specs_of(config))
    moved = lambda a: np.float32(a + spread * rng.standard_normal(a.shape))  # noqa: E731
    tokenizer.save(folder / "tokenizer.model")
    save_config(config, folder)
    params.save(folder / "model.safetensors", params.tree_map(moved, tree), config)
    return config


def edited(folder, **changes):
    """The settings of a run changed by hand, without its seal."""
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if k not in SEALS}))


def silent(config, folder, **how):
    folder.mkdir(exist_ok=True)
    return train(config, folder, say=lambda text: None, **how)


class Clock:
    """Time that passes only while training waits for what is away."""

    def __init__(self, monkeypatch, away=AWAY):
        self.now, self.over = 1000.0, False
        monkeypatch.setattr(patience, "time", self)
        monkeypatch.setattr(patience, "Event", lambda: self)
        monkeypatch.setattr(patience, "AWAY", away)

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        assert 0 < seconds <= 5
        self.now += seconds

    def set(self):
        self.over = True

    def is_set(self):
        return self.over


def tensors(folder, name):
    return params.load(folder / name)[0]


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        for name in ("seconds", "throughput", "check"):
            record.pop(name, None)
    return records


def stop_after(monkeypatch, backend, step):
    """Press Ctrl-C while the given step is computed."""
    original = TRAINERS[backend].step

    def pressed(self, number, images, tokens):
        report = original(self, number, images, tokens)
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)
        return report

    monkeypatch.setattr(TRAINERS[backend], "step", pressed)


def noisy_pictures(folder, count):
    """A folder of random pictures, 0.png to the last, of which 1.png is none."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"no picture")
