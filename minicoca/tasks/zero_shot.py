"""Classify images into classes that are only named (paper section 4.2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..words import clean
from . import embed_texts, shortened

Prompts = Sequence[tuple[str, ...]]  # of each label, all its own


class Classification(NamedTuple):
    """The best label of an image, its probability among all labels (None if it is the only one: 1
    whatever the image shows), and the cosine of each."""

    label: str
    probability: float | None
    cosines: dict[str, float]


def classifier(
    model, tokenizer, labels: Sequence[str], prompts: Prompts
) -> Callable[[np.ndarray], list[Classification]]:
    """A function of unit image vectors [n, E]: the prompts of the labels are read once.

    Raises ValueError for a model that cannot compare.
    """
    scores = scorer(model, tokenizer, prompts)

    def classify(vectors):
        cosines = scores(vectors)
        chances = probabilities(cosines, float(model.params["log_temperature"]))
        return [
            Classification(
                labels[best := int(row.argmax())],
                float(p[best]) if len(labels) > 1 else None,
                dict(zip(labels, map(float, row), strict=True)),
            )
            for row, p in zip(cosines, chances, strict=True)
        ]

    return classify


def class_scores(model, tokenizer, image_vectors: np.ndarray, prompts: Prompts) -> np.ndarray:
    """Cosines [n, classes] of unit image vectors [n, E]: a class scores what its best prompt does.

    The best, not CLIP's mean of prompts: a prompt may say more than the class (a place, a size),
    and the mean of such prompts is near no image.
    """
    return scorer(model, tokenizer, prompts)(image_vectors)


def scorer(model, tokenizer, prompts: Prompts) -> Callable[[np.ndarray], np.ndarray]:
    """`class_scores` as a function of the image vectors: the prompts are read once."""
    text_vectors = embed_texts(model, tokenizer, [p for group in prompts for p in group])
    starts = np.cumsum([0] + [len(group) for group in prompts[:-1]])
    return lambda vectors: np.maximum.reduceat(vectors @ text_vectors.T, starts, axis=1)


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> Prompts:
    """Per label, its prompts. Raises ValueError for no template, and for one without a place for
    the label."""
    if not templates:
        raise ValueError("no template: give one or more, such as {}")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the label to stand in")
    return [tuple(template.replace("{}", label) for template in templates) for label in labels]


def check_labels(model, tokenizer, labels: Sequence[str], prompts: Prompts) -> None:
    """Raises ValueError, naming them, for an empty label and for two that the model reads as one.

    prompts: those of each label, from `fill_templates`.
    """
    for number, label in enumerate(labels, 1):
        if not tokenizer.normalise(label):
            raise ValueError(f"label {number}, {label!r}, is empty; leave it out")
    length, first = model.config.text_length, {}
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


def probabilities(scores: np.ndarray, log_temperature: float) -> np.ndarray:
    """Softmax over the classes at the temperature that training settled on: [n, classes]."""
    logits = scores / np.exp(log_temperature)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
