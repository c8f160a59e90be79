"""Exercises of page 01."""

import numpy as np

from ..exercise import Exercise, distinct


def _patchify_inputs(rng):
    B, p, side = distinct(rng, 3, 2, 5)
    return rng.standard_normal((B, side * p, side * p, 3)), int(p)


def _unpatchify_inputs(rng):
    B, p, side = distinct(rng, 3, 2, 5)
    return rng.standard_normal((B, side * side, p * p * 3)), int(p)


def _patches(images, p, order, swapped=False):
    """patchify with its axes put in another order, or with each side split the wrong way."""
    B, side = len(images), images.shape[1] // p
    split = (p, side) if swapped else (side, p)
    grid = images.reshape(B, *split, *split, 3).transpose(order)
    return grid.reshape(B, side * side, p * p * 3)


def _unpatches(patches, p, order, as_image=False):
    B, side = len(patches), int(np.sqrt(patches.shape[1]))
    split = (side, p, side, p) if as_image else (side, side, p, p)
    grid = patches.reshape(B, *split, 3).transpose(order)
    return grid.reshape(B, side * p, side * p, 3)


EXERCISES = (
    Exercise(
        "1a", 2, 10, "cut images into patches", "minicoca.reference.vision:patchify",
        ("patches_BNP",), _patchify_inputs,
        "B, side = len(images_BII3), images_BII3.shape[1] // patch_size  # side: in patches\n"
        "# returns patches_BNP, [B, side * side, patch_size * patch_size * 3]",
        (
            "Split each side into (patches, pixels): a reshape to [B, side, p, side, p, 3].",
            "Bring both patch axes to the front, then both pixel axes, then the channel; a last "
            "reshape joins them to N and P.",
        ),
        {
            "The axes were not moved before the last reshape: rows of pixels became patches.":
                lambda x, p: _patches(x, p, (0, 1, 2, 3, 4, 5)),
            "Inside a patch columns come before rows.":
                lambda x, p: _patches(x, p, (0, 1, 3, 4, 2, 5)),
            "Patches go down the columns first; they should go along the rows.":
                lambda x, p: _patches(x, p, (0, 3, 1, 2, 4, 5)),
            "The channel comes first in a patch; it should come last.":
                lambda x, p: _patches(x, p, (0, 1, 3, 5, 2, 4)),
            "The side was split as (pixels, patches); the patch count comes first.":
                lambda x, p: _patches(x, p, (0, 1, 3, 2, 4, 5), swapped=True),
            "The side was split as (pixels, patches), and the axes moved for that: the patch count "
            "comes first.":
                lambda x, p: _patches(x, p, (0, 2, 4, 1, 3, 5), swapped=True),
        },
    ),
    Exercise(
        "1b", 2, 10, "put patches together again", "minicoca.reference.vision:unpatchify",
        ("images_BII3",),
        _unpatchify_inputs,
        "B, p = len(patches_BNP), patch_size\n"
        "side = int(np.sqrt(patches_BNP.shape[1]))  # in patches\n"
        "# returns images_BII3, [B, side * p, side * p, 3]",
        (
            "It is 1a backwards: the same six axes, moved back.",
            "Reshape to [B, side, side, p, p, 3]; which transpose undoes (0, 1, 3, 2, 4, 5)?",
        ),
        {
            "The axes were not moved before the last reshape.":
                lambda x, p: _unpatches(x, p, (0, 1, 2, 3, 4, 5)),
            "Every patch is transposed: rows and columns inside it are exchanged.":
                lambda x, p: _unpatches(x, p, (0, 1, 4, 2, 3, 5)),
            "Patches are laid down the columns first.":
                lambda x, p: _unpatches(x, p, (0, 2, 3, 1, 4, 5)),
            "The whole picture is transposed: its rows and columns are exchanged.":
                lambda x, p: _unpatches(x, p, (0, 2, 4, 1, 3, 5)),
            "The first reshape is that of an image; patches are [B, side, side, p, p, 3].":
                lambda x, p: _unpatches(x, p, (0, 1, 3, 2, 4, 5), as_image=True),
        },
    ),
)  # fmt: skip
