"""What SimCLR's two vectors keep of an image, by how far the colours of its views are changed:
`python tests/tinted.py [SEED ...]`, minutes. h is the mean of the tower's tokens, z what the
projector makes of it for the loss."""

import sys
import tempfile
from pathlib import Path

import torch

from minicoca.engine.relatives.simclr import projector
from minicoca.family import probes
from minicoca.family.measure import settings, trained
from minicoca.family.rows import Row
from minicoca.tasks.probe import features
from minicoca.training.checkpoint import load_model

STRENGTHS, STEPS = (0.0, 0.5, 1.0, 1.9), 600


def probed(folder, seed, side=32):
    """{vector: {what is asked: how often it is told right}} of a run of SimCLR."""
    model, _ = load_model(folder)

    def h(images):
        return features(model, images)[1][:, 0].mean(1, keepdims=True)

    def z(images):
        given = model.params["projector"], model.config.gelu
        with torch.no_grad():
            return projector(torch.from_numpy(h(images)), *given).numpy()

    return {own.__name__: probes.by_labels(own, seed, side) for own in (h, z)}


def lines(seeds):
    """A line of Markdown a strength and vector, as it is found."""
    with tempfile.TemporaryDirectory() as folder:
        for strength in STRENGTHS:
            row = Row("", {"objective": "simclr", "settings": (("colours", strength),)})
            found = []
            for seed in seeds:
                run = Path(folder) / f"{strength} {seed}"
                trained(settings(row, "shapes", seed, STEPS), run, lambda text: None)
                found.append(probed(run, seed))
            for vector in found[0]:
                cells = [[100 * own[vector][f"probe_{k}"] for own in found] for k in probes.ASPECTS]
                told = (f"{sum(x) / len(x):.1f} ({min(x):.1f} to {max(x):.1f})" for x in cells)
                yield f"| {strength:g}, {vector} | {' | '.join(told)} |"


if __name__ == "__main__":
    print(f"| strength, vector | {' | '.join(probes.ASPECTS)} |\n|---|---|---|---|", flush=True)
    for line in lines([*map(int, sys.argv[1:])] or [0, 1, 2]):
        print(line, flush=True)
