"""Settings and changes of training tried beside what the presets do, never on what is reported:
other seeds than the reported ones and, of emoji, Noto's drawings held out and Twemoji left out.
`python tests/trials.py shapes|emoji [NAME ...] [--seeds 11 12 13] [--keywords FILE]`

--keywords: emojilib's `emoji-en-US.json` (npm), for the trial that bears this name.
"""

import argparse
import json
import tempfile
from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from minicoca import data, params
from minicoca.config import from_dict
from minicoca.data import emoji
from minicoca.engine import losses, train
from minicoca.engine.ops import widened
from minicoca.presets import PRESETS
from minicoca.training import run

BASES = {
    "shapes": PRESETS["tiny"],
    "emoji": PRESETS["emoji"]
    | dict(held_out="noto", exclude="twemoji", batch_size=128, steps=1500, augment=1.0),
}
LOAD = data.load
QUEUE, QUEUE_FROM = 640, 300  # text vectors; the step from which they are negatives
SHOWN = "caption_exact", "zero_shot_top1", "image_to_text_r1", "text_to_image_r1"


def trapezoidal(step, config, flat=0.7):
    """Up, level for `flat` of the steps, and straight down."""
    peak, last = config.learning_rate, config.final_rate
    part = (step - flat * config.steps) / ((1 - flat) * config.steps - 1)
    return peak * min(1, (step + 1) / config.warmup) * (1 - (1 - last) * max(0, part))


def without_output(function):
    """The specs of a layer whose last map begins with zeros."""
    return lambda *sizes: function(*sizes[:-1], 0.0)


class Queue:
    """The contrastive loss with the text vectors of earlier steps as further texts to be told
    from (He et al. 2020), for the images."""

    def __init__(self):
        self.steps, self.past = 0, deque()

    def __call__(self, image_BE, text_BE, log_temperature, ranks=None, counts=None):
        self.steps += 1
        loss = losses.contrastive_loss(image_BE, text_BE, log_temperature)
        if self.past and self.steps > QUEUE_FROM:
            texts = torch.cat([text_BE, *self.past])
            to_texts = widened(image_BE @ texts.T) / log_temperature.exp()
            to_images = widened(text_BE @ image_BE.T) / log_temperature.exp()
            own = torch.arange(len(image_BE))
            sides = (torch.nn.functional.cross_entropy(x, own) for x in (to_texts, to_images))
            loss = 0.5 * sum(sides)
        self.past.append(text_BE.detach())
        if len(self.past) * len(text_BE) > QUEUE:
            self.past.popleft()
        return loss


def with_keywords(words, config):
    """Data whose pairs have emojilib's keywords as a caption, one time in four."""
    found = LOAD(config)
    drawn = {name: character for character, name in emoji.all_names().values()}

    def more(own):
        known = words.get(drawn[own[0]], [])
        spoken = " ".join(word.replace("_", " ") for word in known[1:6])
        return (own[0],) * 3 + (spoken or own[0],)

    captions = tuple(map(more, found.train.captions))
    return replace(found, train=replace(found.train, captions=captions))


def patched(place, **names):
    return lambda: mock.patch.multiple(place, **names)


ZERO = {name: without_output(getattr(params, name)) for name in ("attention", "mlp")}
TRIALS = {  # changes of the preset, and of the code
    "preset": ({}, nullcontext),
    **{f"momentum {x}": (dict(momentum=x), nullcontext) for x in (0.8, 0.9, 0.98)},
    **{f"factor {x}": (dict(muon_rate=x), nullcontext) for x in (1.0, 2.0, 3.0, 5.0)},
    **{f"decay {x}": (dict(weight_decay=x), nullcontext) for x in (0.1, 0.2, 0.3, 0.5, 1.0)},
    "linear": (dict(schedule="linear"), nullcontext),
    "trapezoidal": ({}, patched(train, learning_rate=trapezoidal)),
    "zero maps": ({}, patched(params, **ZERO)),
    "averaged": (dict(ema=0.998), nullcontext),
    "queue": ({}, lambda: mock.patch("minicoca.engine.model.contrastive_loss", Queue())),
    "augment 1.3": (dict(augment=1.3), nullcontext),
    "keywords": ({}, None),
}


def figures(base, name, seed, words):
    """Of each split: SHOWN, in per cent."""
    changes, change = TRIALS[name]
    change = change or patched(data, load=partial(with_keywords, words))
    settings = {"seed": seed, "evaluate_every": 0, "precision": "float32"}
    with tempfile.TemporaryDirectory() as folder, change():
        config = from_dict(BASES[base] | settings | changes)
        found = run.train(config, Path(folder) / "run", say=lambda text: None, command="trials")
    splits = {s: v for s, v in found.items() if isinstance(v, dict) and SHOWN[0] in v}
    return {split: [100 * own[key] for key in SHOWN] for split, own in splits.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", choices=BASES)
    parser.add_argument("names", nargs="*", default=["preset"], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13])
    parser.add_argument("--keywords", type=Path)
    given = parser.parse_args()
    words = json.loads(given.keywords.read_text("utf-8")) if given.keywords else {}
    for name in given.names:
        found = [figures(given.base, name, seed, words) for seed in given.seeds]
        for split in found[0]:
            own = np.array([one[split] for one in found])
            cells = (
                f"{key} {column.mean():.1f} ± {column.std(ddof=1) if len(own) > 1 else 0:.1f}"
                for key, column in zip(SHOWN, own.T, strict=True)
            )
            seeds = own[:, :2].round(1).tolist()
            print(f"{name:14} {split:14}", "  ".join(cells), seeds, flush=True)


if __name__ == "__main__":
    main()
