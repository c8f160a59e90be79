"""SigLIP's loss in chunks: the reference's in every type, whatever the chunks, and within its
workspace. (What all ops promise: test_kernel_promises.py.)"""

import importlib

import numpy as np
import pytest
import torch
from kernel_cases import DEVICE, TYPES, draw_pairs
from kernel_oracles import Poisoned, judge, mutant

from minicoca.kernels import sigmoid
from minicoca.kernels.bench.measure import LargestTensor
from minicoca.reference.relatives import siglip

NAMES = ("loss", "dx", "dy", "dscale", "dbias")


def counted_by(captions):
    """[B, B], False where two texts of different places are one caption."""
    return (captions[:, None] != captions) | np.eye(len(captions), dtype=bool)


def exact_sigmoid(x, y, scale, bias, captions):
    """The reference, in float64."""
    x, y, scale, bias = (t.double().cpu().numpy() for t in (x, y, scale, bias))
    given = x, y, -np.log(scale), bias, counted_by(captions.cpu().numpy())
    loss, cache = siglip.sigmoid_loss(*given)
    dx, dy, dlog, dbias = siglip.sigmoid_loss_backward(1.0, cache)
    found = np.reshape(loss, 1), dx, dy, np.reshape(-dlog / scale, 1), np.reshape(dbias, 1)
    return [torch.tensor(np.ascontiguousarray(a), device=DEVICE) for a in found]


def plain_sigmoid(x, y, scale, bias, captions):
    """Eager torch, all logits, in the inputs' own type."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, y, scale, bias)]
    a, b, scale, bias = leaves
    logits = (scale.to(x.dtype) * a @ b.T).to(scale.dtype) + bias
    own = torch.eye(len(x), device=x.device)
    losses = torch.nn.functional.softplus(torch.where(own > 0, -logits, logits))
    counted = torch.tensor(counted_by(captions.cpu().numpy()), device=x.device)
    loss = (losses * counted).sum() / len(x)
    dx, dy, *numbers = torch.autograd.grad(loss, leaves)
    return [loss.detach().reshape(1), dx, dy, *(d.reshape(1) for d in numbers)]


def drawn(seed, B, E, dtype=torch.float32, scale=10.0, bias=-4.0, how="plain", kinds=None):
    """(x, y, scale, bias, captions), the captions of so many kinds, or all different."""
    x, y = draw_pairs(seed, B, E, dtype, how)
    wide = torch.promote_types(dtype, torch.float32)
    numbers = (torch.tensor(v, device=DEVICE, dtype=wide) for v in (scale, bias))
    rng = np.random.default_rng(seed)
    captions = rng.permutation(B) if kinds is None else rng.integers(0, kinds, B)
    return x, y, *numbers, torch.tensor(captions, device=DEVICE)


def found_by(module, x, y, scale, bias, captions, **options):
    leaves = [t.detach().requires_grad_() for t in (x, y, scale, bias)]
    loss = module.sigmoid_loss(*leaves, captions, **options)
    dx, dy, *numbers = torch.autograd.grad(loss, leaves)
    return [loss.detach().reshape(1), dx, dy, *(d.reshape(1) for d in numbers)]


def check_sigmoid(module, dtype=torch.float32, workspace=1 << 20, **case):
    """One case: right, no NaN, nothing written outside, the same twice."""
    given = drawn(0, dtype=dtype, **case)
    with Poisoned() as memory:
        first = found_by(module, *given, workspace=workspace)
        assert memory.intact(), "something was written outside of its tensor"
        again = found_by(module, *given, workspace=workspace)
    judge(NAMES, first, plain_sigmoid(*given), exact_sigmoid(*given), dtype)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    if len({*given[-1].tolist()}) == len(first[1]):
        without = found_by(module, *given[:-1], None, workspace=workspace)
        for a, b in zip(first, without, strict=True):
            torch.testing.assert_close(a, b)


CASES = {
    "one": dict(B=1, E=8),
    "three": dict(B=3, E=5),
    "two of three alike": dict(B=3, E=5, kinds=2),
    "all one caption": dict(B=9, E=5, kinds=1),
    "many chunks": dict(B=300, E=33, workspace=1 << 17),
    "many chunks, alike": dict(B=300, E=33, workspace=1 << 17, kinds=90),
    "a row at a time": dict(B=21, E=33, workspace=1, kinds=9),
    "learned, scale 100": dict(B=60, E=48, scale=100.0, bias=-60.0, how="learned"),
    "opposite": dict(B=40, E=48, how="opposite", kinds=20),
    "slice of a row": dict(B=40, E=32, how="slice"),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_sigmoid_loss(name, dtype):
    check_sigmoid(sigmoid, dtype, **CASES[name])


def test_chunks_of_any_size_give_one_sum():
    """To 1e-12 in float64; the largest takes all rows at once."""
    given = drawn(1, 130, 24, torch.float64, kinds=60)
    whole = found_by(sigmoid, *given, workspace=1 << 30)
    row = sigmoid.TorchTiles.bytes_per_row(given[0], 130)
    for rows in (1, 7, 64, 128, 129):
        parts = found_by(sigmoid, *given, workspace=rows * row)
        for name, got, want in zip(NAMES, parts, whole, strict=True):
            gap = float((got - want).norm() / want.norm())
            assert gap < 1e-12, (name, rows, gap)


def check_workspace(module):
    """The largest tensor beyond the gradients is no larger than it may be: never B x B."""
    x, y, *given = drawn(0, 300, 8, kinds=200)
    with LargestTensor() as seen:  # the custom op would hide it: its part is called
        module.sigmoid_sums(x, y, *given, 1 << 16, [True] * 4)
    assert x.numel() < seen.bytes <= 1 << 16, f"{seen.bytes} bytes at once"


def test_it_keeps_to_its_workspace():
    check_workspace(sigmoid)


def test_gradients_in_float64():
    x, y, scale, bias, captions = drawn(2, 5, 4, torch.float64, kinds=3)
    leaves = [t.requires_grad_() for t in (x, y, scale, bias)]
    for own in (None, captions):
        call = lambda *given, own=own: sigmoid.sigmoid_loss(*given, own, workspace=99)  # noqa: E731
        assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck, of torch 2.14
def test_it_is_a_good_citizen_of_torch():
    """Fake, schema and autograd agree with what the op does, and it compiles into one graph."""
    x, y, scale, bias, captions = drawn(3, 6, 5, kinds=4)
    leaves = [t.requires_grad_() for t in (x, y, scale, bias)]
    for own in (captions, None):
        torch.library.opcheck(sigmoid.sigmoid_forward, (*leaves, own, 1 << 9, [True] * 4))

    def call(x, y, scale, bias):
        return sigmoid.sigmoid_loss(x, y, scale.exp(), bias, captions)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    losses = [f(x, y, scale.log(), bias) for f in (call, compiled)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaves) for loss in losses))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(text=torch.zeros(3, 4)), "text is (3, 4)"),
        (dict(scale=torch.ones(1)), "scale is torch.float32 (1,)"),
        (dict(bias=torch.ones(1)), "bias is torch.float32 (1,)"),
        (dict(bias=torch.tensor(1)), "bias is torch.int64 ()"),
        (dict(captions=torch.zeros(3, dtype=torch.int64)), "torch.int64 (3,), not int (2,)"),
        (dict(captions=torch.zeros(2)), "captions is torch.float32 (2,)"),
        (dict(captions=torch.zeros(2, dtype=torch.int64, device="meta")), "captions is on meta"),
        (dict(workspace=0), "workspace=0"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(change, message):
    numbers = {name: torch.tensor(1.0) for name in ("scale", "bias")}
    case = dict(image=torch.zeros(2, 4), text=torch.zeros(2, 4), **numbers) | change
    with pytest.raises(ValueError) as caught:
        sigmoid.sigmoid_loss(**case)
    assert message in str(caught.value)


def case(name, **more):
    return lambda module: check_sigmoid(module, **CASES[name] | more)


BUGS = [
    ("no.diagonal(rows.start).fill_(torch.inf)", "no.diagonal(0).fill_(torch.inf)",
     case("many chunks")),
    ("captions[rows, None] == captions", "captions[: len(x), None] == captions",
     case("many chunks, alike")),
    ("captions[rows, None] == captions", "captions[rows, None] < captions[:1]",
     case("two of three alike")),
    ("total -= logsigmoid(own)", "total = -logsigmoid(own)", case("many chunks")),
    ("logsigmoid(no).sum()", "0", case("three")),
    ("-torch.sigmoid(-own)", "-torch.sigmoid(own)", case("three")),
    ("add_(pull[:, None] * y)", "add_(pull[:, None] * x)", case("three")),
    ("dtext[rows] += pull", "dtext[: len(x)] += pull", case("a row at a time")),
    ("torch.dot(pull, cosine)", "torch.dot(pull, own)", case("three")),
    ("g.sum() + pull.sum()", "g.sum()", case("all one caption")),
    ("no.neg_().sigmoid_()", "no.sigmoid_()", case("three")),
    ("total / len(image)", "total / len(image) ** 2", case("three")),
    ("d * (dloss / pairs)", "d * dloss", case("three")),
    ("chunks(image, text, workspace, TorchTiles)", "[slice(0, len(image))]", check_workspace),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "check"), BUGS, ids=[new for _, new, _ in BUGS])
def test_a_planted_bug_is_caught(tmp_path, old, new, check):
    with mutant(tmp_path, "sigmoid.py", old, new) as load, pytest.raises(AssertionError):
        check(load("sigmoid"))


def test_the_checks_pass_without_a_bug():
    for _, _, check in BUGS:
        check(importlib.import_module("minicoca.kernels.sigmoid"))
