"""Bugs planted in what figures are made of, each seen by a check of its own."""

import pytest
import test_evaluate as evaluate_tests
import test_judging as judging_tests
import test_metrics as metrics_tests
import test_word_order as order_tests
from oracles import planted
from test_judging import folder, model, pictures  # noqa: F401 - fixtures

from minicoca import evaluate, intervals, metrics
from minicoca.tasks import scoring, word_order, zero_shot

DRAWN = evaluate_tests.test_figures_of_drawn_images_are_those_of_a_set_that_holds_them_so_often
BUGS = [
    (metrics, "precision = max(common) / max(1, len(words))",
     "precision = max(common) / max(1, len(rights[0]))", metrics_tests.test_rouge_by_hand),
    (metrics, "(1 + ROUGE_BETA**2) * precision * most / both", "2 * precision * most / both",
     metrics_tests.test_rouge_by_hand),
    (metrics, "float(np.median(ranks)) + 1", "float(np.mean(ranks)) + 1",
     metrics_tests.test_the_median_rank_counts_from_one),
    (evaluate, "own = times[images]\n            for k in KS",
     "own = times[:1].repeat(len(ranks))\n            for k in KS", DRAWN),
    (evaluate, "(ranks < k), own.sum()", "(ranks <= k), own.sum()",
     evaluate_tests.test_galleries_are_averaged_and_the_rest_is_left_out),
    (evaluate, "np.repeat(used, np.diff(ends)[: len(used)])",
     "np.arange(ends[len(used)]) % len(used)", DRAWN),
    (evaluate, "columns @ times / times.sum()", "columns.mean(1)", DRAWN),
    (evaluate, "bleu_of(times @ counts)", "bleu_of(counts.sum(0))", DRAWN),
    (evaluate, "np.bincount(labels, times * (ranks < 1))[shown > 0]",
     "np.bincount(labels, times * (ranks < 5))[shown > 0]", DRAWN),
    (evaluate, "return float(part / whole) if whole else float(\"nan\")",
     "return float(part / whole) if whole else 0.0",
     evaluate_tests.test_of_a_set_without_a_queried_image_nothing_is_said),
    (intervals, "ends = (1 - LEVEL) / 2, (1 + LEVEL) / 2", "ends = 1 - LEVEL, LEVEL",
     evaluate_tests.test_an_interval_is_that_of_a_share),
    (intervals, "random.integers(images, size=images)", "random.permutation(images)",
     evaluate_tests.test_an_interval_is_that_of_a_share),
    (word_order, "values[0, place[true]] > values", "values[0, place[true]] >= values",
     order_tests.check_preferences),
    (word_order, "(scored.cosines, scored.per_token, scored.pmi)",
     "(scored.cosines, scored.per_token, scored.per_token)", order_tests.check_preferences),
]  # fmt: skip
JUDGED = [
    (zero_shot, "each = sums / counts(self.tokens)", "each = sums", "check_scores"),
    (zero_shot, "each = sums - self.before", "each = sums", "check_scores"),
    (zero_shot, "cosines / self.temperature\n", "cosines\n", "check_scores"),
    (zero_shot, "self.starts, axis=1) / self.sizes", "self.starts, axis=1)", "check_scores"),
    (zero_shot, "means = means / np.linalg.norm(sums, axis=1)", "means = means", "check_ensemble"),
    (scoring, "log_likelihoods(model, blank, tokens).mean(0)",
     "log_likelihoods(model, blank, tokens)[2]", "check_without_image"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()
    check()


@pytest.mark.parametrize(("source", "old", "new", "check"), JUDGED, ids=range(len(JUDGED)))
def test_a_bug_of_judging_is_caught(source, old, new, check, model, pictures):  # noqa: F811
    check = getattr(judging_tests, check)
    check(model, pictures)
    with planted(source, old, new), pytest.raises(AssertionError):
        check(model, pictures)
