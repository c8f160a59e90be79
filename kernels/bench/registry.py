"""What is timed: CoCa's shapes, op by op, with what each must compute and move at the least.

A case is one op at one shape. Its ways all compute the same function of the same inputs; "ours" is
the kernel, the others are what people use today (baselines.py). FLOPs are the usual count: two for
a multiplication and addition, half of attention where it is causal, 2.5 forwards for attention's
backward. Traffic is every tensor moved once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..attention import attention
from ..attention_pool import attention_pool
from . import baselines

HEADS = {64: 12, 88: 16, 128: 8}  # of the base and 2b models; and the usual one of wide heads
TOKENS = 1 << 16  # per batch: enough to fill a large GPU at every length


@dataclass(frozen=True)
class Case:
    """One op at one shape. `make(batch)` gives (inputs that want gradients, upstream gradient)."""

    op: str
    name: str
    batch: int
    flops: tuple[float, float]
    traffic: tuple[float, float]
    make: Callable
    ways: dict[str, Callable]
    targets: dict[str, float] = field(default_factory=dict)


def cases(device, dtype, quick=False, shrink=False):
    """Every case. quick: those that have a target. shrink: tiny, to try the whole on a CPU."""
    for case in (*_attentions(quick, device, dtype, shrink), *_pools(quick, device, dtype, shrink)):
        if not quick or case.targets:
            yield case


def _attentions(quick, device, dtype, shrink):
    ways = {"ours": attention} | baselines.attention(device)
    shapes = []
    for tokens in (50, 197, 256, 257, 577, 1024, 1370):
        for K in (64, 88, 128):
            target = 1.2 if tokens < 300 and K == 64 else 0.9 if tokens >= 300 else None
            shapes.append((f"vit {tokens}", tokens, tokens, K, False, target))
    shapes.append(("text 76 causal", 76, 76, 64, True, 1.3))
    shapes.append(("cross 76 x 256", 76, 256, 64, False, 1.3))
    for name, T, S, K, causal, target in shapes:
        if quick and tokens_of_little_news(T, K):
            continue
        batch, H = max(1, TOKENS // max(T, S)), HEADS[K]
        if shrink:
            batch, H, T, S = 2, 1, min(T, 70), min(S, 70)

        def make(batch, T=T, S=S, H=H, K=K):
            leaf = torch.randn(batch, T, H, K, device=device, dtype=dtype).requires_grad_()
            pair = torch.randn(2, batch, S, H, K, device=device, dtype=dtype).unbind()
            inputs = (leaf, *(x.clone().requires_grad_() for x in pair))
            return inputs, torch.randn(batch, T, H, K, device=device, dtype=dtype)

        products = 4 * batch * H * T * S * K * (0.5 if causal else 1)
        element = torch.finfo(dtype).bits // 8 * batch * H * K
        yield Case(
            "attention", f"{name}, heads of {K}", batch, (products, 2.5 * products),
            (element * 2 * (T + S), element * 4 * (T + S)), make,
            {label: _causal(way, causal) for label, way in ways.items()},
            {"sdpa": target} if target else {},
        )  # fmt: skip


def tokens_of_little_news(tokens, K):
    """In the quick run: only the shapes between which the kernel's way or tile changes."""
    return tokens == 1024 or (K != 64 and tokens != 577)


def _causal(way, causal):
    return lambda q, k, v: way(q, k, v, causal=causal)


def _pools(quick, device, dtype, shrink):
    """Poolers whole, projections included: of one query, and of 256 shared by the batch."""
    for N in (256, 1024):
        for queries in (1, 256):
            batch, M, H = TOKENS // N, 1024, 8
            if shrink:
                batch, M, H, N, queries = 2, 64, 2, 40, min(queries, 20)
            K = M // H

            def make(batch, N=N, M=M, queries=queries):
                def draw(*shape, size=1.0):
                    x = torch.randn(*shape, device=device, dtype=dtype) * size
                    return x.requires_grad_()

                weights = (draw(M, M, size=M**-0.5) for _ in range(3))
                inputs = (draw(batch, N, M), draw(queries, M), *weights)
                return inputs, torch.randn(batch, queries, M, device=device, dtype=dtype)

            ways = {"ours": _absorbed if queries == 1 else _shared}
            ways |= baselines.pools()
            element = torch.finfo(dtype).bits // 8
            projected = 4 * batch * N * M * M + 2 * batch * queries * M * M
            attended = 4 * batch * queries * N * M
            yield Case(
                "attention_pool" if queries == 1 else "attention",
                f"pool {queries} x {N}, width {M}", batch,
                (projected + attended, 2 * projected + 2.5 * attended),
                (element * batch * (N + queries) * M, element * batch * (3 * N + queries) * M),
                make, {label: _heads(way, H, K) for label, way in ways.items()},
                {"projected per sample": 5.0 if queries == 1 else 1.3},
            )  # fmt: skip


def _heads(way, H, K):
    return lambda *inputs: way(*inputs, H, K)


def _absorbed(x, queries, query, key, value, H, K):
    """One query: keys and values are never formed (kernels/attention_pool.py)."""
    q = (queries @ query).view(H, K)
    g = torch.einsum("mhk,hk->hm", key.view(-1, H, K), q) * K**-0.5
    m = attention_pool(x, g).to(x.dtype)
    return torch.einsum("bhm,mhk->bhk", m, value.view(-1, H, K)).flatten(1)[:, None]


def _shared(x, queries, query, key, value, H, K):
    """Many queries: projected once for the whole batch."""
    xhat = torch.nn.functional.layer_norm(x, x.shape[-1:])
    q = (queries @ query).view(1, -1, H, K)
    k, v = ((xhat @ weight).unflatten(-1, (H, K)) for weight in (key, value))
    return attention(q, k, v).flatten(2)
