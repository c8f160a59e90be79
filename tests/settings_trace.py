"""A tiny run, and everything that it does, stage by stage: what a setting changes shows here."""

import functools
import shutil
from contextlib import ExitStack
from unittest import mock

import numpy as np
import torch
from PIL import Image
from runs import TRAINERS

from minicoca import params
from minicoca.config import preset
from minicoca.data import emoji, emoji_drawings, shapes
from minicoca.engine import ops
from minicoca.engine.train import LOSSES
from minicoca.params import flatten
from minicoca.reference import train as reference_train
from minicoca.training import loop, run

# Nothing here is a default of ours, of torch or of NumPy that a lost setting could fall back to.
TINY = dict(
    image_size=16, patch_size=8, image_width=8, image_layers=1, image_heads=2, image_hidden=12,
    caption_queries=3, pooler="cascade", pooler_heads=2, vocabulary=40, text_length=20,
    text_width=12, text_heads=2, text_hidden=14, steps=3, batch_size=6, warmup=1, seed=5,
    evaluate_every=0, checkpoint_every=90, learning_rate=0.02, epsilon=1e-3, clip_norm=0.0,
)  # fmt: skip

ASKS = dict(task="questions", contrastive_weight=0.0)
FIRST = dict(init="{}/first", vocabulary=30)
COLUMNS = dict(data="{}/columns.csv", image_root="{}/red")
MORE_ROWS = [  # of test_settings.py
    ("task", "questions", "dialogue", "data", dict(contrastive_weight=0.0)),
    ("answer_weight", 0.5, 3.0, "loss step", ASKS),
    ("caption_loss", "all", "answer", "loss step", ASKS),
    ("question_column", "said", "told", "data", COLUMNS | ASKS | dict(answer_column="caption")),
    ("answer_column", "said", "told", "data", COLUMNS | ASKS | dict(question_column="caption")),
    ("per_picture", 1, 3, "batches", ASKS),
    ("scenes", 20, 30, "data", {}),
    ("hide", "image", "question", "data", ASKS),
    ("init_parts", "image", "text,pooler.contrast", "weights last kept", FIRST),
    ("init_decay", 0.5, 3.0, "step last", FIRST | dict(init_parts="image,text.token")),
    ("noise", 0.2, 0.5, "data", dict(data="shapes")),
]

NO_TEXTS = shutil.ignore_patterns("*.txt")

# What a run does, in the order of causes: a setting must change nothing before its own stage.
STAGES = (
    "data", "tokenizer", "weights", "batches", "compiled", "passes", "recomputed", "loss", "norm",
    "rates", "step", "last", "kept", "looks", "checkpoints", "results",
)  # fmt: skip


def places(folder):
    """What settings that are paths can name: pictures with captions, red and blue, a list that fits
    both, with each caption twice, copies; three vendors' emoji; two finished runs."""
    for tint in ("red", "blue"):
        (folder / tint).mkdir()
        for i in range(12):
            image = Image.new("RGB", (16, 16), tint)
            image.putpixel((i, 3), (0, 250, 0))
            image.save(folder / tint / f"{i}.png")
            (folder / tint / f"{i}.txt").write_text(f"A {tint} Thing with a dot at {i}")
    (folder / "copies").mkdir()
    for i in range(12):  # each of six twice
        for suffix in ("png", "txt"):
            shutil.copy(folder / "red" / f"{i % 6}.{suffix}", folder / "copies" / f"{i}.{suffix}")
    lines = [f"{i}.png,thing {i // 2}\n" for i in range(12)]
    (folder / "list.csv").write_text("image,caption\n" + "".join(lines))
    columns = ["image,one,two,caption,said,told,split,left,right"]
    for i in range(12):
        images = ",".join(f"{(k * i + k) % 12}.png" for k in (1, 5, 7))
        splits = ",".join(("train", "test", "val")[i * k % 3] for k in (1, 2, 4))
        columns.append(f"{images},thing {i},a thing {i},the thing {i},{splits}")
    columns = "\n".join(columns).replace("val\n", "train\n")
    (folder / "columns.csv").write_text(columns)
    for tint in ("red", "blue"):
        shutil.copytree(folder / tint, folder / "classes" / tint, ignore=NO_TEXTS)
    for count, vendor in enumerate(("one", "two", "three"), 1):
        (folder / vendor).mkdir()
        for i, key in enumerate(emoji_keys()):
            image = Image.new("RGB", (16, 16), "white")
            for x in range(4 * count):
                image.putpixel((x, i), (60 * count, 0, 0))
            image.save(folder / vendor / f"{key}.png")
    for name, more in dict(first={}, second={"seed": 1}, asks=ASKS).items():
        _ended(folder / name, more)
    _ended(folder / "asks more", ASKS | {"seed": 1})
    for seed, name in enumerate(("tells", "tells more")):
        _ended(folder / name, {"objective": "gpt", "seed": seed})
    return folder


def _ended(folder, more):
    """A finished run."""
    folder.mkdir()
    config = preset("tiny", **TINY | dict(seed=0, vocabulary=30, learning_rate=0.1) | more)
    trace(config, folder)


@functools.cache
def emoji_keys():
    """Seven keys, of which --unseen-names keeps one from training."""
    keys = [f"{point:x}" for point in range(0x1F400, 0x1F900)]
    return [*keys[:6], next(key for key in keys if emoji.is_unseen(key))]


@functools.cache
def few_shapes(seed, side, train=40):
    with mock.patch.object(shapes, "STATISTICS", 8):
        return draw_shapes(seed, side, min(train, 40), 6)


draw_shapes = shapes.load


def small_data():
    """Data in milliseconds: 40 scenes, seven emoji, no package and no font of emoji."""
    names = {key: (chr(int(key, 16)), f"thing {i}") for i, key in enumerate(emoji_keys())}
    patches = (
        mock.patch.object(shapes, "load", few_shapes),
        mock.patch.object(emoji_drawings, "VENDORS", {}),
        mock.patch.object(emoji, "all_names", lambda: names),
        mock.patch.object(emoji, "things", lambda: {"food": tuple(names)}),
    )
    stack = ExitStack()
    for patch in patches:
        stack.enter_context(patch)
    return stack


class Recorder:
    """Stands between a run and its trainer, and writes down what passes."""

    def __init__(self, stack):
        self.seen = {name: [] for name in STAGES}
        self.put = lambda *patch: stack.enter_context(mock.patch.object(*patch))
        for trainer in TRAINERS.values():
            self.put(trainer, "step", self.step_of(trainer.step))
        self.put(reference_train, "objective_of", self.watched(reference_train.objective_of))
        self.put(torch, "compile", lambda function: self.seen["compiled"].append(1) or function)
        self.put(ops, "checkpoint", self.recomputing(ops.checkpoint))
        self.put(run.data, "load", self.data_of(run.data.load))
        self.put(loop, "_look", lambda trainer, t, d, step, *rest: self.seen["looks"].append(step))
        self.put(run, "evaluate", lambda m, t, pairs, *rest: ({"images": 1}, ["x"] * len(pairs)))
        self.put(run, "make_picture", lambda *given: "")
        self.put(params, "save", self.save_of(params.save))

    def data_of(self, load):
        def recorded(config):
            found = load(config)
            for part in (found.train, found.validation, *found.evaluations.values()):
                if part is not None:
                    images = part.batch(range(len(part)))
                    self.seen["data"] += [*map(list, part.captions), images]
                    self.seen["data"] += [part.zero_shot.names if part.zero_shot else ()]
            return found

        return recorded

    def passing(self, objective):
        def recorded(tree, config, batch):
            self.seen["passes"].append(len(batch["images"]))
            return objective(tree, config, batch)

        return recorded

    def watched(self, objective_of):
        def recorded(config):
            forward, backward = objective_of(config)
            return self.passing(forward), backward

        return recorded

    def recomputing(self, checkpoint):
        def recorded(*given, **how):
            self.seen["recomputed"].append(1)
            return checkpoint(*given, **how)

        return recorded

    def step_of(self, original):
        def recorded(trainer, step, images, tokens):
            first = not self.seen["batches"]
            if first:
                self.seen["weights"] = raw(trainer)
                if hasattr(trainer, "objective"):
                    trainer.objective = self.passing(trainer.objective)
            self.seen["batches"] += [images, tokens]
            report = original(trainer, step, images, tokens)
            self.seen["rates"].append(report["learning_rate"])
            self.seen["norm" if first else "last"].append(report["gradient_norm"])
            losses = [report[k] for k in LOSSES if k in report]
            self.seen["loss" if first else "last"] += losses
            if first:
                self.seen["step"] = raw(trainer)
            self.trainer = trainer
            return report

        return recorded

    def save_of(self, original):
        def recorded(path, tree, config, **metadata):
            if path.name == "resume.safetensors":
                self.seen["checkpoints"].append(metadata["step"])
            return original(path, tree, config, **metadata)

        return recorded


def raw(trainer):
    """The weights that learn, as they are: {name: a copy}."""
    leaves = getattr(trainer, "leaves", None) or flatten(trainer.params)
    return {k: np.array(v.tolist(), np.float32) for k, v in leaves.items()}


def trace(config, folder, **how):
    """{stage: what happened there} of a run in an empty folder (or taken up), and its trainer."""
    with small_data(), ExitStack() as stack:
        recorder = Recorder(stack)
        results = run.train(config, folder, say=lambda text: None, command="", **how)
    seen, trainer = recorder.seen, recorder.trainer
    seen["tokenizer"] = (folder / "tokenizer.model").read_bytes()
    seen["last"].append(raw(trainer))
    seen["kept"] = flatten(params.load(folder / "model.safetensors")[0])
    changing = ("train_seconds", "images_per_second", "machine", "date", "folder", "advice")
    seen["results"] = {k: v for k, v in results.items() if k not in changing}
    return seen, trainer


def same(one, other, tolerance=1e-5):
    """Whether two things that were seen are equal; numbers with fractions, nearly."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and one.dtype.kind == "f":
        return one.shape == other.shape and np.allclose(one, other, rtol=tolerance, atol=tolerance)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return np.isclose(one, other, rtol=tolerance) if isinstance(one, float) else one == other
