"""What a model says of a split's pictures, or answers, and what it gets wrong, each with the truth
beside: what a person looks at after the figures of `evaluate`, of the same comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .data.vqa import soft_accuracy
from .evaluate import WAYS, written
from .metrics import places, sharing, wrong_before
from .tasks import BATCH, embed_texts
from .tasks.captioning import caption
from .tasks.explain import Explanation, explain
from .tasks.questions import weighed
from .tasks.questions import written as spelled
from .tasks.scoring import counts, log_likelihoods
from .tasks.zero_shot import Judge

SHOWN, WORST, MAPS = 12, 8, 3  # pictures with their captions; mistakes of a kind; with word maps
PAIRS = 24  # whose similarities are shown


class Said(NamedTuple):
    """What was written of image `place`, and the likeliest right caption (the same if it is right).

    log_truth, log_caption: log p(text | image) per token, the end counted, of either. Of questions,
    of which `place` is one, the captions are question and answer, and the probabilities those that
    the head gives the answers; without a head 0 of what is right, and -inf.
    """

    place: int
    caption: str
    truth: str
    right: bool
    log_truth: float
    log_caption: float


class Missed(NamedTuple):
    """A query that found something wrong first. `image` and `text` belong together; one of them
    asked. taken: the text, or the place of the image, that was found first. rank: of the best right
    one, the first being 1."""

    image: int
    text: str
    taken: str | int
    rank: int


class Confused(NamedTuple):
    """A class that was taken for another, `times` of the `images` that show it; the first one."""

    truth: str
    taken: str
    times: int
    images: int
    place: int


class Looks(NamedTuple):
    """Of the first `images` of a split. Empty or None: what the model or the data are not for.

    asked: whether `said` is of questions, which then are what is counted. said: of every image.
    missed: {way: (the worst of them, all of them, queries)}, way as in `evaluate`. cosines: [n, n],
    of the first images and the first caption of each, which are `texts`. confused: the most
    frequent; `mistaken` of the `classified` images are in all of them. explained: {place: why the
    model's own caption}. pictures: {place: uint8 [I, I, 3]} of all that is named here to be shown.
    """

    images: int
    said: list[Said]
    missed: dict[str, tuple[list[Missed], int, int]]
    gallery: int
    cosines: np.ndarray | None
    texts: list[str]
    confused: list[Confused]
    mistaken: int
    classified: int
    explained: dict[int, Explanation]
    pictures: dict[int, np.ndarray]
    asked: bool = False

    @property
    def first(self) -> list[Said]:
        return self.said[:SHOWN]

    @property
    def worst(self) -> list[Said]:
        """Those whose truth the model finds the least likely."""
        return sorted(self.said, key=lambda one: one.log_truth)[:WORST]


def look(model, tokenizer, pairs, gallery: int = 0, limit: int | None = None) -> Looks:
    """Look at the first `limit` images of a split (None: at all).

    gallery: as `evaluate` takes it. Raises ValueError where there is no image.
    """
    count = len(pairs) if limit is None else min(limit, len(pairs))
    if not count:
        raise ValueError("there are no images to look at")
    if model.config.task != "captions":
        return answers(model, tokenizer, pairs, count)
    said, vectors, rights = [], [], []
    quiet = count <= 2 * BATCH
    for start in tqdm(range(0, count, BATCH), unit="batch", disable=quiet, leave=False):
        indices = np.arange(start, min(start + BATCH, count))
        images = pairs.batch(indices)
        own = [written(pairs, i) for i in indices]  # after `batch`, as in `evaluate`
        if model.config.writes:
            said += captioned(model, tokenizer, indices, images, own)
        if model.config.compares:
            vectors.append(model.embed_images(images))
        rights += own
    empty = Looks(count, said, {}, 0, None, [], [], 0, 0, {}, {})
    found = empty
    if vectors:
        found = compared(empty, model, tokenizer, pairs, np.concatenate(vectors), rights, gallery)
    worst = [one.place for one in found.worst]
    explained = [0, *(place for place in worst if place)][:MAPS]
    explained = explained if said and model.config.has_vit else []
    missed = [one for own, *_ in found.missed.values() for one in own]
    named = {*range(min(SHOWN, count)), *worst, *explained}
    named |= {one.image for one in missed} | {one.place for one in found.confused}
    named |= {one.taken for one in missed if not isinstance(one.taken, str)}
    named |= set(range(len(found.texts)))
    order = sorted(named)
    pictures = dict(zip(order, pairs.batch(np.array(order)), strict=True))
    maps = {i: explain(model, tokenizer, pictures[i], said[i].caption) for i in explained
            if tokenizer.normalise(said[i].caption)}  # fmt: skip
    return found._replace(explained=maps, pictures=pictures)


def answers(model, tokenizer, pairs, count: int) -> Looks:
    """The first `count` questions of a split, each with an answer and a right one. Two pictures lie
    side by side."""
    said = []
    for start in range(0, count, BATCH):
        indices = np.arange(start, min(start + BATCH, count))
        images, rows = pairs.batch(indices), pairs.shown(indices)
        said += answered(model, tokenizer, pairs, indices, images, rows)
    found = Looks(count, said, {}, 0, None, [], [], 0, 0, {}, {}, asked=True)
    order = sorted({one.place for one in (*found.first, *found.worst)})
    images = pairs.batch(np.array(order))
    if images.ndim > 4:
        images = np.concatenate([*images.swapaxes(0, 1)], 2)
    return found._replace(pictures=dict(zip(order, images, strict=True)))


def answered(model, tokenizer, pairs, indices, images, rows) -> Iterator[Said]:
    """The answer to every question: the head's, or where there is no head, what is written."""
    questions, classes = [pairs.questions[row] for row in rows], model.config.answers
    if classes:
        log_p_BA = weighed(model, tokenizer, images, questions)
        texts = [classes[a] for a in log_p_BA.argmax(1)]
        known = [dict(zip(classes, log_p_A, strict=True)) for log_p_A in log_p_BA.tolist()]
    else:
        texts = spelled(model, tokenizer, images, questions)
        known = [{text: 0.0} for text in texts]
    for i, row, text, log_p, question in zip(indices, rows, texts, known, questions, strict=True):
        own = pairs.answers[row]
        right = soft_accuracy(text, own) > 0
        truth = text if right else max(own, key=lambda one, p=log_p: p.get(one, -np.inf))
        said, true = f"{question} {text}", f"{question} {truth}"
        yield Said(int(i), said, true, right, log_p.get(truth, -np.inf), log_p[text])


def captioned(model, tokenizer, indices, images, rights) -> Iterator[Said]:
    """A caption of every image, with its truth."""
    length = model.config.text_length
    for i, image, text, own in zip(
        indices, images, caption(model, tokenizer, images), rights, strict=True
    ):
        tokens = tokenizer.encode([text, *own], length)
        log_p = log_likelihoods(model, image[None], tokens)[0] / counts(tokens)
        best = 1 + int(log_p[1:].argmax())
        right = text.split() in [truth.split() for truth in own]
        truth = text if right else own[best - 1]
        yield Said(int(i), text, truth, right, float(log_p[best]), float(log_p[0]))


def compared(empty: Looks, model, tokenizer, pairs, vectors, rights, gallery) -> Looks:
    """What vectors say of the images: similarities, retrieval, classes."""
    texts = [text for own in rights for text in own]
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # equal ones are read once
    text_vectors = embed_texts(model, tokenizer, place)[[place[text] for text in texts]]
    first = [own[0] for own in rights[:PAIRS]]
    cosines = vectors[:PAIRS] @ embed_texts(model, tokenizer, first).T
    size = min(gallery or len(rights), len(rights))
    missed = {way: [] for way in WAYS}
    queries = dict.fromkeys(WAYS, 0)
    ends = np.cumsum([0] + [len(own) for own in rights])
    for start in range(0, len(rights) - size + 1, size):
        images, own = vectors[start : start + size], rights[start : start + size]
        spoken = texts[ends[start] : ends[start + size]]
        said, heard = [[text] for text in spoken], text_vectors[ends[start] : ends[start + size]]
        for query, taken, best, rank in found_wrong(images, heard, own, said):
            missed[WAYS[0]].append(Missed(start + query, spoken[best], spoken[taken], rank))
        for query, taken, best, rank in found_wrong(heard, images, said, own):
            missed[WAYS[1]].append(Missed(start + best, spoken[query], start + taken, rank))
        for way, many in zip(WAYS, (len(images), len(heard)), strict=True):
            queries[way] += many
    worst = {way: sorted(all_of, key=lambda one: -one.rank) for way, all_of in missed.items()}
    ways = {way: (own[:WORST], len(own), queries[way]) for way, own in worst.items()}
    confused, mistaken, classified = confusions(model, tokenizer, pairs, vectors)
    return empty._replace(
        missed=ways, gallery=size, cosines=cosines, texts=first,
        confused=confused, mistaken=mistaken, classified=classified,
    )  # fmt: skip


def found_wrong(
    queries: np.ndarray, candidates: np.ndarray, asked: Sequence, held: Sequence
) -> Iterator[tuple[int, int, int, int]]:
    """(query, the wrong candidate that is nearest, the right one that is, its rank) of the queries
    [n, E] of which a wrong candidate [m, E] is at least as near as any right one. asked, held: the
    texts of either side's; what shares one is right."""
    others = places(held)
    for start in range(0, len(queries), BATCH):
        near = queries[start : start + BATCH] @ candidates.T
        right = sharing(asked[start : start + BATCH], others, len(held))
        before = wrong_before(near, right)
        taken = np.where(right, -np.inf, near).argmax(1)
        best = np.where(right, near, -np.inf).argmax(1)
        for row in np.flatnonzero(before):
            yield start + int(row), int(taken[row]), int(best[row]), 1 + int(before[row])


def confusions(model, tokenizer, pairs, vectors) -> tuple[list[Confused], int, int]:
    """(the most frequent, the images of all, the images that were classified), by the cosine."""
    task = pairs.zero_shot
    inside = () if task is None else task.images < len(vectors)
    if not np.any(inside):
        return [], 0, 0
    images, labels = task.images[inside], task.labels[inside]
    scores, _ = Judge(model, tokenizer, task.prompts)(vectors[images])
    right = labels[:, None] == np.arange(len(task.names))
    wrong = np.flatnonzero(wrong_before(scores, labels))
    taken = np.where(right, -np.inf, scores).argmax(1)
    first = {}
    for i in wrong:
        first.setdefault((labels[i], taken[i]), int(images[i]))
    times = Counter((labels[i], taken[i]) for i in wrong)
    shown = np.bincount(labels, minlength=len(task.names))
    rows = [
        Confused(task.names[a], task.names[b], many, int(shown[a]), first[a, b])
        for (a, b), many in times.most_common(WORST)
    ]
    return rows, len(wrong), len(labels)
