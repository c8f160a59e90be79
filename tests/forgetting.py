"""What a model forgets when it learns one thing more, and what a locked tower keeps: runs of
minutes that print the tables of the guide. `python tests/forgetting.py forget|lock [SEED ...]`."""

import csv
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from minicoca.config import from_dict
from minicoca.data import Pairs, ZeroShot, shapes
from minicoca.evaluate import evaluate
from minicoca.training.checkpoint import find_run, load_model, read_config
from minicoca.training.run import train

TRAIN, TESTED, STEPS = 6000, 500, 300
BASE = "shapes"
PLACES = tuple(shapes.PLACES)
RELATIONS = ("left of", "right of", "above", "below")


def as_written(text):
    return text


def turned_round(text):
    """The same words, the other way round: what the thing stands in relation to comes first."""
    starts = [text.find(f" {words}") for words in (*PLACES, *RELATIONS)]
    first = min(start for start in starts if start > 0)
    return f"{text[first + 1 :]} {text[:first]}"


def split(name, count, style, negative):
    """Scenes as Pairs, with the zero-shot task of shapes in the words of a style."""
    scenes = shapes.scenes(name, count)
    images = np.stack([shapes.draw(scene, 32) for scene in scenes])
    task = shapes._zero_shot(scenes)
    prompts = tuple(tuple(map(style, own)) for own in task.prompts)
    task = ZeroShot(task.names, prompts, task.images, task.labels)
    captions = tuple((style(shapes.caption(scene)),) for scene in scenes)
    return Pairs(255 - images if negative else images, captions, task)


def written(folder, style, negative):
    """A list of training scenes as a person has them: pictures and a CSV; its path."""
    pairs, path = split("train", TRAIN, style, negative), folder / "captions.csv"
    folder.mkdir()
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for i, (image, (text,)) in enumerate(zip(pairs.images, pairs.captions, strict=True)):
            Image.fromarray(image).save(folder / f"{i}.png")
            rows.writerow([f"{i}.png", text])
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


def tuned(folder, source, seed, scratch=False, **changes):
    """A run folder that begins with the base's weights, or with first values of the same model."""
    earlier = read_config(find_run(BASE))
    settings = {
        "init": "" if scratch else str(find_run(BASE)),
        "data": str(source), "steps": STEPS, "warmup": 30, "learning_rate": 1e-3, "seed": seed,
        "validation_part": 0.01, "held_out_part": 0.01, "evaluate_every": 0,
    }  # fmt: skip
    config = from_dict({**earlier.to_dict(), **settings, **changes})
    train(config, folder, say=lambda text: None, command="")
    return folder


def forget(seeds):
    """Fine-tuned on sentences turned round; asked for the old ones and for the new ones."""
    old, new = (split("held_out", TESTED, style, False) for style in (as_written, turned_round))
    ways = {
        "captioning loss alone": dict(contrastive_weight=0.0),
        "both losses": {},
        "both, image encoder frozen": dict(freeze="image,pooler"),
    }
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        source = written(folder / "data", turned_round, False)
        rows = {"before": [figures(find_run(BASE), old, new)]}
        for seed in seeds:
            for name, changes in ways.items():
                own = tuned(folder / f"{name}{seed}", source, seed, **changes)
                rows.setdefault(name, []).append(figures(own, old, new))
                print(f"# {name}, seed {seed}: {rows[name][-1].round(1).tolist()}", flush=True)
    return rows


def lock(seeds):
    """One side of the data is new, sentences turned round or pictures in negative; one tower, or
    neither, is locked. Asked for the new ones."""
    ways = {
        "from scratch": dict(scratch=True),
        "nothing locked": {},
        "image tower locked": dict(freeze="image"),
        "text tower locked": dict(freeze="text"),
    }
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for side, style, negative in (
            ("new sentences", turned_round, False), ("new pictures", as_written, True)
        ):  # fmt: skip
            source = written(folder / side, style, negative)
            new = split("held_out", TESTED, style, negative)
            rows[f"{side}: before"] = [figures(find_run(BASE), new)]
            for seed in seeds:
                for name, changes in ways.items():
                    own = tuned(folder / f"{side} {name}{seed}", source, seed, **changes)
                    found = figures(own, new)
                    rows.setdefault(f"{side}: {name}", []).append(found)
                    print(f"# {side}, {name}, seed {seed}: {found.round(1).tolist()}", flush=True)
    return rows


def table(rows):
    """Mean and spread of the seeds, a line a way."""
    lines = []
    for name, found in rows.items():
        found = np.array(found).reshape(len(found), -1)
        spread = found.std(0, ddof=1) if len(found) > 1 else np.zeros(found.shape[1])
        cells = (f"{m:5.1f} ± {s:3.1f}" for m, s in zip(found.mean(0), spread, strict=True))
        lines.append(f"{name:36}" + "  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    what, *seeds = sys.argv[1:]
    print(table({"forget": forget, "lock": lock}[what]([*map(int, seeds)] or [0, 1, 2])))
