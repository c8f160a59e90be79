"""What the check says of a wrong answer: slips, how numbers belong together, sentences, claims."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from lesson_files import answer, words_of

from lessons import exercise, launch, relations, slips
from lessons.checker import judge
from lessons.compare import same
from lessons.exercises import EXERCISES

ROOT = Path(__file__).parent.parent


@given(st.sampled_from(("2a", "3b", "4b", "7b", "8b", "9b", "18b")), st.integers(0, 80))
def test_any_one_slip_is_named(name, number):
    """The answer with a slip in it: right all the same, or said in more than numbers."""
    it = EXERCISES[name]
    functions, run = it.slipped()[-1]
    tree = slips._tree(functions)
    for count, (_, undo) in enumerate(slips._slips(tree)):
        wrong = slips._compiled(tree, functions) if count == number else None
        undo()
        if wrong:
            break
    try:
        with np.errstate(all="ignore"):
            verdict = judge(it, lambda arguments: run(wrong, arguments))
    except Exception:  # such a slip gives no numbers at all
        return
    lines = [x for x in verdict.words.split("\n") if "; expected " not in x or "(" in x]
    assert [x for x in lines if not x.startswith(("right: ", "wrong too: "))], verdict.words


UNLISTED = {  # exercise: {what a learner returned: what is said}
    "2b": {"-cache[0] * (dp - (cache[0] * dp).sum(-1, keepdims=True))": "the sign is turned",
           "(cache[0] * (dp - (cache[0] * dp).sum(-1, keepdims=True))).astype('f2')": "float16",
           "(cache[0] * (dp - (cache[0] * dp).sum(-1, keepdims=True))).T": "transpose them",
           "cache[0] * (dp - (cache[0] * dp).sum(-1, keepdims=True)) / len(dp)": ": 1 / ",
           "(cache[0] * (dp - (cache[0] * dp).sum(-1, keepdims=True)))[::-1]": "backwards along",
           "dp": "dx is dp as it was given"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "returned", "words"), [(n, r, w) for n, x in UNLISTED.items() for r, w in x.items()]
)
def test_how_numbers_belong_together_is_said(name, returned, words, tmp_path):
    text = EXERCISES[name].stub().replace("raise NotImplementedError", f"return {returned}")
    assert words in words_of(name, text, tmp_path)


RELATED = {
    "exchanged": lambda x: x.transpose(1, 0),
    "backwards": lambda x: x[::-1],
    "shifted": lambda x: np.roll(x, 1, 1),
    "wrong order": lambda x: np.sort(x, None).reshape(x.shape),
    "0 everywhere": np.zeros_like,
    "too large everywhere": lambda x: x + 2.5,
    "the square of": np.square,
    "exp of": np.exp,
    "a factor that is the same": lambda x: x * np.arange(1.0, 8)[:, None],
    "a term that is the same": lambda x: x + np.arange(1.0, 8)[:, None],
    "is right but for 6 of axis 0": lambda x: np.concatenate([x[:-1], x[:1] + x[1:2]]),
    "rounded to float16": lambda x: x.astype(np.float16).astype(float),
    "digits": lambda x: x + 1e-4 * np.sin(np.arange(49).reshape(7, 7)),
}


@given(st.integers(0, 10**6))
def test_every_relation_is_seen_and_none_where_there_is_none(seed):
    rng = np.random.default_rng(seed)
    x, other = rng.standard_normal((2, 7, 7))

    def said(got):
        alike = lambda a, b: a.shape == b.shape and same(a, b, 1e-6)  # noqa: E731
        return next(filter(None, (r(got, x, alike) for r in relations.RELATIONS)), None)

    for words, change in RELATED.items():
        assert words in said(change(x)), words
    assert said(other) is None


# Where the memory ends.


@triton.jit
def copy_one(x_ptr, y_ptr, read, write):
    tl.store(y_ptr + write, tl.load(x_ptr + read))


@given(st.integers(1, 40), st.booleans())
def test_one_number_past_the_end_on_both_sides(size, reads):
    x, y = launch.tensor(np.arange(size)), launch.empty(size)

    def at(place):
        places = (place, 0) if reads else (0, place)
        launch.launch(copy_one, (1,), x, y, *places, writes=("y_ptr",))

    at(0)
    at(size - 1)
    for place, where in ((-1, "before the start of"), (size, "past the end of")):
        name = "tl.load reads" if reads else "tl.store writes"
        with pytest.raises(IndexError, match=f"{name} {where} {'x' if reads else 'y'}_ptr's"):
            at(place)
    with pytest.raises(IndexError, match="y_ptr's memory, which is given to read"):
        launch.launch(copy_one, (1,), x, launch.tensor(np.zeros(size)), 0, 0)


# Every sentence that an exercise raises.


def told_in_source():
    """{(file, line)} of every `raise Told` in the lessons."""
    return {
        (path.name, node.lineno)
        for path in (ROOT / "lessons").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        and ast.unparse(node.exc.func) == "Told"
    }  # fmt: skip


TELLS = (  # exercise, what of its right answer, into what
    ("3b", None, "def _gelu_tanh(x):\n    return x, x\n"),
    ("4a", None, "def attention(q, k, v, mask):\n    import numpy as np\n"
     "    return np.array((q, (q,)))\n"),
    ("4b", None, "def attention_backward(do, cache):\n    return do @ cache[2], do, do\n"),
    ("4b", None, "from minicoca.reference.attention import attention_backward as right\n\n\n"
     "def attention_backward(do, cache):\n    dq, dk, dv = right(do, cache)\n"
     "    return dk, dq, dv\n"),
    ("5b", None, "from minicoca.reference.ops import linear_backward\n\n\n"
     "def patch_embedding_backward(dx, cache):\n    return linear_backward(dx, cache[0])\n"),
    ("6a", None, "from minicoca.reference.attention import multi_head_attention\n\n\n"
     "def attentional_pooler(tokens, params, heads):\n    return multi_head_attention("
     "params['queries'][None], tokens, params['attention'], heads)\n"),
    *(("6b", None, "from minicoca.reference.ops import layer_norm_backward\n\n\n"
       "def attentional_pooler_backward(dy, cache):\n"
       f"    return layer_norm_backward(dy{part}, cache[0])\n") for part in ("", ".sum(1)")),
    ("11a", None, "(t[:, None] < T) and (s[None, :] < end)"),
    ("11a", None, "0 <= t[:, None] < T"),
    ("11b", None, "tl.load(ptr + rows[:, None] * row_stride + columns[None, :])"),
    ("11b", None, "tl.load(ptr + rows[:, None], rows[:, None] < row_count)"),
    ("11b", None, "tl.load(ptr, boundary_check=(0,))"),
    ("12b", 'input_precision="ieee"', 'input_precision="tf32"'),
    ("12b", "@triton.jit\n", ""),
    ("14a", "[0]\n    return layer_norm(y, params[\"norm_output\"])[0]",
     "[0]\n    return layer_norm(y, params[\"norm_output\"])"),
    ("14a", "    a = ",
     "    (tokens_BSM @ params[\"attention\"][\"key\"][\"weight\"]).max()\n    a = "),
    ("14b", "return dxhat_BSM, ", "return dxhat_BSM[0], "),
    ("14b", "return dxhat_BSM, ", "return "),
    ("16a", None, "from minicoca.kernels.caption_loss import torch_rows as right\n\n\n"
     "def torch_rows(logits, targets, gradient):\n"
     "    return right(logits, targets, gradient) + (0 if gradient else 1)\n"),
    ("18c", "encode(weights[name], x[p])[1]", "(x[p], l2_normalise(x[p] @ weights[name])[1])"),
)  # fmt: skip


def test_every_sentence_of_an_exercise_is_told_by_some_answer(tmp_path, monkeypatch):
    told = set()

    def noted(self, *words):
        frame = sys._getframe(1)
        told.add((Path(frame.f_code.co_filename).name, frame.f_lineno))

    monkeypatch.setattr(exercise.Told, "__init__", noted)
    for name, old, new in TELLS:
        if old:
            assert answer(name).count(old), (name, old)
            new = answer(name).replace(old, new)
        elif not new.startswith(("def ", "from ")):
            new = EXERCISES[name].stub().replace("raise NotImplementedError", f"return {new}")
        before, _ = len(told), words_of(name, new, tmp_path)
        assert len(told) > before, f"{name} tells nothing of:\n{new}"
    assert told_in_source() <= told, f"told by no answer here: {sorted(told_in_source() - told)}"


def test_check_knows_every_module_of_exercises():
    assert [it.name for it in EXERCISES.values()] == list(EXERCISES)
    for name, it in EXERCISES.items():
        assert EXERCISES.listed[name].minutes == it.minutes and it.task in str(it)
