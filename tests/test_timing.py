"""Timing that cannot be fooled: every cheat is refused, and what is kept is counted."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from minicoca.kernels.bench import measure


def product(given):
    return [given[0] @ given[0].T]


def raced(way, rounds=5, wrong=None):
    """The Timing of one way that should compute x x', on three sets of values."""
    generator = torch.Generator().manual_seed(0)
    sets = [[torch.randn(40, 30, generator=generator)] for _ in range(3)]
    exact = [product(values) for values in sets]
    wrong = wrong or (lambda place, results: measure.differs(results, exact[place], 1e-3))
    return measure.race({"cheat": way, "right": product}, sets, wrong, "cpu", rounds=rounds)


def gives_nan(given):
    return [torch.full_like(product(given)[0], torch.nan)]


def changes_its_inputs(given):
    results = product(given)
    given[0].zero_()
    return results


class MemoryThatHeldTheAnswer:
    """Right on each set once; later what lay in memory then, not written again."""

    def __init__(self):
        self.memory = {}

    def __call__(self, given):
        value = float(given[0][0, 0])
        if value not in self.memory:
            self.memory[value] = product(given)[0]
        return [self.memory[value]]


class KnowsItsInputs:
    """Right on each tensor once, then from memory by where the tensor lies."""

    def __init__(self):
        self.answers = {}

    def __call__(self, given):
        key = given[0].data_ptr()
        if key not in self.answers:
            self.answers[key] = product(given)[0]
        return [self.answers[key].clone()]


class ReturnsBeforeTheEnd:
    """What a kernel on another stream does: the results are written later."""

    def __init__(self):
        self.workers = []

    def __call__(self, given):
        y, x = torch.zeros(40, 40), given[0].clone()

        def work():
            time.sleep(0.02)
            y.copy_(x @ x.T)

        self.workers.append(threading.Thread(target=work))
        self.workers[-1].start()
        return [y]


class RightOnce:
    """Right on the first calls, the warm-up's included; then nothing is computed."""

    calls = 0

    def __call__(self, given):
        self.calls += 1
        return product(given) if self.calls <= 3 else [torch.zeros(40, 40)]


def without_nan(monkeypatch, cheat):
    error = measure.relative_error
    ignored = lambda *given: float(np.nan_to_num(error(*given)))  # noqa: E731
    monkeypatch.setattr(measure, "relative_error", ignored)


def without_comparing_inputs(monkeypatch, cheat):
    monkeypatch.setattr(measure, "_changed", lambda *given: "")


def without_poison(monkeypatch, cheat):
    monkeypatch.setattr(measure, "_poison", lambda *given: None)


def with_tensors_of_their_own(monkeypatch, cheat):
    """Each set lies where it lies, and is not written into the same buffers."""

    def swapped(buffers, values):
        buffers[:] = values

    monkeypatch.setattr(measure, "_fill", swapped)


def with_copies_taken_late(monkeypatch, cheat):
    copies = measure._copies

    def late(results):
        for worker in cheat.workers:
            worker.join()
        return copies(results)

    monkeypatch.setattr(measure, "_copies", late)


CHEATS = {
    "NaN": (lambda: gives_nan, "wrong by nan", without_nan),
    "changes": (lambda: changes_its_inputs, "changes its inputs", without_comparing_inputs),
    "memory": (MemoryThatHeldTheAnswer, "wrong by nan", without_poison),
    "identity": (KnowsItsInputs, "wrong by", with_tensors_of_their_own),
    "stream": (ReturnsBeforeTheEnd, "wrong by", with_copies_taken_late),
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_refused(monkeypatch, name):
    make, sentence, without = CHEATS[name]
    found = raced(make())
    assert sentence in found["cheat"].refused
    assert not found["right"].refused and len(found["right"].rounds) == 5
    cheat = make()
    without(monkeypatch, cheat)
    assert not raced(cheat)["cheat"].refused


def test_what_is_right_only_at_first_is_refused():
    assert "wrong by" in raced(RightOnce())["cheat"].refused
    looks = []  # only the first result of all is looked at
    assert not raced(RightOnce(), wrong=lambda *given: looks.append(given) or "")["cheat"].refused
    assert len(looks) == 2 * 7  # every call of both was there to be looked at


def test_ways_are_called_in_rotated_order_on_the_same_values():
    called = []

    def way(name):
        def call(given):
            called.append((name, float(given[0])))
            return [given[0] + 1]

        return call

    sets = [[torch.tensor(float(n))] for n in range(2)]
    ways = {name: way(name) for name in "abc"}
    found = measure.race(ways, sets, lambda *given: "", "cpu", rounds=3)
    rounds = [called[i : i + 3] for i in range(0, len(called), 3)]
    assert len({round_[0][0] for round_ in rounds[-3:]}) == 3
    assert all(len({value for _, value in round_}) == 1 for round_ in rounds)
    assert [round_[0][1] for round_ in rounds] == [0, 1, 0, 1, 0]
    assert all(t.spread[1] <= t.spread[0] <= t.spread[2] for t in found.values())


def test_work_after_the_last_event_is_refused():
    assert not measure.late(measure.Timing(rounds=[1.0] * 5, over=[0.05] * 5))
    assert "another stream" in measure.late(measure.Timing(rounds=[1.0] * 5, over=[3.0] * 5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_work_on_another_stream_is_refused_on_a_card():
    side = torch.cuda.Stream()

    def cheat(given):
        y = torch.zeros(4096, 4096, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(20):
                torch.mm(given[0], given[0].T, out=y)
        return [y]

    sets = [[torch.randn(4096, 4096, device="cuda")] for _ in range(2)]
    exact = [product(values) for values in sets]
    wrong = lambda place, found: measure.differs(found, exact[place], 1e-2)  # noqa: E731
    assert measure.race({"cheat": cheat}, sets, wrong, "cuda")["cheat"].refused


def test_what_is_kept_for_the_backward_is_exact():
    """Eager attention keeps T x T, eager cross-entropy the logits; the chunked loss keeps none."""
    from minicoca.kernels.caption_loss import caption_loss

    def eager(q, k, v):
        return torch.softmax(q @ k.T, -1) @ v

    for T in (32, 64):
        q, k, v = (torch.randn(T, 8, requires_grad=True) for _ in range(3))
        everything, held = measure.kept(lambda q=q, k=k, v=v: eager(q, k, v), (q, k, v))
        assert (everything - held, held) == (4 * T * T, 3 * 4 * T * 8)
    x, weight = torch.randn(50, 8, requires_grad=True), torch.randn(8, 300, requires_grad=True)
    targets = torch.arange(1, 51)
    everything, held = measure.kept(
        lambda: torch.nn.functional.cross_entropy(x @ weight, targets), (x, weight, targets)
    )
    assert everything - held == 4 * 50 * 300 + 4  # log softmax, and the count of targets
    everything, held = measure.kept(
        lambda: caption_loss(x, weight, targets, fused=False), (x, weight, targets)
    )
    assert everything - held < 4 * (x.numel() + weight.numel()) + 64


def test_fused_attention_keeps_what_grows_with_the_tokens_not_their_square():
    from minicoca.kernels.attention import attention

    own = []
    for T in (64, 128):
        q, k, v = (torch.randn(1, T, 1, 16, requires_grad=True) for _ in range(3))
        everything, held = measure.kept(lambda q=q, k=k, v=v: [attention(q, k, v)], (q, k, v))
        assert held == 3 * 4 * T * 16
        own.append(everything - held)
    assert own == [4 * T * (16 + 1) for T in (64, 128)]  # the result and an LSE a query


def test_losses_and_pooling_keep_statistics_and_no_squares():
    """InfoNCE three numbers a pair, the pooler two a head and token and two a token; the sigmoid
    loss, whose gradients are made at once, these."""
    from minicoca.kernels.attention_pool import attention_pool
    from minicoca.kernels.info_nce import info_nce
    from minicoca.kernels.sigmoid import sigmoid_loss

    scale, bias = (torch.tensor(x, requires_grad=True) for x in (9.0, -3.0))
    for B in (32, 64):
        pairs = [torch.nn.functional.normalize(torch.randn(B, 16), dim=1) for _ in range(2)]
        pairs = [x.requires_grad_() for x in pairs]
        calls = {
            4 * 3 * B: (info_nce, *pairs, scale),
            4 * (2 * B * 16 + 2): (sigmoid_loss, *pairs, scale, bias),
        }
        tokens, asks = torch.randn(2, B, 24, requires_grad=True), torch.randn(3, 24)
        calls[4 * (2 * 2 * 3 * B + 2 * 2 * B)] = attention_pool, tokens, asks.requires_grad_()
        for own, (op, *given) in calls.items():
            everything, held = measure.kept(lambda op=op, given=given: [op(*given)], given)
            assert everything - held == own, op


def test_what_does_not_fit_in_float32_is_compared_with_ours():
    from minicoca.kernels.bench import suite

    def without_memory(x):
        raise torch.OutOfMemoryError("64 GB")

    case = SimpleNamespace(ways={"ours": lambda x: 2 * x, "eager": without_memory})
    given = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    (found,) = suite._exact(case, [[given, torch.ones(3)]])
    assert [x.tolist() for x in found] == [[2.0] * 3, [2.0] * 3]
    assert found[0].dtype == torch.float32


def test_the_seam_takes_torch_where_that_was_measured_faster(monkeypatch):
    """Up to the size in the table and no further, of that op alone; who asks for Triton gets it."""
    from minicoca.engine import ops

    on_card = SimpleNamespace(is_cuda=True, device="cuda")
    monkeypatch.setattr(ops, "_fits", lambda device: True)
    assert ops.has_kernels(on_card, "info_nce", 1)
    monkeypatch.setitem(ops.EAGER_UP_TO, "info_nce", 1024)
    taken = [ops.has_kernels(on_card, "info_nce", n) for n in (1, 1024, 1025)]
    assert taken == [False, False, True] and ops.has_kernels(on_card, "attention", 1)
    with ops._using("triton"):
        assert ops.has_kernels(on_card, "info_nce", 1)


def test_who_omits_a_gradient_is_told_and_ours_refused(monkeypatch):
    """What is not computed costs nothing: a baseline that lacks it is named beside its time."""
    from minicoca.kernels.bench import suite

    def whole(x, w):
        return x * w

    def sparing(x, w):
        return x * w.detach()

    def made(batch):
        x, w = torch.randn(batch, 3), torch.randn(batch, 3)
        return [x, w], torch.ones(batch, 3)

    monkeypatch.setattr(suite, "_raced", lambda case, labels, *given: {n: {} for n in labels})
    about = dict(op="product", name="few", batch=4, compared=4, targets={}, make=made)
    for ours, other in ((whole, sparing), (sparing, whole)):
        ways = {"ours": ours, "other": other, "eager": whole}
        row = suite._row(SimpleNamespace(ways=ways, **about), "cpu", torch.float32, {}, True)
        told = "without one of the gradients"
        assert ("refused" in row["ways"]["ours"]) == (ours is sparing)
        assert (told in suite.line(row).split("other:")[1]) == (other is sparing)
        assert (f"ours: {told}" in suite.line(row)) == (ours is sparing)


def test_a_table_says_where_another_way_is_faster():
    from minicoca.kernels.bench import suite

    rows = [
        dict(case="40 pairs", ratios={"eager": 0.8, "compiled": 1.1}),
        dict(case="4096 pairs", ratios={"eager": 1.5}),
    ]
    (line,) = suite.crossovers({"rows": rows})
    assert "40 pairs" in line and "eager is faster" in line and "0.8" in line
