"""A training run: data in, a run folder out. The backend's Trainer computes; this keeps the books.

The folder holds config.json, tokenizer.model, metrics.jsonl, resume.safetensors (to go on),
model.safetensors (to use), results.json, and at the end pictures of what was learned.
"""

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

from tqdm import tqdm

from . import data, params
from .config import from_dict
from .data.order import Order, batches
from .evaluate import evaluate
from .report import make_pictures, table
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


def start(config, folder):
    """Make the tokenizer and the first weights: (trainer, tokenizer, dataset, config)."""
    dataset = data.load(config)
    texts = [text for own in dataset.train.captions for text in own]
    tokenizer = Tokenizer.train(texts, config.vocabulary, config.tokenizer)
    config = replace(
        config,
        vocabulary=tokenizer.vocab_size,
        pixel_mean=tuple(map(float, dataset.mean)),
        pixel_std=tuple(map(float, dataset.std)),
    )
    trainer = make_trainer(params.initialise(config, config.seed), config)
    tokenizer.save(folder / "tokenizer.model")
    params.write_atomically(folder / "config.json", json.dumps(config.to_dict(), indent=1).encode())
    return trainer, tokenizer, dataset, config


def read_config(folder):
    """The config of a run. Raises ValueError if the folder is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.json")
    return from_dict(json.loads(path.read_text()))


def resume(folder):
    """Take a run up where its last checkpoint left it: as `start`, and (step, seconds so far)."""
    config = read_config(folder)
    path = folder / "resume.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder} has no checkpoint to go on from (resume.safetensors)")
    tree, metadata = params.load(path)
    trainer = make_trainer(tree["params"], config)
    trainer.load(tree)
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    done = int(metadata["step"]), float(metadata["seconds"])
    return trainer, tokenizer, data.load(config), config, *done


def load_model(folder, backend="torch", device="auto"):
    """(CoCa, Tokenizer) of a trained run. Raises ValueError if the folder holds none."""
    folder = Path(folder)
    config = replace(read_config(folder), backend=backend, device=device)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no model.safetensors: its training has not ended; "
            f"go on with: minicoca train --resume {folder}"
        )
    weights, _ = params.load(path)
    params.check(weights, config, path)
    if backend == "numpy":
        from .reference.generate import CoCa
    else:
        from .engine.generate import CoCa
    return CoCa(weights, config), Tokenizer.load(folder / "tokenizer.model")


def train(config, folder, *, again=False, command=None, say=print):
    """Train (or, with `again`, take up) the run in `folder`; returns its results as a dict.

    Raises Stopped if it is interrupted or diverges; a checkpoint is kept in either case.
    """
    folder = Path(folder)
    first, seconds = 0, 0.0
    if again:
        trainer, tokenizer, dataset, config, first, seconds = resume(folder)
    else:
        trainer, tokenizer, dataset, config = start(config, folder)
    weights = trainer.weights()
    say(f"{dataset.name}: {len(dataset.train):,} training pairs. {dataset.notes}".strip())
    texts = [text for own in dataset.train.captions for text in own]
    if cut := tokenizer.too_long(texts, config.text_length):
        say(f"{cut:,} captions are cut at {config.text_length} tokens (--text-length)")
    say(
        f"{params.count(weights):,} parameters; {config.steps:,} steps of {config.batch_size} pairs"
    )
    begun = time.perf_counter() - seconds

    def checkpoint(step):
        kept = {"step": step, "seconds": time.perf_counter() - begun}
        params.save(folder / "resume.safetensors", trainer.state(), config, **kept)

    order = Order(dataset.train.captions, config.batch_size, config.seed, config.distinct)
    encode = lambda texts: tokenizer.encode(texts, config.text_length)  # noqa: E731
    log = Log(folder / "metrics.jsonl", first)
    bar = tqdm(total=config.steps, initial=first, unit="step", dynamic_ncols=True, mininterval=0.5)
    with bar, asked_to_stop() as asked:
        for step, images, tokens in batches(dataset.train, order, encode, first, config.steps):
            report = trainer.step(step, images, tokens)
            if not all(map(math.isfinite, report.values())):
                checkpoint(step)
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
                    f"stopped after step {step + 1} of {config.steps}; "
                    f"go on with: minicoca train --resume {folder}"
                )
    seconds = time.perf_counter() - begun
    params.save(folder / "model.safetensors", trainer.weights(), config)
    results = finish(trainer.model(), tokenizer, dataset, config, folder, seconds, command)
    say(table(results))
    return results


def finish(model, tokenizer, dataset, config, folder, seconds, command=None):
    """Evaluate every held-out split; write results.json and the pictures."""
    results = {
        "train_seconds": round(seconds, 1),
        "steps": config.steps,
        "images_per_second": round(config.steps * config.batch_size / max(seconds, 1e-9), 1),
        "parameters": params.count(params.specs(config)),
        "data": config.data,
        "preset": config.preset,
        "seed": config.seed,
        "backend": config.backend,
        "command": command or shlex.join(sys.argv),
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
        gallery = GALLERY.get(config.data, 0)
        results[name], captions[name] = evaluate(model, tokenizer, pairs, gallery)
        for i in range(min(4, len(captions[name]))):
            sample = {"split": name, "truth": pairs.captions[i][0], "caption": captions[name][i]}
            results["samples"].append(sample)
    params.write_atomically(folder / "results.json", json.dumps(results, indent=1).encode())
    results["pictures"] = make_pictures(folder, model, tokenizer, dataset, captions)
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
    figures, _ = evaluate(trainer.model(), tokenizer, dataset.validation, limit=LOOK)
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
        f"{bad} is {report[bad]} at step {step}; the weights before it are kept in {folder}. "
        "Try a lower --learning-rate, a longer --warmup, or --clip-norm 1"
    )


class Log:
    """Appends to metrics.jsonl; a run taken up at `step` first drops what was logged after it."""

    def __init__(self, path, step):
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() and step else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        params.write_atomically(path, "".join(line + "\n" for line in kept).encode())

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

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: whoever runs us handles signals
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
