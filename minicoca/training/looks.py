"""What advice rests on that no step tells: a look at validation, and whose the gradient is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from ..config import Config
from ..data.questions import Looks
from ..images import ReadError
from ..tasks.captioning import caption
from ..tasks.questions import batch_of
from ..words import words_of
from .meter import floor_of

FEW, MOST = 64, 256  # validation pictures that are captioned and embedded; whose loss is taken
Numbers = dict[str, float]


def looked(model: Any, tokenizer: Any, pairs: Any, step: int, own: tuple | None) -> Numbers:
    """Of the step's batch `gradient_NAME`, the norm of the gradient of each loss times its weight;
    of validation what `of_validation` gives, unless there is none, or it cannot be read, or numbers
    in it are not finite. What the trainer learns is the same, to the last bit.

    own: (trainer, images, texts) of the step; None where several processes have a part of it each,
    and then no gradients are told."""
    found = {}
    if own:
        found = {f"gradient_{k}": v for k, v in gradient_norms(own[0], step, *own[1:]).items()}
    if pairs is None or not len(pairs):
        return found
    try:
        return found | of_validation(model, tokenizer, pairs)
    except (ValueError, ReadError):  # which the next step, or the evaluation, will say
        return found


def of_validation(model: Any, tokenizer: Any, pairs: Any) -> Numbers:
    """Losses, in the mean over batches as large as a training step's, the contrastive one and its
    `contrastive_floor` only where there are so many pairs. Of the first FEW pairs (`looked_at`):
    `image_rank` and `text_rank`, the `effective_rank` of vectors; `alike`, the share of the written
    captions that are the most frequent one, and `looping`, in which words repeat; `alike_truth` and
    `looping_truth` of what was to be written."""
    config, found = model.config, losses(model, tokenizer, pairs)
    if config.task != "captions":
        return found
    rows = np.arange(min(FEW, len(pairs)))
    images = pairs.batch(rows)
    truth = [pairs.captions[row][0] for row in rows]
    if config.compares:
        tokens = tokenizer.encode(truth, config.text_length)
        found["image_rank"] = effective_rank(model.embed_images(images))
        found["text_rank"] = effective_rank(model.embed_texts(tokens))
    if config.writes:
        for name, own in (("", caption(model, tokenizer, images)), ("_truth", truth)):
            found[f"alike{name}"] = max(Counter(own).values()) / len(own)
            found[f"looping{name}"] = sum(map(loops, own)) / len(own)
    return found | {"looked_at": len(rows)}


def losses(model: Any, tokenizer: Any, pairs: Any) -> Numbers:
    config, totals = model.config, Counter()
    asks = config.task != "captions"
    pairs = Looks(pairs) if asks else pairs
    there = len(pairs.captions)
    size = min(config.batch_size, there)
    batches = max(1, min(MOST, there) // size)
    for i in range(batches):
        rows = np.arange(i * size, (i + 1) * size)
        images = pairs.batch(rows)
        if asks:
            texts = batch_of(tokenizer, config, pairs, rows, i)
        else:
            said = [pairs.captions[row][0] for row in rows]
            texts = tokenizer.encode(said, config.text_length)
            totals["contrastive_floor"] += floor_of(texts)
        totals.update(weigher(config).losses(model, images, texts))
    if config.objective == "coca":  # whose losses say more, each by itself
        del totals["loss"]
    if size < config.batch_size:  # a loss among fewer is another
        del totals["contrastive"], totals["contrastive_floor"]
    return {name: value / batches for name, value in totals.items()}


def gradient_norms(trainer: Any, step: int, images: np.ndarray, texts: Any) -> Numbers:
    """{name: norm of the gradient of this loss times its weight} of what learns."""
    config = trainer.config
    if config.objective != "coca":
        return {}
    kinds = ("contrastive" if config.task == "captions" else "answer", "caption")
    kinds = [kind for kind in kinds if getattr(config, f"{kind}_weight")]
    others = {kind: {f"{other}_weight": 0.0 for other in kinds if other != kind} for kind in kinds}
    alone = {kind: replace(config, **own) for kind, own in others.items()}
    return weigher(config).gradient_norms(trainer, alone, step, images, texts)


def weigher(config: Config) -> Any:
    """The module of the config's backend that weighs losses."""
    if config.backend == "numpy":
        from ..reference import weigh
    else:
        from ..engine import weigh
    return weigh


def effective_rank(vectors: np.ndarray) -> float:
    """In how many directions vectors [n, E] lie: exp of the entropy of their singular values,
    scaled to sum 1 (Roy and Vetterli 2007). 1 where all are multiples of one, at most min(n, E)."""
    values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    p = values / values.sum()
    return float(np.exp(-(p * np.log(np.maximum(p, 1e-300))).sum()))


def loops(text: str) -> bool:
    """Whether up to four words stand there three times running."""
    words = words_of(text)
    return any(
        words[i : i + n] == words[i + n : i + 2 * n] == words[i + 2 * n : i + 3 * n]
        for n in range(1, 5)
        for i in range(len(words) - 3 * n + 1)
    )
