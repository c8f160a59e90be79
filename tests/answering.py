"""Which relatives answer questions that they write on from, where what they learned to write was
questions with their answers, for FAMILY.md: `python tests/answering.py [SEED ...]`, minutes.

No head, and no task: a caption is "what colour is the star ? red", and a model that is given its
beginning writes the rest."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from minicoca import data
from minicoca.data import Pairs, asked_shapes
from minicoca.family.measure import settings, trained
from minicoca.family.rows import Row
from minicoca.tasks.questions import written
from minicoca.training.checkpoint import load_model

STEPS, SIDE, BATCH = 5000, 32, 256
ROWS = {
    "SimVLM": {"objective": "simvlm"},
    "CapPa": {"objective": "cappa"},
    "the captioning loss alone": {"contrastive_weight": 0.0},
    "GPT, which sees no picture": {"objective": "gpt"},
}


def as_captions(dataset):
    """Pictures whose captions are the questions about them, each with its answer."""

    def split(questions):
        captions = [() for _ in range(len(questions.pictures))]
        for row, own in zip(questions.about, questions.captions, strict=True):
            captions[row] += own
        asked = [row for row, own in enumerate(captions) if own]
        images = questions.pictures.images[asked]
        return Pairs(images, tuple(captions[row] for row in asked))

    return replace(
        dataset, train=split(dataset.train), validation=split(dataset.validation), evaluations={}
    )


def answered(folder, questions):
    """{kind, or "all": how many of a split's questions get their answer, in per cent}."""
    model, tokenizer = load_model(folder)
    right = []
    for first in range(0, len(questions), BATCH):
        rows = np.arange(first, min(first + BATCH, len(questions)))
        said = written(
            model, tokenizer, questions.batch(rows), [questions.questions[r] for r in rows]
        )
        right += [text == questions.answers[r][0] for text, r in zip(said, rows, strict=True)]
    right, kinds = 100 * np.array(right), np.array(questions.kinds)
    return {"all": right.mean()} | {kind: right[kinds == kind].mean() for kind in sorted({*kinds})}


def lines(seeds):
    """A line of Markdown a row and split, as it is found."""
    with tempfile.TemporaryDirectory() as folder:
        for label, flags in ROWS.items():
            found = {}
            for seed in seeds:
                dataset, run = (
                    asked_shapes.of_shapes("questions", seed, SIDE),
                    Path(folder) / f"{label} {seed}",
                )
                own = settings(Row("", flags | {"text_length": 24}), "shapes", seed, STEPS)
                with mock.patch.object(data, "load", lambda *given, d=dataset: as_captions(d)):
                    trained(own, run, lambda text: None)
                for split, questions in dataset.evaluations.items():
                    found.setdefault(split, []).append(answered(run, questions))
            for split, own in found.items():
                cells = []
                for kind in own[0]:
                    values = [one[kind] for one in own]
                    ends = f" ({min(values):.1f} to {max(values):.1f})" if len(own) > 1 else ""
                    cells.append(f"{kind} {np.mean(values):.1f}{ends}")
                yield f"| {label}, {split} | {' | '.join(cells)} |"


if __name__ == "__main__":
    for line in lines([*map(int, sys.argv[1:])] or [0, 1, 2]):
        print(line, flush=True)
