"""What fine-tuning asks beyond a model, shared by reference and engine: positions at another image
size.

Letters as in params.py; G is the patches of a side.
"""

import math
from typing import Any

import numpy as np

from .config import Config


def move_positions(tree: dict[str, Any], config: Config) -> dict[str, Any]:
    """A tree of weights for the image size of `config`: the positions of its patches, an even
    square, are interpolated to the new one, and a class token's stays as it is. The same size
    gives the same tree; no other leaf is touched. The patches' own size must be the same.
    """
    image, first = tree["image"], int(config.stem == "clip")
    old_ND, new = image["position"][first:], config.image_size // config.patch_size
    if len(old_ND) == new**2:
        return tree
    moved_ND = _resized(old_ND, new)
    position = np.concatenate([image["position"][:first], moved_ND])
    return tree | {"image": image | {"position": position}}


def _resized(old_ND, new):
    """Vectors on a square grid [G x G, D], interpolated to `new` x `new`."""
    old = math.isqrt(len(old_ND))
    along_GG = _cubic(old, new)
    grid_GGD = old_ND.reshape(old, old, -1).astype(np.float64)
    grid_GGD = np.einsum("ia,jb,abd->ijd", along_GG, along_GG, grid_GGD, optimize=True)
    return grid_GGD.reshape(new**2, -1).astype(old_ND.dtype)


def _cubic(old, new):
    """[new, old]: what each new point of a line takes of the old ones (Keys 1981, a = -1/2).

    Grids share their outer edges, not their outer centres; for fewer points the kernel is as wide
    as they are apart, and where it hangs over an edge the rest counts for all.
    """
    centre_G1 = ((np.arange(new) + 0.5) * old / new)[:, None]
    x = np.abs(np.arange(old) + 0.5 - centre_G1) / max(old / new, 1)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weight = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weight / weight.sum(1, keepdims=True)
