"""What a model forgets when it learns one thing more, and what a locked tower keeps: the guide's
tables, in runs of minutes. `python tests/forgetting.py forget|lock|grid|few shapes|emoji [SEED ..]`
"""

import csv
import itertools
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from minicoca import params
from minicoca.config import from_dict
from minicoca.data import load, shapes
from minicoca.data.pairs import Pairs
from minicoca.evaluate import evaluate
from minicoca.params import flatten
from minicoca.reference.losses import contrastive_loss
from minicoca.tasks import embed_texts
from minicoca.training.checkpoint import WEIGHTS, find_run, load_model, read_config
from minicoca.training.run import train
from minicoca.tuning import named

TRAIN, TESTED, STEPS, BATCH = 6000, 500, 300, 64
FEW = 100, 300, 1000  # pairs
PLACES, RELATIONS = tuple(shapes.PLACES), ("left of", "right of", "above", "below")


def as_written(text):
    return text


def turned_round(text):
    """The same words, the other way round: what a scene's thing stands in relation to comes first;
    of an emoji's name the last word."""
    starts = [text.find(f" {words}") for words in (*PLACES, *RELATIONS)]
    if first := min((start for start in starts if start > 0), default=0):
        return f"{text[first + 1 :]} {text[:first]}"
    return " ".join(reversed(text.split()))


def data_of(base):
    """(what is learned from, what is tested) of what a base was trained on."""
    if base == "emoji":
        dataset = load(read_config(find_run(base)))
        return dataset.train, dataset.evaluations["held_out"]
    dataset = shapes.load(0, 32, TRAIN, TESTED)
    return dataset.train, dataset.evaluations["held_out"]


def changed(pairs, style, negative=False):
    """Pairs with their captions, and those of the zero-shot task, in a style."""
    captions = tuple(tuple(map(style, own)) for own in pairs.captions)
    task = pairs.zero_shot
    if task:
        prompts = tuple(tuple(map(style, own)) for own in task.prompts)
        task = replace(task, prompts=prompts)
    return replace(pairs, images=pairs.images ^ 255 * negative, captions=captions, zero_shot=task)


def written(folder, pairs):
    """Pairs as a person has them: pictures and a CSV; its path."""
    path = folder / "captions.csv"
    folder.mkdir()
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for i, (image, texts) in enumerate(zip(pairs.images, pairs.captions, strict=True)):
            Image.fromarray(image).save(folder / f"{i}.png")
            rows.writerows([f"{i}.png", text] for text in texts)
    return path


def figures(folder, *tested):
    """Of each split: zero-shot, R@1 of both ways, exact captions; whatever the run's own losses
    were, it is asked to compare and to caption."""
    model, tokenizer = load_model(folder)
    model.config = replace(model.config, contrastive_weight=1.0, caption_weight=1.0)
    found = []
    for pairs in tested:
        own, _ = evaluate(model, tokenizer, pairs, 0, ())
        names = ("zero_shot_top1", "image_to_text_r1", "text_to_image_r1", "caption_exact")
        found.append([100 * own[name] for name in names])
    return np.array(found)


def tuned(base, folder, source, seed, scratch=False, **changes):
    """A run folder that begins with the base's weights, or with first values of the same model."""
    earlier = read_config(find_run(base))
    settings = {
        "init": "" if scratch else str(find_run(base)),
        "data": str(source), "steps": STEPS, "warmup": 30, "learning_rate": 1e-3, "seed": seed,
        "validation_part": 0.01, "held_out_part": 0.01, "evaluate_every": 0,
    }  # fmt: skip
    config = from_dict({**earlier.to_dict(), **settings, **changes})
    train(config, folder, say=lambda text: None, command="")
    before, after = (flatten(params.load(find_run(f) / WEIGHTS)[0]) for f in (base, folder))
    assert all((before[name] == after[name]).all() for name in named("freeze", after, config))
    return folder


def forget(base, seeds):
    """Trained on with the captions that it knows, at the rate that it learned them with and at a
    third of it."""
    losses = {"captioning loss alone": dict(contrastive_weight=0.0), "both losses": {}}
    peak = read_config(find_run(base)).learning_rate
    learned, tested = data_of(base)
    rows = {"before": [figures(find_run(base), tested)]}
    with tempfile.TemporaryDirectory() as folder:
        source = written(Path(folder) / "data", learned)
        for seed, rate in itertools.product(seeds, (peak, peak / 3)):
            for name, changes in losses.items():
                name = f"{name}, rate {rate:.3f}"
                own = Path(folder) / f"{name} {seed}"
                tuned(base, own, source, seed, learning_rate=rate, **changes)
                keep(rows, name, figures(own, tested), seed)
    return rows


LOCKS = {
    "from scratch": dict(scratch=True),
    "nothing locked": {},
    "image tower locked": dict(freeze="image"),
    "text tower locked": dict(freeze="text"),
}
IMAGE, TEXT = "image,pooler", "text,decoder"
GRID = {  # LiT's: image, then text; L of the base and locked, U of the base, u from scratch
    "Lu": dict(init_parts=IMAGE, init_decay=0.0, freeze=IMAGE),
    "Uu": dict(init_parts=IMAGE, init_decay=0.0),
    "uL": dict(init_parts=TEXT, init_decay=0.0, freeze=TEXT),
    "uU": dict(init_parts=TEXT, init_decay=0.0),
}


def lock(base, seeds, ways=LOCKS):
    """One side of the data is new, captions turned round or pictures in negative; a tower, or
    neither, is locked, or begins anew. Asked for the new ones."""
    learned, tested = data_of(base)
    sides, rows = {"captions": (turned_round,), "pictures": (as_written, True)}, {}
    with tempfile.TemporaryDirectory() as folder:
        for side, how in sides.items():
            written(Path(folder) / side, changed(learned, *how))
            found = figures(find_run(base), changed(tested, *how))
            keep(rows, f"new {side}: before", found, "-")
        for seed in seeds:
            for (side, how), (name, changes) in itertools.product(sides.items(), ways.items()):
                own = Path(folder) / f"{side} {name}{seed}"
                tuned(base, own, Path(folder) / side / "captions.csv", seed, **changes)
                keep(rows, f"new {side}: {name}", figures(own, changed(tested, *how)), seed)
    return rows


def few(base, seeds):
    """Of new captions few pairs, and the contrastive loss alone: figures of the new kind, and the
    loss of the pairs that were learned and of those that were not."""
    learned, tested = (changed(pairs, turned_round) for pairs in data_of(base))
    ways, rows = {"Lu": GRID["Lu"], "Uu": GRID["Uu"], "uu": LOCKS["from scratch"]}, {}
    with tempfile.TemporaryDirectory() as folder:
        for pairs, seed in itertools.product(FEW, seeds):
            known = Pairs(learned.images[:pairs], learned.captions[:pairs])
            source = written(Path(folder) / f"{pairs} {seed}", known)
            for name, changes in ways.items():
                own = Path(folder) / f"{pairs} {name} {seed}"
                tuned(base, own, source, seed, caption_weight=0.0, **changes)
                losses = [contrast(own, part) for part in (known, tested)]
                found = [*figures(own, tested)[0][:3], *losses]
                keep(rows, f"{pairs} pairs: {name}", np.array(found), seed)
    return rows


def contrast(folder, pairs):
    """A run's contrastive loss of pairs, the mean of batches of BATCH."""
    model, tokenizer = load_model(folder)
    temperature = params.load(folder / WEIGHTS)[0]["log_temperature"]
    losses = []
    for i in range(0, len(pairs) - BATCH + 1, BATCH):
        texts = [own[0] for own in pairs.captions[i : i + BATCH]]
        vectors = model.embed_images(pairs.images[i : i + BATCH])
        losses.append(
            contrastive_loss(vectors, embed_texts(model, tokenizer, texts), temperature)[0]
        )
    return float(np.mean(losses))


def keep(rows, name, found, seed):
    rows.setdefault(name, []).append(found)
    print(f"# {name}, seed {seed}: {found.round(2).tolist()}", flush=True)


def table(rows):
    """Mean and spread of the seeds, a line a way."""
    lines = []
    for name, found in rows.items():
        found = np.array(found).reshape(len(found), -1)
        spread = found.std(0, ddof=1) if len(found) > 1 else np.zeros(found.shape[1])
        cells = (f"{m:6.2f} ± {s:4.2f}" for m, s in zip(found.mean(0), spread, strict=True))
        lines.append(f"{name:36}" + "  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    what, base, *seeds = sys.argv[1:]
    experiments = {"forget": forget, "lock": lock, "grid": partial(lock, ways=GRID), "few": few}
    print(table(experiments[what](base, [*map(int, seeds)] or [0, 1, 2])))
