"""Kernels against the definition in float64: on a CPU by Triton's interpreter, on a card for real.

The interpreter computes bfloat16 wrongly; there the kernels upcast it, and bfloat16's own rounding
is judged on a card only.
"""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kernel_oracles import Poisoned, judge, mutant

from minicoca.kernels import attention as attention_module
from minicoca.kernels import attention_pool as pool_module
from minicoca.kernels import configs
from minicoca.reference import attention as reference
from minicoca.reference.ops import layer_norm, layer_norm_backward, softmax, softmax_backward

DEVICE = "cuda" if torch.cuda.is_available() and not configs.INTERPRETED else "cpu"
TYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
# Sizes around the tiles' edges, and CoCa's own (50, 76, 197, 256, 257).
NO_SHRINKING = (Phase.explicit, Phase.generate)  # an example takes a second
EDGES = [1, 2, 15, 16, 17, 31, 33, 49, 50, 63, 64, 65, 76, 77, 127, 128, 129]


def draw(rng, shape, dtype, kind="plain"):
    """A random [B, T, H, K] of some layout, rounded to dtype."""
    B, T, H, K = shape
    x = torch.tensor(rng.standard_normal((B, T, H, K)), device=DEVICE).to(dtype)
    if kind == "slice":  # a part of a fused q, k, v projection
        x = torch.cat([torch.full_like(x, torch.nan), x, torch.full_like(x, torch.nan)], -1)
        return x[..., K : 2 * K]
    if kind == "heads first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x


def mask_of(B, T, S, causal, lengths):
    mask = np.ones((B, T, S), bool)
    if causal:
        mask &= reference.causal_mask(T)
    if lengths is not None:
        mask &= (np.arange(S) < lengths.cpu().numpy()[:, None])[:, None]
    return mask


def exact_attention(q, k, v, do, causal, lengths, scale):
    """The reference, in float64: (o, dq, dk, dv)."""
    arrays = [x.double().cpu().numpy() for x in (q, k, v, do)]
    q_, k_, v_, do_ = arrays
    shared = len(q_) < len(k_)
    if shared:
        q_ = np.repeat(q_, len(k_), 0)
    factor = scale * q_.shape[-1] ** 0.5  # the reference has 1 / sqrt(K) built in
    mask = mask_of(len(k_), q_.shape[1], k_.shape[1], causal, lengths)
    o, cache = reference.attention(q_ * factor, k_, v_, mask)
    dq, dk, dv = reference.attention_backward(do_, cache)
    dq = dq * factor
    dq = dq.sum(0, keepdims=True) if shared else dq
    return [torch.tensor(np.ascontiguousarray(x), device=q.device) for x in (o, dq, dk, dv)]


def plain_attention(q, k, v, do, causal, lengths, scale):
    """Plain torch, every step in the inputs' own type: what a kernel must not be worse than."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    mask = torch.tensor(mask_of(len(k), q.shape[1], k.shape[1], causal, lengths), device=q.device)
    scores = torch.einsum("bthk,bshk->bhts", q.expand(len(k), -1, -1, -1), k) * scale
    scores = scores.masked_fill(~mask[:, None], -torch.inf)
    p = torch.softmax(scores, -1).nan_to_num(0)
    o = torch.einsum("bhts,bshk->bthk", p, v)
    return [o.detach(), *torch.autograd.grad(o, (q, k, v), do)]


def run_attention(module, q, k, v, do, causal, lengths, scale):
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    o = module.attention(q, k, v, causal=causal, key_lengths=lengths, scale=scale)
    return [o.detach(), *torch.autograd.grad(o, (q, k, v), do)]


def check_attention(
    module, seed, B, T, S, H, K, dtype=torch.float32, causal=False, lengths=None, kind="plain",
    shared=False, scale=None, do_kind="plain", size=1.0,
):  # fmt: skip
    """One case: right, no NaN, nothing written outside, the same twice."""
    rng = np.random.default_rng(seed)
    q = draw(rng, (1 if shared else B, T, H, K), dtype, kind) * size
    k, v = (draw(rng, (B, S, H, K), dtype, kind) for _ in range(2))
    do = draw(rng, (B, T, H, K), dtype)
    if do_kind == "expanded":
        do = do[:, :1, :, :1].expand(B, T, H, K)
    elif do_kind == "transposed":
        do = do.transpose(1, 2).contiguous().transpose(1, 2)
    lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    case = (q, k, v, do, causal, lengths, K**-0.5 if scale is None else scale)
    with Poisoned() as memory:
        ours = run_attention(module, *case)
        assert memory.intact(), "something was written outside of its tensor"
        again = run_attention(module, *case)
    exact, plain = exact_attention(*case), plain_attention(*case)
    largest = float((q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max()) * case[-1])
    judge(("o", "dq", "dk", "dv"), ours, plain, exact, dtype, largest if size > 1 else 0.0)
    for name, a, b in zip(("o", "dq", "dk", "dv"), ours, again, strict=True):
        assert torch.equal(a, b), f"{name} differs when repeated"
    if lengths is not None:
        for b, length in enumerate(lengths.tolist()):
            for name, x in zip(("dk", "dv"), ours[2:], strict=True):
                assert not x[b, length:].any(), f"{name} is not zero beyond the length"
            if length == 0:
                assert not ours[0][b].any(), "a query without keys must give zeros"
    return ours


CASES = {
    "one row": dict(B=2, T=1, S=1, H=1, K=16),
    "tiny": dict(B=2, T=50, S=50, H=2, K=64),
    "tiny, 88": dict(B=1, T=49, S=50, H=2, K=88),
    "causal text": dict(B=2, T=76, S=76, H=2, K=64, causal=True),
    "causal CLS after the last token": dict(
        B=3, T=77, S=77, H=2, K=32, causal=True, lengths=[77, 8, 2]
    ),
    "lengths 0 and 1": dict(B=3, T=20, S=70, H=2, K=32, lengths=[0, 1, 70]),
    "cross": dict(B=2, T=76, S=256, H=1, K=64),
    "more queries than keys": dict(B=1, T=129, S=17, H=2, K=40),
    "general": dict(B=1, T=257, S=257, H=1, K=64),
    "general, wide heads": dict(B=1, T=140, S=150, H=1, K=128),
    "general, causal, lengths": dict(B=2, T=270, S=270, H=1, K=32, causal=True, lengths=[270, 100]),
    "shared queries": dict(B=5, T=33, S=50, H=2, K=32, shared=True),
    "shared queries, lengths": dict(B=3, T=20, S=140, H=2, K=24, shared=True, lengths=[140, 0, 9]),
    "slice of a projection": dict(B=2, T=33, S=33, H=3, K=24, kind="slice"),
    "heads first": dict(B=2, T=33, S=40, H=3, K=24, kind="heads first"),
    "expanded gradient": dict(B=2, T=20, S=30, H=2, K=32, do_kind="expanded"),
    "transposed gradient": dict(B=2, T=20, S=30, H=2, K=32, do_kind="transposed"),
    "scale of one": dict(B=2, T=20, S=30, H=2, K=16, scale=1.0),
    "large logits": dict(B=1, T=40, S=70, H=1, K=32, size=100.0),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_attention(name, dtype):
    if name == "large logits" and dtype != torch.float32:
        pytest.skip("logits of thousands: rounding of the inputs' own type decides")
    check_attention(attention_module, 0, dtype=dtype, **CASES[name])


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


@settings(max_examples=10, phases=NO_SHRINKING)
@given(case=attention_cases(), seed=st.integers(0, 1000), dtype=st.sampled_from(TYPES))
def test_attention_of_any_shape(case, seed, dtype):
    check_attention(attention_module, seed, dtype=dtype, **case)


def test_upcast_bfloat16_in_the_interpreter():
    if DEVICE == "cuda":
        pytest.skip("a card computes bfloat16 itself")
    check_attention(attention_module, 0, dtype=torch.bfloat16, **CASES["causal text"])
    check_pool(pool_module, 0, 2, 33, 48, 3, dtype=torch.bfloat16)


def test_a_permuted_batch_gives_permuted_results():
    rng = np.random.default_rng(0)
    q, k, v, do = (draw(rng, (4, 33, 2, 32), torch.float32) for _ in range(4))
    order = torch.tensor([2, 0, 3, 1])
    a = run_attention(attention_module, q, k, v, do, False, None, 0.2)
    moved = [x[order] for x in (q, k, v, do)]
    b = run_attention(attention_module, *moved, False, None, 0.2)
    assert all(torch.equal(x[order], y) for x, y in zip(a, b, strict=True))


def exact_pool(x, g, dm, lengths):
    """From the reference's pieces, in float64: (m, dx, dg)."""
    x, g, dm = (t.double().cpu().numpy() for t in (x, g, dm))
    unit = {"scale": np.ones(x.shape[-1]), "bias": np.zeros(x.shape[-1])}
    xhat, norm_cache = layer_norm(x, unit)
    s = np.einsum("hm,bnm->bhn", g, xhat)
    if lengths is not None:
        outside = np.arange(x.shape[1]) >= lengths.cpu().numpy()[:, None, None]
        s = np.where(outside, -np.inf, s)
    p, cache = softmax(s)
    m = np.einsum("bhn,bnm->bhm", p, xhat)
    ds = softmax_backward(np.einsum("bhm,bnm->bhn", dm, xhat), cache)
    dxhat = np.einsum("bhn,bhm->bnm", p, dm) + np.einsum("bhn,hm->bnm", ds, g)
    dx, _ = layer_norm_backward(dxhat, norm_cache)
    dg = np.einsum("bhn,bnm->hm", ds, xhat)
    return [torch.tensor(a, device=DEVICE) for a in (m, dx, dg)]


def plain_pool(x, g, dm, lengths):
    x, g = x.detach().clone().requires_grad_(), g.detach().clone().requires_grad_()
    xhat = torch.nn.functional.layer_norm(x, x.shape[-1:])
    s = torch.einsum("hm,bnm->bhn", g, xhat)
    if lengths is not None:
        outside = torch.arange(x.shape[1], device=x.device) >= lengths[:, None, None]
        s = s.masked_fill(outside, -torch.inf)
    m = torch.einsum("bhn,bnm->bhm", torch.softmax(s, -1).nan_to_num(0), xhat)
    return [m.detach(), *torch.autograd.grad(m, (x, g), dm.to(m.dtype))]


def check_pool(
    module, seed, B, N, M, H, dtype=torch.float32, lengths=None, offset=3.0, strided=False
):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.standard_normal((B, N, M)) * 2 + offset, device=DEVICE).to(dtype)
    if strided:
        x = torch.cat([x, torch.full_like(x, torch.nan)], -1)[..., :M]
    g = torch.tensor(rng.standard_normal((H, M)) * 0.3, device=DEVICE).to(dtype)
    lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)

    def ours():
        a, b = x.detach().requires_grad_(), g.detach().requires_grad_()
        m = module.attention_pool(a, b, key_lengths=lengths)
        return [m.detach(), *torch.autograd.grad(m, (a, b), dm)]

    wide = torch.promote_types(dtype, torch.float32)
    dm = torch.tensor(rng.standard_normal((B, H, M)), device=DEVICE).to(wide)
    with Poisoned() as memory:
        first = ours()
        assert memory.intact(), "something was written outside of its tensor"
        again = ours()
    exact, plain = exact_pool(x, g, dm, lengths), plain_pool(x, g, dm, lengths)
    judge(("m", "dx", "dg"), first, plain, exact, dtype)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


POOLS = {
    "tiny": dict(B=2, N=17, M=16, H=1),
    "patches": dict(B=2, N=50, M=96, H=4),
    "257 tokens": dict(B=1, N=257, M=64, H=8),
    "wide": dict(B=2, N=33, M=300, H=3),
    "lengths": dict(B=4, N=70, M=48, H=2, lengths=[70, 64, 1, 0]),
    "far from zero": dict(B=2, N=20, M=64, H=2, offset=60.0),
    "strided": dict(B=2, N=33, M=40, H=2, strided=True),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_attention_pool(name, dtype):
    if name == "far from zero" and dtype != torch.float32:
        pytest.skip("float16 inputs near 60 keep too few digits of what a norm leaves")
    check_pool(pool_module, 0, dtype=dtype, **POOLS[name])


@settings(max_examples=6, phases=NO_SHRINKING)
@given(
    B=st.integers(1, 3), N=st.sampled_from(EDGES), M=st.integers(3, 150), H=st.integers(1, 9),
    seed=st.integers(0, 1000), dtype=st.sampled_from(TYPES),
)  # fmt: skip
def test_attention_pool_of_any_shape(B, N, M, H, seed, dtype):
    check_pool(pool_module, seed, B, N, M, H, dtype=dtype)


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


def test_ops_compile_into_one_graph():
    q, k = (torch.randn(2, 9, 2, 16, device=DEVICE, requires_grad=True) for _ in range(2))
    x, g = torch.randn(2, 9, 16, device=DEVICE), torch.randn(3, 16, device=DEVICE)

    def both(q, k, x, g):
        o = attention_module.attention(q, k, k, causal=True)
        return o.sum() + pool_module.attention_pool(x, g).sum()

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
        (dict(key_lengths=torch.tensor([6, 1])), "not in 0 to S=5"),
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


# --- do these tests have teeth? -------------------------------------------------------------------


def attention_case(name, **more):
    return lambda load: check_attention(load("attention"), 0, **{**CASES[name], **more})


def pool_case(name):
    return lambda load: check_pool(load("attention_pool"), 0, **POOLS[name])


BUGS = [
    ("softmax.py", "inside = inside & (s[None, :] <= t[:, None])",
     "inside = inside & (s[None, :] < t[:, None])", attention_case("causal text")),
    ("softmax.py", "inside = (t[:, None] < T) & (s[None, :] < end)",
     "inside = (t[:, None] < T) & (s[None, :] <= end)", attention_case("general")),
    ("softmax.py", "factor = tl.exp2(peak - shift)", "factor = tl.exp2(peak * 0)",
     attention_case("cross")),
    ("softmax.py", "tl.where(total == 0.0, 1.0, total))) * LN2",
     "tl.where(total == 0.0, 1.0, total)))",
     attention_case("tiny")),
    ("softmax.py", "return tl.where(x == float(\"-inf\"), 0.0, x)", "return x",
     attention_case("lengths 0 and 1")),
    ("softmax.py", "return 1.0 / tl.where(total == 0.0, 1.0, total)", "return 1.0 / total",
     attention_case("lengths 0 and 1")),
    ("softmax.py", "    tl.store(ptr + offsets, tile.to(ptr.dtype.element_ty), mask=inside)",
     "    tl.store(ptr + offsets, tile.to(ptr.dtype.element_ty), mask=rows[:, None] < row_count)",
     attention_case("tiny, 88")),
    ("attention.py", "acc = acc * factor[:, None]", "acc = acc * 1.0", attention_case("cross")),
    ("attention.py", "end = tl.minimum(end, (tl.program_id(0) + 1) * BLOCK_T)\n        peak",
     "end = tl.minimum(end, tl.program_id(0) * BLOCK_T + 1)\n        peak",
     attention_case("general, causal, lengths")),
    ("attention.py", "delta = tl.sum(o.to(WIDE) * do.to(WIDE), 1)  # [BLOCK_T]",
     "delta = tl.zeros([BLOCK_T], WIDE)", attention_case("tiny")),
    ("attention.py", "    tl.store(delta_ptr + tl.program_id(1).to(tl.int64) * T + t, delta, mask",
     "    tl.store(delta_ptr + tl.program_id(1).to(tl.int64) * T + t, 0 * delta, mask",
     attention_case("general")),
    ("attention.py", "tl.where(lse == float(\"-inf\"), float(\"inf\"), lse / LN2)", "lse",
     attention_case("tiny")),
    ("attention.py", "return [0 if len(x) == 1 and i == 0 else x.stride(i) for x in tensors for i "
     "in range(3)]", "return [s for x in tensors for s in "
     "(x.shape[1] * x.shape[2] * x.shape[3], x.shape[2] * x.shape[3], x.shape[3])]",
     attention_case("slice of a projection")),
    ("attention.py", "if do.stride(-1) != 1:", "if False:", attention_case("expanded gradient")),
    ("attention.py", "dq = partial.sum(0, keepdim=True)", "dq = partial[:1]",
     attention_case("shared queries")),
    ("attention.py", "first_t = (tl.program_id(0) * BLOCK_S // BLOCK_T) * BLOCK_T if CAUSAL else 0",
     "first_t = (tl.program_id(0) * BLOCK_S // BLOCK_T + 1) * BLOCK_T if CAUSAL else 0",
     attention_case("general, causal, lengths")),
    ("attention.py", "for first in range(0, S, BLOCK_S):  # beyond", "for first in range(0, end, "
     "BLOCK_S):  # beyond", attention_case("lengths 0 and 1")),
    ("attention.py", "rows = (b * H + h) * T", "rows = (b + h) * T",
     attention_case("shared queries")),
    ("attention_pool.py", "s = rstd[:, None] * (products - mean[:, None] * g_sum[None, :])",
     "s = rstd[:, None] * products", pool_case("patches")),
    ("attention_pool.py", "shift = tl.load(x_ptr + n * x_n, mask=inside, other=0.0).to(WIDE)",
     "shift = tl.zeros([BLOCK_N], WIDE)", pool_case("far from zero")),
    ("attention_pool.py", "centred = tl.where((c < M)[None, :], x.to(WIDE) - shift[:, None], 0.0)",
     "centred = x.to(WIDE) - shift[:, None]", pool_case("wide")),
    ("attention_pool.py", "ds = p * (dp - (dm * m).sum(-1, keepdim=True))", "ds = p * dp",
     pool_case("patches")),
    ("attention_pool.py", "c2 = (p * dp + ds * s).sum(1) / M", "c2 = (p * dp).sum(1) / M",
     pool_case("patches")),
    ("attention_pool.py", "p = p.masked_fill(outside, 0.0)", "p = p * 1.0", pool_case("lengths")),
    ("attention_pool.py", "dxhat += tl.dot(ds.to(g.dtype), g", "dxhat -= tl.dot(ds.to(g.dtype), g",
     pool_case("patches")),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("file", "old", "new", "check"), BUGS, ids=[f"{f}: {n[:50]}" for f, _, n, _ in BUGS]
)
def test_a_planted_bug_is_caught(tmp_path, file, old, new, check):
    with mutant(tmp_path, file, old, new) as load, pytest.raises(Exception):  # noqa: B017
        check(load)


def test_the_copy_without_a_bug_passes(tmp_path):
    with mutant(tmp_path, "checks.py", "LARGEST_HEAD = 128", "LARGEST_HEAD = 127") as load:
        for name in ("tiny", "shared queries", "general, causal, lengths"):
            attention_case(name)(load)
        pool_case("patches")(load)
