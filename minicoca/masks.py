"""Who may see whom, as functions of numbers that NumPy and torch both take: reference and engine
share them. True where a query (row) may look at a key (column).

CoCa's own two, `causal_mask` and `text_mask`, stand with its attention."""


def prefix_mask(places_T, prefix_B):
    """[B, T, T] from the places 0 to T - 1 and the lengths of the prefixes:  1 1 1 .
    all of the prefix, from everywhere, and what came before. A prefix        1 1 1 .
    of 3 of 4 tokens is on the right. Those of 0 and 1 are causal, and        1 1 1 .
    with one of T all see all.                                                1 1 1 1"""
    before_TT = places_T <= places_T[:, None]
    return before_TT | (places_T < prefix_B[:, None, None])


def padding_mask(real_BS):
    """[B, 1, S], for every query alike: all of what is real is seen, from     1 1 . .
    everywhere, and no padding. Of 2 real tokens of 4 on the right; where      1 1 . .
    all are real nothing is masked, and attention goes both ways freely.       1 1 . .
                                                                               1 1 . ."""
    return real_BS[:, None]
