"""Answers to questions about pictures, by the head or written, and how often they are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..config import END, PAD
from ..data.questions import MOST_ANSWERS, Looks, asked
from ..data.vqa import soft_accuracy
from ..intervals import DRAWS, intervals
from ..params import stream
from . import BATCH

BY = ("head", "generation")
ROOM = 4  # tokens of a text that a question leaves: start, an answer, end


class Answer(NamedTuple):
    """What is answered, and how probable the model finds it."""

    answer: str
    probability: float


def encode(
    tokenizer, length: int, questions: Sequence[str], answers: Sequence[str]
) -> dict[str, np.ndarray]:
    """`tokens` [B, T], start, question, answer and end, padded; `lengths` [B], how many of a row
    are start and question. A question is cut so that ROOM is left of `length`, and then an answer
    so that its end is there."""
    asked_ids, given = ([tokenizer.beginning(t) for t in texts] for texts in (questions, answers))
    most = max(2, length - ROOM + 1)
    heads = [ids[:most] for ids in asked_ids]
    rows = [
        [*head, *ids[1:][: length - len(head) - 1], END]
        for head, ids in zip(heads, given, strict=True)
    ]
    tokens_BT = np.full((len(rows), max(map(len, rows), default=0)), PAD, np.int64)
    for row, ids in zip(tokens_BT, rows, strict=True):
        row[: len(ids)] = ids
    return {"tokens": tokens_BT, "lengths": np.array([*map(len, heads)], np.int64)}


def shares(answers: Sequence[Sequence[str]], classes: Sequence[str]) -> np.ndarray:
    """[B, A]: of those who answered a question, the share that gave each of the classes."""
    place = {text: a for a, text in enumerate(classes)}
    shares_BA = np.zeros((len(answers), len(classes)), np.float32)
    for row, own in zip(shares_BA, answers, strict=True):
        for text, times in Counter(own).items():
            if text in place:
                row[place[text]] = times / len(own)
    return shares_BA


def batch_of(tokenizer, config, looks: Looks, indices, step: int) -> dict[str, np.ndarray]:
    """What a training step takes beside the images of `indices`: a few questions about each, drawn
    by seed and step. `about` [B]: which of the images each question is about."""
    rng = stream("captions", config.seed, step)
    about, rows, given = zip(*looks.drawn(indices, config.per_picture, rng), strict=True)
    pairs = looks.questions
    batch = encode(tokenizer, config.text_length, [pairs.questions[row] for row in rows], given)
    batch["shares"] = shares([pairs.answers[row] for row in rows], config.answers)
    return batch | {"about": np.array(about, np.int64)}


def demand_answers(model, by: str) -> None:
    """Raises ValueError for a model that cannot answer so."""
    config = model.config
    if config.task == "captions":
        raise ValueError(
            "this model was trained on captions, not to answer questions; make one that answers "
            "with: minicoca train --task questions --init RUN"
        )
    if by == "head" and not config.answers:
        raise ValueError(
            "this model has no head, as answer_weight was 0: let it write its answers, "
            "--by generation"
        )
    if by == "generation" and not config.caption_weight:
        raise ValueError(
            "this model writes no answers, as caption_weight was 0: let its head answer, --by head"
        )


def ways(config) -> tuple[str, ...]:
    """In which ways a model can answer."""
    return ("head",) * bool(config.answers) + ("generation",) * bool(config.caption_weight)


def settled(model, by: str | None = None, best: int | None = None) -> str:
    """The way to answer: `by`, or the first that the model has. Raises ValueError, as
    `demand_answers`, and for a way or a `best` that there is not."""
    by = by or (*ways(model.config), "head")[0]
    if by not in BY:
        raise ValueError(f"by={by!r} is none of {', '.join(BY)}")
    if best is not None and not 1 <= best <= MOST_ANSWERS:
        raise ValueError(f"best={best} is not from 1 to {MOST_ANSWERS:,}")
    demand_answers(model, by)
    return by


def for_each(config, images: int, questions: Sequence[str]) -> list[str]:
    """The question, as the model reads it, of each of so many images, or of each two of them where
    the model answers about pairs; one is for all. Raises ValueError where they do not fit."""
    n, left = divmod(images, config.pictures)
    if left:
        raise ValueError(f"{images} images, but this model is asked about two at a time")
    if len(questions) not in (1, n):
        raise ValueError(f"{len(questions)} questions, but {n} to be asked: give one, or {n}")
    texts = [asked(text) for text in questions]
    return texts * n if len(texts) == 1 else texts


def answer(
    model, tokenizer, images: np.ndarray, questions: Sequence[str], by: str = "head", best: int = 1
) -> list[list[Answer]]:
    """The `best` answers to each question (as `asked` gives it) about its image or its two, the
    most probable first. By generation they are what beams find, fewer where those find fewer."""
    if model.config.pictures > 1:
        images = images.reshape(len(questions), -1, *images.shape[1:])
    found: list[list[Answer]] = [[] for _ in questions]
    for rows, batch in alike(model, tokenizer, questions):
        if by == "head":
            log_p_BA = model.answer(images[rows], batch)
            for row, log_p_A in zip(rows, log_p_BA, strict=True):
                order = np.argsort(-log_p_A, kind="stable")[:best]
                texts = (model.config.answers[a] for a in order)
                found[row] = [
                    Answer(text, float(np.exp(p)))
                    for text, p in zip(texts, log_p_A[order], strict=True)
                ]
            continue
        for row, ids in zip(rows, batch[:, :-1], strict=True):
            kept = model.beam_search(
                images[row : row + 1], tuple(map(int, ids)), beams=best, length_penalty=0.0
            )[0]
            texts = [(tokenizer.decode(own[len(ids) :]), float(np.exp(p))) for own, p in kept]
            found[row] = [Answer(*each) for each in texts][:best]
    return found


def alike(model, tokenizer, questions: Sequence[str]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """(rows, ids [B, T] of start, question and end) of questions of as many tokens each."""
    batch = encode(tokenizer, model.config.text_length, questions, [""] * len(questions))
    for length in np.unique(batch["lengths"]):
        rows = np.flatnonzero(batch["lengths"] == length)
        yield rows, batch["tokens"][rows, : length + 1]


def written(model, tokenizer, images: np.ndarray, questions: Sequence[str]) -> list[str]:
    """What the model writes after each question, the likeliest token each time."""
    found = [""] * len(questions)
    for rows, ids in alike(model, tokenizer, questions):
        texts = model.generate(images[rows], ids[:, :-1])
        for row, own in zip(rows, texts, strict=True):
            found[row] = tokenizer.decode(own[ids.shape[1] - 1 :])
    return found


def weighed(model, tokenizer, images: np.ndarray, questions: Sequence[str]) -> np.ndarray:
    """[B, A]: the head's log probability of each of its answers."""
    batch = encode(tokenizer, model.config.text_length, questions, [""] * len(questions))
    return model.answer(images, batch["tokens"])


def chosen(model, tokenizer, images: np.ndarray, questions: Sequence[str]) -> list[str]:
    """The head's most probable answer to each question."""
    log_p_BA = weighed(model, tokenizer, images, questions)
    return [model.config.answers[a] for a in log_p_BA.argmax(1)]


def evaluate(model, tokenizer, pairs, guesses=None, limit=None, draws=DRAWS):
    """The figures of one split as a dict of floats, and what was answered: the question with the
    answer, by the first of `ways`.

    answer_head, answer_generation: VQA's accuracy (data/vqa.py), also by kind of question, and of
    `guesses` (`Questions.guesses`): answer_most_frequent, always the most frequent answer of
    training; answer_same_question, that of the same words. limit: the first so many questions.
    Intervals are over pictures, with all their questions.
    """
    rows = np.arange(len(pairs) if limit is None else min(limit, len(pairs)))
    given: dict[str, list[str]] = {way: [] for way in ways(model.config)}
    by_name = {"head": chosen, "generation": written}
    quiet, used = len(rows) <= 4 * BATCH, []
    for i in tqdm(range(0, len(rows), BATCH), unit="batch", disable=quiet, leave=False):
        images = pairs.batch(rows[i : i + BATCH])
        used += (some := pairs.shown(rows[i : i + BATCH])).tolist()
        questions = [pairs.questions[row] for row in some]
        for way, texts in given.items():
            texts += by_name[way](model, tokenizer, images, questions)
    questions, right = ([of[row] for row in used] for of in (pairs.questions, pairs.answers))
    said = {f"answer_{way}": texts for way, texts in given.items()}
    if guesses:
        said["answer_most_frequent"] = [guesses[""]] * len(used)
        said["answer_same_question"] = [guesses.get(q, guesses[""]) for q in questions]
    scores = {
        name: np.array([soft_accuracy(*pair) for pair in zip(texts, right, strict=True)])
        for name, texts in said.items()
    }
    kinds, picture = np.array([pairs.kinds[row] for row in used]), pairs.about[used]
    picture = np.unique(picture.reshape(len(used), -1)[:, 0], return_inverse=True)[1]

    def measured(times):
        own = times[picture]
        found = {}
        for name, score in scores.items():
            found[name] = float(own @ score / max(own.sum(), 1))
            for kind in filter(None, dict.fromkeys(kinds.tolist())):
                among = own * (kinds == kind)
                if among.any():
                    found[f"{name}_{kind}"] = float(among @ score / among.sum())
        return found

    pictures = picture.max(initial=-1) + 1
    figures = {"images": int(pictures), "questions": len(used)}
    figures |= measured(np.ones(pictures, np.int64))
    if draws and pictures:
        figures["intervals"] = intervals(measured, pictures, draws)
    first = next(iter(given.values()), [""] * len(used))
    return figures, [f"{q} {text}" for q, text in zip(questions, first, strict=True)]


def left_out(pairs, classes: Sequence[str]) -> int:
    """How many questions have no answer among the classes."""
    known = set(classes)
    return sum(known.isdisjoint(own) for own in pairs.answers)
