"""The lessons run as printed, and their exercises know right from wrong."""

import re

import numpy as np
import pytest

from lessons import __main__ as command
from lessons import figures, pages
from lessons.checker import check, judge
from lessons.exercises import EXERCISES

PAGES = pages.all_pages()
MISTAKES = [(name, words) for name, it in EXERCISES.items() for words in it.mistakes]


@pytest.mark.parametrize(
    "path",
    # Page 10 trains four models in NumPy.
    [pytest.param(p, marks=[pytest.mark.slow] * (pages.label(p) == "10")) for p in PAGES],
    ids=lambda path: path.stem,
)
def test_a_page_prints_what_it_says(path):
    pages.run(path)
    text = path.read_text()
    for part in ("*You need:", "**Before you read on:**", "## What breaks", "## Exercises"):
        assert part in text, f"{path.name} has no {part}"
    assert text.index("```python") < 1200, "no code on the first screen"
    assert 150 <= text.count("\n") <= 320


def test_every_page_shows_its_figures():
    for path in PAGES:
        label = pages.label(path)
        drawn = {f"figures/{name}" for name in figures.DRAWN if name.split("_")[0] == label}
        assert drawn and drawn <= set(pages.links(path)), f"{path.name} does not show {drawn}"


def test_minutes_are_told_alike():
    """A page's own, those of its exercises, and those of the README."""
    listed = (pages.FOLDER / "README.md").read_text()
    for path in PAGES:
        head = re.sub(r"\s+", " ", path.read_text()[:600])
        read, do = re.search(r"Time: (\d+) min to read, (\d+) to do", head).groups()
        row = re.search(rf"^\| \[{pages.label(path)} · .*{path.name}.*$", listed, re.M)[0]
        assert f"| {read}, {do} |" in row and f"· {pages.title(path)}]" in row, path.name
        own = [EXERCISES[name].minutes for name in pages.exercises(path)]
        assert sum(own) == int(do), f"{path.name}: exercises take {sum(own)} minutes"


@pytest.mark.parametrize("name", figures.DRAWN)
def test_a_figure_is_as_it_would_be_drawn_again(name):
    committed = (figures.FOLDER / name).read_text()
    if figures.CREATOR not in committed:
        pytest.skip(f"drawn by another version than {figures.CREATOR}")
    assert not figures.differ(committed, figures.draw(name))


def test_pages_and_exercises_name_each_other():
    assert [name for path in PAGES for name in pages.exercises(path)] == list(EXERCISES)
    for path in PAGES:
        own = pages.exercises(path)
        assert len(own) >= 2 and all(int(name[:-1]) == int(path.stem[:2]) for name in own)
        for name in own:
            row = re.search(rf"^\| {name} \|.*$", path.read_text(), re.M)[0]
            it = EXERCISES[name]
            assert it.dots in row and f"| {it.minutes} |" in row and it.task in row


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_is_not_written_and_the_reference_is_right(name, tmp_path):
    it = EXERCISES[name]
    path = tmp_path / "answer.py"
    path.write_text(it.stub())
    assert check(it, path).words == "not written yet"
    path.write_text(it.stub().replace("raise NotImplementedError", "pass"))
    assert "not written yet" in check(it, path).words
    assert judge(it, it.right).right
    assert len(it.hints) >= 2 and len(it.mistakes) >= 3


@pytest.mark.parametrize("name", [name for name, it in EXERCISES.items() if it.expected])
def test_a_learners_own_kernel_passes(name):
    path = pages.FOLDER / "answers" / f"{name}.py"
    told = check(EXERCISES[name], path)
    assert told.right and ("compiler" in told.words) == bool(EXERCISES[name].constants)


@pytest.mark.parametrize(("name", "words"), MISTAKES)
def test_a_mistake_is_called_by_its_name(name, words):
    it = EXERCISES[name]
    assert judge(it, lambda arguments: it.mistakes[words](*arguments)).words == words


@pytest.mark.parametrize("name", EXERCISES)
def test_what_is_wrong_in_another_way_is_shown(name):
    it = EXERCISES[name]

    def changed(arguments, change):
        result = it.right(arguments)
        first, *others = result if isinstance(result, tuple) else (result,)
        if isinstance(first, dict):
            first = {key: change(np.asarray(x)) for key, x in first.items()}
        else:
            first = change(np.asarray(first))
        return (first, *others) if others else first

    words = judge(it, lambda arguments: changed(arguments, lambda x: 3 * x.astype(float))).words
    assert "is 3 times what it should be" in words and "expected" in words
    words = judge(it, lambda arguments: changed(arguments, lambda x: np.stack([x, x]))).words
    assert "has shape" in words


def test_a_learners_way_through(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "WORK", tmp_path)

    def said(*arguments):
        code = command.main(list(arguments))
        out = capsys.readouterr()
        return code, out.out + out.err

    assert said("check", "2b") == (1, "not begun; python -m lessons start 2b\n")
    assert "[-] 2b" in said("list")[1]
    assert "2b.py" in said("start", "2b")[1]
    assert "delete it" in said("start", "2b")[1]
    assert said("check", "2b") == (1, "not written yet\n")
    path = tmp_path / "2b.py"
    path.write_text(path.read_text().replace("raise NotImplementedError", "return p * dp"))
    assert "shared sum is missing" in said("check", "2b")[1] and "[ ] 2b" in said("list")[1]
    path.write_text("import numpy as np\n\ndef softmax_backward(dp, cache):\n    return 1 / 0\n")
    assert "ZeroDivisionError" in said("check", "2b")[1] and "line 4" in said("check", "2b")[1]
    assert "def softmax_backward" in said("peek", "2b")[1]
    one, two, three = (said("hint", "2b")[1] for _ in range(3))
    assert one.startswith("hint 1 of 2: ") and two.startswith(one) and "hint 2 of 2: " in two
    assert three == two + "no more; `peek` shows the answer\n"
    path.write_text(
        "def softmax_backward(dp, cache):\n    p = cache[0]\n"
        "    return p * (dp - (p * dp).sum(-1, keepdims=True))\n"
    )
    assert said("check", "2b") == (0, "right\n") and "[x] 2b" in said("list")[1]
    assert "no exercise '9z'" in said("check", "9z")[1] and said("run", "99")[0] == 1


FORMS = {
    "7b": {
        "(1, 2, 3)": "return one dict with the keys cls, position, token",
        "{'token': 1}": "return one dict with the keys cls, position, token; it has token",
        "{'token': 1, 'position': 'a', 'cls': 1}": "dparams should be numbers; a str was",
    },
    "9b": {
        "image_BE": "3 values are wanted (dimage_BE, dtext_BE, dlog_temperature); 1 was returned",
        "(image_BE, scale)": "dlog_temperature); 2 were returned",
        "(image_BE, None, 1)": "dtext_BE should be an array or a number; a NoneType was returned",
        "(image_BE, [[1], [1, 2]], 1)": "a list was returned",
        "np.eye(2) @ np.eye(3)": "9b.py, line 9)",  # raised inside NumPy or not, the learner's line
        "np.linalg.inv(np.eye(2)[:1])": "9b.py, line 9)",
        "(": "SyntaxError: '(' was never closed\n",
    },
    "18a": {"1": "2 values are wanted (the scaled gradients, the norm before); 1 was returned"},
}


@pytest.mark.parametrize(
    ("name", "returned", "words"), [(n, r, w) for n, them in FORMS.items() for r, w in them.items()]
)
def test_what_is_no_answer_at_all_is_said_in_words(name, returned, words, tmp_path):
    path = tmp_path / f"{name}.py"
    it = EXERCISES[name]
    path.write_text(it.stub().replace("raise NotImplementedError", f"return {returned}"))
    assert words in check(it, path).words
    path.write_text("x = 1\n")
    assert f"the file has no function {it.function}" in check(it, path).words
    path.write_text(f"def {it.function}():\n    pass\n")
    assert "outside of your lines: look at what your function takes" in check(it, path).words


CHANGES = (  # of a right answer: what is told of them
    ("12b", ", mask=t < T)", ")", "tl.store writes past the end of lse_ptr's memory"),
    ("12b", "load_tile(q_ptr + h * T * K, t, c, K, T, K, False)",
     "tl.load(q_ptr + (h * T + t[:, None]) * K + c[None, :])", "tl.load has no mask="),
    ("12b", "o_ptr + rows", "o_ptr - K + rows", "writes before the start of o_ptr's memory"),
    ("12b", "    o = acc", "    if t < T:\n        h = h\n    o = acc", "compiler refuses it"),
    ("15b", "dimage, dtext, dscale\n", "dimage, dtext\n", "dtext, dscale); 2 were returned"),
    ("15b", "dimage, dtext, dscale\n", "dimage, dtext, dscale.clone().requires_grad_()\n",
     "dscale should be an array or a number; a Tensor with a gradient: detach() it"),
    ("15b", "return dimage, dtext, dscale\n", "return [dimage, dtext, dscale]\n", "right"),
    ("16b", "g - 1, g), mask=v < V)", "g - 1, g))", "past the end of logits_ptr's memory"),
    ("16b", 'tl.full([1], float("-inf"), tl.float32)', 'float("-inf")', "compiler refuses it"),
    ("18c", "encode(weights[name], x[p])[1]", "(x[p], l2_normalise(x[p] @ weights[name])[1])",
     "All is right, but the caches"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [pytest.param(*c, marks=[pytest.mark.slow] * ("compiler" in c[-1])) for c in CHANGES],
)
def test_what_only_the_launch_or_the_compiler_can_see_is_told(name, old, new, words, tmp_path):
    text = (pages.FOLDER / "answers" / f"{name}.py").read_text()
    assert text.count(old) == 1
    path = tmp_path / f"{name}.py"
    path.write_text(text.replace(old, new))
    assert words in check(EXERCISES[name], path).words


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_as_a_notebook(path, tmp_path):
    page = tmp_path / path.name
    page.write_text(pages.for_notebook(path))
    assert "```math" not in page.read_text()
    moved = [link if link.startswith("https:") else f"../{link}" for link in pages.links(path)]
    assert pages.links(page) == moved
    code = [block[2] for block in pages.blocks(path)]
    assert [block[2] for block in pages.blocks(page)][1:] == code


def test_a_page_that_prints_something_else_is_refused(tmp_path):
    page = tmp_path / "01_x.md"
    page.write_text("# 01 · x\n\n```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(pages.Differs, match="line 3: printed\n1"):
        pages.run(page)
    page.write_text("# 01 · x\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as error:
        pages.run(page)
    assert error.traceback[-1].lineno + 1 == 4 and str(error.traceback[-1].path) == str(page)


def test_16a_is_called_without_a_gradient_too():
    it = EXERCISES["16a"]
    right = it.load_answer()

    def wrong(logits, targets, gradient):
        return right(logits, targets, gradient) + (0 if gradient else 1)

    words = judge(it, lambda arguments: it.run(wrong, arguments)).words
    assert "With gradient=False the total should be the same" in words
