"""Static tables: which way, which tile, how many warps. Nothing is tuned at run time: every rank
of a job, and every run, does the same arithmetic.

Attention in bfloat16 has no block with a side below 64: on Hopper Triton before 3.8 can miscompile
kernels with several products of such blocks. (Pooling has sides of 16, heads of one query, and in
one kernel two products: to be watched on a card.)
"""

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@dataclass(frozen=True)
class Tile:
    """Launch settings of one kernel."""

    block_t: int
    block_s: int
    warps: int
    stages: int


@dataclass(frozen=True)
class AttentionConfig:
    """How attention of one shape runs: tiles of the forward and backward kernels."""

    one_tile: bool  # all keys in one tile of the forward
    short: bool  # one-program backward
    block_k: int
    forward: Tile
    backward: Tile  # of the short kernel, or of dK and dV
    backward_dq: Tile | None


def attention_config(T, S, K, shared=False, exact=False):
    """The table: T queries, S keys, heads of K. Wide heads get smaller tiles or more warps.

    shared: queries of the whole batch, whose gradient only the general backward can sum.
    exact: float32 on a GPU, without tensor cores: there to check with, in tiles that fit any card.
    """
    block_k = max(16, triton.next_power_of_2(K))
    if exact:
        return AttentionConfig(False, False, block_k, *[Tile(32, 32, 4, 1)] * 3)
    wide = block_k > 64
    one_tile = S <= 128
    if one_tile:
        block_s = 64 if S <= 64 else 128
        block_t = 64 if T <= 64 or wide else 128
        forward = Tile(block_t, block_s, 4 if block_t * block_s <= 64 * 64 else 8, 1)
    else:
        forward = Tile(128, 64, 8 if wide else 4, 2)
    short = not shared and T <= (64 if wide else 128)
    dq = None
    if wide and short:  # two stages: tiles reach shared memory without passing through registers
        backward = Tile(64, 64, 8, 2)
    elif short:
        backward = Tile(64, 64, 4, 1) if T <= 64 else Tile(128, 64, 8, 1)
    else:
        backward = Tile(128, 64, 8, 1) if wide else Tile(64, 64, 4, 2)
        dq = Tile(128, 64, 8, 2)
    return AttentionConfig(one_tile, short, block_k, forward, backward, dq)


@dataclass(frozen=True)
class ProductTile:
    """Launch settings of a kernel whose programs compute one tile of a product each."""

    block_m: int
    block_n: int
    block_e: int
    group: int  # row tiles that go down before a column goes on
    warps: int
    stages: int


INFO_NCE = ProductTile(128, 128, 64, 8, 8, 3)
CAPTION_BLOCK, CAPTION_WARPS = 4096, 4  # logits that a program holds


def is_exact(dtype):
    """Whether attention of this type takes the table's exact way; the interpreter takes all."""
    return dtype in (torch.float32, torch.float64) and not INTERPRETED


def compute_options(dtype, exact=False):
    """Meta-parameters that say how products are computed: WIDE, UPCAST, PRECISION.

    UPCAST: bfloat16 is computed in float32, since Triton's interpreter gets bfloat16 wrong.
    PRECISION of float32 products: three TF32 products (tf32x3) keep float32's accuracy on tensor
    cores, but hold three times as much, too much for attention (exact); AMD has no such thing.
    """
    precision = "ieee"
    if dtype == torch.float32 and not INTERPRETED and torch.version.hip is None and not exact:
        precision = "tf32x3"
    return {
        "WIDE": tl.float64 if dtype == torch.float64 else tl.float32,
        "UPCAST": INTERPRETED and dtype == torch.bfloat16,
        "PRECISION": precision,
    }
