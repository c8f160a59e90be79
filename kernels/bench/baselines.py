"""What people use today for the same function, each named as its library names it."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F


def attention(device):
    """{label: attention(q, k, v, causal)}, [B, T, H, K]."""
    ways = {"sdpa": _sdpa(None)}
    if device == "cuda":
        from torch.nn.attention import SDPBackend

        ways["sdpa cudnn"] = _sdpa(SDPBackend.CUDNN_ATTENTION)
        ways["sdpa flash"] = _sdpa(SDPBackend.FLASH_ATTENTION)
        ways["compiled math"] = torch.compile(_math)
    ways["eager math"] = _math
    return ways


def _sdpa(backend):
    def way(q, k, v, causal=False):
        from torch.nn.attention import sdpa_kernel

        with sdpa_kernel(backend) if backend is not None else nullcontext():
            moved = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(*moved, is_causal=causal).transpose(1, 2)

    return way


def _math(q, k, v, causal=False):
    scores = torch.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    if causal:
        T, S = scores.shape[-2:]
        seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
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
