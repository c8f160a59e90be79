"""How well a language model foretells captions, beside what counts and the grammar foretell.

A text's tokens are all but its start: its end is one of them, padding is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..config import PAD, START
from . import BATCH
from .captioning import no_images
from .scoring import counts

NEVER = len({PAD, START})  # ids that never come next


def surprise(model, tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(- log p(text) in nats, float64 [n]; its tokens [n])."""
    nats, sizes = [np.zeros(0)], [np.zeros(0, np.int64)]
    for i in range(0, len(texts), BATCH):
        tokens = tokenizer.encode(texts[i : i + BATCH], model.config.text_length)
        log_p = model.log_likelihoods(no_images(1), tokens)[0]
        nats.append(-log_p.sum(-1, dtype=np.float64))
        sizes.append(counts(tokens))
    return np.concatenate(nats), np.concatenate(sizes)


class Counts:
    """What comes how often after what, in training texts, each as often as it stands there.

    Every token may come next but padding and start: C = vocabulary - 2 of them. Smoothed by adding
    one to each count (Laplace), p(w) = (c(w) + 1) / (N + C) of the N tokens there are, and p(w | v)
    = (c(v, w) + 1) / (c(v) + C) of those that follow v. uniform: p = 1 / C.
    """

    def __init__(self, tokenizer, length: int, texts: Mapping[str, int]):
        self.tokenizer, self.length, self.size = tokenizer, length, tokenizer.vocab_size
        self.alone, pairs = np.zeros(self.size, np.int64), [np.zeros(0, np.int64)]
        self.before, times = np.zeros(self.size, np.int64), [np.zeros(0, np.int64)]
        listed = list(texts)
        for i in range(0, len(listed), BATCH):
            some = listed[i : i + BATCH]
            v_P, w_P, row_P = self._follows(some)
            weight_P = np.array([texts[text] for text in some], np.int64)[row_P]
            np.add.at(self.alone, w_P, weight_P)
            np.add.at(self.before, v_P, weight_P)
            pairs.append(v_P * self.size + w_P)
            times.append(weight_P)
        self.pairs, back = np.unique(np.concatenate(pairs), return_inverse=True)
        self.times = np.zeros(len(self.pairs), np.int64)
        np.add.at(self.times, back, np.concatenate(times))

    def _follows(self, texts):
        """(token, the one after it, whose text's) of texts, padding left out."""
        tokens = self.tokenizer.encode(texts, self.length)
        row_P, at_P = np.nonzero(tokens[:, 1:] != PAD)
        return tokens[row_P, at_P], tokens[row_P, at_P + 1], row_P

    def surprise(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """{"uniform", "unigram", "bigram": - log p(text) in nats, float64 [n]}; without a text to
        count, uniform alone."""
        v_P, w_P, row_P = self._follows(texts)
        choices = self.size - NEVER
        found = {"uniform": np.full(len(w_P), 1 / choices)}
        if len(self.pairs):
            key_P = v_P * self.size + w_P
            place_P = np.searchsorted(self.pairs, key_P).clip(max=len(self.pairs) - 1)
            both_P = np.where(self.pairs[place_P] == key_P, self.times[place_P], 0)
            found["unigram"] = (self.alone[w_P] + 1) / (self.alone.sum() + choices)
            found["bigram"] = (both_P + 1) / (self.before[v_P] + choices)
        return {
            name: np.bincount(row_P, -np.log(p), minlength=len(texts)) for name, p in found.items()
        }
