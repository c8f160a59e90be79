"""Classify images into classes that are only named (paper section 4.2.2)."""

import numpy as np

from . import embed_texts


def class_scores(model, tokenizer, image_vectors, prompts):
    """Cosines [n, classes] of unit image vectors [n, E]: a class scores what its best prompt does.

    The best, not CLIP's mean of prompts: a prompt may say more than the class (a place, a size),
    and the mean of such prompts is near no image.
    """
    text_vectors = embed_texts(model, tokenizer, [p for group in prompts for p in group])
    starts = np.cumsum([0] + [len(group) for group in prompts[:-1]])
    return np.maximum.reduceat(image_vectors @ text_vectors.T, starts, axis=1)


def fill_templates(labels, templates):
    """Per label, its prompts. Raises ValueError for a template without a place for the label."""
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the label to stand in")
    return [tuple(template.replace("{}", label) for template in templates) for label in labels]


def probabilities(scores, log_temperature):
    """Softmax over the classes at the temperature that training settled on: [n, classes]."""
    logits = scores / np.exp(log_temperature)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
