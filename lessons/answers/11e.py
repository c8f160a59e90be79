"""An answer to exercise 11e: plain addresses, and the sum carried by tl.dot."""

import triton
import triton.language as tl


@triton.jit
def product_kernel(
    x_ptr, w_ptr, y_ptr, R, D, F,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    f = (tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F))[None, :]
    acc = tl.zeros([BLOCK_R, BLOCK_F], tl.float32)
    for step in range(tl.cdiv(D, BLOCK_D)):
        d = step * BLOCK_D + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + r * D + d[None, :], mask=(r < R) & (d[None, :] < D), other=0.0)
        w = tl.load(w_ptr + d[:, None] * F + f, mask=(d[:, None] < D) & (f < F), other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    tl.store(y_ptr + r * F + f, acc, mask=(r < R) & (f < F))
