"""The fourth exercise of page 18: what Muon makes of a gradient."""

import numpy as np

from ..exercise import Exercise, distinct, values

MUON_BODY = '''
"""Matrices [..., R, C] with the same singular vectors and singular values near 1.

Divide by the norm of all entries, then five times the polynomial, on the smaller side: of R > C
turned round before, and back after.
"""
a, b, c = 3.4445, -4.7750, 2.0315
'''


def _muon_inputs(rng):
    a, b = sorted(distinct(rng, 2))
    return rng.standard_normal((a, b)), rng.standard_normal((b, a))


def _muon_launch(function, wide, tall):
    if function(wide) is None:
        return None
    return values((function(wide), function(tall)), "a wide matrix", "a tall one")


def _newton_schulz(numbers=(3.4445, -4.7750, 2.0315), rounds=5, norm=np.linalg.norm,
                   fifth=lambda s: s @ s):  # fmt: skip
    """A wrong iteration: one part done otherwise."""
    a, b, c = numbers

    def wrong(g):
        x = g.T if len(g) > len(g[0]) else g
        x = x / norm(x)
        for _ in range(rounds):
            s = x @ x.T
            x = a * x + (b * s + c * fifth(s)) @ x
        return x.T if len(g) > len(g[0]) else x

    return lambda wide, tall: _muon_launch(wrong, wide, tall)


def _exactly(g):
    u, _, v = np.linalg.svd(g, full_matrices=False)
    return u @ v


EXERCISES = (
    Exercise(
        "18d", 2, 15, "equally long directions, by products alone",
        "minicoca.reference.optim:orthogonalised", ("a wide matrix", "a tall one"), _muon_inputs,
        MUON_BODY,
        (
            "With s = x x', one round is a x + (b s + c s s) x: three products.",
            "The norm is the root of the sum of all squares. x.swapaxes(-2, -1) turns a matrix, or "
            "each of a stack.",
        ),
        {
            "a x is missing from the sum: nothing lifts the small values.":
                _newton_schulz((0.0, -4.7750, 2.0315)),
            "The fifth power is missing: c (s s) x.": _newton_schulz((3.4445, -4.7750, 0.0)),
            "Four rounds were made; five are wanted.": _newton_schulz(rounds=4),
            "Six rounds were made; five are wanted.": _newton_schulz(rounds=6),
            "The fifth power needs the product s s', not the squares of the entries of s.":
                _newton_schulz(fifth=lambda s: s * s),
            "The norm's root is missing.": _newton_schulz(norm=lambda x: (x * x).sum()),
            "The norm of all entries was wanted, not the largest singular value.":
                _newton_schulz(norm=lambda x: np.linalg.norm(x, 2)),
            "The norm of all entries was wanted, not the sum of what they are without sign.":
                _newton_schulz(norm=lambda x: abs(x).sum()),
            "That is U V' exactly, by a decomposition; five rounds of products only come near it.":
                lambda wide, tall: _muon_launch(_exactly, wide, tall),
        },
        launch=_muon_launch,
    ),
)  # fmt: skip
