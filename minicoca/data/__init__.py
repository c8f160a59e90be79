"""Image-caption data: what training and evaluation see (`pairs`) and where it comes from."""

from minicoca.data.pairs import Dataset, Pairs, ZeroShot

__all__ = ["Dataset", "Pairs", "ZeroShot"]
