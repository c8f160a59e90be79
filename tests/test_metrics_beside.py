"""Caption metrics beside the programs that people use, on the same words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_metrics import VOCABULARY

from minicoca import metrics
from minicoca.words import words_of

ENGLISH = ["a", "dog's", "red", "dog", "runs", "on", "the", "half-open", "door", "3.5", "isn't"]
english = st.lists(st.sampled_from(ENGLISH), min_size=4, max_size=12).map(" ".join)
pairs = st.lists(
    st.tuples(english, st.lists(english, min_size=2, max_size=2)), min_size=2, max_size=6
)


def texts_of(*sentences):
    """Each as the words that we find in it, with spaces: those programs split there."""
    return [" ".join(words_of(text)) for text in sentences]


any_text = st.one_of(
    english, st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=8).map(" ".join)
)
any_pairs = st.lists(
    st.tuples(any_text, st.lists(any_text, min_size=2, max_size=2)), min_size=2, max_size=6
)


@pytest.mark.extras
@given(any_pairs)
def test_scores_are_those_of_pycocoevalcap_on_the_same_words(pairs):
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    generated, references = [list(side) for side in zip(*pairs, strict=True)]
    said = {i: texts_of(text) for i, text in enumerate(generated)}
    right = {i: texts_of(*own) for i, own in enumerate(references)}
    cider, each = Cider().compute_score(right, said)
    assert metrics.cider_d(generated, references) == pytest.approx(cider)
    assert metrics.cider_ds(generated, references) == pytest.approx(each)
    rouge, each = Rouge().compute_score(right, said)
    assert metrics.rouge_l(generated, references) == pytest.approx(rouge)
    assert metrics.rouge_ls(generated, references) == pytest.approx(each)
    if metrics.bleu_order(generated) == 4:
        bleu = Bleu(4).compute_score(right, said, verbose=0)[0][3]
        ours = metrics.bleu_4(generated, references)
        assert ours == pytest.approx(bleu, rel=1e-6) if ours else bleu < 1e-2  # it adds 1e-15


@pytest.mark.extras
@given(any_pairs)
def test_bleu_is_that_of_sacrebleu_on_the_same_words(pairs):
    sacrebleu = pytest.importorskip("sacrebleu")
    generated, references = [list(side) for side in zip(*pairs, strict=True)]
    by_rank = [texts_of(*texts) for texts in zip(*references, strict=True)]
    theirs = sacrebleu.corpus_bleu(
        texts_of(*generated), by_rank, smooth_method="none", tokenize="none",
        use_effective_order=True,
    )  # fmt: skip
    assert metrics.bleu_4(generated, references) == pytest.approx(theirs.score / 100)


@pytest.mark.extras
@given(pairs)
def test_english_words_are_those_of_sacrebleus_own_tokenizer(pairs):
    """13a, of text without punctuation, which is a word to it."""
    sacrebleu = pytest.importorskip("sacrebleu")
    generated, references = [list(side) for side in zip(*pairs, strict=True)]
    by_rank = [list(texts) for texts in zip(*references, strict=True)]
    theirs = sacrebleu.corpus_bleu(generated, by_rank, smooth_method="none", lowercase=True)
    assert metrics.bleu_4(generated, references) == pytest.approx(theirs.score / 100)
