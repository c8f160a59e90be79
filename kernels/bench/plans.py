"""The launches of the target table: which kernels run at its shapes, in how many programs, how
often their loops run, and which bytes they need. reckon.py makes times of them, reckoned.py tables.

Tensors count once, in and out of memory; what several programs read, the cache serves.
"""

from dataclasses import dataclass, field

from triton import cdiv

from .. import compile_report, configs
from ..attention import BATCH_SLICES
from ..attention_pool import BLOCK_M, BLOCK_N
from ..caption_loss import CUDA_CHUNK
from ..info_nce import WORKSPACE
from . import reckon, registry


@dataclass(frozen=True)
class Planned:
    """A launch before it is compiled: direction, row of compile_report, programs, trips of its
    loops, bytes of its tensors, how often each is read (once, where it is not said), and how many
    such launches there are."""

    direction: str
    row: tuple
    programs: int
    trips: tuple
    tensors: dict
    again: dict
    launches: int = 1


def attention(T, S, H, K, B, causal=False, lengths=False, shared=False):
    """[Planned] of attention. lengths: uniform from 1 to S, as the benchmark has them."""
    config = configs.attention_config(T, S, K, shared)
    rows = {
        row[1].fn.__name__: row
        for row in compile_report.attention_cases("", T, S, K, causal, lengths, shared)
    }
    query, written, statistic = 2 * B * T * H * K, 2 * B * S * H * K, 4 * B * T * H
    key = written * (S + 1) / (2 * S) if lengths else written
    own = 2 * T * H * K if shared else query  # of q and dq

    def tiles(tile):
        """Of queries, of keys, of keys that are read on average."""
        count = cdiv(S, tile.block_s)
        read = sum(cdiv(n, tile.block_s) for n in range(1, S + 1)) / S if lengths else count
        return cdiv(T, tile.block_t), count, read

    across, _, along = tiles(config.forward)
    found = [
        Planned(
            "forward", rows["attention_fwd_kernel"], across * B * H,
            () if config.one_tile else (along,),
            {"q": own, "k": key, "v": key, "o": query, "lse": statistic},
            {"q": B if shared else 1, "k": across, "v": across},
        )
    ]  # fmt: skip
    across, along, _ = tiles(config.backward)
    read = {"q": own, "k": key, "v": key, "do": query, "lse": statistic}
    if config.short:
        tensors = read | {"o": query, "dq": query, "dk": written, "dv": written}
        row = rows["attention_bwd_short_kernel"]
        return [*found, Planned("backward", row, B * H, (along,), tensors, {})]
    read["delta"] = statistic
    down, _, steps = tiles(config.backward_dq)
    slices = min(B, BATCH_SLICES) if shared else B
    return [
        *found,
        Planned(
            "backward", rows["attention_delta_kernel"], cdiv(T, 64) * B * H, (),
            {"o": query, "do": query, "delta": statistic}, {},
        ),
        Planned(
            "backward", rows["attention_bwd_dkdv_kernel"], along * B * H, (across,),
            read | {"dk": written, "dv": written},
            {"q": along * (B if shared else 1), "do": along, "lse": along, "delta": along},
        ),
        Planned(
            "backward", rows["attention_bwd_dq_kernel"], down * slices * H,
            (cdiv(B, slices), steps) if shared else (steps,),
            read | {"dq": 4 * slices * T * H * K if shared else query},
            {"q": B if shared else 1, "k": down, "v": down},
        ),
    ]  # fmt: skip


def pool(N, M, H, B):
    """[Planned] of one-query pooling."""
    scores, total, gradient = compile_report.pool_cases("", N, M, H, False)
    x, weights, head, mean = 2 * B * N * M, 4 * B * H * N, 4 * B * H * M, 8 * B * N
    down, across = cdiv(N, BLOCK_N), cdiv(M, BLOCK_M)
    name, kernel, sizes, constexprs, options = scores
    again = name, kernel, sizes, constexprs | {"FIND_STATISTICS": False}, options
    to_scores = {"x": x, "g": 2 * H * M, "s": weights, "mean": mean}
    to_sum = {"x": x, "w": weights, "mean": mean, "m": head}
    to_dx = {"x": x, "dx": x, "p": weights, "ds": weights, "dm": head // 2, "g": 2 * H * M,
             "mean": 2 * mean}  # fmt: skip
    return [
        Planned("forward", scores, down * B, (across,), to_scores, {"g": down * B}),
        Planned("forward", total, across * B, (down,), to_sum, {"w": across, "mean": across}),
        Planned("backward", again, down * B, (across,), to_scores | {"g": head // 2}, {"g": down}),
        Planned("backward", gradient, down * across * B, (), to_dx,
                {"p": across, "ds": across, "mean": across, "dm": down, "g": down * B}),
        Planned("backward", total, across * B, (down,), to_sum, {"w": across, "mean": across}),
    ]  # fmt: skip


def pairs(B, E):
    """[Planned] of softmax-InfoNCE."""
    rows = {row[0]: row for row in compile_report.loss_cases()}
    tile, chunk = configs.INFO_NCE, min(B, WORKSPACE // (2 * B))
    down, across = cdiv(chunk, tile.block_m), cdiv(B, tile.block_n)
    read, again = {"x": 2 * chunk * E, "y": 2 * B * E}, {"x": across, "y": down}
    sums, column_sums = 4 * across * chunk, 4 * down * B
    given = dict(programs=down * across, trips=(cdiv(E, tile.block_e),), launches=cdiv(B, chunk))
    forward, backward = (rows[f"pairs of {E}: info_nce_{way}_kernel"] for way in ("fwd", "bwd"))
    late = read | {"row": 4 * chunk, "column": 4 * B, "g": 2 * chunk * B, "total": sums}
    return [
        Planned(
            "forward", forward, tensors=read | {"row": sums, "column": column_sums}, again=again,
            **given,
        ),
        Planned(
            "backward", backward, tensors=late, again=again | {"row": across, "column": down},
            **given,
        ),
    ]  # fmt: skip


def captions(R, V):
    """[Planned] of the captioning loss, whose kernel does the backward's work in the forward."""
    *_, row = compile_report.loss_cases()
    sizes, launches = dict(row_stride=V, V=V), cdiv(R, CUDA_CHUNK)
    rows = cdiv(R, launches)
    return [
        Planned(
            "forward", (row[0], row[1], sizes, *row[3:]), rows, (cdiv(V, configs.CAPTION_BLOCK),),
            {"logits": 4 * rows * V, "target": 8 * rows, "loss": 4 * rows}, {}, launches,
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A row of the target table, by the name that the benchmark has for it. library: (direction,
    operations, bytes) of what a library's products do; others: {baseline: (bytes of its forward,
    of its backward)}, tensors counted as often as they are written or read."""

    name: str
    planned: list
    library: tuple = ()
    others: dict = field(default_factory=dict)


def shapes():
    """Every shape that has a target, short attention first."""
    for name, T, S, K, causal, lengths, target in registry.ATTENTION:
        if target:
            H, B = registry.HEADS[K], registry.TOKENS // max(T, S)
            planned = attention(T, S, H, K, B, causal, lengths)
            yield Shape(f"{name}, heads of {K}", planned, (), _attention_others(T, S, H, K, B))
    for N in (256, 1024):
        B, M, H = registry.TOKENS // N, 1024, 8
        x, weight = 2 * B * N * M, 2 * M * M
        # Of x's size: norm 2, keys and values 4, attention 2; backward all of it, and a sum.
        projected, late = 8 * x + 2 * weight, 18 * x + 4 * weight
        yield Shape(
            f"pool 1 x {N}, width {M}", pool(N, M, H, B), (),
            {"projected per sample": (projected, late)},
        )  # fmt: skip
        products = 4 * B * N * M * M
        query = 2 * B * 256 * M  # expanded, projected, attended to
        yield Shape(
            f"pool 256 x {N}, width {M}", attention(256, N, H, M // H, B, shared=True),
            (
                ("forward", products, 6 * x + 2 * weight),
                ("backward", 2 * products, 14 * x + 4 * weight),
            ),
            {"projected per sample": (projected + 5 * query, late + 10 * query)},
        )  # fmt: skip
    B, E = 32_768, 768
    yield Shape(
        f"{B:,} pairs, width {E}", pairs(B, E),
        (("backward", 4 * B * B * E, 4 * B * B),),
        {"eager": (2 * 3 * 2 * B * B, 2 * 6 * 2 * B * B)},
    )  # fmt: skip
    R, D, V = 19_456, 768, 49_408
    yield Shape(
        f"{R:,} tokens x {V:,} words", captions(R, V), (("forward", 6 * R * D * V, 6 * R * V),),
        {"eager": (2 * 3 * R * V, 2 * 6 * R * V)},
    )  # fmt: skip


def _attention_others(T, S, H, K, B):
    """SDPA's fused ways: what ours reads and writes, delta from o and dO, and dQ summed in float32
    (FlashAttention-2, arXiv 2307.08691). Eager: scores and probabilities as they are written."""
    row, scores = 2 * B * H * K, 2 * B * H * T * S
    return {
        "sdpa": (row * 2 * (T + S), row * (11 * T + 4 * S)),
        "eager math": (row * 2 * (T + S) + 6 * scores, row * (4 * T + 4 * S) + 9 * scores),
    }


def launched(planned, compiled=None):
    """The launch that was planned, as the compiler makes it for sm_90."""
    target, _ = compile_report.TARGETS["sm_90"]
    name, kernel, sizes, constexprs, options = planned.row
    compiled = compiled or compile_report.compile_case(kernel, sizes, constexprs, options, target)
    facts = compile_report.facts(compiled, target)
    again = {name: planned.again.get(name, 1) for name in planned.tensors}
    return reckon.Launch(
        kernel.fn.__name__, planned.direction, planned.launches, planned.programs,
        options["num_warps"], facts["registers"], facts["shared"],
        int(sum(planned.tensors.values())),
        int(sum(much * again[name] for name, much in planned.tensors.items())),
        dict(reckon.count(compile_report.disassembly(compiled), planned.trips)),
    )  # fmt: skip
