"""Data sets: drawn shapes, real emoji, and a person's own folder, all in one form (pairs.py)."""

from .pairs import Dataset, Pairs, ZeroShot

__all__ = ["Dataset", "Pairs", "ZeroShot", "load"]


def load(config):
    """The data set that a config names. Raises ValueError, saying what to do, if there is none."""
    if config.data == "shapes":
        from . import shapes

        return shapes.load(config.seed, config.image_size)
    if config.data == "emoji":
        from . import emoji

        return emoji.load(
            config.seed,
            config.image_size,
            config.held_out,
            sources=_sources(config.emoji_source),
            exclude=tuple(filter(None, config.exclude.split(","))),
            unseen_names=config.unseen_names,
        )
    from . import folder

    return folder.load(config.data, config.image_size, seed=config.seed)


def _sources(text):
    pairs = [part.partition("=") for part in filter(None, text.split(","))]
    if any(not vendor or not path for vendor, _, path in pairs):
        raise ValueError(f"emoji_source={text!r}: write vendor=PATH, several with commas between")
    return {vendor: path for vendor, _, path in pairs} or None
