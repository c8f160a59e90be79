"""Classify images into classes that are only named (paper section 4.2.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..words import clean
from . import demand_vectors, embed_texts, shortened
from .captioning import demand_captions
from .files import Fitting, Picture, decoded, embed
from .scoring import counts, log_likelihoods, without_image

BY = ("cosine", "likelihood", "pmi", "both")
RULES = ("best", "mean", "ensemble")
Prompts = Sequence[tuple[str, ...]]  # of each label, all its own


class Classification(NamedTuple):
    """The best label of an image, its probability among all labels (None if it is the only one: 1
    whatever the image shows), the score of each label, and of each prompt of the best one."""

    label: str
    probability: float | None
    scores: dict[str, float]
    evidence: dict[str, float]


def classifier(
    model,
    tokenizer,
    labels: Sequence[str],
    prompts: Prompts,
    by: str = "cosine",
    rule: str = "best",
) -> Callable[[np.ndarray], list[Classification]]:
    """A function of what `Judge` takes: the prompts of the labels are read once. Raises as it."""
    judge = Judge(model, tokenizer, prompts, by, rule)

    def classify(given):
        of_labels, of_prompts = judge(given)
        chances = probabilities(of_labels * judge.sharpness)
        found = []
        for row, each, p in zip(of_labels, of_prompts, chances, strict=True):
            best = int(row.argmax())
            own = each[judge.starts[best] :]
            found.append(
                Classification(
                    labels[best],
                    float(p[best]) if len(labels) > 1 else None,
                    dict(zip(labels, map(float, row), strict=True)),
                    dict(zip(prompts[best], map(float, own), strict=False)),
                )
            )
        return found

    return classify


def classified(
    model, classify: Callable, given: Sequence[Picture], by: str, skipped: list | None, how: Fitting
) -> Iterator[tuple[list, list[Classification]]]:
    """(what could be read, its Classifications) batch by batch; skipped, how: as `files.decoded`.
    classify: a `classifier` of these settings."""
    if by == "cosine":
        batches = embed(model, given, skipped, how)
    else:
        batches = decoded(given, model.config.image_size, skipped, how)
    for kept, seen in batches:
        yield kept, classify(seen)


class Judge:
    """How well each class, given by its prompts, fits an image.

    by: what a prompt scores.
        cosine: of its vector and the image's.
        likelihood: log p(prompt | image) per token, its end counted (minus the paper's Eq. 3, over
            the length).
        pmi: log p(prompt | image) - log p(prompt), as `scoring.without_image` estimates the second.
        both: cosine / temperature + pmi. Either is an estimate of the pointwise mutual information
            of text and image, the first up to a number that is the same for all texts of an image
            (van den Oord et al. 2018, section 2.3); their sum weighs both heads alike.
    rule: what a class makes of its prompts. best: the highest score. mean: the mean of scores
        (Menon and Vondrick 2023, Eq. 1). ensemble: the cosine of the mean of the prompts' vectors
        (Radford et al. 2021, section 3.1.4), which is of cosines alone.

    The best by default, not CLIP's ensemble: a prompt may say more than the class (a place, a
    size), and the mean of such prompts is near no image. Raises ValueError for an unknown name, for
    what does not go together, and for a model that was not trained for it.
    """

    def __init__(self, model, tokenizer, prompts: Prompts, by="cosine", rule="best"):
        for name, value, known in (("by", by, BY), ("rule", rule, RULES)):
            if value not in known:
                raise ValueError(f"{name}={value!r} is none of {', '.join(known)}")
        if rule == "ensemble" and by != "cosine":
            raise ValueError(f"an ensemble is a mean of vectors: by cosine, and not by {by}")
        if by != "cosine":
            demand_captions(model)
        if by in ("cosine", "both"):
            demand_vectors(model)
        self.model, self.by, self.rule = model, by, rule
        self.starts = np.cumsum([0] + [len(group) for group in prompts[:-1]])
        self.sizes = np.array([len(group) for group in prompts])
        texts = [prompt for group in prompts for prompt in group]
        if by in ("cosine", "both"):
            self.temperature = float(np.exp(float(model.params["log_temperature"])))
            self.vectors = embed_texts(model, tokenizer, texts)
        if by != "cosine":
            self.tokens = tokenizer.encode(texts, model.config.text_length)
        if by in ("pmi", "both"):
            self.before = without_image(model, self.tokens)

    @property
    def sharpness(self) -> float:
        """What scores are multiplied by to be logits: the temperature is that of cosines."""
        return 1 / self.temperature if self.by == "cosine" else 1.0

    def __call__(self, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores [n, classes] and [n, prompts] of unit image vectors [n, E] by cosine, otherwise of
        uint8 images [n, side, side, 3]."""
        vectors = given if self.by == "cosine" else None
        if self.by == "both":
            vectors = self.model.embed_images(given)
        cosines = None if vectors is None else vectors @ self.vectors.T
        compared = self.by == "cosine"
        return self.weigh(cosines, None if compared else self.read(given))

    def read(self, images: np.ndarray) -> np.ndarray:
        """log p(prompt | image), [n, prompts]."""
        return log_likelihoods(self.model, images, self.tokens)

    def weigh(self, cosines: Any, sums: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scores [n, classes] and [n, prompts] from cosines and what was `read`, [n, prompts] each;
        None where it is not asked for."""
        if self.by == "cosine":
            each = cosines
        elif self.by == "likelihood":
            each = sums / counts(self.tokens)
        else:
            each = sums - self.before
        if self.by == "both":
            each = each + cosines / self.temperature
        if self.rule == "best":
            return np.maximum.reduceat(each, self.starts, axis=1), each
        means = np.add.reduceat(each, self.starts, axis=1) / self.sizes
        if self.rule == "ensemble":  # of the mean of vectors, the cosine is a mean over its length
            sums = np.add.reduceat(self.vectors, self.starts, axis=0) / self.sizes[:, None]
            means = means / np.linalg.norm(sums, axis=1)
        return means, each


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> Prompts:
    """Per label, its prompts. Raises ValueError for no template, and for one without a place for
    the label."""
    if not templates:
        raise ValueError("no template: give one or more, such as {}")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the label to stand in")
    return [tuple(template.replace("{}", label) for template in templates) for label in labels]


def check_labels(
    model, tokenizer, labels: Sequence[str], prompts: Prompts, shared: bool = False
) -> None:
    """Raises ValueError, naming them, for an empty label or prompt, a label without a prompt, and
    unless prompts may be `shared` for two labels that the model reads as one."""
    for number, label in enumerate(labels, 1):
        if not tokenizer.normalise(label):
            raise ValueError(f"label {number}, {label!r}, is empty; leave it out")
    for label, group in zip(labels, prompts, strict=True):
        if not group or not all(map(tokenizer.normalise, group)):
            raise ValueError(f"the label {shortened(label, 80)} has no sentence, or an empty one")
    length, first = model.config.text_length, {}
    if shared:
        return
    for number, group in enumerate(prompts):
        for prompt, ids in zip(group, tokenizer.encode(group, length), strict=True):
            tokens = tuple(ids[ids != tokenizer.pad])
            other, theirs = first.setdefault(tokens, (number, prompt))
            if other != number:
                both = labels[other], labels[number]
                raise ValueError(_why_one(tokenizer, length, *both, theirs, prompt))


def _why_one(tokenizer, length, label, other, prompt, theirs):
    if label == other:
        return f"the label {shortened(label, 80)} is given twice"
    one = f"the labels {shortened(label, 80)} and {shortened(other, 80)} are one to this model"
    if clean(prompt) == clean(theirs):
        return f"{one}: both give {shortened(prompt, 80)}"
    if tokenizer.normalise(prompt) == tokenizer.normalise(theirs):
        return f"{one}, which folds case and kinds of letters"
    if tokenizer.too_long([prompt, theirs], length):
        return f"{one}, which reads {length} tokens of a text; make them shorter"
    unseen = tokenizer.unseen(prompt) + tokenizer.unseen(theirs)
    return f"{one}, which never saw {', '.join(map(repr, unseen[:4]))}"


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes: [n, classes]."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
