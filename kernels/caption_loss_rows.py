"""Logits to loss and gradient where they stand, in Triton: one program for each row.

Reads a row of logits twice (the second time mostly from the cache) and writes it once.
"""

import torch
import triton
import triton.language as tl

from .configs import CAPTION_BLOCK, CAPTION_WARPS, INTERPRETED
from .softmax import LOG2E, log_sum_exp, online_softmax, round_to_bfloat16


@triton.jit
def caption_rows_kernel(
    logits_ptr, target_ptr, loss_ptr, row_stride, V,
    GRADIENT: tl.constexpr, BLOCK_V: tl.constexpr, WIDE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """loss [R]: the LSE of all words but the target, less the target's logit; its softplus is the
    row's loss. With GRADIENT, logits <- softmax - onehot. The target is kept apart, so that what
    is left of a confident prediction's loss and gradient is no difference of two that are near."""
    r = tl.program_id(0).to(tl.int64)
    logits_ptr += r * row_stride
    target = tl.load(target_ptr + r)
    chosen = tl.load(logits_ptr + target).to(WIDE) * LOG2E
    peak = tl.full([1], float("-inf"), WIDE)
    total = tl.zeros([1], WIDE)
    for first in range(0, V, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        scores = tl.load(logits_ptr + v, mask=v < V, other=float("-inf")).to(WIDE) * LOG2E
        scores = tl.where(v == target, float("-inf"), scores)
        _, peak, total, _ = online_softmax(scores[None, :], peak, total)
    tl.store(loss_ptr + r, tl.sum(log_sum_exp(peak - chosen, total), 0))
    if GRADIENT:
        top = tl.maximum(peak, chosen)
        others = total * tl.exp2(peak - top)
        total = others + tl.exp2(chosen - top)
        for first in range(0, V, BLOCK_V):
            v = first + tl.arange(0, BLOCK_V)
            scores = tl.load(logits_ptr + v, mask=v < V, other=float("-inf")).to(WIDE) * LOG2E
            g = tl.where(v == target, -others, tl.exp2(scores - top)) / total
            if UPCAST:
                g = round_to_bfloat16(g)
            tl.store(logits_ptr + v, g.to(logits_ptr.dtype.element_ty), mask=v < V)


def caption_rows(logits, targets, gradient):
    """As caption_loss.torch_rows: the sum of the rows' losses, and the gradient in place."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss = logits.new_empty(len(logits), dtype=wide)
    caption_rows_kernel[(len(logits),)](
        logits, targets, loss, logits.stride(0), logits.shape[1],
        GRADIENT=gradient, BLOCK_V=min(CAPTION_BLOCK, triton.next_power_of_2(logits.shape[1])),
        WIDE=tl.float64 if wide == torch.float64 else tl.float32,
        UPCAST=INTERPRETED and logits.dtype == torch.bfloat16, num_warps=CAPTION_WARPS,
    )  # fmt: skip
    return torch.nn.functional.softplus(loss).sum()
