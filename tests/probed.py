"""What the towers of relatives know when one thing about them is changed, for FAMILY.md:
`python tests/probed.py colours|masks [SEED ...]`, minutes. h is the mean of the tower's tokens, z
what SimCLR's projector makes of it for its loss."""

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


def changed(objective, name, value, **flags):
    return flags | {"objective": objective, "settings": ((name, value),)}


STEPS = 600
EXPERIMENTS = {
    "colours": {f"colours {x:g}": changed("simclr", "colours", x) for x in (0.0, 0.5, 1.0, 1.9)},
    "masks": {
        f"{(32 // size) ** 2} patches, {'with' if masks else 'without'}": changed(
            "mae", "mask_tokens", masks, patch_size=size
        )
        for size in (8, 4)
        for masks in (False, True)
    },
}


def probed(folder, seed, side=32):
    """{vector: {what is asked: how often it is told right}} of a run."""
    model, _ = load_model(folder)

    def h(images):
        return features(model, images)[1][:, 0].mean(1, keepdims=True)

    def z(images):
        given = model.params["projector"], model.config.gelu
        with torch.no_grad():
            return projector(torch.from_numpy(h(images)), *given).numpy()

    asked = (h, z) if "projector" in model.params else (h,)
    return {own.__name__: probes.by_labels(own, seed, side) for own in asked}


def lines(experiment, seeds):
    """A line of Markdown a change and vector, as it is found."""
    with tempfile.TemporaryDirectory() as folder:
        for label, flags in EXPERIMENTS[experiment].items():
            found = []
            for seed in seeds:
                run = Path(folder) / f"{label} {seed}"
                trained(settings(Row("", flags), "shapes", seed, STEPS), run, lambda text: None)
                found.append(probed(run, seed))
            for vector in found[0]:
                cells = [[100 * own[vector][f"probe_{k}"] for own in found] for k in probes.ASPECTS]
                told = (f"{sum(x) / len(x):.1f} ({min(x):.1f} to {max(x):.1f})" for x in cells)
                yield f"| {label}, {vector} | {' | '.join(told)} |"


if __name__ == "__main__":
    experiment, *seeds = sys.argv[1:]
    print(f"| | {' | '.join(probes.ASPECTS)} |\n|---|---|---|---|", flush=True)
    for line in lines(experiment, [*map(int, seeds)] or [0, 1, 2]):
        print(line, flush=True)
