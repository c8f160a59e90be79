"""`minicoca data`: a look at a data set before training on it."""

import json
from pathlib import Path

import numpy as np

from .flags import add_settings, from_flags
from .results import check_picture, save_picture, tell

HELP = "look at a data set before training on it"
SETTINGS = (
    *("image_root", "image_column", "caption_column", "split_column", "class_template"),
    *("image_size", "validation_part", "held_out_part", "keep_copies", "seed"),
    *("batch_size", "text_length", "tokenizer", "vocabulary", "fold"),
    *("held_out", "exclude", "emoji_source", "unseen_names", "noise"),
)


def add_flags(parser):
    parser.add_argument("data", help="shapes, emoji, or a file, folder or .tar shards of your own")
    parser.add_argument("--sheet", type=Path, help="a new picture to write, of some of its images")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    add_settings(parser, SETTINGS)


def run(arguments):
    from .. import data
    from ..survey import in_words, survey

    if arguments.sheet:
        check_picture("--sheet", arguments.sheet)
    arguments.patch_size = 1  # any size of image can be looked at
    settings = from_flags(arguments)
    try:
        dataset = data.load(settings, untrained=True)
    except ValueError:
        if settings.data == "emoji":
            from ..data.emoji import describe

            say = tell if arguments.json else print
            say(describe(settings.image_size, settings.emoji_sources))
        raise
    found = survey(dataset, settings)
    if dataset.name == settings.data == "emoji":
        from ..data.emoji import pixel_nearest_neighbour

        found["pixel_nearest_neighbour"] = pixel_nearest_neighbour(dataset)
    if arguments.sheet:
        save_picture(arguments.sheet, sheet_of(dataset))
        found["sheet"] = str(arguments.sheet)
    if arguments.json:
        print(json.dumps(found))
        return
    print("\n".join(in_words(found)))
    if figures := found.get("pixel_nearest_neighbour"):
        shown = ", ".join(f"{key} {value:.1%}" for key, value in figures.items())
        print(f"pixel nearest neighbour (the figure to beat): {shown}")
    if arguments.sheet:
        print(f"picture: {arguments.sheet}")


def sheet_of(dataset):
    """A contact sheet of images held out, with their captions."""
    from PIL import Image

    from ..tasks.retrieval import contact_sheet

    pairs = next(iter(dataset.evaluations.values()), dataset.train)
    count = min(36, len(pairs))
    images = [Image.fromarray(x) for x in pairs.batch(np.arange(count))]
    return contact_sheet(images, [pairs.captions[i][0] for i in range(count)])
