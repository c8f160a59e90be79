"""Cases of every kernel, and what is right for each: the definition, in float64."""

import numpy as np
import torch
from kernel_oracles import Poisoned, judge

from minicoca.kernels import configs
from minicoca.kernels.bench.measure import LargestTensor
from minicoca.reference import attention as reference
from minicoca.reference import losses
from minicoca.reference.ops import (
    l2_normalise,
    l2_normalise_backward,
    layer_norm,
    layer_norm_backward,
    softmax,
    softmax_backward,
)  # fmt: skip

DEVICE = "cuda" if torch.cuda.is_available() and not configs.INTERPRETED else "cpu"
TYPES = [torch.float32, torch.float16, torch.bfloat16]


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
    if isinstance(lengths, list):
        lengths = torch.tensor(lengths, device=DEVICE)
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
    "shared queries, two a slice": dict(B=33, T=5, S=6, H=1, K=16, shared=True),
    "vit": dict(B=1, T=197, S=197, H=1, K=64),
    "vit, 336 pixels": dict(B=1, T=577, S=577, H=1, K=16),
    "vit, 518 pixels": dict(B=1, T=1370, S=1370, H=1, K=16),
    "ties": dict(B=2, T=20, S=70, H=1, K=16, size=0.0),
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
    "17 heads": dict(B=2, N=20, M=40, H=17),
    "64 heads": dict(B=1, N=33, M=24, H=64),
    "far from zero": dict(B=2, N=20, M=64, H=2, offset=60.0),
    "strided": dict(B=2, N=33, M=40, H=2, strided=True),
}


def exact_pairs(x, y, scale, normalise):
    """The reference, in float64: (loss, dx, dy, dscale)."""
    x, y = (t.double().cpu().numpy() for t in (x, y))
    caches = []
    if normalise:
        (x, cache_x), (y, cache_y) = l2_normalise(x), l2_normalise(y)
        caches = [cache_x, cache_y]
    loss, cache = losses.contrastive_loss(x, y, np.asarray(-np.log(float(scale))))
    dx, dy, dlog = losses.contrastive_loss_backward(1.0, cache)
    if normalise:
        dx, dy = (l2_normalise_backward(d, c) for d, c in zip((dx, dy), caches, strict=True))
    found = (np.reshape(loss, 1), dx, dy, np.reshape(-dlog / float(scale), 1))
    return [torch.tensor(np.ascontiguousarray(a), device=DEVICE) for a in found]


def plain_pairs(x, y, scale, normalise):
    """Eager torch, the logits in the inputs' own type, as open_clip has them."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, y, scale)]
    a, b = (torch.nn.functional.normalize(t) if normalise else t for t in leaves[:2])
    logits = (leaves[2].to(x.dtype) * a @ b.T).to(torch.promote_types(x.dtype, torch.float32))
    labels = torch.arange(len(x), device=x.device)
    entropy = torch.nn.functional.cross_entropy
    loss = (entropy(logits, labels) + entropy(logits.T, labels)) / 2
    dx, dy, dscale = torch.autograd.grad(loss, leaves)
    return [loss.detach().reshape(1), dx, dy, dscale.reshape(1)]


def draw_pairs(seed, B, E, dtype, how="plain", normalise=False):
    """(x, y) of random unit vectors, or however told."""
    rng = np.random.default_rng(seed)
    x, y = (torch.tensor(rng.standard_normal((B, E)), device=DEVICE) for _ in range(2))
    if how == "learned":
        y = x + 0.01 * y
    elif how == "opposite":
        y = -x
    elif how == "tiny":
        x, y = 1e-3 * x, 1e-3 * y
    if not normalise:
        x, y = (torch.nn.functional.normalize(t) for t in (x, y))
    x, y = x.to(dtype), y.to(dtype)
    if how == "slice":
        x, y = (torch.cat([torch.full_like(t, torch.nan), t], 1)[:, E:] for t in (x, y))
    return x, y


def check_pairs(
    module, seed, B, E, dtype=torch.float32, scale=14.3, normalise=False, how="plain",
    workspace=1 << 20, fused=True,
):  # fmt: skip
    """One case: right, no NaN, nothing written outside, the same twice, within its workspace."""
    x, y = draw_pairs(seed, B, E, dtype, how, normalise)
    wide = torch.promote_types(dtype, torch.float32)
    scale = torch.tensor(scale, device=DEVICE, dtype=wide)

    def ours():
        leaves = [t.detach().requires_grad_() for t in (x, y, scale)]
        options = dict(normalise=normalise, workspace=workspace, fused=fused)
        loss = module.info_nce(*leaves, **options)
        dx, dy, dscale = torch.autograd.grad(loss, leaves)
        return [loss.detach().reshape(1), dx, dy, dscale.reshape(1)]

    with Poisoned() as memory:
        first = ours()
        assert memory.intact(), "something was written outside of its tensor"
        again = ours()
    exact, plain = (f(x, y, scale, normalise) for f in (exact_pairs, plain_pairs))
    judge(("loss", "dx", "dy", "dscale"), first, plain, exact, dtype)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    return first


PAIRS = {
    "one": dict(B=1, E=8),
    "three": dict(B=3, E=5),
    "a tile": dict(B=128, E=64),
    "over a tile": dict(B=129, E=70),
    "many chunks": dict(B=300, E=33, workspace=1 << 17),
    "a row at a time": dict(B=21, E=33, workspace=1),
    "two groups of tiles": dict(B=1300, E=8, workspace=1 << 24),
    "directions only": dict(B=140, E=40, normalise=True),
    "tiny directions": dict(B=30, E=40, normalise=True, how="tiny"),
    "scale 100": dict(B=60, E=24, scale=100.0),
    "scale 1": dict(B=60, E=24, scale=1.0),
    "learned, scale 100": dict(B=60, E=48, scale=100.0, how="learned"),
    "opposite": dict(B=40, E=48, how="opposite"),
    "slice of a row": dict(B=40, E=32, how="slice"),
}


def check_workspace(module, fused):
    """The largest tensor beyond the gradients is no larger than it may be."""
    x, y = draw_pairs(0, 300, 8, torch.float32)
    scale, options = torch.tensor(10.0, device=DEVICE), dict(workspace=1 << 16, fused=fused)
    with LargestTensor() as seen:  # custom ops would hide theirs: their parts are called
        row, column, _ = module.info_nce_statistics(x, y, scale, **options)
        module.info_nce_gradients(x, y, scale, row, column, row, **options)
    assert x.numel() < seen.bytes <= options["workspace"], f"{seen.bytes} bytes at once"


def check_learned_pairs(module, dtype, fused=True):
    """At scale 100 little is left to learn; what is left keeps its leading digits."""
    x, y = draw_pairs(0, 160, 14, dtype, "learned")
    scale = torch.tensor(100.0, device=DEVICE)
    exact = exact_pairs(x, y, scale, False)
    assert 1e-13 < float(exact[0]) < 1e-9
    leaves = [t.detach().requires_grad_() for t in (x, y, scale)]
    loss = module.info_nce(*leaves, fused=fused)
    limit = 1e-3 if dtype == torch.float32 else 1e-2
    large = 1e8  # as a loss is scaled for float16, which could not hold these gradients
    ours = [loss.detach(), *torch.autograd.grad(large * loss, leaves)]
    exact = [exact[0], *(large * e for e in exact[1:])]
    for name, got, want in zip(("loss", "dx", "dy", "dscale"), ours, exact, strict=True):
        gap = float((got.double().reshape(want.shape) - want).norm() / want.norm())
        assert gap < limit, f"{name}: {gap:.1e}"


def exact_captions(x, weight, targets):
    """The reference, in float64: (loss, dx, dweight)."""
    x, weight = (t.double().cpu().numpy() for t in (x, weight))
    loss, cache = losses.caption_loss((x @ weight)[None], targets.long().cpu().numpy()[None])
    (dlogits,) = losses.caption_loss_backward(1.0, cache)
    found = (np.reshape(loss, 1), dlogits @ weight.T, x.T @ dlogits)
    return [torch.tensor(np.ascontiguousarray(a), device=DEVICE) for a in found]


def plain_captions(x, weight, targets):
    """Eager torch: all logits, in the inputs' own type."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight)]
    logits = (leaves[0] @ leaves[1]).to(torch.promote_types(x.dtype, torch.float32))
    total = torch.nn.functional.cross_entropy(
        logits, targets.long(), ignore_index=0, reduction="sum"
    )
    loss = total / (targets != 0).sum().clamp(min=1)
    return [loss.detach().reshape(1), *torch.autograd.grad(loss, leaves)]


def check_captions(
    module, seed, R, D, V, dtype=torch.float32, pads=0.3, chunk=None, fused=True, size=1.0,
    transposed=False, strided=False,
):  # fmt: skip
    """One case, as check_pairs; padding gets no gradient at all."""
    rng = np.random.default_rng(seed)
    x = torch.tensor(size * rng.standard_normal((R, D)), device=DEVICE).to(dtype)
    weight = torch.tensor(rng.standard_normal((D, V)) * D**-0.5, device=DEVICE).to(dtype)
    weight = weight.T.contiguous().T if transposed else weight
    targets = torch.tensor(rng.integers(1, V, R), device=DEVICE)
    targets[torch.tensor(rng.random(R) < pads, device=DEVICE)] = 0
    if pads < 1:
        targets[-1] = V - 1
    if strided:  # every second of a longer row, as int32
        targets = torch.stack([targets, torch.full_like(targets, V)], 1).to(torch.int32)[:, 0]

    def ours():
        leaves = [t.detach().requires_grad_() for t in (x, weight)]
        loss = module.caption_loss(*leaves, targets, chunk=chunk, fused=fused)
        return [loss.detach().reshape(1), *torch.autograd.grad(loss, leaves)]

    with Poisoned() as memory:
        first = ours()
        assert memory.intact(), "something was written outside of its tensor"
        again = ours()
    judge(
        ("loss", "dx", "dweight"), first, plain_captions(x, weight, targets),
        exact_captions(x, weight, targets), dtype,
    )  # fmt: skip
    assert not first[1][targets == 0].any()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with torch.no_grad():
        loss = module.caption_loss(x, weight, targets, chunk=chunk, fused=fused)
    assert torch.equal(loss.reshape(1), first[0]), "another loss without gradients"


CAPTIONS = {
    "one row": dict(R=1, D=8, V=5, pads=0),
    "all padding": dict(R=6, D=8, V=20, pads=1),
    "no padding": dict(R=20, D=16, V=130, pads=0),
    "over a block": dict(R=7, D=12, V=4099),
    "many chunks": dict(R=50, D=24, V=301, chunk=8),
    "large logits": dict(R=20, D=16, V=77, size=30.0),
    "strided targets": dict(R=20, D=16, V=77, pads=0, strided=True),
    "transposed head": dict(R=20, D=16, V=77, transposed=True),
}
