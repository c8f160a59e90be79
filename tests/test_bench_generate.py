"""The writing of captions, timed: what is measured is one function, on both sides."""

import json
import sys

import numpy as np
import pytest
import torch
from test_cli import call

from minicoca import bench, bench_generate
from minicoca.config import END, PAD, START, UNKNOWN, preset
from minicoca.params import initialise

SMALL = dict(
    image_size=32, patch_size=16, image_width=24, image_layers=2, image_heads=4, image_hidden=96,
    text_width=32, text_heads=4, text_hidden=128, embed_width=32, unimodal_layers=2,
    multimodal_layers=2, vocabulary=300, text_length=16, pooler_heads=4, caption_queries=7,
)  # fmt: skip
SIZES = dict(images=3, tokens=8, beams=4, repeats=2)


@pytest.fixture
def small(monkeypatch):
    config = preset("open_clip_b32", **SMALL)
    monkeypatch.setattr(bench_generate, "preset", lambda name: config)
    return config


def test_alone_it_times_both_ways(small, tmp_path, capsys):
    path = tmp_path / "generate.json"
    report = bench_generate.generate(**SIZES, memory=False, json_path=path)
    assert json.loads(path.read_text()) == report
    for way in ("greedy", "beams"):
        assert len(report[way]["ours_all_s"]) == 2 and report[way]["ours_s"] > 0
        assert report[way].keys() == {"ours_s", "ours_all_s"}
    out = capsys.readouterr().out
    assert "3 images, 8 tokens, 4 beams, open_clip_b32, median of 2" in out


@pytest.mark.parametrize("beams", [0, 4])
def test_all_tokens_are_written(small, beams):
    images = torch.randn(3, 32, 32, 3)
    rows = bench_generate.Ours(small, initialise(small)).write(images, 8, beams)
    assert rows.shape == (3, 8)
    assert not np.isin(rows, [PAD, START, UNKNOWN]).any() and not (rows[:, :-1] == END).any()


@pytest.mark.slow
def test_memory_is_of_a_fresh_process():
    """Of weights and of writing, and not of this process."""
    config = preset("tiny", vocabulary=60_000, text_length=9)
    weights = 2 * 60_000 * 64 * 4 / 1e6  # the words' vectors and the head
    given = bench_generate.Ours, config, 2, 4, 0
    assert weights < bench.in_fresh_process(bench_generate._memory, *given) < 8 * weights + 200


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--against", "open_clip"], "open_clip cannot be imported"),
        (
            ["--against", "open_clip", "--preset", "tiny"],
            "needs a --preset open_clip_..., not tiny",
        ),
        (["--preset", "tiny", "--tokens", "24"], "--tokens 24: tiny writes at most 23"),
        (["--tokens", "1"], "--tokens 1: at least 2"),
        (["--tokens", "0"], "--tokens 0: at least 1"),
        (["--beams", "1"], "--beams 1: at least 2"),
    ],
)
def test_what_cannot_be_timed_is_said_in_a_line(flags, message, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    code, _, err = call(capsys, "bench", "generate", *flags)
    assert code in (1, 2) and message in err and err.count("\n") == 1


@pytest.mark.extras
def test_both_write_the_same_tokens(small, capsys):
    """Greedily, and by beams where open_clip's add up log probabilities."""
    pytest.importorskip("open_clip")
    report = bench_generate.generate(against="open_clip", **SIZES, memory=False)
    assert report["greedy"]["equal"] == report["beams"]["equal_normed"] == 1
    for way in ("greedy", "beams"):
        low, high = report[way]["ratio_range"]
        assert 0 < low <= report[way]["ratio"] <= high
    assert "times as fast" in capsys.readouterr().out


@pytest.mark.extras
def test_an_open_clip_that_cannot_write_is_said(monkeypatch):
    pytest.importorskip("open_clip")
    from open_clip import coca_model

    monkeypatch.setattr(coca_model, "_has_transformers", False)
    with pytest.raises(ValueError, match=r"needs transformers under 4.56: pip install"):
        bench_generate.generate(against="open_clip", **SIZES)
