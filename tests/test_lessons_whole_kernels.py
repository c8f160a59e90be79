"""Exercises 11c to 11e: a right kernel with one slip, run as a learner's, is told its slip."""

import pytest

from lessons.checker import check, judge
from lessons.exercises import EXERCISES

SLIPS = (  # in a right answer: a part of the mistake's own words
    ("11c", "tl.program_id(0) * BLOCK", "0", "Every program has the first block"),
    ("11c", "tl.program_id(0) * BLOCK", "tl.program_id(0)", "not at i * BLOCK"),
    ("11c", "first + tl.arange(0, BLOCK)", "tl.program_id(0) * tl.arange(0, BLOCK)", "a sum"),
    ("11c", "numbers < N", "first + BLOCK + 0 * numbers <= N", "mask each number"),
    ("11c", "numbers < N", "numbers < N - 1", "Number N - 1 was left out"),
    ("11c", "tl.program_id(0) * BLOCK", "(tl.program_id(0) + 1) * BLOCK", "programs count from 0"),
    ("11c", " * scale", "", "scale was not used"),
    ("11c", " * scale", " + scale", "scale is a factor"),
    ("11c", " * scale", " / scale", "Divided by scale"),
    ("11c", "numbers < N", "numbers <= N", "past the end of x_ptr's memory"),
    ("11c", ", inside, 0.0)", ")", "tl.load has no mask="),
    ("11d", 'float("-inf")', "0.0", "e^0 is 1"),
    ("11d", "scores - tl.max(scores, 0)", "scores", "overflows"),
    ("11d", ") * LOG2E", ")", "exp2 is 2 to the power"),
    ("11d", " / tl.sum(weights, 0)", "", "not divided by their sum"),
    ("11d", " / tl.sum(weights, 0)", " / tl.max(weights, 0)", "not divided by their sum"),
    ("11d", "tl.program_id(0) * C", "0", "Every program has row 0"),
    ("11d", "tl.program_id(0) * C", "tl.program_id(0)", "Rows are C numbers apart"),
    ("11d", "tl.program_id(0) * C", "tl.program_id(0) * BLOCK", "past the end of"),
    ("11e", "acc = tl.dot(x, w, acc,", "acc = tl.dot(x, w,", "acc must be added to"),
    ("11e", "range(tl.cdiv(D, BLOCK_D))", "range(1)", "Only the first block"),
    ("11e", "range(tl.cdiv(D, BLOCK_D))", "range(D // BLOCK_D)", "which is not full"),
    ("11e", "d[:, None] * F", "tl.arange(0, BLOCK_D)[:, None] * F", "w's rows stay"),
    ("11e", "r * D + d[None, :]", "r * D + tl.arange(0, BLOCK_D)[None, :]", "x's columns stay"),
    ("11e", "step * BLOCK_D + ", "", "Both tiles stay"),
    ("11e", "tl.program_id(0) * BLOCK_R", "0", "Every program has the first rows"),
    ("11e", "tl.program_id(1) * BLOCK_F", "0", "Every program has the first columns"),
    ("11e", "tl.dot(x, w,", "tl.dot(w, x,", "factors are exchanged"),
    ("11e", "tl.dot(x, w,", "tl.dot(x, tl.trans(w),", "w's tile was turned"),
    ("11e", "d[:, None] * F", "d[:, None] * D", "rows are F apart"),
    ("11e", "r * D + d[None, :]", "r * R + d[None, :]", "rows are D apart"),
    ("11e", ', input_precision="ieee"', "", "input_precision"),
)


@pytest.mark.parametrize(("name", "old", "new", "words"), SLIPS)
def test_a_slip_in_a_whole_kernel_is_told(name, old, new, words, tmp_path):
    text = EXERCISES[name].own_answer.read_text()
    assert old in text
    path = tmp_path / f"{name}.py"
    path.write_text(text.replace(old, new))
    told = check(EXERCISES[name], path)
    assert not told.right and words in told.words


@pytest.mark.parametrize("name", ["11c", "11d", "11e"])
def test_what_peek_shows_is_right(name):
    it = EXERCISES[name]
    assert it.answer.endswith(f":{it.function}")
    assert judge(it, lambda arguments: it.run(it.load_answer(), arguments)).right
