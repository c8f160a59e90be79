"""Kernels against the definition in float64: on a CPU by Triton's interpreter, on a card for real.

The interpreter computes bfloat16 wrongly: there the kernels compute it in float32, and round where
a card would.
"""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kernel_cases import (
    ATTENTIONS,
    CAPTIONS,
    DEVICE,
    PAIRS,
    POOLS,
    TYPES,
    check_attention,
    check_captions,
    check_pairs,
    check_pool,
    check_workspace,
    draw,
    run_attention,
)

from minicoca.kernels import attention as attention_module
from minicoca.kernels import attention_pool as pool_module
from minicoca.kernels import caption_loss as caption_module
from minicoca.kernels import info_nce as pair_module

NO_SHRINKING = (Phase.explicit, Phase.generate)  # an example takes a second
# Sizes around the tiles' edges; CoCa's own (50, 76, 197, 256, 257, ...) stand in kernel_cases.py.
EDGES = [1, 2, 15, 16, 17, 31, 33, 49, 50, 63, 64, 65, 76, 77, 127, 128, 129]


# Without a card in the second stage alone, and in one type.
LARGE = {
    "shared queries, two a slice", "vit, 336 pixels", "vit, 518 pixels", "two groups of tiles",
}  # fmt: skip


def in_types(cases, leave_out=lambda name, dtype: False):
    """Every case in every type. The interpreter is slow: without a card the first stage takes one
    type of each case, the types in turn, and the second stage the others."""
    found = []
    for turn, name in enumerate(cases):
        types = [dtype for dtype in TYPES if not leave_out(name, dtype)]
        if DEVICE != "cuda" and name in LARGE:
            types = types[turn % len(types) :][:1]
        for dtype in types:
            now = DEVICE == "cuda" or name not in LARGE and dtype == types[turn % len(types)]
            marks = [] if now else [pytest.mark.slow]
            found.append(pytest.param(name, dtype, marks=marks, id=f"{name}-{dtype}"))
    return found


def decided_by_rounding(name, dtype):
    """Logits of thousands, in attention: the rounding of the inputs' own type decides."""
    return name == "large logits" and dtype != torch.float32


def digits_lost(name, dtype):
    """Inputs near 60, in pooling: float16 keeps too few digits of what a norm leaves of them."""
    return name == "far from zero" and dtype != torch.float32


def eight_bits_only(name, dtype):
    """Logits near 100, in the captioning loss: plain torch is over the gate in bfloat16 too."""
    return name == "large logits" and dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "dtype"), in_types(ATTENTIONS, decided_by_rounding))
def test_attention(name, dtype):
    check_attention(attention_module, 0, dtype=dtype, **ATTENTIONS[name])


@st.composite
def attention_cases(draw_):
    causal = draw_(st.booleans())
    T = draw_(st.sampled_from(EDGES))
    S = T if causal else draw_(st.sampled_from(EDGES))
    B = draw_(st.integers(1, 3))
    lengths = draw_(st.none() | st.lists(st.integers(0, S), min_size=B, max_size=B))
    return dict(
        B=B, T=T, S=S, H=draw_(st.integers(1, 2)), causal=causal, lengths=lengths,
        K=draw_(st.sampled_from([16, 32, 40, 64, 72, 80, 88, 96, 128])),
        kind=draw_(st.sampled_from(["plain", "slice", "heads first"])),
        do_kind=draw_(st.sampled_from(["plain", "expanded", "transposed"])),
        shared=draw_(st.booleans()), scale=draw_(st.sampled_from([None, 0.05, 1.0])),
    )  # fmt: skip


@settings(max_examples=3, phases=NO_SHRINKING)
@given(case=attention_cases(), seed=st.integers(0, 1000), dtype=st.sampled_from(TYPES))
def test_attention_of_any_shape(case, seed, dtype):
    check_attention(attention_module, seed, dtype=dtype, **case)


def test_a_permuted_batch_gives_permuted_results():
    rng = np.random.default_rng(0)
    q, k, v, do = (draw(rng, (4, 33, 2, 32), torch.float32) for _ in range(4))
    order = torch.tensor([2, 0, 3, 1])
    a = run_attention(attention_module, q, k, v, do, False, None, 0.2)
    moved = [x[order] for x in (q, k, v, do)]
    b = run_attention(attention_module, *moved, False, None, 0.2)
    assert all(torch.equal(x[order], y) for x, y in zip(a, b, strict=True))
    x, g = torch.randn(4, 33, 48, device=DEVICE), torch.randn(3, 48, device=DEVICE)
    a, b = (pool_module.attention_pool(t, g) for t in (x, x[order]))
    assert torch.equal(a[order], b)


@pytest.mark.parametrize("S", [40, 300])
def test_the_log_sum_exp_of_no_keys_is_minus_infinity(S):
    q, k = (torch.randn(2, n, 2, 16, device=DEVICE) for n in (5, S))
    lengths = torch.tensor([0, S], dtype=torch.int32, device=DEVICE)
    o, lse = attention_module.attention_forward(q, k, k, lengths, False, 0.25)
    assert (lse[0] == -torch.inf).all() and not o[0].any()
    scores = 0.25 * torch.einsum("bthk,bshk->bhts", q, k)
    torch.testing.assert_close(lse[1], scores.logsumexp(-1)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "dtype"), in_types(POOLS, digits_lost))
def test_attention_pool(name, dtype):
    check_pool(pool_module, 0, dtype=dtype, **POOLS[name])


@settings(max_examples=4, phases=NO_SHRINKING)
@given(
    B=st.integers(1, 3), N=st.sampled_from(EDGES), M=st.integers(3, 150), H=st.integers(1, 64),
    seed=st.integers(0, 1000), dtype=st.sampled_from(TYPES),
)  # fmt: skip
def test_attention_pool_of_any_shape(B, N, M, H, seed, dtype):
    check_pool(pool_module, seed, B, N, M, H, dtype=dtype)


@pytest.mark.parametrize("fused", [True, False], ids=["triton", "torch"])
@pytest.mark.parametrize(("name", "dtype"), in_types(PAIRS))
def test_info_nce(name, dtype, fused):
    check_pairs(pair_module, 0, dtype=dtype, fused=fused, **PAIRS[name])


@settings(max_examples=6, phases=NO_SHRINKING)
@given(
    B=st.sampled_from(EDGES), E=st.integers(1, 140), scale=st.sampled_from([1.0, 14.3, 100.0]),
    normalise=st.booleans(), workspace=st.sampled_from([1 << 13, 1 << 20]),
    how=st.sampled_from(["plain", "learned", "opposite", "slice"]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_info_nce_of_any_shape(B, E, scale, normalise, workspace, how, seed):
    check_pairs(pair_module, seed, B, E, torch.float32, scale, normalise, how, workspace)


@pytest.mark.parametrize("fused", [True, False], ids=["triton", "torch"])
def test_info_nce_keeps_to_its_workspace(fused):
    check_workspace(pair_module, fused)


@pytest.mark.parametrize("fused", [True, False], ids=["triton", "torch"])
@pytest.mark.parametrize(("name", "dtype"), in_types(CAPTIONS, eight_bits_only))
def test_caption_loss(name, dtype, fused):
    check_captions(caption_module, 0, dtype=dtype, fused=fused, **CAPTIONS[name])


@settings(max_examples=6, phases=NO_SHRINKING)
@given(
    R=st.integers(1, 40), D=st.integers(1, 40), V=st.integers(2, 300), chunk=st.integers(1, 50),
    pads=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 1000),
    dtype=st.sampled_from(TYPES),
)  # fmt: skip
def test_caption_loss_of_any_shape(R, D, V, chunk, pads, seed, dtype):
    check_captions(caption_module, seed, R, D, V, dtype, pads, chunk)


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is the interpreter's alone")
def test_gradients_in_float64():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 2, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    lengths = torch.tensor([5, 3])  # fast mode: one random direction, not one call a number
    for causal in (False, True):
        assert torch.autograd.gradcheck(
            lambda q, k, v, c=causal: attention_module.attention(
                q, k, v, causal=c, key_lengths=lengths
            ),
            (q, k, v),
            fast_mode=True,
        )
    x = torch.randn(2, 6, 16, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, g: pool_module.attention_pool(x, g), (x, g), fast_mode=True
    )
    x, y = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    for normalise in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, y, s, n=normalise: pair_module.info_nce(x, y, s, normalise=n),
            (x, y, scale), fast_mode=True,
        )  # fmt: skip
    targets = torch.tensor([1, 0, 3, 2, 0])
    assert torch.autograd.gradcheck(
        lambda x, w: caption_module.caption_loss(x, w, targets),
        (x, y.detach()[:4].clone().requires_grad_()), fast_mode=True,
    )  # fmt: skip


@pytest.mark.slow

def test_ops_are_good_citizens_of_torch():
    """Fakes, schemas and autograd agree with what the ops do; permuted inputs included."""
    q = torch.randn(2, 7, 2, 16, device=DEVICE, requires_grad=True)
    k = torch.randn(2, 2, 7, 16, device=DEVICE).transpose(1, 2).requires_grad_()
    torch.library.opcheck(attention_module.attention_forward, (q, k, k, None, True, 0.3))
    lengths = torch.tensor([7, 2], dtype=torch.int32, device=DEVICE)
    shared = torch.randn(1, 7, 2, 16, device=DEVICE, requires_grad=True)
    torch.library.opcheck(attention_module.attention_forward, (shared, k, k, lengths, False, 0.3))
    x = torch.randn(2, 7, 16, device=DEVICE, requires_grad=True)
    g = torch.randn(3, 16, device=DEVICE, requires_grad=True)
    torch.library.opcheck(pool_module.attention_pool_forward, (x, g, None))
    x, y, w = (torch.randn(5, n, device=DEVICE, requires_grad=True) for n in (5, 5, 9))
    scale = torch.tensor(3.0, device=DEVICE, requires_grad=True)
    targets = torch.tensor([1, 0, 3, 2, 0], device=DEVICE)
    for fused in (True, False):
        torch.library.opcheck(pair_module.info_nce_forward, (x, y, scale, True, 1 << 20, fused))
        arguments = (x, w, targets, 0, 2, [True, True], fused)
        torch.library.opcheck(caption_module.caption_loss_forward, arguments)


def test_ops_compile_into_one_graph():
    torch.manual_seed(0)
    q, k = (torch.randn(2, 9, 2, 16, device=DEVICE, requires_grad=True) for _ in range(2))
    x, g = torch.randn(2, 9, 16, device=DEVICE), torch.randn(3, 16, device=DEVICE)

    targets = torch.tensor([[1, 2, 0, 0, 3, 4, 0, 5, 6]] * 2, device=DEVICE)

    def both(q, k, x, g):
        o = attention_module.attention(q, k, k, causal=True)
        pooled = pool_module.attention_pool(x, g).flatten(1)
        loss = pair_module.info_nce(pooled, o.flatten(1)[:, : pooled.shape[1]], q.mean().exp())
        loss = loss + caption_module.caption_loss(o.flatten(2), k[0].flatten(1).T[:, :9], targets)
        return o.sum() + pooled.sum() + loss

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    a, b = both(q, k, x, g), compiled(q, k, x, g)
    grads = [torch.autograd.grad(y, (q, k), retain_graph=True) for y in (a, b)]
    assert torch.allclose(a, b, rtol=1e-5)
    assert all(torch.allclose(m, n, atol=1e-5) for m, n in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(q=torch.zeros(2, 3, 8)), "q has 3 axes"),
        (dict(q=torch.zeros(2, 5, 2, 129), k=torch.zeros(2, 5, 2, 129),
              v=torch.zeros(2, 5, 2, 129)), "head size 129 is over the limit of 128"),
        (dict(k=torch.zeros(3, 5, 2, 16)), "expected"),
        (dict(v=torch.zeros(2, 5, 2, 16, dtype=torch.float16)), "v is torch.float16"),
        (dict(q=torch.zeros(2, 5, 2, 16, dtype=torch.int32)), "q is torch.int32"),
        (dict(q=torch.zeros(2, 5, 16, 2).transpose(2, 3)), "last axis has stride 2"),
        (dict(q=torch.zeros(2, 4, 2, 16), causal=True), "T=4, S=5"),
        (dict(q=torch.zeros(1, 1, 1, 16).expand(1, 5, 2, 16), k=(wide := torch.zeros(
            1, 1, 1, 16).expand(32_768, 5, 2, 16)), v=wide), "B x H is 65536"),
        (dict(key_lengths=torch.tensor([6, 1])), "not in 0 to 5"),
        (dict(key_lengths=torch.tensor([1])), "not int (2,)"),
        (dict(key_lengths=torch.tensor([1.0, 2.0])), "torch.float32"),
        (dict(v=torch.zeros(2, 5, 2, 16, device="meta")), "v is on meta"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_told_what_is_wrong(change, message):
    case = {name: torch.zeros(2, 5, 2, 16) for name in "qkv"} | change
    with pytest.raises(ValueError) as caught:
        attention_module.attention(case.pop("q"), case.pop("k"), case.pop("v"), **case)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(text=torch.zeros(3, 5)), "text is (3, 5)"),
        (dict(image=torch.zeros(0, 4), text=torch.zeros(0, 4)), "image is (0, 4)"),
        (dict(text=torch.zeros(4, 2).T), "stride 2"),
        (dict(text=torch.zeros(2, 4, dtype=torch.float16)), "text is torch.float16"),
        (dict(text=torch.zeros(2, 4, device="meta")), "text is on meta"),
        (dict(scale=torch.ones(1)), "torch.float32 (1,)"),
        (dict(workspace=0), "workspace=0"),
    ],
)
def test_a_wrong_call_of_info_nce_is_told_what_is_wrong(change, message):
    case = dict(image=torch.zeros(2, 4), text=torch.zeros(2, 4), scale=torch.tensor(1.0)) | change
    with pytest.raises(ValueError) as caught:
        pair_module.info_nce(case.pop("image"), case.pop("text"), case.pop("scale"), **case)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(head_weight=torch.zeros(5, 9)), "head_weight (5, 9)"),
        (dict(head_weight=torch.zeros(4, 9, dtype=torch.float16)), "head_weight torch.float16"),
        (dict(targets=torch.ones(3, dtype=torch.int64)), "torch.int64 (3,)"),
        (dict(targets=torch.ones(2)), "torch.float32 (2,)"),
        (dict(targets=torch.tensor([1, 9])), "targets are 1 to 9; the head has 9"),
        (dict(targets=torch.tensor([-100, 1])), "targets are -100 to 1"),
        (dict(targets=torch.ones(2, dtype=torch.int64, device="meta")), "targets on meta"),
        (dict(chunk=0), "chunk=0"),
    ],
)
def test_a_wrong_call_of_caption_loss_is_told_what_is_wrong(change, message):
    case = dict(hidden=torch.zeros(2, 4), head_weight=torch.zeros(4, 9))
    case |= dict(targets=torch.tensor([1, 2])) | change
    with pytest.raises(ValueError) as caught:
        caption_module.caption_loss(
            case.pop("hidden"), case.pop("head_weight"), case.pop("targets"), **case
        )
    assert message in str(caught.value)
