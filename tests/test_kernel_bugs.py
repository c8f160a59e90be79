"""Do the kernels' tests have teeth? Bugs planted in copies of the source, and who must see them."""

import importlib

import pytest
import torch
from kernel_cases import (
    ATTENTIONS,
    CAPTIONS,
    DEVICE,
    PAIRS,
    POOLS,
    check_attention,
    check_captions,
    check_learned_pairs,
    check_pairs,
    check_pool,
    check_workspace,
)  # fmt: skip
from kernel_oracles import mutant
from kernel_shifts import (
    SHIFTED,
    SHIFTED_POOLS,
    check_confident_captions,
    check_shifted_attention,
    check_shifted_pool,
    check_unshifted_attention,
    check_unshifted_pool,
)


def attention_case(name, **more):
    return lambda load: check_attention(load("attention"), 0, **{**ATTENTIONS[name], **more})


def pool_case(name, **more):
    return lambda load: check_pool(load("attention_pool"), 0, **{**POOLS[name], **more})


def pairs_case(name, **more):
    return lambda load: check_pairs(load("info_nce"), 0, **{**PAIRS[name], **more})


def captions_case(name, **more):
    return lambda load: check_captions(load("caption_loss"), 0, **{**CAPTIONS[name], **more})


def shifted(name):
    return lambda load: check_shifted_attention(load("attention"), **SHIFTED[name])


def unshifted(name):
    return lambda load: check_unshifted_attention(load("attention"), **SHIFTED[name])


def shifted_pool(name):
    return lambda load: check_shifted_pool(load("attention_pool"), **SHIFTED_POOLS[name])


def unshifted_pool(name):
    return lambda load: check_unshifted_pool(load("attention_pool"), **SHIFTED_POOLS[name])


def confident_captions(load):
    check_confident_captions(load("caption_loss"), 16)


def strided_lengths(load):
    """Every second of a longer row, as int32."""
    pairs = torch.tensor([[20, 3], [7, 3], [0, 3]], dtype=torch.int32, device=DEVICE)
    case = dict(B=3, T=20, S=20, H=1, K=16, lengths=pairs[:, 0])
    check_attention(load("attention"), 0, **case)


def very_large_logits(load):
    check_captions(
        load("caption_loss"), 0, **CAPTIONS["large logits"] | dict(fused=False, size=300.0)
    )


OWN_CHECKS = (strided_lengths, very_large_logits)
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
    ("attention_general.py",
     "    tl.store(delta_ptr + tl.program_id(1).to(tl.int64) * T + t, delta, mask",
     "    tl.store(delta_ptr + tl.program_id(1).to(tl.int64) * T + t, 0 * delta, mask",
     attention_case("general")),
    ("attention_general.py", "tl.where(lse == float(\"-inf\"), float(\"inf\"), lse / LN2)", "lse",
     attention_case("tiny")),
    ("attention.py", "(len(x) == 1 and i == 0) else x.stride(i)",
     "(len(x) == 1 and i == 0) else x.shape[1:].numel() // x.shape[1 : 1 + i].numel()",
     attention_case("slice of a projection")),
    ("attention.py", "if do.stride(-1) != 1:", "if False:", attention_case("expanded gradient")),
    ("attention_general.py", "for i in range(0, samples):", "for i in range(0, 1):",
     attention_case("shared queries, two a slice")),
    ("attention_general.py", "tl.where(slice_ * samples + i < B, end, 0)", "end",
     attention_case("shared queries, two a slice")),
    ("attention.py", "key_lengths.to(torch.int32).contiguous()", "key_lengths.to(torch.int32)",
     strided_lengths),
    ("info_nce_tiles.py", "return group * GROUP + inside % height", "return inside % height",
     pairs_case("two groups of tiles")),
    ("info_nce_tiles.py", "return columns * gradient_type(x).itemsize", "return 1",
     lambda load: check_workspace(load("info_nce"), fused=True)),
    ("attention.py", "dq = partial.sum(0, keepdim=True)", "dq = partial[:1]",
     attention_case("shared queries")),
    ("attention_general.py",
     "first_t = (tl.program_id(0) * BLOCK_S // BLOCK_T) * BLOCK_T if CAUSAL else 0",
     "first_t = (tl.program_id(0) * BLOCK_S // BLOCK_T + 1) * BLOCK_T if CAUSAL else 0",
     attention_case("general, causal, lengths")),
    ("attention.py", "for first in range(0, S, BLOCK_S):  # beyond", "for first in range(0, end, "
     "BLOCK_S):  # beyond", attention_case("lengths 0 and 1")),
    ("attention_general.py", "rows = (b * H + h) * T", "rows = (b + h) * T",
     attention_case("shared queries")),
    ("attention_pool.py", "s = rstd[:, None] * (products - away[:, None] * g_sum[None, :])",
     "s = rstd[:, None] * products", pool_case("wide")),
    ("attention_pool.py", "shift = tl.sum(x.to(WIDE), 1) / tl.minimum(M, BLOCK_M)",
     "shift = tl.zeros([BLOCK_N], WIDE)", pool_case("far from zero")),
    ("attention_pool.py", "away = mean + shift if NARROW else mean", "away = mean",
     pool_case("patches", dtype=torch.bfloat16)),
    ("attention_pool.py", "acc - means[None, :]", "acc", pool_case("patches", dtype=torch.float16)),
    ("attention_pool.py", "factor = x if NARROW else centred",
     "factor = narrow(centred, x, UPCAST)", pool_case("257 tokens", dtype=torch.bfloat16)),
    ("attention_pool.py", "centred = tl.where((c < M)[None, :], x.to(WIDE) - shift[:, None], 0.0)",
     "centred = x.to(WIDE) - shift[:, None]", pool_case("wide")),
    ("attention_pool.py", "ds = p * (dp - (p * dp).sum(-1, keepdim=True))", "ds = p * dp",
     pool_case("patches")),
    ("attention_pool.py", "(ds * s + p * dp).sum(1)", "(p * dp).sum(1)",
     pool_case("patches")),
    ("attention_pool.py", "p = p.masked_fill(outside, 0.0)", "p = p * 1.0", pool_case("lengths")),
    ("attention_pool.py", "dxhat += tl.dot(narrow(ds", "dxhat -= tl.dot(narrow(ds",
     pool_case("patches")),
    # --- keys and tokens that share a large part ------------------------------------------------
    ("attention.py", "dq -= row_sum[:, None] * mean[None, :]", "dq -= 0 * row_sum[:, None]",
     shifted("64")),
    ("attention.py", "row_sum += tl.sum(ds.to(WIDE), 1)",
     "row_sum += tl.sum(p * (dp - delta[:, None]) * scale, 1)", shifted("64")),
    ("attention.py", "row_sum += tl.sum(ds.to(WIDE), 1)", "row_sum = tl.sum(ds.to(WIDE), 1)",
     shifted("causal text")),
    ("attention.py", "mean = mean_key(k_ptr, c, k_s, end", "mean = mean_key(k_ptr, c, k_s, S",
     shifted("lengths 0, 1, 2")),
    ("attention_general.py", "row_sum += tl.sum(ds.to(WIDE), 1)", "row_sum += tl.sum(ds * 0.0, 1)",
     shifted("shared queries, lengths")),
    ("attention_general.py", "        row_sum = tl.zeros([BLOCK_T], WIDE)\n",
     "        if i == 0:\n            row_sum = tl.zeros([BLOCK_T], WIDE)\n",
     shifted("shared queries, two a slice")),
    ("attention_general.py", "mean_key(k_own, c, k_s, last", "mean_key(k_own, c, k_s, S",
     shifted("shared queries, lengths")),
    ("attention_general.py", "load_tile(k_ptr, spread(end, BLOCK_S), c",
     "load_tile(k_ptr, spread(end, BLOCK_S) * 0, c", unshifted("64")),
    ("softmax.py", "tl.arange(0, COUNT).to(tl.int64) * end // COUNT", "tl.arange(0, COUNT)",
     shifted("lengths 0, 1, 2")),
    ("softmax.py", " and ptr.dtype.element_ty == tl.bfloat16:", ":",
     unshifted("shared queries, 192")),
    ("attention_pool.py", "lost += tl.sum(", "lost += 0.0 * tl.sum(", shifted_pool("64")),
    ("attention_pool.py", "acc += common[:, None]", "acc -= common[:, None]", shifted_pool("64")),
    ("attention_pool.py", "(exact - w.to(WIDE)) / rstd[:, None]", "(exact - w.to(WIDE))",
     shifted_pool("64")),
    ("attention_pool.py", "n = spread(end, BLOCK_N)", "n = spread(N, BLOCK_N)",
     shifted_pool("lengths")),
    ("attention_pool.py", "n = spread(end, BLOCK_N)", "n = spread(end, BLOCK_N) * 0",
     unshifted_pool("64")),
    # --- softmax-InfoNCE ------------------------------------------------------------------------
    ("softmax.py", "tl.sum(weights, AXIS))", "tl.sum(weights, AXIS) * 2)", pairs_case("three")),
    ("info_nce_tiles.py", "== (tile_n * BLOCK_N + n)[None, :]", "== n[None, :]",
     pairs_case("over a tile")),
    ("info_nce_tiles.py", "pair = (first + tile_m", "pair = (0 * first + tile_m",
     pairs_case("many chunks")),
    ("info_nce_tiles.py", "(m < rows)[:, None] & (n < columns)[None, :]", "(m < rows)[:, None]",
     pairs_case("three")),
    ("info_nce_tiles.py", "s = tl.where(others, s, float(\"-inf\"))", "s = s", pairs_case("three")),
    ("info_nce_tiles.py", "tl.store(row_ptr + tile_n.to(tl.int64) * M + m", "tl.store(row_ptr + m",
     pairs_case("over a tile")),
    ("info_nce_tiles.py", "g = tl.exp2(s - row[:, None]) + tl.exp2(s - column[None, :])",
     "g = 2 * tl.exp2(s - row[:, None])", pairs_case("three")),
    ("info_nce_tiles.py", "g = tl.where(others, g, 0.0)", "g = g * 1.0", pairs_case("a tile")),
    ("info_nce_tiles.py", "tl.sum(g * s, 1) * LN2", "tl.sum(g * s, 1)", pairs_case("a tile")),
    ("info_nce_tiles.py", "g *= tl.load(ry_ptr + n, mask=n < N, other=0.0)[None, :]", "g *= 1.0",
     pairs_case("tiny directions")),
    ("info_nce_tiles.py", "s *= tl.load(scale_ptr) * LOG2E", "s *= tl.load(scale_ptr)",
     pairs_case("three")),
    ("info_nce_tiles.py", "torch.float32 if x.dtype == torch.float16 else x.dtype", "x.dtype",
     lambda load: check_learned_pairs(load("info_nce"), torch.float16)),
    ("info_nce.py", "return -(torch.sigmoid(row - diagonal) + torch.sigmoid(column - diagonal))",
     "return -torch.sigmoid(row - diagonal)", pairs_case("three")),
    ("info_nce.py", "column = found[0], torch.logaddexp(column, found[1])",
     "column = found[0], found[1]", pairs_case("many chunks")),
    ("info_nce.py", "            dtext[mine] += own[:, None] * x\n", "", pairs_case("three")),
    ("info_nce.py", "scale, torch.logaddexp(row, diagonal), ", "scale, row, ",
     pairs_case("three")),
    ("info_nce.py", "return dx - along * x", "return dx", pairs_case("directions only")),
    ("info_nce.py", "dscale = dscale + torch.dot(pull, diagonal) / scale", "dscale = dscale",
     pairs_case("a tile")),
    # --- the captioning loss --------------------------------------------------------------------
    ("caption_loss.py", "real = (targets != pad)", "real = (targets >= 0)",
     captions_case("many chunks")),
    ("caption_loss.py", "total, 1 / max(1, len(t_R)))", "total, 1 / len(targets))",
     captions_case("many chunks")),
    ("caption_loss.py", "zeros_like(hidden).index_copy(0, real, dx_RD)",
     "zeros_like(hidden).index_copy(0, real.flip(0), dx_RD)", captions_case("many chunks")),
    ("caption_loss.py", "add_product(dweight_DV, x_RD[rows].T, logits_RV)",
     "add_product(dweight_DV, x_RD[: len(logits_RV)].T, logits_RV)", captions_case("many chunks")),
    ("caption_loss_rows.py", "tl.where(v == target, -others, tl.exp2(scores - top))",
     "tl.exp2(scores - top)", captions_case("one row")),
    ("caption_loss_rows.py", "g = tl.where(v == target, -others, tl.exp2(scores - top)) / total",
     "g = tl.exp2(scores - top) / total - tl.where(v == target, 1.0, 0.0)", confident_captions),
    ("caption_loss_rows.py", "scores = tl.where(v == target, float(\"-inf\"), scores)", "pass",
     captions_case("one row")),
    ("caption_loss_rows.py", "other=float(\"-inf\")).to(WIDE) * LOG2E\n        scores = tl.where",
     "other=0.0).to(WIDE) * LOG2E\n        scores = tl.where", captions_case("over a block")),
    ("caption_loss_rows.py", "log_sum_exp(peak - chosen, total)",
     "log_sum_exp(peak, total)", captions_case("one row")),
    ("caption_loss_rows.py", "logits_ptr += r * row_stride", "logits_ptr += r * (row_stride - 1)",
     captions_case("no padding")),
    ("caption_loss.py", "wide.sub_(wide.amax(1, keepdim=True))", "wide.sub_(0)",
     very_large_logits),
    ("products.py", "total.addmm_(a.to(total.dtype), b.to(total.dtype))",
     "total.copy_(a.to(total.dtype) @ b.to(total.dtype))", captions_case("many chunks")),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("file", "old", "new", "check"), BUGS, ids=[f"{f}: {n[:50]}" for f, _, n, _ in BUGS]
)
def test_a_planted_bug_is_caught(tmp_path, file, old, new, check):
    with mutant(tmp_path, file, old, new) as load, pytest.raises(AssertionError):
        check(load)


@pytest.mark.parametrize("check", [check for *_, check in BUGS if check in OWN_CHECKS])
def test_what_is_checked_here_alone_passes_without_a_bug(check):
    """The other checks are tests of test_kernels.py."""
    check(lambda part: importlib.import_module(f"minicoca.kernels.{part}"))


def test_a_bug_that_cannot_be_planted_is_no_bug_that_was_caught(tmp_path):
    with pytest.raises(LookupError, match="stands 0 times"):
        with mutant(tmp_path, "softmax.py", "no such line", "x"):
            pass


@pytest.mark.slow
def test_the_copy_without_a_bug_passes(tmp_path):
    with mutant(tmp_path, "checks.py", "LARGEST_HEAD = 128", "LARGEST_HEAD = 127") as load:
        for name in ("tiny", "shared queries", "general, causal, lengths"):
            attention_case(name)(load)
        pool_case("patches")(load)
        pairs_case("many chunks")(load)
        captions_case("many chunks")(load)
