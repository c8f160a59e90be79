"""Cases of which all logits sit near one number, since the keys share a large common part.

Softmax does not see it. Its backward need not either: the rows of dS sum to 0, so that the common
part adds nothing to the gradient of a query. Of a rounded dS they do not quite, and it adds what
was rounded away as many times as it is large.
"""

import numpy as np
import torch
from kernel_cases import (
    DEVICE,
    exact_attention,
    exact_captions,
    exact_pool,
    mask_of,
    run_attention,
)  # fmt: skip

SHIFTS = (0, -120, 120)
NO_WORSE = 1.03  # than a product with keys as they are; with a single key as the centre it is more


def error(got, want):
    return float((got.double() - want).norm() / want.norm())


def draw_shifted(seed, shift, B, T, S, H, K, dtype=torch.bfloat16, causal=False, lengths=None,
                 shared=False):  # fmt: skip
    """(q, k, v, do, causal, lengths, scale): logits that are the shift and a little noise."""
    rng = np.random.default_rng(seed)
    common = np.sign(rng.standard_normal(K)) * K**-0.5
    shapes = (1 if shared else B, T, H, K), (B, S, H, K), (B, S, H, K), (B, T, H, K)
    q, k, v, do = (rng.standard_normal(shape) for shape in shapes)
    q += (K**0.5 - q @ common)[..., None] * common
    k += shift * common
    _spoil(k, lengths)
    tensors = [torch.tensor(x, device=DEVICE).to(dtype) for x in (q, k, v, do)]
    lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    return *tensors, causal, lengths, K**-0.5


def _spoil(x, lengths):
    """What stands beyond a length is far from all else."""
    for row, length in zip(x, lengths or (), strict=False):
        row[length:] *= -8


def check_shifted_attention(module, seed=0, **case):
    """No gradient is more than twice as far off as without the shift."""
    errors = {}
    for shift in SHIFTS:
        given = draw_shifted(seed, shift, **case)
        ours, exact = run_attention(module, *given), exact_attention(*given)
        assert all(x.isfinite().all() for x in ours)
        errors[shift] = [error(a, b) for a, b in zip(ours, exact, strict=True)]
        for b, length in enumerate(case.get("lengths") or ()):
            assert not any(x[b, length:].any() for x in ours[2:]), "a masked key has a gradient"
            if length < 2 and not case.get("shared"):
                assert not ours[1][b].any(), "a query with one key or none has a gradient"
    _compare(errors, ("o", "dq", "dk", "dv"))


def _compare(errors, names):
    for i, name in enumerate(names):
        for shift in SHIFTS:
            assert errors[shift][i] <= 2 * errors[0][i], (
                f"{name}: error {errors[shift][i]:.1e} at {shift}, {errors[0][i]:.1e} at 0"
            )


def check_unshifted_attention(module, seed=0, **case):
    """Without a common part dq is no worse than the product with the keys as they are."""
    given = draw_shifted(seed, 0, **case)
    q, k, v, do, causal, lengths, scale = (
        x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in given
    )
    ours, exact = run_attention(module, *given), exact_attention(*given)[1]
    mask = torch.tensor(mask_of(*k.shape[:1], q.shape[1], k.shape[1], causal, lengths))
    scores = torch.einsum("bthk,bshk->bhts", q.expand(len(k), -1, -1, -1), k) * scale
    p = torch.softmax(scores.masked_fill(~mask[:, None].to(q.device), -torch.inf), -1).nan_to_num(0)
    delta = torch.einsum("bthk,bthk->bht", ours[0].double(), do)
    ds = p * (torch.einsum("bthk,bshk->bhts", do, v) - delta[..., None]) * scale
    plain = torch.einsum("bhts,bshk->bthk", ds.to(given[0].dtype).double(), k)
    if len(q) < len(k):
        plain = plain.sum(0, keepdim=True)
    errors = error(ours[1], exact), error(plain.to(given[0].dtype), exact)
    assert errors[0] <= NO_WORSE * errors[1], "{:.2e}; uncentred {:.2e}".format(*errors)


SHIFTED = {
    "64": dict(B=2, T=64, S=64, H=1, K=64),
    "192": dict(B=1, T=192, S=192, H=1, K=64),
    "256": dict(B=1, T=256, S=256, H=1, K=64),
    "causal text": dict(B=1, T=76, S=76, H=2, K=64, causal=True),
    "lengths 0, 1, 2": dict(B=5, T=20, S=70, H=2, K=32, lengths=[0, 1, 70, 2, 33]),
    "general, 257": dict(B=1, T=257, S=257, H=1, K=64),
    "general, 192 of 88": dict(B=1, T=192, S=192, H=1, K=88),
    "general, causal, lengths": dict(
        B=4, T=270, S=270, H=1, K=32, causal=True, lengths=[270, 100, 0, 1]
    ),
    "shared queries, 192": dict(B=3, T=64, S=192, H=1, K=64, shared=True),
    "shared queries, lengths": dict(
        B=4, T=20, S=140, H=2, K=24, shared=True, lengths=[140, 0, 9, 1]
    ),
    "shared queries, two a slice": dict(B=34, T=5, S=70, H=1, K=16, shared=True),
}


def draw_shifted_pool(seed, shift, B, N, M, H, dtype=torch.bfloat16, lengths=None):
    """(x, g, dm, lengths) of which every score is the shift and a little noise."""
    rng = np.random.default_rng(seed)
    common = np.sign(rng.standard_normal(M))
    common -= common.mean()
    unit = common / np.linalg.norm(common)
    x = rng.standard_normal((B, N, M)) + (10 * common if shift else 0)
    xhat = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    g = 0.3 * rng.standard_normal((H, M))
    if shift:
        g += (shift / (xhat @ unit).mean() - g @ unit)[:, None] * unit
    _spoil(x, lengths)
    x, g = (torch.tensor(a, device=DEVICE).to(dtype) for a in (x, g))
    dm = torch.tensor(rng.standard_normal((B, H, M)), device=DEVICE).float()
    return x, g, dm, None if lengths is None else torch.tensor(lengths, device=DEVICE)


def run_pool(module, x, g, dm, lengths):
    x, g = x.detach().requires_grad_(), g.detach().requires_grad_()
    m = module.attention_pool(x, g, key_lengths=lengths)
    return [m.detach(), *torch.autograd.grad(m, (x, g), dm)]


def check_shifted_pool(module, seed=0, **case):
    errors = {}
    for shift in SHIFTS:
        given = draw_shifted_pool(seed, shift, **case)
        ours, exact = run_pool(module, *given), exact_pool(*given)
        assert all(x.isfinite().all() for x in ours)
        errors[shift] = [error(a, b) for a, b in zip(ours, exact, strict=True)]
    _compare(errors, ("m", "dx", "dg"))


def check_unshifted_pool(module, seed=0, **case):
    """Without a common part dg is no worse than the product with the tokens as they are."""
    x, g, dm, lengths = given = draw_shifted_pool(seed, 0, **case)
    ours, exact = run_pool(module, *given)[2], exact_pool(*given)[2]
    wide = x.double()
    rstd = (wide.var(-1, correction=0) + 1e-5).rsqrt()
    xhat = (wide - wide.mean(-1, keepdim=True)) * rstd[..., None]
    p = torch.softmax(torch.einsum("hm,bnm->bhn", g.double(), xhat), -1)
    dp = torch.einsum("bhm,bnm->bhn", dm.to(x.dtype).double(), xhat)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))
    rounded = (ds * rstd[:, None]).to(x.dtype).double() / rstd[:, None]
    plain = torch.einsum("bhn,bnm->hm", rounded, xhat).to(g.dtype)
    errors = error(ours, exact), error(plain, exact)
    assert errors[0] <= NO_WORSE * errors[1], "{:.2e}; uncentred {:.2e}".format(*errors)


SHIFTED_POOLS = {
    "64": dict(B=2, N=64, M=96, H=4),
    "192": dict(B=2, N=192, M=96, H=4),
    "256": dict(B=2, N=256, M=150, H=3),
    "lengths": dict(B=5, N=100, M=48, H=2, lengths=[100, 64, 1, 0, 17]),
}


def check_confident_captions(module, margin, dtype=torch.float32, limit=2e-5):
    """Of a prediction that is all but certain, little loss is left, and its leading digits."""
    rng = np.random.default_rng(0)
    R, D, V = 12, 32, 77
    weight = torch.tensor(np.sign(rng.standard_normal((D, V))) * D**-0.5, device=DEVICE).to(dtype)
    targets = torch.tensor(rng.integers(1, V, R), device=DEVICE)
    noise = torch.tensor(0.1 * rng.standard_normal((R, D)), device=DEVICE)
    hidden = (1.5 * margin * weight.T[targets] + noise).to(dtype)
    leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
    loss = module.caption_loss(*leaves, targets)
    ours = [loss.detach().reshape(1), *torch.autograd.grad(loss, leaves)]
    exact = exact_captions(hidden, weight, targets)
    for name, got, want in zip(("loss", "dhidden", "dweight"), ours, exact, strict=True):
        gap = error(got, want)
        assert gap < limit, f"{name}: {gap:.1e} of a loss of {float(exact[0]):.1e}"
