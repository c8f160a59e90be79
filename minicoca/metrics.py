"""How good are rankings and captions? Every figure is from 0 to 1, except CIDEr-D's, 0 to 10, and
ranks and lengths.

Equal scores count against the model: a wrong candidate that ties with a right one is ranked before
it. A model that scores everything alike has found nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .words import words_of

LONGEST_NGRAM = 4  # both BLEU-4 and CIDEr-D count sequences of one to four words
CIDER_SIGMA = 6.0  # how fast CIDEr-D punishes a difference in length, in words
ROUGE_BETA = 1.2  # how much more recall weighs than precision, as COCO's evaluation has it


def right_texts(captions: Sequence[Sequence[str]], texts: Sequence[str]) -> np.ndarray:
    """Which text is right for which image, bool [n, m], from the n images' right captions.

    Equal texts are equally right: different images may share a caption, and to tell such texts
    apart is no achievement.
    """
    return sharing(captions, places([[text] for text in texts]), len(texts))


def places(captions: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Of every text, the indices of those that have it among their captions."""
    found: dict[str, list[int]] = {}
    for i, own in enumerate(captions):
        for text in own:
            found.setdefault(text, []).append(i)
    return found


def sharing(captions: Sequence[Sequence[str]], others: dict[str, list[int]], m: int) -> np.ndarray:
    """Which of m others, given by their `places`, shares a text with each of n: bool [n, m]."""
    right = np.zeros((len(captions), m), bool)
    for row, own in enumerate(captions):
        for text in own:
            right[row, others.get(text, [])] = True
    return right


def recall_at_k(
    similarity: np.ndarray, right: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """Share of the n queries that find a right candidate among their k best of m.

    Arguments and errors are those of `wrong_before`. Image to text: `recall_at_k(s, r)` with
    `r = right_texts(...)`; text to image: `recall_at_k(s.T, r.T)`. A query without a right
    candidate fails.
    """
    return recall(wrong_before(similarity, right), ks)


def recall(ranks: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of the queries that have a rank, as `wrong_before` counts them, under k."""
    return {k: float((ranks < k).mean()) for k in ks}


def wrong_before(similarity: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many wrong candidates each of n queries ranks before its best right one: [n].

    `similarity` is real [n, m]; `right` is bool [n, m], or int [n] if each query has one right
    candidate. Infinite for a query without a right candidate. A set that is too large for one
    [n, m] can be counted a few queries at a time. Raises ValueError for no queries, NaN, or shapes
    or indices that do not fit.
    """
    similarity, right = np.asarray(similarity), np.asarray(right)
    if similarity.ndim != 2 or not similarity.size:
        raise ValueError(f"similarity is {similarity.shape}, not [queries, candidates]")
    if np.isnan(similarity).any():
        raise ValueError("similarity holds NaN")
    if right.dtype != bool:
        if right.size and not 0 <= right.min() <= right.max() < similarity.shape[1]:
            raise ValueError(f"targets must be 0 to {similarity.shape[1] - 1}")
        right = right[:, None] == np.arange(similarity.shape[1])
    if right.shape != similarity.shape:
        raise ValueError(f"right is {right.shape} but similarity {similarity.shape}")
    best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
    before = (~right & (similarity >= best)).sum(axis=1)
    return np.where(right.any(axis=1), before, np.inf)


def median_rank(ranks: np.ndarray) -> float:
    """The median place of the best right candidate, 1 being the first, of `wrong_before`'s counts
    [n]."""
    return float(np.median(ranks)) + 1


def top_k_accuracy(
    scores: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5)
) -> dict[int, float]:
    """Share of the n rows of `scores` [n, classes] whose label, int [n], is among the k best.

    Raises as `recall_at_k` does.
    """
    return recall_at_k(scores, np.asarray(labels, dtype=np.int64), ks)


def exact_matches(generated: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Which captions are one of their references, word for word, bool [n]; spacing does not count.

    Raises ValueError if there are none or the numbers differ.
    """
    _check(generated, references)
    return np.array([
        text.split() in [reference.split() for reference in own]
        for text, own in zip(generated, references, strict=True)
    ])  # fmt: skip


def exact_match(generated: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of captions that are one of their references. Raises as `exact_matches`."""
    return float(exact_matches(generated, references).mean())


def bleu_4(generated: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of a whole corpus, not smoothed (Papineni et al. 2002, "BLEU: a method for automatic
    evaluation of machine translation").

    The geometric mean of the precisions of one to four words, each n-gram counted at most as often
    as in a single reference, times a penalty for being shorter than the nearest references. Words
    are those of `words_of`. If no generated caption has four words, there is no precision of four
    to count: the mean is of those that there are (sacrebleu's effective order), and the figure is
    BLEU-3, 2 or 1, as `bleu_order` says. Raises as `exact_matches` does.
    """
    return bleu_of(bleu_counts(generated, references).sum(0))


def bleu_counts(generated: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What BLEU-4 is made of, int64 [n, 10], to be added up over captions: of one to four words the
    n-grams that count, and all that there are; the words, and those of the nearest reference.
    Raises as `exact_matches`."""
    _check(generated, references)
    rows = []
    for text, own in zip(generated, references, strict=True):
        words, rights = words_of(text), [words_of(reference) for reference in own]
        hits, total = [], []
        for n in range(1, LONGEST_NGRAM + 1):
            allowed: Counter = Counter()
            for right in rights:
                allowed |= _ngrams(right, n)
            counts = _ngrams(words, n)
            hits.append((counts & allowed).total())
            total.append(counts.total())
        # Of two references equally near in length, the shorter one counts.
        nearest = min((abs(len(right) - len(words)), len(right)) for right in rights)[1]
        rows.append([*hits, *total, len(words), nearest])
    return np.array(rows, np.int64)


def bleu_of(counts: np.ndarray) -> float:
    """`bleu_4` from the sum [10] of `bleu_counts`."""
    hits, total = counts[:LONGEST_NGRAM], counts[LONGEST_NGRAM:-2]
    length, nearest = counts[-2:]
    hits, total = hits[total > 0], total[total > 0]
    if not hits.size or not hits.all():
        return 0.0
    brevity = min(0.0, 1 - nearest / length)
    return float(np.exp(brevity + np.log(hits / total).mean()))


def bleu_order(generated: Sequence[str]) -> int:
    """How many words the longest sequence has that `bleu_4` counts: 4, or the longest caption's."""
    return min(LONGEST_NGRAM, max(len(words_of(text)) for text in generated))


def cider_d(generated: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D, 0 to 10: the mean of `cider_ds`; raises as it does."""
    return float(cider_ds(generated, references).mean())


def cider_ds(generated: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption, 0 to 10, [n] (Vedantam et al. 2015, "CIDEr: consensus-based image
    description evaluation").

    The likeness of n-gram counts, those rare among the images weighing more, averaged over the
    references and over n. An n-gram repeated beyond the reference gains nothing, nor does a wrong
    length. Rarity is taken from the references given, so the figure depends on the set, and is 0
    for a single image; captions of one, two or three words reach 2.5, 5 or 7.5. Words are as in
    `bleu_4`; raises as it does.
    """
    _check(generated, references)
    images: Counter = Counter()  # in how many images' references each n-gram occurs
    for own in references:
        images.update(set().union(*(_all_ngrams(words_of(reference)) for reference in own)))
    everything = math.log(len(references))

    def vectors(words: list[str]) -> list[dict[tuple[str, ...], float]]:
        """Per n, the n-grams' counts times their rarity."""
        return [
            {
                ngram: count * (everything - math.log(max(1, images[ngram])))
                for ngram, count in _ngrams(words, n + 1).items()
            }
            for n in range(LONGEST_NGRAM)
        ]

    def likeness(words: list[str], right: list[str]) -> float:
        cosines = 0.0
        for ours, theirs in zip(vectors(words), vectors(right), strict=True):
            product = sum(min(ours.get(ngram, 0.0), it) * it for ngram, it in theirs.items())
            norm = math.hypot(*ours.values()) * math.hypot(*theirs.values())
            cosines += product / norm if norm else 0.0
        gap = len(words) - len(right)
        return cosines / LONGEST_NGRAM * math.exp(-(gap**2) / (2 * CIDER_SIGMA**2))

    return 10 * np.array([
        np.mean([likeness(words_of(text), words_of(reference)) for reference in own])
        for text, own in zip(generated, references, strict=True)
    ])  # fmt: skip


def rouge_l(generated: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L: the mean of `rouge_ls`; raises as it does."""
    return float(rouge_ls(generated, references).mean())


def rouge_ls(generated: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L of each caption, [n] (Lin 2004, "ROUGE: a package for automatic evaluation of
    summaries", section 3), as COCO's evaluation has it.

    (1 + b^2) p r / (r + b^2 p) of precision p and recall r, the parts that the longest common
    subsequence is of the caption's words and of a reference's, each from the reference for which it
    is the largest. Words are as in `bleu_4`; raises as it does.
    """
    _check(generated, references)
    scores = []
    for text, own in zip(generated, references, strict=True):
        words, rights = words_of(text), [words_of(reference) for reference in own]
        common = [_longest_common(words, right) for right in rights]
        precision = max(common) / max(1, len(words))
        recalls = (n / max(1, len(right)) for n, right in zip(common, rights, strict=True))
        most = max(recalls)
        both = most + ROUGE_BETA**2 * precision
        scores.append((1 + ROUGE_BETA**2) * precision * most / both if both else 0.0)
    return np.array(scores)


def _longest_common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence."""
    before = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for i, theirs in enumerate(other):
            row.append(before[i] + 1 if word == theirs else max(row[i], before[i + 1]))
        before = row
    return before[-1]


def _check(generated: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(generated) != len(references) or not generated:
        raise ValueError(f"{len(generated)} captions for {len(references)} sets of references")
    if any(isinstance(own, str) or not own for own in references):
        raise ValueError("every caption needs a sequence of at least one reference")


def _ngrams(words: list[str], n: int) -> Counter:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _all_ngrams(words: list[str]) -> Counter:
    return sum((_ngrams(words, n + 1) for n in range(LONGEST_NGRAM)), Counter())
