"""Small runs, well and made sick on purpose: a model of 10,000 weights on pictures of four coloured
squares, and captions that name their colours."""

import itertools
import time
from dataclasses import replace

import numpy as np
from runs import TRAINERS

from minicoca.config import preset
from minicoca.data.pairs import Dataset, Pairs
from minicoca.params import initialise
from minicoca.tokenizer import Tokenizer
from minicoca.training.log import Log
from minicoca.training.loop import loop

COLOURS = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255),
    "black": (0, 0, 0), "yellow": (255, 255, 0),
}  # fmt: skip
SMALL = dict(
    image_size=16, patch_size=8, image_width=16, image_layers=1, image_heads=2, image_hidden=32,
    text_width=16, text_heads=2, text_hidden=32, pooler_heads=2, vocabulary=16, text_length=8,
    batch_size=16, steps=300, warmup=20, evaluate_every=100, learning_rate=1e-2, device="cpu",
    weight_decay=0.05, optimizer="adamw", checkpoint_every=1000,
)  # fmt: skip


def squares(count=600, seed=0):
    """(uint8 [n, 16, 16, 3], captions) of different pictures."""
    rng, names = np.random.default_rng(seed), list(COLOURS)
    every = np.array(list(itertools.product(range(len(names)), repeat=4)))
    chosen = every[rng.permutation(len(every))[:count]]
    images = np.array([*COLOURS.values()], np.uint8)[chosen].reshape(count, 2, 2, 3)
    images = images.repeat(8, 1).repeat(8, 2)
    noise = rng.integers(-20, 21, images.shape)
    images = np.clip(images + noise, 0, 255).astype(np.uint8)
    return images, [" ".join(names[colour] for colour in own) for own in chosen]


class Stuck(Pairs):
    """The same pictures, whichever are asked for."""

    def batch(self, indices):
        return super().batch(range(len(indices)))


class Slow(Pairs):
    def batch(self, indices):
        time.sleep(0.05)
        return super().batch(indices)


def dataset(images, captions, held=64, kind=Pairs):
    """The last `held` pairs are validation. kind: of training pairs."""
    texts = [(text,) for text in captions]
    train, validation = (
        one(images[part], tuple(texts[part]))
        for one, part in (
            (kind, slice(len(images) - held)),
            (Pairs, slice(len(images) - held, None)),
        )
    )
    return Dataset("squares", train, validation, {}, (0.5,) * 3, (0.5,) * 3)


def trained(folder, data, backend="torch", **settings):
    """(what is wrong as the run ends, its records)."""
    config = preset("tiny", **{**SMALL, "backend": backend, **settings})
    texts = [*itertools.chain.from_iterable(data.train.captions), " ".join(COLOURS)]
    tokenizer = Tokenizer.train(texts, config.vocabulary)
    config = replace(config, vocabulary=tokenizer.vocab_size)
    trainer = TRAINERS[backend](initialise(config), config)
    folder.mkdir(exist_ok=True)
    log = Log(folder / "metrics.jsonl", 0)
    begun = time.perf_counter()
    given = tokenizer, data, config, folder, 0, begun, log, lambda step: None, []
    return loop(trainer, *given), Log.read(log.path)
