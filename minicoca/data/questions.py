"""Questions about pictures, in one form wherever they come from.

A row is a question, not a picture, and a picture has several. Every question has its answers as
often as people gave them, and a kind, by which figures are told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from minicoca.words import clean

GREY = 128  # what a hidden picture is
MOST_ANSWERS = 3129  # of those that training gives, the classes of the head (as the paper has them)


def asked(text: str) -> str:
    """A question as the model reads it: its end is a word of its own, however it was written."""
    return f"{clean(text).rstrip('? ')} ?".lstrip()


class Questions:
    """One split; stands in for Pairs, with questions and their answers for captions.

    pictures: whatever gives images by their rows, as Pairs does. about: [n], the picture of each
    question, or [n, 2], of pairs. hide: "image" shows grey in place of every picture, "question"
    asks nothing but "?": what can still be answered then, the data give away.
    """

    zero_shot = same = None

    def __init__(
        self,
        pictures,
        about: Sequence[int] | np.ndarray,
        questions: Sequence[str],
        answers: Sequence[tuple[str, ...]],
        kinds: Sequence[str],
        hide: str = "none",
    ):
        self.pictures, self.about, self.hide = pictures, np.asarray(about, np.int64), hide
        self.questions = ["?" if hide == "question" else asked(text) for text in questions]
        self.answers, self.kinds = list(answers), list(kinds)

    @cached_property
    def captions(self) -> list[tuple[str, ...]]:
        """What training reads: the question with each of its answers."""
        rows = zip(self.questions, self.answers, strict=True)
        return [tuple(f"{question} {answer}" for answer in own) for question, own in rows]

    def __len__(self) -> int:
        return len(self.questions)

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The pictures at `indices` [B], uint8 [B, side, side, 3], or [B, 2, side, side, 3]."""
        about = self.about[np.asarray(indices, np.int64)]
        images = self.pictures.batch(about.ravel())
        images = images.reshape(*about.shape, *images.shape[1:])
        return np.full_like(images, GREY) if self.hide == "image" else images

    def shown(self, indices: np.ndarray) -> np.ndarray:
        """After `batch`: the questions that belong to what was given. Where another picture stands
        in for a damaged one, the first of that one's own."""
        indices = np.asarray(indices, np.int64)
        about = self.about[indices]
        there = self.pictures.shown(about.ravel()).reshape(about.shape)
        if np.array_equal(about, there):
            return indices
        return np.where(about == there, indices, [self._first[int(row)] for row in there])

    @cached_property
    def _first(self) -> dict[int, int]:
        first: dict[int, int] = {}
        for row, picture in enumerate(self.about):
            first.setdefault(int(picture), row)
        return first

    def guesses(self) -> dict[str, str]:
        """{question: its most frequent answer}, and that of all questions for ""."""
        counts: dict[str, Counter] = {"": Counter()}
        for question, own in zip(self.questions, self.answers, strict=True):
            for name in ("", question):
                counts.setdefault(name, Counter()).update(own)
        return {name: count.most_common(1)[0][0] for name, count in counts.items()}

    @property
    def paths(self):
        """The files of its pictures, where they are files."""
        return getattr(self.pictures, "paths", ())

    def report(self, most: int | None = 5) -> str:
        """Which pictures were replaced, as FolderPairs tells it."""
        return self.pictures.report(most) if hasattr(self.pictures, "report") else ""


def classes(train: Questions, most: int = MOST_ANSWERS) -> tuple[str, ...]:
    """The most frequent answers of training, of equally frequent ones the first by name."""
    counts = Counter(answer for own in train.answers for answer in own)
    return tuple(sorted(sorted(counts), key=lambda answer: -counts[answer])[:most])
