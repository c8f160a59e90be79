"""What `python -m lessons check` takes, refuses and names, and what no learner's file can end."""

import ast
import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from lessons import __main__ as command
from lessons import alone, exercise, kept, launch, naming, pages, relations, slips
from lessons.checker import check, judge
from lessons.compare import leaves, named, same
from lessons.exercises import EXERCISES

ROOT = Path(__file__).parent.parent
KERNELS = [name for name, it in EXERCISES.items() if it.constants]


def answer(name):
    """A right answer to an exercise, as a file's text."""
    it = EXERCISES[name]
    if it.own_answer:
        return it.own_answer.read_text()
    module, _, function = it.answer.partition(":")
    return f"from {module} import {function}\n"


def words_of(name, text, tmp_path):
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    return check(EXERCISES[name], path).words


@pytest.mark.parametrize("name", [name for name in EXERCISES if name not in KERNELS])
def test_what_peek_shows_passes(name, tmp_path):
    assert words_of(name, answer(name), tmp_path) == "right"
    assert EXERCISES[name].function in EXERCISES[name].shown_answer()


# A process of its own.


def alone_says(name, text, tmp_path, seconds=30.0, keep=None):
    path = tmp_path / f"{name}.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return alone.check(name, path, seconds, keep)


ENDS = {
    "def softmax_backward(dp, cache):\n    while True:\n        dp = dp\n": "ended after 1 s, at line",
    "while True:\n    x = 1\n": "ended after 1 s, at line",
    "import sys\n\nsys.exit(0)\n": "sys.exit() ended your file",
    "def softmax_backward(dp, cache):\n    raise SystemExit\n": "line 2",
    "import os\n\nos._exit(0)\n": "ended the whole process (code 0)",
    "import no_such_thing.part\n": "no_such_thing is not installed here: pip install no_such_thing",
    "def softmax_backward(dp, cache):\n    return softmax_backward(dp, cache)\n": "without an end",
    "x = 1\n".encode("utf-16"): "is not UTF-8 text",
    b"def softmax_backward(dp, cache):\n    return '\xe9'\n": "is not UTF-8 text",
}  # fmt: skip


@pytest.mark.parametrize("text", ENDS, ids=[str(i) for i in range(len(ENDS))])
def test_nothing_in_a_learners_file_passes_or_hangs_the_check(text, tmp_path):
    right, words = alone_says("2b", text, tmp_path, 1.0 if ENDS[text].startswith("ended a") else 60)
    assert not right and ENDS[text] in words


def test_what_was_a_learners_work_is_never_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "WORK", tmp_path)
    (tmp_path / "2b.py").write_bytes("é\n".encode("latin-1"))
    (tmp_path / ".2b.right").write_bytes(b"\xff")
    assert command.main(["list"]) == 0 and "[ ] 2b" in capsys.readouterr().out
    assert command.main(["start", "02B"]) == 1
    assert (tmp_path / "2b.py").read_bytes() == "é\n".encode("latin-1")
    fake = type(sys)("jupytext")
    fake.reads, fake.writes = (lambda text, fmt: text), (lambda notebook, fmt: "new")
    monkeypatch.setitem(sys.modules, "jupytext", fake)
    assert command.main(["notebook", "4"]) == 0
    (tmp_path / "04_attention.ipynb").write_text("mine")
    assert command.main(["notebook", "4"]) == 1 and "there already" in capsys.readouterr().err
    assert (tmp_path / "04_attention.ipynb").read_text() == "mine"


def test_next_totals_and_a_tick_that_a_spoilt_answer_loses(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "WORK", tmp_path)

    def said(*arguments):
        command.main(list(arguments))
        return capsys.readouterr().out

    minutes = sum(it.minutes for it in EXERCISES.listed.values())
    assert f"take {minutes // 60} h {minutes % 60} min" in said("list")
    assert said("next").endswith("start 1a\n")
    said("start", "04A")
    assert said("next").endswith("check 4a\n")
    (tmp_path / "4a.py").write_text(answer("4a"))
    assert said("check", "4A") == "right\n"
    left = minutes - EXERCISES.listed["4a"].minutes
    listed = said("list")
    assert "[x] 4a" in listed and "1 of " in listed
    assert f"take {left // 60} h {left % 60} min" in listed
    (tmp_path / "4a.py").write_text(answer("4a") + "# spoilt\n")
    assert "[ ] 4a" in said("list") and f"take {minutes // 60} h" in said("list")


def run_python(code, *flags, **environment):
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_list_imports_nothing_heavy_and_names_its_encodings():
    code = (
        "import sys\nfrom lessons.__main__ import main\nassert main(['list']) == 0\n"
        "assert not {'torch', 'triton', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    done = run_python(code, "-X", "warn_default_encoding", "-W", "error::EncodingWarning")
    assert done.returncode == 0, done.stderr
    done = run_python(code, PYTHONIOENCODING="cp1252")  # an old console of Windows
    assert done.returncode == 0 and " 1a  **." in done.stdout


def test_without_torch_and_triton_the_pages_that_need_neither_work(tmp_path):
    for name in ("numpy", "safetensors"):
        (tmp_path / name).symlink_to(Path(__import__(name).__file__).parent)
    libraries = Path(np.__file__).parent.parent / "numpy.libs"
    if libraries.exists():
        (tmp_path / "numpy.libs").symlink_to(libraries)
    code = (
        "from lessons.__main__ import main\nfrom lessons.exercises import EXERCISES\n"
        "for name in '1a 4b 10b 14b 18a 18c'.split(): EXERCISES[name]\n"
        "assert main(['list']) == 0 and main(['start', '15a']) == main(['start', '12b']) == 1"
    )
    done = run_python(code, "-S", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "torch is not installed" in done.stdout and "15a needs torch" in done.stderr
    assert "12b needs Triton, which is made for Linux alone" in done.stderr


@pytest.mark.parametrize("name", EXERCISES)
def test_what_is_kept_is_read_back_as_it_was(name, tmp_path):
    it = EXERCISES[name]
    arguments = it.inputs(np.random.default_rng(0))
    expected = named(it, it.right(copy.deepcopy(arguments))) if not it.launch else {}
    case = naming.Case(it, tuple(arguments), expected, {})
    words = kept.keep(tmp_path / "x.npz", case)
    back, right, got = kept.load(tmp_path / "x.npz")
    assert "from lessons.kept import load" in words and got == {}
    for one, two in ((arguments, back), (expected, right)):
        pairs = list(zip(leaves(one), leaves(two), strict=True))
        assert all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)
    assert [type(x) for x in back] == [type(x) for x in arguments] or it.launch


def test_check_keeps_what_it_failed_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "WORK", tmp_path)
    (tmp_path / "2b.py").write_text("def softmax_backward(dp, cache):\n    return cache[0] * dp\n")
    assert command.main(["check", "2b", "--keep"]) == 1
    loading = capsys.readouterr().out.split("kept: ")[1].split("\n", 1)[1]
    names = {"softmax_backward": lambda dp, cache: cache[0] * dp}
    exec(loading, names)
    assert np.array_equal(names["got"]["dx"], names["softmax_backward"](*names["arguments"]))
    assert not np.allclose(names["got"]["dx"], names["expected"]["dx"])


# Wrong accepts, wrong rejects.

NUMPY = "import numpy as np\n\n"
CHANGED = (  # of a right answer: exercise, what, into what, what is told
    ("12b", "peak, total, factor = online_softmax(scores, peak, total)",
     "total, factor = tl.exp2(scores), total + tl.sum(tl.exp2(scores), 1), total * 0 + 1",
     "which overflows above 128"),
    ("16b", "_, peak, total, _ = online_softmax(scores[None, :], peak, total)",
     "total, peak = total + tl.sum(tl.exp2(scores), 0), peak * 0", "overflow"),
    ("13b", "    store_tile(dq_ptr + h * T * K, dq, t, c, K, T, K, False)\n", "", "never written"),
    ("13b", "dq_ptr + h * T * K, dq", "do_ptr + h * T * K, dq", "writes into do_ptr's memory"),
    ("15b", "    dscale = 0\n", "    dscale = 0\n    all_of_it = (image @ text.T).numpy() * 2\n",
     "B x B logits were held"),
    ("15b", "        g.diagonal(", "        image.kept = [*getattr(image, 'kept', []), g]\n"
     "        g.diagonal(", "B x B logits were held"),
    ("12b", 'input_precision="ieee"', "allow_tf32=False", "right, and"),
    ("12b", "q = load_tile(q_ptr + h * T * K, t, c, K, T, K, False)",
     "q = tl.load(tl.make_block_ptr(q_ptr + h * T * K, (T, K), (K, 1), (tl.program_id(0) * BLOCK_T"
     ", 0), (BLOCK_T, K), (1, 0)), boundary_check=(0,), padding_option='zero')", "right, and"),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("name", "old", "new", "words"), CHANGED)
def test_a_right_answer_changed_is_judged_so(name, old, new, words, tmp_path):
    text = answer(name)
    assert text.count(old) >= 1
    if "total, factor = tl.exp2" in new:
        old, new = "p, " + old, "p, " + new
    assert words in words_of(name, text.replace(old, new), tmp_path)


def test_a_finite_fill_and_keys_a_head_at_a_time_are_no_answers(tmp_path):
    text = (
        "import numpy as np\nfrom minicoca.reference.ops import softmax\n\n\n"
        "def attention(q, k, v, mask):\n"
        "    s = np.einsum('bthk,bshk->bhts', q, k) * q.shape[-1] ** -0.5\n"
        "    p = softmax(np.where(mask[:, None], s, {}))[0]\n"
        "    return np.einsum('bhts,bshk->bthk', p, v)\n"
    )
    assert words_of("4a", text.format("-np.inf"), tmp_path) == "right"
    for fill in ("-1e9", "-1e30", "np.finfo(np.float32).min"):
        assert "finite number" in words_of("4a", text.format(fill), tmp_path)

    def by_heads(tokens, params, heads):
        D = params["queries"].shape[1]
        for h in range(heads):
            columns = slice(h * D // heads, (h + 1) * D // heads)
            tokens @ params["attention"]["key"]["weight"][:, columns]
        return EXERCISES["14a"].load_answer()(tokens, params, heads)[0]

    it = EXERCISES["14a"]
    with pytest.raises(exercise.Told, match="keys or values of every token were formed"):
        it.run(by_heads, it.inputs(np.random.default_rng(0)))


def plain(name):
    """Whether an exercise's function is given NumPy's arrays as `check` compares them."""
    it = EXERCISES[name]
    return not it.in_place and int(name[:-1]) < 11 and any(
        x.ndim for x in leaves(it.inputs(np.random.default_rng(0)))
    )  # fmt: skip


@pytest.mark.parametrize("name", filter(plain, EXERCISES))
def test_arguments_written_over_are_told_of(name):
    it = EXERCISES[name]

    def writes(*arguments):
        found = it.load_answer()(*copy.deepcopy(arguments))
        array = next(x for x in leaves(arguments) if x.ndim)
        array.flat[0] = 1 - array.flat[0]
        return found

    words = judge(it, lambda arguments: it.run(writes, arguments)).words
    assert words.endswith("was written over (by += perhaps): make a new array.")


def test_a_step_in_place_is_right(tmp_path):
    text = (
        "import numpy as np\n\n\ndef adamw(params, gradients, state, rate, config):\n"
        "    state['step'] += 1\n    n, b1, b2 = state['step'], config.beta1, config.beta2\n"
        "    for name, p in params.items():\n"
        "        g, m, s = gradients[name], state['mean'][name], state['square'][name]\n"
        "        m *= b1\n        m += (1 - b1) * g\n        s *= b2\n        s += (1 - b2) * g * g\n"
        "        decay = config.weight_decay if p.ndim >= 2 else 0\n"
        "        p -= rate * (m / (1 - b1**n) / (np.sqrt(s / (1 - b2**n)) + config.epsilon) "
        "+ decay * p)\n    return params, state\n"
    )
    assert words_of("10a", text, tmp_path) == "right"
    nothing = text.replace("    return params, state\n", "")
    assert "only params was written over" in words_of("10a", nothing, tmp_path)


# Names.


@given(st.sampled_from(("2a", "3b", "4b", "7b", "8b", "9b", "18b")), st.integers(0, 80))
def test_any_one_slip_is_named(name, number):
    """The answer with a slip in it: right all the same, or said in more than numbers."""
    it = EXERCISES[name]
    functions, run = it.slipped()[-1]
    tree = slips._tree(functions)
    _, undo = next(itertools.islice(slips._slips(tree), number, None))
    wrong = slips._compiled(tree, functions)
    undo()
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
    "8b": {"(np.exp(cache[0][0]) - np.eye(cache[0][0].shape[2])[cache[1]]) * cache[2][..., None]"
           " * dloss / np.sqrt(cache[3])": "sqrt(count)"},
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
    for place in (0, size - 1):
        launch.launch(copy_one, (1,), x, y, *((place, 0) if reads else (0, place)))
    for place, where in ((-1, "before the start of"), (size, "past the end of")):
        name = "tl.load reads" if reads else "tl.store writes"
        with pytest.raises(IndexError, match=f"{name} {where} {'x' if reads else 'y'}_ptr's"):
            launch.launch(copy_one, (1,), x, y, *((place, 0) if reads else (0, place)))
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
    ("14a", "    a = ", "    (tokens_BSM @ params[\"attention\"][\"key\"][\"weight\"]).max()\n    a = "),
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


def test_a_claim_of_a_page_runs(tmp_path):
    page = tmp_path / "01_x.md"
    text = "# 01 · x\n\n```python\nx = 3\n```\n\n`x + 1` is 4.\n<!-- holds: x + 1 == {} -->\n"
    page.write_text(text.format(4) + "\n```python\nx = 0\n```\n")
    pages.run(page)
    page.write_text(text.format(5))
    with pytest.raises(pages.Differs, match="line 8: does not hold: x"):
        pages.run(page)


def test_check_knows_every_module_of_exercises():
    assert [it.name for it in EXERCISES.values()] == list(EXERCISES)
    for name, it in EXERCISES.items():
        assert EXERCISES.listed[name].minutes == it.minutes and it.task in str(it)
