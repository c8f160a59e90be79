"""How much was tried: each test counts, and the end of the session says it in a table."""

from collections import Counter

COUNTED = Counter()


def trial(kind, count=1):
    """One more trial of a kind, or several."""
    COUNTED[kind] += count
