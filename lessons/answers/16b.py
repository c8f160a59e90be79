"""A right answer to exercise 16b."""

import triton
import triton.language as tl

from minicoca.kernels.softmax import LOG2E, log_sum_exp, online_softmax


@triton.jit
def caption_rows_kernel(logits_ptr, target_ptr, loss_ptr, V, BLOCK_V: tl.constexpr):
    r = tl.program_id(0)
    target = tl.load(target_ptr + r)
    chosen = tl.load(logits_ptr + r * V + target)
    peak = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    for first in range(0, V, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        scores = tl.load(logits_ptr + r * V + v, mask=v < V, other=float("-inf")) * LOG2E
        _, peak, total, _ = online_softmax(scores[None, :], peak, total)
    tl.store(loss_ptr + r, tl.sum(log_sum_exp(peak, total), 0) - chosen)
    for first in range(0, V, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        scores = tl.load(logits_ptr + r * V + v, mask=v < V, other=float("-inf")) * LOG2E
        g = tl.exp2(scores - peak) / total
        tl.store(logits_ptr + r * V + v, tl.where(v == target, g - 1, g), mask=v < V)
