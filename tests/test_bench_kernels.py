"""What times kernels on a card, as far as it can be seen without one."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from minicoca import bench
from minicoca.kernels.bench import measure, pictures, registry, suite
from minicoca.reference.losses import contrastive_loss


def rehearsed(op):
    return [c for c in registry.cases("cpu", torch.float32, False, "rehearsal") if c.op == op]


def spread(x):
    return float(x.detach().std())


TIMED = dict(total_ms=2.0, tflop_s=0.1, gb_s=2.0, peak_mb=5.0)
ROW = dict(
    op="info_nce", case="40 pairs", batch=40, ratios={"eager": 1.5, "inf-cl": 2.0},
    ways={"ours": TIMED, "eager": TIMED},
)  # fmt: skip
REPORT = {"rows": [ROW], "device": "card", "roofline": {"tflop_s": 1.0, "gb_s": 10.0}}


def test_pictures_of_a_report(tmp_path):
    names = {path.name for path in pictures.draw(REPORT, tmp_path)}
    assert names == {"roofline.png", "bars.png", "memory.png", "accuracy.png", "centring.png"}
    assert all((tmp_path / name).stat().st_size > 5_000 for name in names)


def test_every_figure_says_what_it_shows():
    """Axes are named; where there is more than one line, each is in the legend."""
    for figure in (
        pictures._roofline(REPORT, [ROW]),
        pictures._bars(REPORT, [ROW]),
        pictures._memory([ROW]),
        pictures.accuracy(),
        pictures.centring(),
    ):
        (axes,) = figure.axes
        assert axes.get_xlabel() and (axes.get_ylabel() or axes.get_yticklabels())
        shown = {text.get_text() for text in axes.get_legend().get_texts()}
        labels = axes.get_legend_handles_labels()[1]
        assert len(labels) > 1 and shown == set(labels)


def test_what_accuracy_is_measured_against_is_the_loss():
    rng = np.random.default_rng(0)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.standard_normal((2, 6, 4)))
    scale = 3.0
    want, _ = contrastive_loss(x, y, np.log(1 / scale))
    for way in (pictures._eager, pictures._ours):
        assert float(way(torch.tensor(x), torch.tensor(y), scale)) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("op", ["info_nce", "caption_loss"])
@pytest.mark.parametrize("size", ["rehearsal", "cpu"])
def test_kernels_are_timed_where_they_run(monkeypatch, op, size):
    """On a CPU the losses' chunked torch code is, in the interpreter and on a card the kernels."""
    asked = []
    monkeypatch.setattr(registry, op, lambda *given, fused: asked.append(fused))
    for case in registry.cases("cpu", torch.float32, False, size):
        if case.op == op:
            case.ways["ours"](*[torch.zeros(2, 2)] * (3 if op == "info_nce" else 2))
    assert asked and set(asked) == {size != "cpu"}


def test_what_is_timed_has_numbers_as_in_a_model():
    """Logits and pooled values of unit variance: neither all alike, nor one that takes all."""
    for case in rehearsed("caption_loss"):
        x, weight = case.make(200)[0]
        assert 0.7 < spread(x @ weight) < 1.4
    for case in rehearsed("attention_pool") + rehearsed("attention"):
        if case.name.startswith("pool"):
            tokens, queries, query, key, value = case.make(50)[0]
            for product in (tokens @ key, tokens @ value, queries @ query):
                assert 0.6 < spread(product) < 1.6
    for case in rehearsed("info_nce"):
        (x, y, _), _ = case.make(8)
        assert torch.allclose(x.norm(dim=1), torch.ones(8)) and torch.allclose(
            y.norm(dim=1), torch.ones(8)
        )


@pytest.mark.slow
def test_every_row_is_said_as_it_comes():
    said = []
    report = suite.run(ops=["caption_loss"], say=lambda text, file: said.append(text))
    assert len(said) == len(report["rows"]) > 0
    for text, row in zip(said, report["rows"], strict=True):
        assert row["case"] in text


def test_what_was_reckoned_stands_beside_what_was_measured():
    timed = TIMED | dict(forward_ms=0.5, backward_ms=1.5, gb_s=2.0, roofline=0.5)
    row = ROW | {"reckoned_ms": [0.4, 1.2], "ways": {"ours": timed}, "targets": {}}
    row["ratios"] = {}
    assert "ours: 2.000 ms  reckoned: 1.600 ms" in suite.line(row)
    assert "| 0.500, 1.500 | 0.400, 1.200 |" in suite.table(REPORT | {"rows": [row]})
    del row["reckoned_ms"]
    assert "reckoned" not in suite.line(row)
    assert "| 0.500, 1.500 | - |" in suite.table(REPORT | {"rows": [row]})


def test_short_attention_is_timed_first():
    names = [case.name.split(",")[0] for case in registry.cases("cpu", torch.float32, True)]
    short = ["vit 49", "vit 50", "vit 196", "vit 197", "vit 256", "vit 257", "cross 76 x 256"]
    assert names[: len(short)] == short and names.count("cross 76 x 256") == 2


def test_all_ways_leave_out_what_lies_beyond_a_length():
    (case,) = (case for case in rehearsed("attention") if "lengths" in case.name)
    (q, k, v), _ = case.make(2)
    with torch.no_grad():
        v[0, 1:], v[1, 2:] = 1e4, 1e4  # sample b has b + 1 keys
    found = [way(q, k, v).detach() for way in case.ways.values()]
    assert len(found) >= 3
    for y in found:
        assert y.abs().max() < 100 and torch.allclose(y, found[0], atol=1e-5)


def test_an_error_is_relative_to_what_is_exact():
    exact = [torch.tensor([1.0, 2.0])]
    assert measure.relative_error([2 * exact[0]], exact) == pytest.approx(1)
    assert measure.relative_error(exact, [2 * exact[0]]) == pytest.approx(0.5)


def test_the_table_of_memory_has_a_row_for_every_size():
    rows = suite.memory_table().split("\n")[2:]
    sizes = [int(row.split("|")[1].replace(",", "")) for row in rows]
    assert sizes == [2**n for n in range(10, 18)]


def test_what_is_wrong_is_not_timed(monkeypatch, capsys):
    """The rehearsal of every op's loss, with a baseline that computes something else."""
    wrong = {"wrong": lambda x, y, s: 2 * suite.registry.baselines._pairs(x, y, s)}
    right = suite.registry.baselines.pairs("cpu")
    monkeypatch.setattr(suite.registry.baselines, "pairs", lambda device: wrong | right)
    report = suite.run(ops=["info_nce"])
    ways = report["rows"][0]["ways"]
    assert "wrong by 1.0e+00" in ways["wrong"]["refused"]  # of what is exact, not of what is wrong
    assert "refused" not in ways["ours"] and "refused" not in ways["eager"]
    assert "40 pairs" in suite.table(report)


@pytest.mark.slow
def test_an_op_whose_tests_fail_is_not_timed(monkeypatch, capsys):
    verdict = {"info_nce": "red", "caption_loss": "green"}
    monkeypatch.setattr(bench, "_op_tests", verdict.get)
    with pytest.raises(RuntimeError, match="not timed"):
        bench.kernels(ops=list(verdict))
    out = capsys.readouterr().out
    assert "tokens x" in out and "pairs, width" not in out
    assert "There is no GPU here" in out or torch.cuda.is_available()


def test_nothing_is_timed_where_all_tests_fail(monkeypatch, capsys):
    monkeypatch.setattr(bench, "_op_tests", lambda op: "red")
    with pytest.raises(RuntimeError, match="not timed"):
        bench.kernels(ops=["info_nce"])
    out = capsys.readouterr().out
    assert "pairs, width" not in out and "tokens x" not in out
