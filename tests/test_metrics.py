"""Metrics against cases worked by hand, slow plain definitions, and the programs people use."""

import collections
import itertools
import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicoca import metrics
from minicoca.words import words_of

small = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


def test_recall_by_hand():
    similarity = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.3], [0.1, 0.7, 0.6]])
    assert metrics.recall_at_k(similarity, [0, 1, 2], (1, 2, 3)) == {1: 1 / 3, 2: 2 / 3, 3: 1.0}
    right = np.eye(3, dtype=bool)
    assert metrics.recall_at_k(similarity.T, right.T, (1, 2)) == {1: 2 / 3, 2: 1.0}


def test_recall_with_several_captions_per_image():
    captions = [("a dog", "the dog"), ("a cat",), ("a dog",)]
    texts = ["a dog", "the dog", "a cat", "a dog", "a bird"]
    right = metrics.right_texts(captions, texts)
    assert right.tolist() == [
        [True, True, False, True, False],
        [False, False, True, False, False],
        [True, False, False, True, False],
    ]
    # Image 0 finds the other "a dog": equal words, so right; image 2 ranks "the dog" first.
    similarity = np.array([[1, 0, 2, 9, 0], [0, 0, 5, 1, 0], [3, 9, 0, 3, 0]])
    assert metrics.recall_at_k(similarity, right, (1, 2)) == {1: 2 / 3, 2: 1.0}
    # No image is right for "a bird".
    assert metrics.recall_at_k(similarity.T, right.T, (3,)) == {3: 4 / 5}


@given(small, small, seeds)
def test_ties_count_against_the_model(n, m, seed):
    right = np.random.default_rng(seed).random((n, m)) < 0.3
    wrong = (~right).sum(axis=1)
    found = metrics.recall_at_k(np.zeros((n, m)), right, range(1, m + 1))
    for k, share in found.items():
        assert share == ((wrong < k) & right.any(1)).mean()


@given(small, small, seeds, st.sampled_from([np.float32, np.float64, np.int64]))
def test_recall_is_the_rank_among_all_orders(n, m, seed, dtype):
    """The share of queries for which every order that sorts the scores has a right one in time."""
    random = np.random.default_rng(seed)
    similarity = random.integers(-2, 3, (n, m)).astype(dtype)
    right = random.random((n, m)) < 0.4
    for k, share in metrics.recall_at_k(similarity, right, range(1, m + 2)).items():
        hits = 0
        for scores, rights in zip(similarity, right, strict=True):
            worst_first = sorted(range(m), key=lambda j: (-scores[j], rights[j]))  # noqa: B023
            hits += any(rights[j] for j in worst_first[:k])
        assert share == hits / n


def test_minus_infinity_is_no_find():
    assert metrics.recall_at_k([[-np.inf, -np.inf]], [0])[1] == 0
    assert metrics.recall_at_k([[0.0, 1.0]], [[False, False]], (5,)) == {5: 0.0}


@pytest.mark.parametrize(
    "similarity, right",
    [
        ([[np.nan, 1.0]], [0]),
        ([1.0, 2.0], [0]),
        (np.zeros((0, 3)), []),
        (np.zeros((2, 3)), [0, 3]),
        (np.zeros((2, 3)), [0, -1]),
        (np.zeros((2, 3)), [0]),
        (np.zeros((2, 3)), np.ones((3, 2), bool)),
    ],
)
def test_what_cannot_be_ranked_is_refused(similarity, right):
    with pytest.raises(ValueError):
        metrics.recall_at_k(similarity, right)


def test_top_k_accuracy():
    scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.2]]
    assert metrics.top_k_accuracy(scores, [1, 1, 0], (1, 2, 3)) == {1: 1 / 3, 2: 2 / 3, 3: 1.0}


def test_exact_match():
    references = [("a red circle", "the circle"), ("a star",), ("a ring",), ("a cross",)]
    generated = ["the  circle ", "a star at", "A ring", "a cross"]
    assert metrics.exact_match(generated, references) == 0.5


SCORES = [metrics.exact_match, metrics.bleu_4, metrics.cider_d, metrics.rouge_l]


@pytest.mark.parametrize("score", SCORES)
def test_captions_that_cannot_be_scored_are_refused(score):
    for generated, references in (([], []), (["a"], []), (["a"], [()]), (["a"], ["a"])):
        with pytest.raises(ValueError):
            score(generated, references)


def test_bleu_by_hand():
    # 6 words against 7; hits 5 of 6, 4 of 5, 3 of 4, 2 of 3.
    score = metrics.bleu_4(["a red circle left of star"], [["a red circle left of a star"]])
    hits = 6 / 6 * 4 / 5 * 3 / 4 * 2 / 3
    assert score == pytest.approx(math.exp(1 - 7 / 6) * hits**0.25)
    # A word counts only as often as one reference has it, in whichever has it most.
    repeated = metrics.bleu_4(
        ["the the the the cat sat on the mat"], [["the cat sat on the mat", "the the rug"]]
    )
    assert repeated == pytest.approx((6 / 9 * 6 / 8 * 4 / 7 * 3 / 6) ** 0.25)


def test_bleu_of_a_corpus_adds_counts_before_dividing():
    generated, references = ["a b c d e", "x y z w"], [["a b c d e"], ["x y q w"]]
    hits = (8 / 9) * (5 / 7) * (3 / 5) * (2 / 3)
    assert metrics.bleu_4(generated, references) == pytest.approx(hits**0.25)


def test_bleu_takes_the_nearest_length():
    text = "a b c d e"
    assert metrics.bleu_4([text], [[text, text + " f g h"]]) == pytest.approx(1)
    assert metrics.bleu_4([text], [[text + " f", "a b c d"]]) == pytest.approx(1)  # 4 and 6: 4
    assert metrics.bleu_4([text], [[text + " f"]]) == pytest.approx(math.exp(-0.2))
    assert metrics.bleu_4(["A b, c d."], [["a b c d"]]) == pytest.approx(1)
    assert metrics.bleu_4([""], [[text]]) == 0 == metrics.bleu_4(["p q"], [[text]])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_bleu_of_captions_under_four_words_counts_the_sequences_there_are(n):
    right = [" ".join(words) for words in ("abcde"[:n], "xyzpq"[:n])]
    assert metrics.bleu_4(right, [[text, f"{text} and so on"] for text in right]) == 1
    assert metrics.bleu_order(right) == metrics.bleu_order([right[0], "", "x"]) == min(n, 4)
    worse = [right[0], right[1].replace("x", "-")]
    assert metrics.bleu_4(worse, [[text] for text in right]) < 1


def test_cider_by_hand():
    references = [["a red circle"], ["a blue star"]]
    # "a" is in both images and weighs nothing; there are no sequences of four words.
    assert metrics.cider_d(["a red circle", "a blue star"], references) == pytest.approx(7.5)
    # One of two rare words; one of two pairs ("a red" of "a red", "red star"); no threes.
    score = metrics.cider_d(["a red star", "nothing"], references)
    assert score == pytest.approx(10 * (0.5 + 0.5) / 4 / 2)
    # Too long by one word: the length's penalty, on top of longer vectors.
    score = metrics.cider_d(["red circle a circle", "nothing"], references)
    # Clipped: two "circle" count as one; norms sqrt(1 + 4) and sqrt(2). Pairs 1 of 3 and 2.
    expected = (2 / math.sqrt(10) + 1 / math.sqrt(6)) / 4 * math.exp(-1 / 72)
    assert score == pytest.approx(10 * expected / 2)


def test_cider_averages_references_and_counts_images_not_references():
    references = [["x y", "x y", "p q"], ["s t"], ["u v"]]
    # Each word is in one of three images, so all weigh alike; two of three references are hit.
    score = metrics.cider_d(["x y", "-", "-"], references)
    assert score == pytest.approx(10 * (2 / 3) * 0.5 / 3)
    # "x" is in one image's captions twice and "p" once, and both weigh the same.
    assert metrics.cider_d(["x p", "-", "-"], references) == pytest.approx(10 * 0.25 * 0.5 / 3)


words = st.lists(st.sampled_from("a red blue circle star ring".split()), min_size=4, max_size=9)


@given(st.lists(words.map(" ".join), min_size=2, max_size=5))
def test_scores_of_the_truth_are_the_best(captions):
    rights = [[caption] for caption in captions]
    truth = {score.__name__: score(captions, rights) for score in SCORES}
    assert truth["exact_match"] == 1 == truth["rouge_l"] and truth["bleu_4"] == pytest.approx(1)
    worse = {score.__name__: score([c + " zebra" for c in captions], rights) for score in SCORES}
    assert worse["exact_match"] == 0 and max(worse["bleu_4"], worse["rouge_l"]) < 1
    assert worse["cider_d"] <= truth["cider_d"] <= 10 + 1e-9


WORDS = {
    "A dog's red ball, on a t-shirt.": ["a", "dog's", "red", "ball", "on", "a", "t-shirt"],
    "the dogs’ 'big' dog’s bowl": ["the", "dogs", "big", "dog's", "bowl"],
    "at 10:30 (1,000 x 3.5)... 7.": ["at", "10:30", "1,000", "x", "3.5", "7"],
    "c++ is not c#": ["c", "+", "+", "is", "not", "c", "#"],
    "50 % & $3 @ x_1": ["50", "%", "&", "$", "3", "@", "x_1"],
    "एक लड़की पानि": ["एक", "लड़की", "पानि"],
    "ಒಂದು ಕೆಂಪು চাকা": ["ಒಂದು", "ಕೆಂಪು", "চাকা"],
    "ශ්\u200dරී ලංකා": ["ශ්\u200dරී", "ලංකා"],
    "می\u200cروم به خانه": ["می\u200cروم", "به", "خانه"],
    "שָׁלוֹם צה״ל\u200f": ["שָׁלוֹם", "צה״ל"],
    "ΈΝΑΣ ΣΚΎΛΟΣ; cafe\u0301": ["ένας", "σκύλος", "café"],
    "小狗在草地。": list("小狗在草地"),
    "猫のスーパー": list("猫のスーパー"),
    "น้ำใน": ["น้ำ", "ใ", "น"],
    "한국어 강아지": ["한국어", "강아지"],
    "10 m² ½": ["10", "m²", "½"],
    "a 🐶🐱 ❤️‍🔥!": ["a", "🐶", "🐱", "❤️‍🔥"],
    "👍🏽👩‍👩‍👧 🇩🇪🇫🇷": ["👍🏽", "👩‍👩‍👧", "🇩🇪", "🇫🇷"],
    "1️⃣ 👁️‍🗨️ 🏴\U000e0067\U000e0062\U000e007f": ["1️⃣", "👁️‍🗨️", "🏴\U000e0067\U000e0062\U000e007f"],
    "\U0001faff\U0001f436 \uf8ff": ["\U0001faff", "\U0001f436", "\uf8ff"],  # newer, private
    "": [],
    " ... ?!": [],
}


@pytest.mark.parametrize("text", WORDS)
def test_words_of_every_script(text):
    assert words_of(text) == WORDS[text]


letters = st.sampled_from("aZ9é'-.,:+#ंक्षีน้犬カ🐶🇩🏽\u200d\u200c\ufe0f½_ \u200b“") | st.characters(
    codec="utf-8"
)


@given(st.text(letters, max_size=12))
def test_no_letter_mark_digit_or_symbol_is_lost(text):
    words, whole = words_of(text), unicodedata.normalize("NFC", text).lower()
    kept = [c for c in "".join(words) if unicodedata.category(c)[0] in "LMN"]
    assert kept == [c for c in whole if unicodedata.category(c)[0] in "LMN"]
    symbols = [c for c in whole if unicodedata.category(c) in ("So", "Sm", "Sc")]
    assert not collections.Counter(symbols) - collections.Counter("".join(words))
    assert words == [w for word in words for w in words_of(word)] and all(words)


def test_what_differs_counts_as_different():
    for one, other in (
        ("c++", "c#"),
        ("पानी", "पानि"),
        ("🐶", "🐱"),
        ("🇩🇪", "🇫🇷"),
        ("dogs", "dog's"),
    ):
        right, wrong = f"one big {one} on mats", f"one big {other} on mats"
        assert metrics.bleu_4([wrong, "x y"], [[right], ["x y"]]) < 1
        assert metrics.cider_d([right, "x y"], [[right], ["x y"]]) > metrics.cider_d(
            [wrong, "x y"], [[right], ["x y"]]
        )


def plain_ngrams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def plain_cider(generated, references):
    """Vedantam et al. 2015, Eq. 1 to 4 and the D of section 5, over lists, word for word."""
    total = 0.0
    for candidate, own in zip(generated, references, strict=True):
        for n, reference in itertools.product((1, 2, 3, 4), own):
            vectors = []
            for text in (candidate, reference):
                grams, vector = plain_ngrams(text, n), {}
                for gram in grams:
                    holding = sum(any(gram in plain_ngrams(r, n) for r in o) for o in references)
                    rarity = math.log(len(references) / max(1, holding))
                    vector[gram] = grams.count(gram) * rarity
                vectors.append(vector)
            ours, right = vectors
            norms = math.prod(math.sqrt(sum(x * x for x in v.values())) for v in vectors)
            product = sum(
                min(ours[gram], right[gram]) * right[gram] for gram in ours if gram in right
            )
            gap = len(candidate) - len(reference)
            cosine = product / norms if norms else 0
            total += cosine * math.exp(-(gap**2) / 72) / 4 / len(own)
    return 10 * total / len(generated)


def plain_bleu(generated, references):
    """Papineni et al. 2002, section 2.3; of captions under n words no precision of n is taken."""
    precisions = []
    for n in (1, 2, 3, 4):
        hits = all_of_them = 0
        for candidate, own in zip(generated, references, strict=True):
            grams = plain_ngrams(candidate, n)
            all_of_them += len(grams)
            most = {gram: max(plain_ngrams(r, n).count(gram) for r in own) for gram in grams}
            hits += sum(min(grams.count(gram), most[gram]) for gram in set(grams))
        precisions += [hits / all_of_them] if all_of_them else []
    if not precisions or min(precisions) == 0:
        return 0.0
    length = sum(map(len, generated))
    nearest = sum(
        min((abs(len(r) - len(g)), len(r)) for r in own)[1]
        for g, own in zip(generated, references, strict=True)
    )
    brevity = 1 if length >= nearest else math.exp(1 - nearest / length)
    return brevity * math.prod(precisions) ** (1 / len(precisions))


def plain_rouge(generated, references):
    """Lin 2004, Eq. 2 to 4 with b = 1.2; the subsequence by looking at all."""
    scores = []
    for candidate, own in zip(generated, references, strict=True):
        parts = [tuple(c) for n in range(9) for c in itertools.combinations(candidate, n)]
        common = [max(len(p) for p in parts if is_inside(p, right)) for right in own]
        precision = max(common) / len(candidate) if candidate else 0
        recall = max(n / len(right) if right else 0 for n, right in zip(common, own, strict=True))
        both = precision * recall
        scores.append(2.44 * both / (recall + 1.44 * precision) if both else 0)
    return sum(scores) / len(scores)


def is_inside(part, words):
    rest = iter(words)
    return all(word in rest for word in part)


VOCABULARY = ["a", "red", "dog's", "isn't", "dogs", "t-shirt", "小", "पानी", "🐶", "#"]
sentences = st.lists(st.sampled_from(VOCABULARY), max_size=8)
an_image = st.tuples(sentences, st.lists(sentences, min_size=1, max_size=4))


@given(st.lists(an_image, min_size=1, max_size=5))
def test_scores_are_the_plain_definitions(images):
    generated, references = [list(side) for side in zip(*images, strict=True)]
    texts = [" ".join(words) for words in generated]
    rights = [[" ".join(words) for words in own] for own in references]
    assert metrics.cider_d(texts, rights) == pytest.approx(plain_cider(generated, references))
    assert metrics.bleu_4(texts, rights) == pytest.approx(plain_bleu(generated, references))
    assert metrics.rouge_l(texts, rights) == pytest.approx(plain_rouge(generated, references))


def test_rouge_by_hand():
    # "a red on mat": 4 of 5 words, and 4 of 6.
    score = metrics.rouge_l(["a red dog on mat"], [["a red cat on the mat"]])
    p, r = 4 / 5, 4 / 6
    assert score == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p))
    assert metrics.rouge_l(["a red star", ""], [["A red, star."], ["x"]]) == 0.5


def test_the_median_rank_counts_from_one():
    assert metrics.median_rank(np.array([0, 0, 3])) == 1 and metrics.median_rank([1, 4]) == 3.5


# What COCO's own tokenizer gives, Stanford's PTBTokenizer 3.4.1, with pycocoevalcap 1.2.
COCO_TOKENS = {
    "A black-and-white cat, on a T-shirt.": "a black-and-white cat on a t-shirt",
    "Two dogs' bowls: 'red' and \"blue\"; none is green!": (
        "two dogs bowls red and blue none is green"
    ),
    "At 10:30 it costs $3.50 -- or 1,000 % more?": "at 10:30 it costs $ 3.50 or 1,000 % more",
    "One # & two + three = five o'clock": "one # & two + three = five o'clock",
    "An e-mail -- a naïve café ... Straße": "an e-mail a naïve café straße",
}


@pytest.mark.parametrize("text", COCO_TOKENS)
def test_english_words_are_those_of_coco(text):
    assert words_of(text) == COCO_TOKENS[text].split()
