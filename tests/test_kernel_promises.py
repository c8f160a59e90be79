"""What every op promises beyond being right: one property each, over all ops and all their ways.

What is ignored is never read as a number; a second derivative is right or refused; a gradient that
nobody wants is neither computed nor kept.
"""

import itertools
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DEVICE

from minicoca.engine import ops as seam
from minicoca.kernels import attention, attention_pool, caption_loss, info_nce, sigmoid
from minicoca.kernels.softmax import (
    end_of,
    load_tile,
    online_softmax,
    safe_inverse,
    score_mask,
    store_tile,
)

PAD = seam.PAD


class Case(NamedTuple):
    """A call, what it differentiates, and of each of these, and of its result, what it ignores."""

    call: Any
    leaves: list
    ignored: list
    result_ignored: Any


def generator(seed):
    return torch.Generator(DEVICE).manual_seed(seed)


def normal(seed, *shapes, dtype=torch.float64):
    """Random tensors of these shapes."""
    g = generator(seed)
    return [torch.randn(s, generator=g, device=DEVICE, dtype=dtype) for s in shapes]


def some_lengths(seed, B, S):
    """From 0 to S; one is 0."""
    lengths = torch.randint(0, S + 1, (B,), generator=generator(seed), device=DEVICE)
    lengths[seed % B] = 0
    return lengths


def beyond(lengths, S):
    """[B, S]: whether a row stands beyond its sample's length."""
    return torch.arange(S, device=DEVICE) >= lengths[:, None]


def attention_case(seed, dtype, T=5, S=7, causal=False, shared=False):
    B, H, K = 2, 1, 16
    q, k, v = normal(seed, (1 if shared else B, T, H, K), *[(B, S, H, K)] * 2, dtype=dtype)
    lengths = some_lengths(seed, B, S)
    keys = beyond(lengths, S)[:, :, None, None]
    return Case(
        lambda q, k, v: attention.attention(q, k, v, causal=causal, key_lengths=lengths),
        [q, k, v], [None, keys, keys], None,
    )  # fmt: skip


def masked_attention_case(seed, dtype):
    """The engine's, in torch, with a mask: keys that no query may look at are ignored."""
    case, lengths = attention_case(seed, dtype), some_lengths(seed, 2, 7)
    mask = ~beyond(lengths, 7)[:, None].expand(2, 5, 7)
    return case._replace(call=lambda q, k, v: seam.attention(q, k, v, mask=mask))


def pool_case(seed, dtype, B=3, N=9, M=20, H=3):
    x, g = normal(seed, (B, N, M), (H, M), dtype=dtype)
    lengths = some_lengths(seed, B, N)
    return Case(
        lambda x, g: attention_pool.attention_pool(x, g, key_lengths=lengths).to(dtype),
        [x, g], [beyond(lengths, N)[:, :, None], None], (lengths == 0)[:, None, None],
    )  # fmt: skip


def seam_pool_case(seed, dtype):
    case = pool_case(seed, dtype)
    return Case(seam.attention_pool, case.leaves, [None, None], None)


def pairs_case(seed, dtype, fused, normalise=False):
    x, y = normal(seed, (6, 11), (6, 11), dtype=dtype)
    scale = torch.tensor(3.0, device=DEVICE, dtype=dtype)
    options = dict(normalise=normalise, workspace=1 << 7, fused=fused)
    return Case(
        lambda x, y, s: info_nce.info_nce(x, y, s, **options).to(dtype),
        [x, y, scale], [None] * 3, None,
    )  # fmt: skip


def seam_pairs_case(seed, dtype):
    return pairs_case(seed, dtype, False)._replace(call=seam.contrastive_loss)


def sigmoid_case(seed, dtype):
    leaves = [*pairs_case(seed, dtype, False).leaves, torch.tensor(-1.5, dtype=dtype).to(DEVICE)]
    captions = torch.tensor([4, 9, 4, 7, 9, 4], device=DEVICE)
    return Case(
        lambda *given: sigmoid.sigmoid_loss(*given, captions, workspace=1 << 7).to(dtype),
        leaves, [None] * 4, None,
    )  # fmt: skip


def captions_case(seed, dtype, call):
    hidden, head = normal(seed, (3, 5, 8), (8, 13), dtype=dtype)
    targets = torch.randint(1, 13, (3, 5), generator=generator(seed), device=DEVICE)
    targets[beyond(some_lengths(seed, 3, 5), 5)] = PAD
    return Case(
        lambda x, w: call(x, w, targets).to(dtype), [hidden, head],
        [(targets == PAD)[..., None], None], None,
    )  # fmt: skip


CASES = {
    "attention": attention_case,
    "attention, tiles of keys": lambda *a: attention_case(*a, T=3, S=135),
    "attention, causal": lambda *a: attention_case(*a, T=7, causal=True),
    "attention, general": lambda *a: attention_case(*a, shared=True),
    "attention, general, tiles": lambda *a: attention_case(*a, T=3, S=70, shared=True),
    "attention, masked, torch": masked_attention_case,
    "attention_pool": pool_case,
    "attention_pool, tiles": lambda *a: pool_case(*a, B=2, N=70, M=140),
    "attention_pool, torch": seam_pool_case,
    "info_nce": lambda *a: pairs_case(*a, fused=True),
    "info_nce, directions": lambda *a: pairs_case(*a, fused=True, normalise=True),
    "info_nce, chunks": lambda *a: pairs_case(*a, fused=False),
    "info_nce, directions, chunks": lambda *a: pairs_case(*a, fused=False, normalise=True),
    "info_nce, torch": seam_pairs_case,
    "sigmoid_loss, chunks": sigmoid_case,
    "caption_loss": lambda *a: captions_case(
        *a, lambda x, w, t: caption_loss.caption_loss(x, w, t, chunk=4)
    ),
    "caption_loss, torch": lambda *a: captions_case(
        *a, lambda x, w, t: caption_loss.caption_loss(x, w, t, chunk=4, fused=False)
    ),
    "caption_loss, seam": lambda *a: captions_case(
        *a, lambda x, w, t: seam.caption_loss(x, {"weight": w}, t)
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def poisoned(x, ignored, poison):
    """x with `poison` where it is ignored and in the memory between its rows."""
    if not x.ndim:
        return x
    memory = torch.full((*x.shape[:-1], x.shape[-1] + 3), poison, dtype=x.dtype, device=x.device)
    inside = memory[..., : x.shape[-1]]
    return inside.copy_(x if ignored is None else x.masked_fill(ignored, poison))


def results(call, leaves, dy, wanted=None):
    """The result, and the gradients that are wanted."""
    wanted = wanted or [True] * len(leaves)
    leaves = [x.detach().requires_grad_(w) for x, w in zip(leaves, wanted, strict=True)]
    y = call(*leaves)
    asked = [x for x in leaves if x.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, asked, dy)]


def gradient_of(case, seed):
    """A random gradient of the result."""
    y = case.call(*case.leaves)
    return torch.randn(y.shape, generator=generator(seed + 1), dtype=y.dtype, device=DEVICE)


@every_case
@settings(max_examples=2)
@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    poison=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
)
def test_what_is_ignored_is_never_read(name, seed, dtype, poison):
    """Lengths, padding, samples without any key, memory between rows: bit for bit the same."""
    case = CASES[name](seed, dtype)
    dy = gradient_of(case, seed)
    bad_dy = dy if case.result_ignored is None else dy.masked_fill(case.result_ignored, poison)
    clean, spoilt = (
        results(case.call, list(map(poisoned, case.leaves, case.ignored, [fill] * 4)), d)
        for fill, d in ((0.0, dy), (poison, bad_dy))
    )
    for at, (a, b) in enumerate(zip(clean, spoilt, strict=True)):  # the result, then gradients
        assert b.isfinite().all(), f"{at} is not finite"
        assert torch.equal(a, b), f"{at} differs by {(a - b).abs().max()}"
    for gradient, ignored in zip(spoilt[1:], case.ignored, strict=True):
        assert ignored is None or not gradient[ignored.expand(gradient.shape)].any()


@triton.jit
def softmax_kernel(x_ptr, y_ptr, lengths_ptr, stride, R, C, BLOCK: tl.constexpr):
    """Softmax of each row of one sample [R, C], of which so many columns are real."""
    b = tl.program_id(0).to(tl.int64)
    r, c = tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    end = end_of(lengths_ptr, b, C)
    x = load_tile(x_ptr + b * R * stride, r, c, stride, R, end, False)
    x = tl.where(score_mask(r, c, R, end, False), x * 1.4426950408889634, float("-inf"))
    start = tl.full([BLOCK], float("-inf"), tl.float32)
    p, _, total, _ = online_softmax(x, start, tl.zeros([BLOCK], tl.float32))
    store_tile(y_ptr + b * R * C, p * safe_inverse(total)[:, None], r, c, C, R, C, False)


@settings(max_examples=4)
@given(seed=st.integers(0, 1000), poison=st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_the_pieces_of_softmax_never_read_what_is_ignored(seed, poison):
    (x,) = normal(seed, (3, 5, 11), dtype=torch.float32)
    lengths = some_lengths(seed, 3, 11).to(torch.int32)
    outside = beyond(lengths, 11)[:, None]
    bad, y = poisoned(x, outside, poison), torch.full_like(x, torch.nan)
    softmax_kernel[(3,)](bad, y, lengths, bad.stride(1), 5, 11, BLOCK=16)
    want = torch.softmax(x.masked_fill(outside, -torch.inf), -1).nan_to_num(0.0)
    torch.testing.assert_close(y, want)


@every_case
def test_a_second_derivative_is_right_or_refused(name):
    """Never 0 in silence: a gradient penalty would then train nothing."""
    case = CASES[name](0, torch.float64)
    leaves = [x.requires_grad_() for x in case.leaves]
    dy = gradient_of(case, 0)
    refused = 0
    for gradient in torch.autograd.grad(case.call(*leaves), leaves, dy, create_graph=True):
        try:
            torch.autograd.grad(gradient.square().sum(), leaves, retain_graph=True)
        except RuntimeError as error:
            assert "no autograd formula" in str(error) or "not implemented" in str(error), error
            refused += 1
    assert refused == len(leaves) or (
        refused == 0 and torch.autograd.gradgradcheck(case.call, leaves, fast_mode=True)
    )


FORWARDS = {  # the op, and what it is given besides the leaves
    "attention": (attention.attention_forward, (None, False, 0.25)),
    "attention_pool": (attention_pool.attention_pool_forward, (None,)),
    "info_nce": (info_nce.info_nce_forward, (False, 1 << 20, False)),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_only_the_result_of_an_op_has_a_derivative(name):
    """What the backward is served from (a log-sum-exp, say) would be given none."""
    op, more = FORWARDS[name]
    leaves = (x.requires_grad_() for x in CASES[name](0, torch.float32).leaves)
    first, *others = op(*leaves, *more)
    assert first.requires_grad and not any(x.requires_grad for x in others)


MAKERS = {  # what makes an op's gradients: the last of its results
    "attention": (attention, "attention_backward"),
    "attention_pool": (attention_pool, "attention_pool_backward"),
    "info_nce": (info_nce, "info_nce_backward"),
    "sigmoid_loss": (sigmoid, "sigmoid_forward"),
    "caption_loss": (caption_loss, "caption_loss_forward"),
}
# What torch's own operations save is their affair.
OURS = [name for name in CASES if "torch" not in name or "caption" in name]


@pytest.mark.parametrize("name", OURS)
def test_a_gradient_that_nobody_wants_is_not_made(name, monkeypatch):
    """Whatever is frozen, there is no memory for its gradient, and the others are the same."""
    case, found = CASES[name](0, torch.float32), []
    dy = gradient_of(case, 0)
    full = results(case.call, case.leaves, dy)
    module, maker = MAKERS[name.split(",")[0]]
    op = getattr(module, maker)
    monkeypatch.setattr(module, maker, lambda *a: found.append(op(*a)) or found[-1])
    for wanted in itertools.product((True, False), repeat=len(case.leaves)):
        if any(wanted):
            some = results(case.call, case.leaves, dy, list(wanted))
            same = [full[0], *itertools.compress(full[1:], wanted)]
            assert all(torch.equal(a, b) for a, b in zip(some, same, strict=True)), wanted
            made = [x.numel() > 0 for x in found[-1][-len(wanted) :]]
            assert made == list(wanted)


@pytest.mark.skipif(not seam.ONEDNN, reason="needs oneDNN")
def test_a_linear_map_by_onednn_has_its_second_derivative(monkeypatch):
    x, weight, bias = (
        t.requires_grad_() for t in normal(0, (5, 7), (7, 3), (3,), dtype=torch.float)
    )
    found = []
    for least in (0, 1 << 60):  # oneDNN, torch
        monkeypatch.setattr(seam, "ONEDNN_FROM", least)
        y = seam.linear(x, {"weight": weight, "bias": bias})
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), (x, weight, bias)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
