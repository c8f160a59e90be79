"""What a model can do with held-out pairs: caption, retrieve, classify. Any backend will do.

Captions are compared with what was written (`clean`: NFC and single spaces), never with what a
tokenizer makes of it. Every figure is a function of how often each image counts: once each gives
the figure, as drawn at random its interval.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .intervals import DRAWS, intervals
from .metrics import (
    bleu_counts,
    bleu_of,
    bleu_order,
    cider_ds,
    exact_matches,
    median_rank,
    places,
    rouge_ls,
    sharing,
    wrong_before,
)
from .tasks import BATCH, embed_texts, questions
from .tasks.captioning import caption
from .tasks.language import Counts, surprise
from .tasks.matching import found_first
from .tasks.word_order import preferences
from .tasks.zero_shot import Judge
from .words import clean, words_of

KS = (1, 5, 10)
FEW = 32  # images whose likelihoods are computed at once, with all prompts
WAYS = ("image_to_text", "text_to_image")
# What clip_benchmark calls a figure, where it has it.
CLIP_BENCHMARK = {
    **{f"image_to_text_r{k}": f"text_retrieval_recall@{k}" for k in KS},
    **{f"text_to_image_r{k}": f"image_retrieval_recall@{k}" for k in KS},
    "zero_shot_top1": "acc1",
    "zero_shot_top5": "acc5",
    "zero_shot_mean_per_class": "mean_per_class_recall",
}
Measure = Callable[[np.ndarray], dict[str, float]]  # of times, int64 [images]


def evaluate(
    model, tokenizer, pairs, gallery=0, known=(), limit=None, draws=DRAWS, by=(), rule="best",
    word_order=False, rerank=True,
):  # fmt: skip
    """The figures of one split as a dict of floats, and its generated captions.

    gallery: retrieval is among this many images and all their captions, in as many galleries as the
        split fills; 0: among all.
    known: the captions of training, clean; a figure says how many generated ones are none of them.
        Of a language model how often each is there too, of questions what their answers are in
        training, `Questions.guesses`.
    limit: look at the first `limit` images only.
    draws: "intervals" among the figures are those of `intervals`, of so many sets; 0: none.
    by, rule: how classes are judged beside the cosine, and what one makes of its prompts (`Judge`).
    word_order: how often a true sentence scores more than one of the same words that is not.
    rerank: of a model that matches, R@1 after its ranking the nearest again (`found_first`).
    """
    if model.config.task != "captions":
        return questions.evaluate(model, tokenizer, pairs, known, limit, draws)
    indices = np.arange(len(pairs) if limit is None else min(limit, len(pairs)))
    config, captions, vectors = model.config, [], []
    quiet = len(indices) <= 4 * BATCH
    for i in tqdm(range(0, len(indices), BATCH), unit="batch", disable=quiet, leave=False):
        images = pairs.batch(indices[i : i + BATCH])
        if config.writes:
            captions += caption(model, tokenizer, images)
        if config.compares:
            vectors.append(model.embed_images(images))
    # Read after `batch`: a folder replaces a damaged image, and its captions with it.
    references = [written(pairs, i) for i in indices]
    figures, measures = {"images": len(indices)}, []
    if captions:
        measures.append(of_captions(captions, references, known))
        figures["caption_bleu_order"] = bleu_order(captions)
    ways = ("cosine",) * config.compares + tuple(by) * config.writes
    image_vectors = None
    if vectors:
        image_vectors, texts = np.concatenate(vectors), [t for own in references for t in own]
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # equal ones read once
        text_vectors = embed_texts(model, tokenizer, place)[[place[text] for text in texts]]
        ranks = retrieval(image_vectors, text_vectors, references, gallery)
        measures.append(ranks.figures)
        figures |= {"gallery": ranks.gallery, "gallery_captions": ranks.captions}
        if config.matches and rerank:
            given = pairs, image_vectors, references, ranks
            measures.append(of_reranking(model, tokenizer, *given))
    if config.continues:
        measures.append(of_language(model, tokenizer, references, known, pairs))
    measures += zero_shot(model, tokenizer, pairs, image_vectors, len(indices), ways, rule)
    if word_order:
        measures.append(of_order(model, tokenizer, pairs, references))

    def measured(times):
        return {name: value for of in measures for name, value in of(times).items()}

    figures |= measured(np.ones(len(indices), np.int64))
    if draws:
        figures["intervals"] = intervals(measured, len(indices), draws)
    return figures, captions


def written(pairs, i):
    """What may rightly be said of image i, in one spelling."""
    return [clean(text) for text in pairs.captions[i]]


def nearest_truth(caption, right):
    """The right caption that a generated one is, or the first of them if it is none."""
    return caption if caption in right else right[0]


def of_captions(
    captions: Sequence[str], references: Sequence[Sequence[str]], known: Collection[str] = ()
) -> Measure:
    """Scores of generated captions, their mean length in words, and, where some are `known` from
    training, the share of those that are not."""
    each = {
        "caption_exact": exact_matches(captions, references),
        "caption_cider_d": cider_ds(captions, references),
        "caption_rouge_l": rouge_ls(captions, references),
        "caption_words": [len(words_of(text)) for text in captions],
    }
    if known:
        known = set(known)
        each["caption_novel"] = [clean(text) not in known for text in captions]
    names, columns = list(each), np.array([*each.values()], float)
    counts = bleu_counts(captions, references)

    def measure(times):
        means = columns @ times / times.sum()
        return dict(zip(names, means.tolist(), strict=True)) | {
            "caption_bleu_4": bleu_of(times @ counts)
        }

    return measure


def zero_shot(model, tokenizer, pairs, vectors, count, by=("cosine",), rule="best") -> list:
    """A Measure for each of `by`: the accuracies of a split's classification task on its first
    `count` images, of which there are vectors, unless the model has none; none where there is no
    such task, or no such image."""
    task = pairs.zero_shot
    inside = () if task is None else task.images < count
    if not np.any(inside):
        return []
    images, labels = task.images[inside], task.labels[inside]
    judges = {one: Judge(model, tokenizer, task.prompts, one, rule) for one in by}
    reader = next((judge for one, judge in judges.items() if one != "cosine"), None)
    comparer = next((judges[one] for one in ("cosine", "both") if one in judges), None)
    found = {one: [] for one in by}
    for i in range(0, len(images), FEW):
        rows = images[i : i + FEW]
        cosines = comparer and vectors[rows] @ comparer.vectors.T
        sums = reader and reader.read(pairs.batch(rows))
        for one, judge in judges.items():
            found[one].append(wrong_before(judge.weigh(cosines, sums)[0], labels[i : i + FEW]))
    return [
        of_classes(
            np.concatenate(ranks),
            images,
            labels,
            "zero_shot" if one == "cosine" else f"zero_shot_{one}",
        )
        for one, ranks in found.items()
    ]


def of_classes(
    ranks: np.ndarray, images: np.ndarray, labels: np.ndarray, name: str = "zero_shot"
) -> Measure:
    """Accuracies of a classification: `wrong_before` of rows whose images and labels are given. The
    mean over classes is over those that an image shows."""

    def measure(times):
        times = times[images]
        shown = np.bincount(labels, times)
        right = np.bincount(labels, times * (ranks < 1))[shown > 0] / shown[shown > 0]
        return {
            f"{name}_top1": share(times @ (ranks < 1), times.sum()),
            f"{name}_top5": share(times @ (ranks < 5), times.sum()),
            f"{name}_mean_per_class": share(right.sum(), len(right)),
        }

    return measure


def of_order(model, tokenizer, pairs, references) -> Measure:
    """`preferences` of a split, as shares."""
    found = {}
    for i in range(0, len(references), BATCH):
        images = pairs.batch(np.arange(i, min(i + BATCH, len(references))))
        for name, trials in preferences(
            model, tokenizer, images, references[i : i + BATCH]
        ).items():
            found.setdefault(f"order_{name}", []).append(trials + np.array([[0], [i]]))
    found = {name: np.concatenate(parts, axis=1) for name, parts in found.items()}

    def measure(times):
        return {
            name: share(times[images] @ won, times[images].sum())
            for name, (won, images) in found.items()
        }

    return measure


def share(part, whole) -> float:
    """NaN of nothing."""
    return float(part / whole) if whole else float("nan")


def of_language(model, tokenizer, references, known, pairs) -> Measure:
    """Perplexity, e to the mean of - log p over tokens: the model's, and that of `Counts` of the
    known captions, and of the grammar, where what draws captions is known."""
    texts = [text for own in references for text in own]
    whose = np.repeat(np.arange(len(references)), [len(own) for own in references])
    nats, sizes = surprise(model, tokenizer, texts)
    found = Counts(tokenizer, model.config.text_length, known or {}).surprise(texts)
    if (entropy := getattr(pairs, "entropy", None)) is not None:
        found["grammar"] = np.full(len(texts), entropy)
    found = {"perplexity": nats} | {f"perplexity_{name}": own for name, own in found.items()}

    def measure(times):
        own = times[whose]
        return {name: float(np.exp(own @ each / (own @ sizes))) for name, each in found.items()}

    return measure


class Retrieval(NamedTuple):
    """Both ways, of every query: how many wrong candidates come before its best right one, and
    whose query it is, an image's place among all. An image is one query, and so is each caption."""

    ranks: tuple[np.ndarray, np.ndarray]
    images: tuple[np.ndarray, np.ndarray]
    gallery: int  # images in each gallery
    captions: int  # captions in each, rounded down

    def figures(self, times: np.ndarray) -> dict[str, float]:
        """Recall at 1, 5 and 10 and the median rank, where an image's queries count `times`; the
        galleries stay what they are."""
        found = {}
        for way, ranks, images in zip(WAYS, self.ranks, self.images, strict=True):
            own = times[images]
            for k in KS:
                found[f"{way}_r{k}"] = share(own @ (ranks < k), own.sum())
            if own.any():
                found[f"{way}_median_rank"] = median_rank(np.repeat(ranks, own))
        return found


def retrieval(image_vectors, text_vectors, references, gallery=0) -> Retrieval:
    """Each of n images and each of their captions, among galleries of a size.

    As COCO does it (Karpathy and Fei-Fei 2015, section 4.1): an image is to find any of its
    captions, and every caption is a query that is to find an image of its own. text_vectors: those
    of all captions, image by image. What fills no gallery is left out. Holds [BATCH, n], never all
    similarities.
    """
    size = min(gallery or len(references), len(references))
    ends = np.cumsum([0] + [len(own) for own in references])
    found = []
    for start in range(0, len(references) - size + 1, size):
        images, own = image_vectors[start : start + size], references[start : start + size]
        texts, said = text_vectors[ends[start] : ends[start + size]], [[t] for o in own for t in o]
        found.append((_ranks(images, texts, own, said), _ranks(texts, images, said, own)))
    used = np.arange(size * len(found))
    return Retrieval(
        tuple(np.concatenate(of_one_way) for of_one_way in zip(*found, strict=True)),
        (used, np.repeat(used, np.diff(ends)[: len(used)])),
        size,
        int(ends[len(used)]) // len(found),
    )


def of_reranking(model, tokenizer, pairs, image_vectors, references, ranks: Retrieval) -> Measure:
    """R@1 both ways in the galleries of `ranks`, each searched as `found_first` does."""
    found = []
    for start in range(0, len(ranks.images[0]), ranks.gallery):
        own = slice(start, start + ranks.gallery)
        look = lambda rows, start=start: pairs.batch(start + rows)  # noqa: E731
        given = look, image_vectors[own], references[own]
        found.append(found_first(model, tokenizer, *given))
    won = [np.concatenate(of_one_way) for of_one_way in zip(*found, strict=True)]

    def measure(times):
        counts = [times[images] for images in ranks.images]
        each = zip(WAYS, won, counts, strict=True)
        return {f"{way}_reranked_r1": share(own @ first, own.sum()) for way, first, own in each}

    return measure


def _ranks(queries, candidates, asked, held):
    """`wrong_before` of every query, BATCH at a time. asked, held: the texts of either side's."""
    others, found = places(held), []
    for i in range(0, len(queries), BATCH):
        right = sharing(asked[i : i + BATCH], others, len(held))
        found.append(wrong_before(queries[i : i + BATCH] @ candidates.T, right))
    return np.concatenate(found)
