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
        """What training reads: the question with each of its answers, once."""
        rows = zip(self.questions, self.answers, strict=True)
        return [
            tuple(f"{question} {text}" for text in dict.fromkeys(own)) for question, own in rows
        ]

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

    def key(self, row: int) -> tuple:
        """What a row shows: of two rows with equal keys, the same."""
        return tuple(np.ravel(self.about[row]).tolist())

    @cached_property
    def looks(self) -> list[list[int]]:
        """The rows that show the same, together."""
        found: dict[tuple, list[int]] = {}
        for row in range(len(self)):
            found.setdefault(self.key(row), []).append(row)
        return list(found.values())

    @property
    def paths(self):
        """The files of its pictures, where they are files."""
        return getattr(self.pictures, "paths", ())

    def report(self, most: int | None = 5) -> str:
        """Which pictures were replaced, as FolderPairs tells it."""
        return self.pictures.report(most) if hasattr(self.pictures, "report") else ""


class Looks:
    """What training draws from, in place of Pairs: a row is what several questions are about."""

    def __init__(self, questions: Questions):
        self.questions, self.same = questions, None
        self.captions = [("",)] * len(questions.looks)
        self._first = np.array([rows[0] for rows in questions.looks])
        self._place = {row: i for i, rows in enumerate(questions.looks) for row in rows}

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """As Questions.batch."""
        return self.questions.batch(self._first[indices])

    def shown(self, indices: np.ndarray) -> np.ndarray:
        """As Questions.shown."""
        rows = self.questions.shown(self._first[indices])
        return np.array([self._place[int(row)] for row in rows], np.int64)

    def drawn(self, indices: np.ndarray, most: int, rng) -> list[tuple[int, int, str]]:
        """(place among `indices`, question, one of its answers) of at most so many questions about
        each."""
        found = []
        for place, i in enumerate(indices):
            for row in rng.permutation(self.questions.looks[i])[:most]:
                given = self.questions.answers[row]
                found.append((place, int(row), given[rng.integers(len(given))]))
        return found


def classes(train: Questions, most: int = MOST_ANSWERS) -> tuple[str, ...]:
    """The most frequent answers of training, of equally frequent ones the first by name."""
    counts = Counter(answer for own in train.answers for answer in own)
    return tuple(sorted(sorted(counts), key=lambda answer: -counts[answer])[:most])
