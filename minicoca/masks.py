"""Who may see whom, as functions of numbers that NumPy and torch both take: reference and engine
share them. True where a query (row) may look at a key (column)."""


def prefix_mask(places_T, prefix_B):
    """[B, T, T] from the places 0 to T - 1 and the lengths of the prefixes:  1 1 1 .
    all of the prefix, from everywhere, and what came before. A prefix        1 1 1 .
    of 3 of 4 tokens is on the right. Those of 0 and 1 are causal, and        1 1 1 .
    with one of T all see all.                                                1 1 1 1"""
    before_TT = places_T <= places_T[:, None]
    return before_TT | (places_T < prefix_B[:, None, None])
