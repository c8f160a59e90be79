"""When are two results the same?"""

import numpy as np


def same(got, expected, close):
    """Whether two arrays are equal but for rounding; infinities must stand in the same places, and
    so must NaN (a mistake may make some; what is right has none)."""
    finite = np.isfinite(expected)
    alike = np.array_equal(got[~finite], expected[~finite], equal_nan=True)
    if not alike or not np.isfinite(got[finite]).all():
        return False
    a, b = got[finite].astype(float), expected[finite].astype(float)
    scale = max(float(np.abs(b).max(initial=0)), 1e-300)
    return float(np.abs(a - b).max(initial=0)) <= close * scale
