"""Damaged, cut, swapped and made-up files of a run: a right result or one line."""

import json
import random
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import few_shapes, short, silent  # noqa: F401
from safetensors.numpy import load_file, save_file
from trials import trial

from minicoca import params
from minicoca.params import flatten
from minicoca.tokenizer import Tokenizer
from minicoca.training.checkpoint import (
    CHECKPOINT,
    CONFIG,
    FILES,
    RESULTS,
    TOKENIZER,
    WEIGHTS,
    load_model,
    read_checkpoint,
    read_config,
    read_results,
    read_weights,
)
from minicoca.training.log import Log
from minicoca.training.run import resume

pytestmark = pytest.mark.slow
FLIPS = 64
READ = {name: name for name in FILES if name != "left_out.txt"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs of two steps, of other seeds and other captions."""
    from minicoca.data import shapes
    from minicoca.training import run

    home = tmp_path_factory.mktemp("runs")
    load = shapes.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "evaluate", lambda *given: ({"images": 1}, []))
        patch.setattr(shapes, "load", lambda seed, side, *_: load(seed, side, 60 + 20 * seed, 20))
        for backend in ("torch", "numpy"):
            for seed in (0, 1):
                silent(short(steps=2, seed=seed, backend=backend), home / f"{backend} {seed}")
    return home


def everything(folder):
    """All that is read of a run: weights, words, moments, results, the log."""
    config = read_config(folder)
    weights, tokenizer = read_weights(folder, config)
    tree, done = read_checkpoint(folder, config)
    results = read_results(folder)
    log = Log.read(folder / "metrics.jsonl")
    flat = {**flatten(weights), **{f"c {k}": v for k, v in flatten(tree).items()}}
    return config, flat, tokenizer.serialised(), done["step"], done["seconds"], results, log


def equal(one, other, lines=0):
    a, b = one[1], other[1]
    arrays = a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    lost = len(one[6]) - len(other[6])
    log = lost <= lines and all(record in one[6] for record in other[6])
    return arrays and log and one[0] == other[0] and one[2:6] == other[2:6]


def ends_well(folder, good, lines=0):
    """True if all is as it was, False if it is refused in a line that names a file of the run."""
    try:
        return equal(good, everything(folder), lines)
    except ValueError as error:
        said = str(error)
        assert str(folder) in said and 0 < len(said) < 450 and "\n" not in said, said
        return None


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_one_flipped_bit_is_never_another_result(runs, tmp_path, backend, name):
    folder, draw, seen = tmp_path / "run", random.Random(name), 0
    shutil.copytree(runs / f"{backend} 0", folder)
    good, content = everything(folder), (folder / name).read_bytes()
    ends = [*range(8), *range(len(content) - 8, len(content))]
    for place in [*ends, *(draw.randrange(len(content)) for _ in range(FLIPS))]:
        trial("flipped bits in a run's files")
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(damaged)
        outcome = ends_well(
            folder, good, lines=2 * (name == "metrics.jsonl")
        )  # a newline parts two
        assert outcome is not False, f"{name}: a flip at {place} gives something else"
        seen += outcome is None
    assert seen > (0 if name == "metrics.jsonl" else 0.8 * FLIPS) or name == "metrics.jsonl"


@pytest.mark.parametrize("name", READ)
def test_cut_empty_doubled_and_lost_files_are_told(runs, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(runs / "torch 0", folder)
    good, content = everything(folder), (folder / name).read_bytes()
    lines = len(content.splitlines()) if name == "metrics.jsonl" else 0
    for damaged in (b"", content[:-1], content[: len(content) // 2], content * 2, None, b"\0" * 99):
        trial("files cut, empty, doubled, lost, of another run or made up")
        (folder / name).unlink(missing_ok=True)
        if damaged is not None:
            (folder / name).write_bytes(damaged)
        if name == "metrics.jsonl" and damaged == content * 2:
            continue  # the same lines twice are the same lines
        assert ends_well(folder, good, lines) is not False, (name, damaged and len(damaged))
    (folder / name).mkdir() if not (folder / name).exists() else None
    assert ends_well(folder, good, lines) is not False


@pytest.mark.parametrize("name", [TOKENIZER, CONFIG, WEIGHTS, CHECKPOINT, RESULTS])
def test_files_of_another_run_are_refused(runs, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(runs / "torch 0", folder)
    shutil.copy(runs / "torch 1" / name, folder / name)
    trial("files cut, empty, doubled, lost, of another run or made up")
    with pytest.raises(ValueError, match=f"{folder}.*(is of another|two runs|not the tokenizer)"):
        everything(folder)


def unsealed(path, change=lambda flat, said: None):
    """A file of weights as an earlier version, or another tool, would write it."""
    flat = load_file(path)
    with params._opened(path) as file:
        said = {k: v for k, v in file.metadata().items() if k not in ("minicoca", "sha256")}
    change(flat, said)
    save_file(flat, path, metadata=said)


def earlier(folder):
    """A run folder as the first version wrote it."""
    for name in (WEIGHTS, CHECKPOINT):
        unsealed(folder / name, lambda flat, said: [said.pop(k) for k in ("run", "tokenizer")])
    for name in (CONFIG, RESULTS):
        fields = json.loads((folder / name).read_text())
        for key in ("minicoca", "sha256", "of", "run", "tokenizer", "weights"):
            if key != "tokenizer" or name == RESULTS:
                fields.pop(key, None)
        (folder / name).write_text(json.dumps(fields))


def test_files_of_earlier_versions_are_read_with_a_word(runs, tmp_path):
    for backend in ("torch", "numpy"):
        folder, said = tmp_path / backend, []
        shutil.copytree(runs / f"{backend} 0", folder)
        good = everything(folder)
        earlier(folder)
        now = everything(folder)
        assert equal(good[:5] + ({}, []), now[:5] + ({}, []))
        load_model(folder, "numpy", say=said.append)
        assert len(said) == 1 and "not checked" in said[0] and WEIGHTS in said[0]


HOSTILE = {
    "a moment of another shape": lambda flat, said: flat.update(
        {n: np.zeros(3, np.float32) for n in flat if n.endswith("text.cls") and "sq" in n}
    ),
    "a moment is missing": lambda flat, said: flat.pop("exp_avg.text.cls"),
    "no steps": lambda flat, said: [flat.pop(n) for n in [*flat] if n.startswith("step.")],
    "half a step": lambda flat, said: flat.update({"step.text.cls": np.array(0.5, np.float32)}),
    "steps ahead": lambda flat, said: flat.update({"step.text.cls": np.array(99, np.float32)}),
    "negative squares": lambda flat, said: flat["exp_avg_sq.text.cls"].__isub__(1),
    "not finite": lambda flat, said: flat["params.text.cls"].__imul__(np.float32(np.nan)),
    "whole numbers": lambda flat, said: flat.update(
        {"params.text.cls": np.zeros_like(flat["params.text.cls"], np.int32)}
    ),
    "one more": lambda flat, said: flat.update(more=np.zeros(1, np.float32)),
    "step 10^9": lambda flat, said: said.update(step="1000000000"),
    "step -1": lambda flat, said: said.update(step="-1"),
    "step in words": lambda flat, said: said.update(step="two"),
    "a step of 5,000 digits": lambda flat, said: said.update(step="1" * 5000),
    "no step": lambda flat, said: said.pop("step"),
    "seconds that are none": lambda flat, said: said.update(seconds="nan"),
    "a config that is none": lambda flat, said: said.update(config="[" * 9999),
    "another config": lambda flat, said: said.update(
        config=said["config"].replace('"text_heads": 4', '"text_heads": 2')
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_in_a_checkpoint_is_used_unchecked(runs, tmp_path, what):
    folder = tmp_path / "run"
    shutil.copytree(runs / "torch 0", folder)
    unsealed(folder / CHECKPOINT, HOSTILE[what])
    trial("files cut, empty, doubled, lost, of another run or made up")
    with pytest.raises(ValueError, match=f"{folder}/{CHECKPOINT}") as caught:
        resume(folder, print)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_checkpoint_without_its_average_is_refused(runs, tmp_path):
    folder = tmp_path / "run"
    silent(short(steps=2, ema=0.9), folder)
    unsealed(
        folder / CHECKPOINT,
        lambda flat, said: [flat.pop(n) for n in [*flat] if n.startswith("ema.")],
    )
    with pytest.raises(ValueError, match="missing ema"):
        resume(folder, print)


@pytest.mark.parametrize("kind", ["float16", "float64", "bfloat16"])
def test_weights_of_other_tools_and_types_are_taken_with_a_word(runs, tmp_path, kind):
    folder, said = tmp_path / "run", []
    shutil.copytree(runs / "torch 0", folder)
    good = load_file(folder / WEIGHTS)
    if kind == "bfloat16":
        import torch
        from safetensors.torch import save_file as save_torch

        flat = {n: torch.tensor(x).to(torch.bfloat16) for n, x in good.items()}
        save_torch(flat, folder / WEIGHTS)
        rounded = {n: x.float().numpy() for n, x in flat.items()}
    else:
        rounded = {n: x.astype(kind) for n, x in good.items()}
        save_file(rounded, folder / WEIGHTS)
    weights, _ = read_weights(folder, read_config(folder), said.append)
    assert len(said) == 1 and "sha256" in said[0]
    for name, leaf in flatten(weights).items():
        assert leaf.dtype == np.float32 and np.array_equal(leaf, rounded[name].astype(np.float32))


@settings(max_examples=400)
@given(data=st.data())
def test_any_bytes_in_any_file_end_in_a_line(runs, tmp_path_factory, data):
    """Parts of a file put together anew, and bytes of any kind among them."""
    trial("fuzzed inputs")
    folder = tmp_path_factory.mktemp("any") / "run"
    shutil.copytree(runs / "torch 0", folder)
    good = everything(folder)
    name = data.draw(st.sampled_from([*READ]))
    content = (folder / name).read_bytes()
    cut = data.draw(st.lists(st.integers(0, len(content)), min_size=2, max_size=4))
    filling = data.draw(st.binary(max_size=24))
    parts = [content[a:b] for a, b in zip(sorted(cut), sorted(cut)[1:], strict=False)]
    (folder / name).write_bytes(filling.join(parts))
    lines = len(content.splitlines()) if name == "metrics.jsonl" else 0
    assert ends_well(folder, good, lines) is not False
    shutil.rmtree(folder)


def test_another_size_of_tokenizer_is_no_index_error(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "torch 0", folder)
    earlier(folder)
    Tokenizer.train(["a few words"], 64).save(folder / TOKENIZER)
    with pytest.raises(ValueError, match=f"{folder / TOKENIZER} has .* pieces"):
        load_model(folder, "numpy")
