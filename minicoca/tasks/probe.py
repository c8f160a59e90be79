"""Probes: what can be told from the features of a frozen model with a few labels (paper section
3.3, Table 2)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.labelled import Labelled, Part, drawn
from ..files import make_folder
from ..intervals import intervals
from ..params import compare, load, probe_specs, save, shapes, stream
from . import BATCH
from .indexed import weights_of
from .zero_shot import Classification, check_labels, classifier, fill_templates, probabilities

KINDS = ("knn", "linear", "linear-tokens", "pooler", "unordered")
LINEAR = KINDS[1:3]
NEIGHBOURS, SOFTNESS = 20, 0.07  # of a vote: how many, and what their cosines are divided by
MOST_BYTES = 2 * 2**30  # of tokens that are kept


class Features(NamedTuple):
    """Of images or videos of J frames (an image is one): unit vectors [n, E], tokens of every frame
    [n, J, N, M] (None: not asked for), the class of each, and J."""

    vectors: np.ndarray
    tokens: np.ndarray | None
    labels: np.ndarray
    frames: int = 1

    def take(self, places: np.ndarray) -> Features:
        tokens = None if self.tokens is None else self.tokens[places]
        return Features(self.vectors[places], tokens, self.labels[places], self.frames)

    def read_by(self, kind: str) -> np.ndarray:
        """The vectors that a probe of a kind reads: "linear-tokens" the mean of the tokens."""
        return self.vectors if kind != "linear-tokens" else mean_of(self.tokens)


def mean_of(tokens: np.ndarray) -> np.ndarray:
    """[n, J, N, M] -> [n, M]: the mean of the tokens of all frames."""
    return tokens.mean((1, 2))


def features(model, images: np.ndarray, with_tokens: bool = True) -> tuple[np.ndarray, Any]:
    """(vectors, tokens or None) of uint8 images [n, I, I, 3] or videos [n, J, I, I, 3].

    A vector is the contrastive one; of a video the mean of those of its frames, at length 1 again;
    of a model that was not trained to compare, the mean of the tokens.
    """
    if not model.config.sees:
        raise ValueError(f"objective {model.config.objective} has no image tokens to be probed")
    frames = images.reshape(-1, *images.shape[-3:])
    parts = [model.features(frames[i : i + BATCH]) for i in range(0, len(frames), BATCH)]
    vectors, tokens = (np.concatenate(own) for own in zip(*parts, strict=True))
    if not model.config.compares:
        vectors = tokens.mean(1)
    count = 1 if images.ndim == 4 else images.shape[1]
    vectors = vectors.reshape(len(images), count, -1).mean(1)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors, tokens.reshape(len(images), count, *tokens.shape[1:]) if with_tokens else None


def features_of(model, part: Part, with_tokens: bool) -> Features:
    """Those of a part of the data, each image read once. A damaged image has been replaced by
    another, whose label counts then. Raises ValueError for more than MOST_BYTES of tokens."""
    found, taken, images = [], 0, None
    for i in range(0, len(part), BATCH):
        rows = part.rows[i : i + BATCH]
        images = part.pairs.batch(rows)
        found.append(features(model, images, with_tokens))
        taken += found[-1][1].nbytes if with_tokens else 0
        if taken > MOST_BYTES:
            raise ValueError(
                f"the tokens of {i + len(rows):,} of {len(part):,} images take over "
                f"{MOST_BYTES / 2**30:.0f} GB; give fewer images, or --by knn linear"
            )
    vectors, tokens = zip(*found, strict=True)
    label = dict(zip(part.rows.tolist(), part.labels.tolist(), strict=True))
    labels = np.array([label.get(int(row), -1) for row in part.pairs.shown(part.rows)], np.int64)
    tokens = np.concatenate(tokens) if with_tokens else None
    frames = 1 if images.ndim == 4 else images.shape[1]
    return Features(np.concatenate(vectors), tokens, labels, frames).take(labels >= 0)


class Probe:
    """What was learned of labelled features. kind: of KINDS, "linear-tokens" being one of the mean
    of the tokens, "unordered" a pooler to which the frames of a video have no order; tree: its
    parameters; frames: how many it reads of a video, 1 of an image."""

    def __init__(self, kind: str, tree: dict, classes: Sequence[str], heads: int, frames: int = 1):
        self.kind, self.tree, self.classes = kind, tree, tuple(classes)
        self.heads, self.frames = heads, frames

    @property
    def reads_tokens(self) -> bool:
        return self.kind in KINDS[2:]

    def __call__(self, vectors: np.ndarray, tokens: Any, device: str = "auto") -> np.ndarray:
        """Scores [n, C], logits of a softmax: of vectors [n, E], or of tokens [n, J, N, M]."""
        if self.kind in KINDS[3:]:
            from ..engine.ops import pick_device
            from ..engine.probe import scores

            return scores(tokens, self.tree, self.heads, pick_device(device))
        if self.kind in LINEAR:
            own = self.tree["classifier"]
            vectors = vectors if self.kind == "linear" else mean_of(tokens)
            return vectors @ own["weight"] + own["bias"]
        return np.log(votes(vectors, self.tree["vectors"], self.tree["labels"], len(self.classes)))

    def classify(self, vectors: np.ndarray, tokens: Any, device: str = "auto"):
        """A Classification of each; its scores are logits."""
        logits = self(vectors, tokens, device)
        chances = probabilities(logits.astype(np.float64))
        best = logits.argmax(1)
        found = []
        for b, p, row in zip(best, chances, logits, strict=True):
            own = dict(zip(self.classes, map(float, row), strict=True))
            found.append(Classification(self.classes[b], float(p[b]), own, {}))
        return found


def votes(vectors: np.ndarray, known: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Shares [n, C] of the votes of each vector's nearest known ones, NEIGHBOURS of them or as many
    as there are, each weighing exp(cosine / SOFTNESS) (Wu et al. 2018, section 3.4); a class that
    none is of has what one at the cosine -1 would."""
    cosines = vectors @ known.T
    count = min(NEIGHBOURS, len(known))
    near = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    weight = np.exp((np.take_along_axis(cosines, near, 1) - 1) / SOFTNESS)
    found = np.full((len(vectors), classes), np.exp(-2 / SOFTNESS))
    np.add.at(found, (np.arange(len(vectors))[:, None], labels[near]), weight)
    return found / found.sum(1, keepdims=True)


def fitted(
    kind: str, known: Features, every: np.ndarray, classes: Sequence[str], config, seed: int
) -> Probe:  # fmt: skip
    """A probe of labelled features. every: what it reads (`Features.read_by`) of all images that
    there are to learn from, labelled or not, whose mean and spread a linear probe takes; seed: of a
    pooler, the only one that draws anything."""
    from ..engine.ops import pick_device
    from ..engine.probe import fit_linear, fit_pooler

    heads, frames = config.image_heads, known.frames
    if kind == "knn":
        tree = {"vectors": known.vectors, "labels": known.labels}
    elif kind in LINEAR:
        mean, std = every.mean(0), np.maximum(every.std(0), 1e-6)
        tree = fit_linear(known.read_by(kind), known.labels, len(classes), mean, std)
    else:
        told = frames if kind == "pooler" and frames > 1 else 0
        own = known.tokens, known.labels, len(classes), heads
        tree = fit_pooler(*own, told, seed, pick_device(config.device))
    return Probe(kind, tree, classes, heads, frames)


def right(probe: Probe, tested: Features, device: str = "auto") -> np.ndarray:
    """[n]: which images get their class."""
    return probe(tested.vectors, tested.tokens, device).argmax(1) == tested.labels


def accuracy(right_Kn: np.ndarray) -> dict[str, Any]:
    """The accuracy of K probes, [K, n] being which images each gets right: its mean, its standard
    deviation (None: of one) and the 95 % interval over images drawn anew from these."""
    runs, each = right_Kn.mean(1).tolist(), right_Kn.mean(0)
    ends = intervals(lambda times: {"accuracy": times @ each / times.sum()}, len(each))
    spread = float(np.std(runs, ddof=1)) if len(runs) > 1 else None
    return {
        "accuracy": float(np.mean(runs)), "spread": spread, "interval": ends["accuracy"],
        "runs": runs,
    }  # fmt: skip


def curve(
    kind: str, known: Features, tested: Features, classes: Sequence[str], config,
    shots: Sequence[int | None], seeds: int,
) -> Iterator[tuple[int | None, np.ndarray, Probe]]:  # fmt: skip
    """(shots, which images each draw gets right [K, n], the first seed's probe) of each number of
    shots, None being all: as many draws of labelled images, and of a pooler's first values, as
    there are seeds. Of all images there is one draw, so what draws nothing itself learns once."""
    every = known.read_by(kind)
    for many in shots:
        once = many is None and kind not in KINDS[3:]
        found = []
        for seed in range(1 if once else seeds):
            places = drawn(known.labels, many, stream("order", seed, 0))
            own = fitted(kind, known.take(places), every, classes, config, seed)
            found.append((right(own, tested, config.device), own))
        yield many, np.stack([own for own, _ in found]), found[0][1]


def zero_shot(model, tokenizer, data: Labelled, tested: Features, templates) -> np.ndarray:
    """[n]: which images the names of the classes get right, without a label. Raises ValueError
    where the model cannot tell."""
    prompts = data.prompts or fill_templates(data.classes, templates)
    check_labels(model, tokenizer, data.classes, prompts)
    found = classifier(model, tokenizer, range(len(data.classes)), prompts)(tested.vectors)
    return np.array([one.label for one in found]) == tested.labels


def save_probe(path: str | os.PathLike, probe: Probe, model) -> None:
    """One sealed safetensors file, which says which weights' features it reads. Raises ValueError
    for neighbours, whose parameters would be the images."""
    if probe.kind == "knn":
        raise ValueError("knn has learned nothing to save; save a linear probe or a pooler")
    about = {"kind": probe.kind, "classes": probe.classes, "heads": probe.heads}
    about |= {"frames": probe.frames, "weights": weights_of(model)}
    make_folder(Path(path).absolute().parent)
    save(path, probe.tree, model.config, probe=json.dumps(about))


def load_probe(path: str | os.PathLike, model) -> Probe:
    """The probe in a file. Raises ValueError where it is none, is damaged, or reads the features of
    other weights."""
    found = {}

    def check(there, metadata):
        try:
            found.update(json.loads(metadata["probe"]))
            kind, classes, frames = found["kind"], len(found["classes"]), int(found["frames"])
            told = frames if kind == "pooler" and frames > 1 else 0
            width = there["classifier.weight"][0]
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is no probe; minicoca probe --save makes one") from error
        want = probe_specs(width, classes, told)
        want = want if kind not in LINEAR else {"classifier": want["classifier"]}
        compare(there, shapes(want), path)

    tree, _ = load(path, check)
    if found["weights"] != weights_of(model):
        raise ValueError(
            f"{path} reads the features of other weights than these; give the run that it was "
            "trained on by --run, or train another: minicoca probe"
        )
    return Probe(found["kind"], tree, found["classes"], found["heads"], found["frames"])
