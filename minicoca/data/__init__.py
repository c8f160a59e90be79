"""Data sets: drawn shapes, real emoji, and a person's own folder, all in one form (pairs.py)."""

from .pairs import Dataset, Pairs, ZeroShot

__all__ = ["Dataset", "Pairs", "ZeroShot", "load"]


def load(config, untrained=False):
    """The data set that a config names. Raises ValueError, saying what to do, if there is none.
    untrained: of a person's own none of it need be to train on."""
    if config.task != "captions":
        return _questions(config, untrained)
    if config.data == "shapes":
        from . import noise, shapes

        drawn = shapes.load(config.seed, config.image_size, config.scenes)
        return noise.with_noise(drawn, config.noise, config.seed)
    if config.data == "emoji":
        from . import emoji

        return emoji.load(
            config.seed,
            config.image_size,
            config.held_out,
            sources=config.emoji_sources,
            exclude=tuple(filter(None, config.exclude.split(","))),
            unseen_names=config.unseen_names,
        )
    from . import folder, unpaired

    if config.continues and unpaired.is_texts(config.data):
        how = {"held_out": config.held_out_part, "validation": config.validation_part}
        return unpaired.texts(config.data, config.image_size, seed=config.seed, **how)
    how = {"untrained": untrained} | ({} if config.reads else {"find": unpaired.images})
    return folder.of(config, config.caption_column, template=config.class_template, **how)


def _questions(config, untrained):
    if config.data == "emoji":
        raise ValueError(f"there are no {config.task} about emoji; --data shapes, or your own")
    if config.data == "shapes":
        from . import asked_shapes

        given = config.task, config.seed, config.image_size, config.hide, config.scenes
        return asked_shapes.of_shapes(*given)
    if config.task in ("pairs", "dialogue"):
        raise ValueError(f"--task {config.task} is of drawn shapes alone; leave out --data")
    from . import vqa

    return vqa.load(config, untrained)
