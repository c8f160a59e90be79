"""A training run: data in, a run folder out. The backend's Trainer computes; this keeps the books.

The folder holds config.json, tokenizer.model, metrics.jsonl, resume.safetensors (to go on),
model.safetensors (to use), results.json, at the end pictures of what was learned, and left_out.txt
where files or captions could not be used.
"""

import hashlib
import json
import math
import os
import platform
import shlex
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import data, params
from .config import from_dict
from .data.order import Order, batches
from .evaluate import evaluate
from .report import make_picture, table
from .tokenizer import Tokenizer

GALLERY = {"shapes": 256}  # retrieval among so many pairs; elsewhere among all of a split
LOOK = 256  # validation pairs in a quick look during training
LOG_EVERY = 10


class Stopped(Exception):
    """A run that ended before its last step; the message says why and what to do."""


def new_folder(parent, name):
    """A folder for a run that nothing stands in yet: name, name-2, name-3, ..."""
    for n in range(1, 100_000):
        folder = Path(parent) / (name if n == 1 else f"{name}-{n}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise ValueError(f"{parent}: too many runs named {name}")


def make_trainer(tree, config):
    """The Trainer of the config's backend."""
    if config.backend == "numpy":
        from .reference.train import Trainer
    else:
        from .engine.train import Trainer
    return Trainer(tree, config)


def start(config, folder, say):
    """Make the tokenizer and the first weights: (trainer, tokenizer, dataset, config)."""
    weights = tokenizer = None
    if config.init:
        weights, tokenizer = read_weights(config.init, config)
    dataset = data.load(config)
    texts = all_captions(dataset)
    tokenizer = tokenizer or Tokenizer.train(texts, config.vocabulary, config.tokenizer)
    if (unknown := tokenizer.unknown_share(texts)) > 0.001:
        advice = "the run that --init names had others" if weights else "more fit in --vocabulary"
        say(f"{unknown:.1%} of the words are unknown to the tokenizer; {advice}")
    if config.batch_size > len(dataset.train):
        say(f"batches of {len(dataset.train)}, all the pairs there are")
    if config.warmup >= config.steps:
        say(f"warm-up of {config.steps // 10} steps: {config.warmup} are all there are, or more")
    config = replace(
        config,
        batch_size=min(config.batch_size, len(dataset.train)),
        warmup=config.warmup if config.warmup < config.steps else config.steps // 10,
        vocabulary=tokenizer.vocab_size,
    )
    if not weights:  # else pixels must stay what the weights know
        mean, std = (tuple(map(float, x)) for x in (dataset.mean, dataset.std))
        config = replace(config, pixel_mean=mean, pixel_std=std)
    trainer = make_trainer(weights or params.initialise(config, config.seed), config)
    tokenizer.save(folder / "tokenizer.model")
    save_config(config, folder)
    return trainer, tokenizer, dataset, config


def save_config(config, folder):
    """Write config.json."""
    params.write_atomically(folder / "config.json", json.dumps(config.to_dict(), indent=1).encode())


def all_captions(dataset):
    """Every caption of the training pairs."""
    return [text for own in dataset.train.captions for text in own]


def fingerprint(dataset):
    """Of the training captions and the sizes of image files: to notice that data have changed."""
    paths = getattr(dataset.train, "paths", ())
    sizes = [str(path.stat().st_size) if path.is_file() else "-" for path in paths]
    return hashlib.sha256("\n".join(all_captions(dataset) + sizes).encode()).hexdigest()[:16]


def read_config(folder):
    """The config of a run. Raises ValueError if the folder holds none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.json")
    try:
        return from_dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    dataset = data.load(config)
    if metadata.get("data", fingerprint(dataset)) != fingerprint(dataset):
        raise ValueError(f"{config.data} has changed since {folder} began; it cannot go on exactly")
    done = int(metadata["step"]), float(metadata["seconds"])
    return trainer, tokenizer, dataset, config, *done


def load_model(folder, backend="auto", device="auto"):
    """(CoCa, Tokenizer) of a trained run. Raises ValueError if the folder holds none."""
    config = replace(read_config(folder), backend=backend, device=device)
    weights, tokenizer = read_weights(folder, config)
    if backend == "numpy":
        from .reference.generate import CoCa
    else:
        from .engine.generate import CoCa
    return CoCa(weights, config), tokenizer


def read_weights(folder, config):
    """(weights, Tokenizer) of a finished run. Raises ValueError where they do not fit `config`."""
    folder = Path(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no model.safetensors: its training has not ended; "
            f"go on with: minicoca train --resume {folder}"
        )
    weights, _ = params.load(path)
    params.check(weights, config, path)
    return weights, Tokenizer.load(folder / "tokenizer.model")


def train(config, folder, *, taking_up=False, changes=None, command=None, say=print):
    """Train in `folder`, or take up the run that is there; returns its results as a dict.

    changes: settings to replace when a run is taken up. Raises Stopped if it is interrupted or
    diverges; a checkpoint is kept in either case.
    """
    folder, command = Path(folder), command or shlex.join(["minicoca", *sys.argv[1:]])
    first, seconds = 0, 0.0
    with asked_to_stop() as asked:
        if taking_up:
            trainer, tokenizer, dataset, config, first, seconds = resume(folder, **(changes or {}))
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
                raise Stopped(_diverged(step, {"a weight": math.nan}, folder))
            kept = {"step": step, "seconds": time.perf_counter() - begun, "data": mark}
            params.save(folder / "resume.safetensors", trainer.state(), config, **kept)

        if not taking_up:
            checkpoint(0)
        _loop(trainer, tokenizer, dataset, config, folder, first, begun, log, checkpoint, asked)
    seconds = time.perf_counter() - begun
    params.save(folder / "model.safetensors", trainer.weights(), config)
    results = finish(trainer.model(), tokenizer, dataset, config, folder, seconds, say)
    tell_left_out(dataset, folder, say)
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


def _loop(trainer, tokenizer, dataset, config, folder, first, begun, log, checkpoint, asked):
    """Steps `first` to the last. Raises Stopped."""
    order = Order(dataset.train.captions, config.batch_size, config.seed, config.distinct)

    def encode(texts):
        return tokenizer.encode(texts, config.text_length)

    with tqdm(total=config.steps, initial=first, unit="step", mininterval=0.5) as bar:
        for step, images, tokens in batches(dataset.train, order, encode, first, config.steps):
            report = trainer.step(step, images, tokens)
            if not all(map(math.isfinite, report.values())):
                raise Stopped(_diverged(step, report, folder))
            bar.update()
            if (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
                elapsed = time.perf_counter() - begun
                log.write({"step": step + 1, "seconds": round(elapsed, 3)} | report)
                bar.set_postfix_str(_brief(report), refresh=False)
            last = step + 1 == config.steps
            if config.evaluate_every and (step + 1) % config.evaluate_every == 0 and not last:
                _look(trainer, tokenizer, dataset, step + 1, log, bar)
            if asked or last or (step + 1) % config.checkpoint_every == 0:
                checkpoint(step + 1)
            if asked and not last:
                bar.close()
                raise Stopped(
                    f"stopped after step {step + 1} of {config.steps}; go on with: "
                    f"minicoca train --resume {shlex.quote(str(folder))}"
                )


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
        from .data.emoji import pixel_nearest_neighbour

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
            truth = tokenizer.normalise(pairs.captions[i][0])
            sample = {"split": name, "truth": truth, "caption": captions[name][i]}
            results["samples"].append(sample)
    params.write_atomically(folder / "results.json", json.dumps(results, indent=1).encode())
    say(table(results))
    if not dataset.evaluations:
        say(f"nothing is held out of {len(dataset.train)} images, too few to measure it on")
    for name, texts in captions.items():
        pairs = dataset.evaluations[name]
        say(f"picture:    {make_picture(folder, model, tokenizer, name, pairs, texts)}")
    return results


def machine():
    """What this computer is, in a line."""
    names = [platform.processor() or platform.machine()]
    try:
        cpu = Path("/proc/cpuinfo").read_text()
        names = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{names[0] if names else platform.machine()}, {cores} cores"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def _look(trainer, tokenizer, dataset, step, log, bar):
    """A quick figure on validation pairs, so that a person sees whether it learns."""
    if dataset.validation is None or not len(dataset.validation):
        return
    try:
        figures, _ = evaluate(trainer.model(), tokenizer, dataset.validation, limit=LOOK)
    except ValueError as error:  # no image can be decoded; or NaN, which the next step will find
        bar.write(f"step {step}: no look at validation data: {error}", file=sys.stderr)
        return
    log.write({"step": step, "validation": figures})
    shown = {
        "captions exact": figures.get("caption_exact"),
        "image to text R@1": figures.get("image_to_text_r1"),
    }
    text = ", ".join(f"{name} {value:.1%}" for name, value in shown.items() if value is not None)
    bar.write(f"step {step}: validation {text}", file=sys.stderr)


def _brief(report):
    parts = {"loss": "loss", "contrastive": "contrast", "caption": "caption"}
    return " ".join(
        f"{short} {report[name]:.3f}" for name, short in parts.items() if name in report
    )


def _diverged(step, report, folder):
    bad = next(name for name, value in report.items() if not math.isfinite(value))
    return (
        f"{bad} is {report[bad]} at step {step}; {folder} keeps its last checkpoint. Go on from it "
        f"more carefully: minicoca train --resume {shlex.quote(str(folder))} --learning-rate "
        "(a third of what it was); or begin anew with a longer --warmup or --clip-norm 1"
    )


class Log:
    """Appends to metrics.jsonl; a run taken up at `step` first drops what was logged after it."""

    def __init__(self, path, step):
        self.path = path
        kept = [r for r in self.read(path) if r["step"] <= step] if path.is_file() else []
        params.write_atomically(path, "".join(json.dumps(r) + "\n" for r in kept).encode())

    @staticmethod
    def read(path):
        """The records of a log, up to one that was cut off while it was written."""
        records = []
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    @classmethod
    def first_command(cls, path):
        """The command that began the run."""
        return next((r["command"] for r in cls.read(path) if "command" in r), "")

    def write(self, record):
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")


@contextmanager
def asked_to_stop():
    """A list that is empty until Ctrl-C or a polite kill; a second one ends at once."""
    asked, before = [], {}

    def ask(number, frame):
        signal.signal(number, before[number])
        asked.append(number)
        os.write(2, b"\nstopping after this step; once more to stop at once\n")

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
                before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: whoever runs us handles signals
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
