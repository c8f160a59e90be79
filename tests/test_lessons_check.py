"""What `python -m lessons check` takes and refuses, and what no learner's file can end."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lesson_files import KERNELS, answer, words_of

from lessons import __main__ as command
from lessons import alone, exercise, kept, naming
from lessons.checker import judge
from lessons.compare import leaves, named
from lessons.exercises import EXERCISES
from lessons.memory import peak_bytes

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", [name for name in EXERCISES if name not in KERNELS])
def test_what_peek_shows_passes(name, tmp_path):
    assert words_of(name, answer(name), tmp_path) == "right"
    assert EXERCISES[name].function in EXERCISES[name].shown_answer()


# A process of its own.


def alone_says(name, text, tmp_path, seconds=30.0, keep=None):
    path = tmp_path / f"{name}.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return alone.check(name, path, seconds, keep)


LOOP = "def softmax_backward(dp, cache):\n    while True:\n        dp = dp\n"
ENDS = {
    LOOP: "ended after 1 s, at line",
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
    ("12b", "p, peak, total, factor = online_softmax(scores, peak, total)",
     "p, peak, factor = tl.exp2(scores), tl.zeros([BLOCK_T], tl.float32), total * 0 + 1\n"
     "        total += tl.sum(p, 1)", "which overflows above 128"),
    ("16b", "_, peak, total, _ = online_softmax(scores[None, :], peak, total)",
     "peak, total = tl.zeros([1], tl.float32), total + tl.sum(tl.exp2(scores), 0)",
     "which overflows above 128"),
    ("13b", "    store_tile(dq_ptr + h * T * K, dq, t, c, K, T, K, False)\n", "", "never written"),
    ("13b", "dq_ptr + h * T * K, dq", "do_ptr + h * T * K, dq", "writes into do_ptr's memory"),
    ("15b", "    dscale = 0\n", "    dscale = 0\n    all_of_it = (image @ text.T).numpy() * 2\n",
     "B x B logits were held"),
    ("15b", "        g.diagonal(", "        image.kept = [*getattr(image, 'kept', []), g]\n"
     "        g.diagonal(", "B x B logits were held"),
    ("12b", 'input_precision="ieee"', "allow_tf32=False", "right"),
    ("12b", "q = load_tile(q_ptr + h * T * K, t, c, K, T, K, False)",
     "q = tl.load(tl.make_block_ptr(q_ptr + h * T * K, (T, K), (K, 1), (tl.program_id(0) * BLOCK_T"
     ", 0), (BLOCK_T, K), (1, 0)), boundary_check=(0,), padding_option='zero')", "right"),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
@pytest.mark.parametrize(("name", "old", "new", "words"), CHANGED)
def test_a_right_answer_changed_is_judged_so(name, old, new, words, tmp_path):
    text = answer(name)
    assert text.count(old) >= 1
    told = words_of(name, text.replace(old, new), tmp_path)
    assert told == "right" if words == "right" else words in told


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


@pytest.mark.parametrize("name", [name for name in EXERCISES if plain(name)])
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
        "        m *= b1\n        m += (1 - b1) * g\n"
        "        s *= b2\n        s += (1 - b2) * g * g\n"
        "        decay = config.weight_decay if p.ndim >= 2 else 0\n"
        "        p -= rate * (m / (1 - b1**n) / (np.sqrt(s / (1 - b2**n)) + config.epsilon) "
        "+ decay * p)\n    return params, state\n"
    )
    assert words_of("10a", text, tmp_path) == "right"
    nothing = text.replace("    return params, state\n", "")
    assert "only params was written over" in words_of("10a", nothing, tmp_path)


def test_memory_is_the_least_of_several_calls():
    """What another thread allocates meanwhile is not the answer's; what each call takes is."""
    called = []

    def now_and_then():
        called.append(1)
        return np.zeros(10**6 if len(called) in (1, 3) else 10)

    assert peak_bytes(now_and_then) < 10**5 < 8 * 10**6 <= peak_bytes(lambda: np.zeros(10**6))
