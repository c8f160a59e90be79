"""A right answer to exercise 13c."""

import numpy as np


def rounded(x):
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & 0xFFFF0000).view(np.float32).astype(np.float64)


def centred_dq(ds_TS, k_SK):
    """The product with the keys as they are, less what its rows of dS add up to, times the mean."""
    r_TS = rounded(ds_TS)
    return r_TS @ k_SK - r_TS.sum(1, keepdims=True) * k_SK.mean(0)
