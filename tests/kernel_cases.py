"""Cases of every kernel, and what is right for each: the definition, in float64."""

import numpy as np
import torch
from kernel_oracles import Poisoned, judge

from minicoca.kernels import configs
from minicoca.reference import attention as reference
from minicoca.reference.ops import layer_norm, layer_norm_backward, softmax, softmax_backward

DEVICE = "cuda" if torch.cuda.is_available() and not configs.INTERPRETED else "cpu"
TYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])


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


ATTENTIONS = {
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
