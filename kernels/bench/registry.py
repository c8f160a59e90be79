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
from ..caption_loss import caption_loss
from ..info_nce import info_nce
from . import baselines

HEADS = {64: 12, 88: 16, 128: 8}  # of the base and 2b models; and the usual one of wide heads
TOKENS = 1 << 16  # per batch: enough to fill a large GPU at every length
# (name, T, S, K, causal, lengths, target over SDPA's default). Short ones first: no table of them
# on Hopper was public when this was written.
ATTENTION = [
    *((f"vit {n}", n, n, 64, False, False, 1.2) for n in (49, 50, 196, 197, 256, 257)),
    ("cross 76 x 256, lengths", 76, 256, 64, False, True, 1.3),
    ("cross 76 x 256", 76, 256, 64, False, False, 1.3),
    ("text 76 causal", 76, 76, 64, True, False, 1.3),
    *((f"vit {n}", n, n, K, False, False, 0.9) for n in (577, 1024, 1370) for K in HEADS),
    *((f"vit {n}", n, n, K, False, False, None) for n in (50, 197, 256, 257) for K in (88, 128)),
]


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
    compared: int = 2  # batch at which the ways are compared first


def cases(device, dtype, quick=False, size="full"):
    """Every case. quick: those that have a target. size: "full"; "cpu", what a CPU can do in
    minutes, without Triton; "rehearsal", all ops in Triton's interpreter, tiny."""
    shrink = size == "rehearsal"
    if size != "cpu":
        yield from _chosen(_attentions(quick, device, dtype, shrink), quick)
        yield from _chosen(_pools(quick, device, dtype, shrink), quick)
    yield from _chosen(_pairs(device, dtype, size), quick)
    yield from _chosen(_captions(device, dtype, size), quick)


def _chosen(found, quick):
    return (case for case in found if case.targets or not quick)


def _attentions(quick, device, dtype, shrink):
    ways = {"ours": attention} | baselines.attention(device)
    for name, T, S, K, causal, masked, target in ATTENTION:
        if quick and tokens_of_little_news(T, K):
            continue
        batch, H = max(1, TOKENS // max(T, S)), HEADS[K]
        if shrink:
            batch, H, T, S = 2, 1, min(T, 70), min(S, 70)
        lengths = torch.arange(batch, device=device) % S + 1 if masked else None

        def make(batch, T=T, S=S, H=H, K=K):
            leaf = torch.randn(batch, T, H, K, device=device, dtype=dtype).requires_grad_()
            pair = torch.randn(2, batch, S, H, K, device=device, dtype=dtype).unbind()
            inputs = (leaf, *(x.clone().requires_grad_() for x in pair))
            return inputs, torch.randn(batch, T, H, K, device=device, dtype=dtype)

        keys = (S + 1) / 2 if masked else S  # on average
        products = 4 * batch * H * T * keys * K * (0.5 if causal else 1)
        element = torch.finfo(dtype).bits // 8 * batch * H * K
        yield Case(
            "attention", f"{name}, heads of {K}", batch, (products, 2.5 * products),
            (element * 2 * (T + keys), element * (4 * T + 2 * keys + 2 * S)), make,
            {label: _masked(way, causal, lengths) for label, way in ways.items()},
            {"sdpa": target} if target else {},
        )  # fmt: skip


def tokens_of_little_news(tokens, K):
    """In the quick run: only the shapes between which the kernel's way or tile changes."""
    return tokens == 1024 or (K != 64 and tokens != 577)


def _masked(way, causal, lengths):
    def call(q, k, v):
        own = None if lengths is None else lengths[: len(q)]
        return way(q, k, v, causal=causal, key_lengths=own)

    return call


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


def _pairs(device, dtype, size):
    """Image and text embeddings, unit vectors as the model has them; the temperature is learned."""
    batches = {"full": [1 << n for n in range(10, 17)], "cpu": [1024, 4096], "rehearsal": [40]}
    ways = {"ours": lambda x, y, s: info_nce(x, y, s, fused=size != "cpu")}
    ways |= baselines.pairs(device)
    for E in (512, 768, 1024) if size == "full" else (512,):
        for B in batches[size]:

            def make(batch, E=E):
                x = torch.randn(2, batch, E, device=device).to(dtype)
                x = torch.nn.functional.normalize(x, dim=-1).unbind()
                leaves = [leaf.clone().requires_grad_() for leaf in x]
                scale = torch.tensor(14.3, device=device, requires_grad=True)
                return (*leaves, scale), torch.ones((), device=device)

            target = size == "rehearsal" or (B, E) == (32_768, 768)
            unit, bytes_ = 2 * B * B * E, torch.finfo(dtype).bits // 8 * B * E
            yield Case(
                "info_nce", f"{B:,} pairs, width {E}", B, (unit, 2 * unit),
                (2 * bytes_, 4 * bytes_), make, ways,
                {"compiled eager": 2.0, "inf-cl": 3.0} if target else {}, compared=200,
            )  # fmt: skip


def _captions(device, dtype, size):
    """256 captions of 76 tokens, none of them padding; open_clip's vocabulary, and the paper's."""
    R, D = {"full": (19_456, 768), "cpu": (2_432, 512), "rehearsal": (40, 32)}[size]
    ways = {"ours": lambda x, w, t: caption_loss(x, w, t, fused=size != "cpu")}
    ways |= baselines.captions(device)
    for V in {"full": (49_408, 64_000), "cpu": (49_408,), "rehearsal": (300,)}[size]:
        targets = torch.randint(1, V, (R,), device=device)

        def make(batch, V=V):
            x = torch.randn(batch, D, device=device, dtype=dtype).requires_grad_()
            weight = (torch.randn(D, V, device=device) * D**-0.5).to(dtype).requires_grad_()
            return (x, weight), torch.ones((), device=device)

        unit, element = 2 * R * D * V, torch.finfo(dtype).bits // 8
        yield Case(
            "caption_loss", f"{R:,} tokens x {V:,} words", R, (unit, 2 * unit),
            (element * (R + V) * D, element * 2 * (R + V) * D), make,
            {label: _targeted(way, targets) for label, way in ways.items()},
            {label: 1.0 for label in ways if label != "ours"} if V != 64_000 else {},
            compared=64,
        )  # fmt: skip


def _targeted(way, targets):
    return lambda x, weight: way(x, weight, targets[: len(x)])
