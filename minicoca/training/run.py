"""A training run: data in, a run folder out. The backend's Trainer computes; this keeps the books.

The folder holds config.json, tokenizer.model, metrics.jsonl, resume.safetensors (to go on),
model.safetensors (to use), results.json, at the end pictures of what was learned, and left_out.txt
where files or captions could not be used.
"""

import json
import math
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import data, params
from ..evaluate import evaluate, nearest_truth, written
from ..report import make_picture, table
from ..tokenizer import Tokenizer
from ..words import clean
from .checkpoint import (
    all_captions,
    fingerprint,
    read_config,
    read_tokenizer,
    read_weights,
    save_config,
    to_run,
)
from .log import Log, machine
from .loop import Stopped, asked_to_stop, diverged, loop

GALLERY = {"shapes": 256}  # retrieval among so many pairs; elsewhere among all of a split


def train(config, folder, *, taking_up=False, changes=None, command=None, say=print):
    """Train in `folder`, or take up the run that is there; returns its results as a dict.

    changes: settings to replace when a run is taken up. Raises Stopped if it is interrupted,
    diverges, or can no longer read or write a file; a checkpoint is kept in each case.
    """
    folder, command = Path(folder), command or shlex.join(["minicoca", *sys.argv[1:]])
    try:
        return _train(config, folder, taking_up, changes or {}, command, say)
    except (KeyboardInterrupt, OSError) as error:
        if not (folder / "resume.safetensors").is_file():
            raise
        said = f"{str(error) or 'interrupted'}; go on from the last checkpoint with: "
        raise Stopped(said + to_run("train", "--resume", folder)) from error


def _train(config, folder, taking_up, changes, command, say):
    first, seconds = 0, 0.0
    with asked_to_stop() as asked:
        if taking_up:
            trainer, tokenizer, dataset, config, first, seconds = resume(folder, **changes)
            save_config(config, folder)  # whoever resumes it again need not repeat the changes
        else:
            trainer, tokenizer, dataset, config = start(config, folder, say)
        if complaint := getattr(trainer, "complaint", ""):
            say(f"warning: {complaint}")
        log = Log(folder / "metrics.jsonl", first)
        if not taking_up:
            log.write({"step": 0, "command": command})
        size = params.count(trainer.weights())
        say(f"{dataset.name}: {len(dataset.train):,} training pairs. {dataset.notes}".strip())
        if cut := tokenizer.too_long(all_captions(dataset), config.text_length):
            say(f"{cut:,} captions are cut at {config.text_length} tokens (--text-length)")
        say(f"{size:,} parameters; {config.steps:,} steps of {config.batch_size} pairs")
        begun, mark = time.perf_counter() - seconds, fingerprint(dataset)

        def checkpoint(step):
            if not all(np.isfinite(x).all() for x in params.flatten(trainer.weights()).values()):
                raise Stopped(diverged(step, {"a weight": math.nan}, folder, config))
            kept = {"step": step, "seconds": time.perf_counter() - begun, "data": mark}
            params.save(folder / "resume.safetensors", trainer.state(), config, **kept)

        if not taking_up:
            checkpoint(0)
        loop(trainer, tokenizer, dataset, config, folder, first, begun, log, checkpoint, asked)
    seconds = time.perf_counter() - begun
    params.save(folder / "model.safetensors", trainer.weights(), config)
    results = finish(trainer.model(), tokenizer, dataset, config, folder, seconds, say)
    tell_left_out(dataset, folder, say)
    return results


def make_trainer(tree, config):
    """The Trainer of the config's backend."""
    if config.backend == "numpy":
        from ..reference.train import Trainer
    else:
        from ..engine.train import Trainer
    return Trainer(tree, config)


def start(config, folder, say):
    """Make the tokenizer and the first weights: (trainer, tokenizer, dataset, config)."""
    weights = tokenizer = None
    if config.init:
        weights, tokenizer = read_weights(config.init, config)
    dataset = data.load(config)
    texts = all_captions(dataset)
    tokenizer = tokenizer or Tokenizer.train(
        texts, config.vocabulary, config.tokenizer, config.fold
    )
    if config.fold and not tokenizer.folds:
        raise ValueError("--fold: the run that --init names keeps captions as written")
    if tokenizer.folds and (folded := sum(tokenizer.normalise(t) != clean(t) for t in texts)):
        say(f"{folded:,} captions are folded (--fold): case and letters are not kept as written")
    if unknown := tokenizer.unknown_share(texts):
        share = f"{unknown:.1%}" if unknown > 0.001 else "under 0.1%"
        advice = "the run that --init names had others" if weights else "more fit in --vocabulary"
        say(f"{share} of the words are unknown to the tokenizer; {advice}")
    if config.batch_size > len(dataset.train):
        say(f"batches of {len(dataset.train)}, all the pairs there are")
    if config.warmup >= config.steps:
        say(f"warm-up of {config.steps // 10} steps: {config.warmup} are all there are, or more")
    config = replace(
        config,
        batch_size=min(config.batch_size, len(dataset.train)),
        warmup=config.warmup if config.warmup < config.steps else config.steps // 10,
        vocabulary=tokenizer.vocab_size,
        fold=tokenizer.folds,
    )
    mean, std = (tuple(map(float, x)) for x in (dataset.mean, dataset.std))
    if weights:  # pixels stay what they know
        earlier = read_config(config.init)
        mean, std = earlier.pixel_mean, earlier.pixel_std
    config = replace(config, pixel_mean=mean, pixel_std=std)
    trainer = make_trainer(weights or params.initialise(config, config.seed), config)
    tokenizer.save(folder / "tokenizer.model")
    save_config(config, folder)
    return trainer, tokenizer, dataset, config


def resume(folder, **changes):
    """Take a run up where its last checkpoint left it: as `start`, and (step, seconds so far)."""
    config = replace(read_config(folder), **changes)
    path = folder / "resume.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder} has no checkpoint to go on from (resume.safetensors)")
    tree, metadata = params.load(path)
    if "params" not in tree or not {"step", "seconds"} <= metadata.keys():
        raise ValueError(f"{path} is not a checkpoint of an unfinished run")
    params.check(tree["params"], config, path)
    trainer = make_trainer(tree["params"], config)
    trainer.load(tree)
    tokenizer = read_tokenizer(folder, config)
    dataset = data.load(config)
    if metadata.get("data", fingerprint(dataset)) != fingerprint(dataset):
        raise ValueError(f"{config.data} has changed since {folder} began; it cannot go on exactly")
    done = int(metadata["step"]), float(metadata["seconds"])
    return trainer, tokenizer, dataset, config, *done


def finish(model, tokenizer, dataset, config, folder, seconds, say=print):
    """Evaluate every held-out split; write results.json, say the table, draw the pictures."""
    results = {
        "train_seconds": round(seconds, 1),
        "steps": config.steps,
        "images_per_second": round(config.steps * config.batch_size / max(seconds, 1e-9), 1),
        "parameters": params.count(params.specs(config)),
        "data": config.data,
        "preset": config.preset,
        "seed": config.seed,
        "backend": config.backend,
        "command": Log.first_command(folder / "metrics.jsonl"),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "folder": str(folder),
        "samples": [],
    }
    if dataset.name == "emoji":
        from ..data.emoji import pixel_nearest_neighbour

        found = pixel_nearest_neighbour(dataset)
        results |= {f"pixel_nearest_neighbour_{name}": value for name, value in found.items()}
    captions = {}
    for name, pairs in dataset.evaluations.items():
        try:
            gallery = GALLERY.get(config.data, 0)
            results[name], captions[name] = evaluate(model, tokenizer, pairs, gallery)
        except ValueError as error:  # images that could be opened, but not decoded
            say(f"{name} is left out: {error}")
            continue
        for i in range(min(4, len(captions[name]))):
            text = captions[name][i]
            truth = nearest_truth(text, written(pairs, i))
            results["samples"].append({"split": name, "truth": truth, "caption": text})
    params.write_atomically(folder / "results.json", json.dumps(results, indent=1).encode())
    say(table(results))
    if not dataset.evaluations:
        say(f"nothing is held out of {len(dataset.train)} images, too few to measure it on")
    for name, texts in captions.items():
        pairs = dataset.evaluations[name]
        say(f"picture:    {make_picture(folder, model, tokenizer, name, pairs, texts)}")
    return results


def tell_left_out(dataset, folder, say):
    """Say which images turned out to be damaged; left_out.txt names all that was not used."""
    splits = (dataset.train, dataset.validation, *dataset.evaluations.values())
    decoded = [pairs for pairs in splits if hasattr(pairs, "report")]
    whole = [text for text in (dataset.left_out, *(p.report(None) for p in decoded)) if text]
    if whole:
        path = folder / "left_out.txt"
        params.write_atomically(path, ("\n".join(whole) + "\n").encode(errors="surrogateescape"))
        say("\n".join([*(p.report() for p in decoded if p.report()), f"left out:   {path}"]))
