"""What people use today for the same function, each named as its library names it."""

import importlib
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F


def attention(device):
    """{label: attention(q, k, v, causal, key_lengths)}, [B, T, H, K]."""
    ways = {"sdpa": _sdpa(None)}
    if device == "cuda":
        from torch.nn.attention import SDPBackend

        ways["sdpa cudnn"] = _sdpa(SDPBackend.CUDNN_ATTENTION)
        ways["sdpa flash"] = _sdpa(SDPBackend.FLASH_ATTENTION)
        ways["compiled math"] = torch.compile(_math, dynamic=False)
    ways["eager math"] = _math
    return ways


def _sdpa(backend):
    def way(q, k, v, causal=False, key_lengths=None):
        from torch.nn.attention import sdpa_kernel

        real = None if key_lengths is None else _real(k, key_lengths)
        with sdpa_kernel(backend) if backend is not None else nullcontext():
            moved = (x.transpose(1, 2) for x in (q, k, v))
            found = F.scaled_dot_product_attention(*moved, attn_mask=real, is_causal=causal)
            return found.transpose(1, 2)

    return way


def _real(k, key_lengths):
    """[B, 1, 1, S]: which keys are."""
    return (torch.arange(k.shape[1], device=k.device) < key_lengths[:, None])[:, None, None]


def _math(q, k, v, causal=False, key_lengths=None):
    scores = torch.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    if causal:
        T, S = scores.shape[-2:]
        seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    if key_lengths is not None:
        scores = scores.masked_fill(~_real(k, key_lengths), -torch.inf)
    return torch.einsum("bhts,bshk->bthk", torch.softmax(scores, -1), v)


def pools():
    """{label: pooler(x, queries, query, key, value, H, K)}: all that torch's attention offers."""
    return {"projected per sample": _projected}


def _projected(x, queries, query, key, value, H, K):
    """Queries expanded to the batch and projected for every sample, as open_clip's pooler does."""
    xhat = F.layer_norm(x, x.shape[-1:])
    q = queries.expand(len(x), -1, -1) @ query
    q, k, v = (y.unflatten(-1, (H, K)) for y in (q, xhat @ key, xhat @ value))
    return _sdpa(None)(q, k, v).flatten(2)


def pairs(device):
    """{label: loss(image, text, scale)}, of unit vectors."""
    ways = {}
    if device == "cuda":
        ways |= _installed("inf-cl", "inf_cl", _inf_cl)
        ways |= _installed("memeff", "memeff", _memeff)
        ways["compiled eager"] = torch.compile(_pairs, dynamic=False)
    ways["eager"] = _pairs
    return ways


def _pairs(x, y, scale):
    """As open_clip: both matrices of logits, in the inputs' type."""
    labels = torch.arange(len(x), device=x.device)
    rows, columns = scale.to(x.dtype) * x @ y.T, scale.to(x.dtype) * y @ x.T
    return (F.cross_entropy(rows, labels) + F.cross_entropy(columns, labels)) / 2


def _inf_cl(module):
    def way(x, y, scale):
        one, other = (module.cal_flash_loss(a, b, scale=scale) for a, b in ((x, y), (y, x)))
        return (one.mean() + other.mean()) / 2

    return way


def _memeff(module):
    # Its temperature is a number, without a gradient.
    loss = module.MemoryEfficientCLIPLoss(1 / 14.3, normalized_inputs=True, stable=False)
    return lambda x, y, scale: loss(x, y)


def captions(device):
    """{label: loss(hidden, weight, targets)}."""
    ways = {}
    if device == "cuda":
        ways |= _installed("liger", "liger_kernel.transformers", _liger)
        ways |= _installed("quack", "quack.linear_cross_entropy", _quack)
        ways["compiled eager"] = torch.compile(_captions, dynamic=False)
    if hasattr(F, "linear_cross_entropy"):
        ways["F.linear_cross_entropy"] = lambda x, w, t: F.linear_cross_entropy(x, w.T, t)
    ways["eager"] = _captions
    return ways


def _captions(x, weight, targets):
    return F.cross_entropy(x @ weight, targets)


def _installed(label, module, make):
    """{label: way}, or nothing where the package is not installed or does not load."""
    try:
        return {label: make(importlib.import_module(module))}
    except Exception:
        return {}


def _liger(module):
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return lambda x, weight, targets: loss(weight.T, x, targets)


def _quack(module):
    way = module.chunked_linear_cross_entropy
    return lambda x, weight, targets: way(x, weight.T.contiguous(), targets)


def versions():
    """{package: version} of the baselines that are installed."""
    found = {}
    for package in ("inf-cl", "memeff", "liger-kernel", "quack-kernels"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
