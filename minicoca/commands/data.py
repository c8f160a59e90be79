"""`minicoca data`: a look at a data set before training on it."""

from pathlib import Path

import numpy as np

from .flags import add_settings, from_flags
from .results import check_picture, save_picture

HELP = "look at a data set before training on it"
SETTINGS = (
    *("image_root", "image_column", "caption_column", "split_column", "class_template"),
    *("image_size", "validation_part", "held_out_part", "keep_copies", "seed"),
    *("held_out", "exclude", "emoji_source", "unseen_names"),
)


def add_flags(parser):
    parser.add_argument("data", help="shapes, emoji, or a file or folder of images and captions")
    parser.add_argument("--sheet", type=Path, help="a new picture to write, of some of its images")
    add_settings(parser, SETTINGS)


def run(arguments):
    from PIL import Image

    from .. import data
    from ..tasks.retrieval import contact_sheet

    if arguments.sheet:
        check_picture("--sheet", arguments.sheet)
    arguments.patch_size = 1  # any size of image can be looked at
    settings = from_flags(arguments)
    try:
        dataset = data.load(settings)
    except ValueError:
        if settings.data == "emoji":
            from ..data.emoji import describe

            print(describe(settings.image_size, settings.emoji_sources))
        raise
    splits = {"train": dataset.train, "validation": dataset.validation, **dataset.evaluations}
    print(f"{dataset.name}\n{dataset.notes}")
    for split, pairs in splits.items():
        if pairs is not None:
            print(f"{split + ':':16} {len(pairs):>8,} images")
            for own in pairs.captions[:3]:
                print(f"{'':27}{own[0]}")
    if dataset.name == "emoji":
        from ..data.emoji import pixel_nearest_neighbour

        figures = pixel_nearest_neighbour(dataset)
        shown = ", ".join(f"{key} {value:.1%}" for key, value in figures.items())
        print(f"pixel nearest neighbour (the figure to beat): {shown}")
    if arguments.sheet:
        pairs = next(iter(dataset.evaluations.values()), dataset.train)
        count = min(36, len(pairs))
        images = [Image.fromarray(x) for x in pairs.batch(np.arange(count))]
        labels = [pairs.captions[i][0] for i in range(count)]
        save_picture(arguments.sheet, contact_sheet(images, labels))
        print(f"picture: {arguments.sheet}")
