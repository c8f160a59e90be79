"""One run of the table: its settings, its training, and what it is measured by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .. import config, data
from ..config import Config
from ..data.order import Order, batches
from ..evaluate import evaluate, of_order, written
from ..files import read_json, write_json
from ..relatives import settings_of
from ..tasks.language import surprise
from ..tasks.probe import features
from ..tasks.word_order import exchanged
from ..training.checkpoint import (
    CHECKPOINT,
    LOG,
    RESULTS,
    known,
    load_model,
    read_config,
    read_results,
)
from ..training.log import Log, machine
from ..training.run import GALLERY, train
from ..training.start import start
from ..tuning import learning
from . import probes
from .rows import ROWS, Row

MEASURED = "family.json"
ORDERED = 300  # held-out scenes whose captions' words are exchanged
LANGUAGE = ("grammar", "bigram", "unigram", "uniform")
FIGURES = {
    "caption_exact": "exact",
    "image_to_text_r1": "image_to_text",
    "text_to_image_r1": "text_to_image",
    "image_to_text_reranked_r1": "reranked_image_to_text",
    "text_to_image_reranked_r1": "reranked_text_to_image",
    "zero_shot_top1": "zero_shot",
    "zero_shot_likelihood_top1": "zero_shot",
    "perplexity": "perplexity",
    **{f"perplexity_{name}": f"perplexity_{name}" for name in LANGUAGE},
}
WEIGHTS = ("contrastive", "caption")


def settings(
    row: Row, of: str, seed: int, steps: int, factor: float = 1.0, init: Path | None = None
) -> Config:
    """The Config of a row on the data `of`, whose rate is `factor` times the preset's. init: the
    run that it begins with, whose tokens it has."""
    made = config.preset({"shapes": "tiny", "emoji": "emoji"}[of], **row.flags, seed=seed)
    own = {"steps": steps, "evaluate_every": steps, "learning_rate": made.learning_rate * factor}
    if init is None:
        return replace(made, **own)
    own |= {name: getattr(made, name) for name in ("objective", "settings", "seed")}
    own["init"] = str(init.absolute())
    return replace(read_config(init), **row.flags | own)


def paces(configs: Mapping[str, Config], rounds: int = 5, steps: int = 12) -> dict[str, float]:
    """Seconds a training step takes of each: the median of rounds, in which all take turns."""
    with TemporaryDirectory() as folder:
        sides = [_stepping(own, Path(folder), steps * (rounds + 1)) for own in configs.values()]
        found: list[list[float]] = [[] for _ in sides]
        for turn in range(rounds + 1):  # the first one warms up
            for i in range(len(sides)):
                place = (i + turn) % len(sides)
                begun = time.perf_counter()
                for _ in range(steps):
                    next(sides[place])
                found[place].append((time.perf_counter() - begun) / steps)
    return {name: median(times[1:]) for name, times in zip(configs, found, strict=True)}


def _stepping(own, folder, steps):
    few = replace(own, scenes=min(own.scenes, 2000), init_parts="", init_decay=1.0)
    trainer, tokenizer, dataset, few = start(few, folder, lambda text: None)
    order = Order(dataset.train.captions, few.batch_size, few.seed, few.distinct and few.reads)
    encode = lambda texts, rows, step: tokenizer.encode(texts, few.text_length)  # noqa: E731
    for step, images, texts in batches(dataset.train, order, encode, 0, steps):
        trainer.step(step, images, texts)
        yield step


def trained(own: Config, folder: Path, say: Callable[[str], None]) -> None:
    """A finished run in the folder: begun, gone on with, or found."""
    if (folder / RESULTS).is_file():
        return
    there = (folder / CHECKPOINT).is_file()
    train(None if there else own, folder, taking_up=there, say=say)


def validation_loss(folder: Path) -> float:
    """What a finished run minimised, of validation."""
    own = read_config(folder)
    look = next(r["look"] for r in reversed(Log.read(folder / LOG)) if "look" in r)
    if "loss" in look:
        return float(look["loss"])
    return sum(getattr(own, f"{name}_weight") * look[name] for name in WEIGHTS if name in look)


def measured(
    name: str, folder: Path, of: str, seed: int, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures of a row on the data `of`: of a finished run, or of what is not trained. Kept in
    its folder."""
    path = folder / MEASURED
    if path.is_file():
        return read_json(path)[0]
    found = {"row": name, "seed": seed, "machine": machine(), "date": time.strftime("%Y-%m-%d")}
    still = ROWS[name].flags is None
    found |= more | (_untrained(name, of, seed) if still else _of_run(folder))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def _untrained(name, of, seed):
    if name == "blind":
        return probes.by_questions(probes.nothing, seed, config.preset("tiny").image_size)
    with TemporaryDirectory() as folder:
        own = settings(Row(""), of, seed, 1)
        trainer, tokenizer, dataset, own = start(own, Path(folder), lambda text: None)
    if name == "random":
        model = trainer.model()
        return _probed(model, dataset) | _evaluated(model, tokenizer, dataset)
    found = _of_tokens(probes.pixels, own, dataset)
    for split, pairs in dataset.evaluations.items():
        alike = probes.by_nearest(probes.pixels, dataset.train, pairs)
        found |= {f"{name}_{split}": value for name, value in alike.items()}
    return found


def _of_run(folder):
    own, results = read_config(folder), read_results(folder)
    found = {"steps": own.steps, "learning_rate": own.learning_rate, "init": Path(own.init).name}
    found |= {name: results[name] for name in ("parameters", "train_seconds")}
    found |= {"learning": learning(own)} | _losses(folder)
    model, tokenizer = load_model(folder)
    dataset = data.load(own)
    if own.sees:
        found |= _probed(model, dataset)
    if own.objective == "vlmo" and settings_of(own).experts:
        found |= probes.by_router(model, tokenizer, own.seed)
    if own.compares or own.writes or own.continues:
        found |= _evaluated(model, tokenizer, dataset)
    return found


def _probed(model, dataset):
    tokens = lambda images: features(model, images)[1][:, 0]  # noqa: E731
    return _of_tokens(tokens, model.config, dataset)


def _of_tokens(tokens, own, dataset):
    """What tokens know: of shapes by labels and questions; of names of things, of which a label is
    learned once a vendor, by the most alike drawing."""
    if own.data == "shapes":
        found = probes.by_labels(tokens, own.seed, own.image_size)
        return found | probes.by_questions(tokens, own.seed, own.image_size)
    alike = (
        (split, probes.by_nearest(tokens, dataset.train, pairs)["exact"])
        for split, pairs in dataset.evaluations.items()
    )
    return {f"nearest_{split}": value for split, value in alike}


def _evaluated(model, tokenizer, dataset):
    found, own = {}, model.config
    by = () if own.compares or own.data != "shapes" else ("likelihood",)
    for split, pairs in dataset.evaluations.items():
        given = model, tokenizer, pairs, GALLERY.get(own.data, 0), known(dataset)
        figures, _ = evaluate(*given, draws=0, by=by)
        found |= {f"{short}_{split}": figures[k] for k, short in FIGURES.items() if k in figures}
        if own.data == "shapes" and split == "held_out":
            references = [written(pairs, i) for i in range(ORDERED)]
            if own.continues:
                found |= _order_unseen(model, tokenizer, references)
            else:
                measure = of_order(model, tokenizer, pairs, references)
                found |= measure(np.ones(len(pairs), np.int64))
    return found


def _order_unseen(model, tokenizer, references):
    """`of_order` of a model that sees no picture: which of two sentences is likelier a token."""
    trials = [
        (text, wrong, kind)
        for own in references
        for text in own
        for kind, wrong in exchanged(text).items()
        if wrong not in own
    ]
    told, wrong, kinds = zip(*trials, strict=True)
    nats, sizes = surprise(model, tokenizer, told + wrong)
    true, other = (nats / sizes).reshape(2, -1)
    won, kinds = true < other, np.array(kinds)
    return {f"order_{k}_likelihood": float(won[kinds == k].mean()) for k in np.unique(kinds)}


def _losses(folder):
    """Training's at the end and validation's, of the losses that both tell."""
    records = Log.read(folder / LOG)
    look = next(r["look"] for r in reversed(records) if "look" in r)
    last = [r for r in records if "learning_rate" in r][-10:]
    shared = [name for name in ("loss", *WEIGHTS) if name in look and name in last[-1]]
    found = {f"trained_{name}": float(np.mean([r[name] for r in last])) for name in shared}
    return found | {f"validation_{name}": float(look[name]) for name in shared}
