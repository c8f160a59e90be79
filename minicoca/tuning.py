"""What fine-tuning asks beyond a model, shared by reference and engine: positions at another image
size, more words, a head; which parameters learn, how fast, and what of them decays; which patches a
step reads; what a locked image tower has made of pictures before.

Letters as in params.py; G is the patches of a side, L the image tokens that are kept.
"""

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, product
from typing import Any

import numpy as np

from .config import Config
from .fields import shown
from .params import flatten, initialise, shapes, stream, unflatten
from .relatives import specs_of

BRANCHES = ("image", "pooler", "text", "decoder")  # of the tree, those that are large
# The branches of the tree that --image-rate, --pooler-rate and --text-rate are for. What is in none
# is the temperature: it has the rate itself.
PARTS = {
    "image": ("image",),
    "pooler": ("pooler", "image_projection"),
    "text": ("text", "decoder", "text_projection"),
}
IMAGE_SIDE = {*PARTS["image"], *PARTS["pooler"]}
KEPT_BYTES = 1 << 30  # at most, of all that a locked image side makes of pictures


def factors(tree: dict[str, Any], config: Config) -> dict[str, float]:
    """{name: factor of the learning rate} of every leaf of a tree of parameters, in order of name.

    0 is frozen: such a leaf has no gradient, counts in no norm, and neither moves nor decays.
    Raises ValueError for a name in `freeze` that the tree has not, and where nothing is to learn.
    """
    rates = {top: getattr(config, f"{part}_rate") for part, tops in PARTS.items() for top in tops}
    found = {name: rates.get(name.split(".")[0], 1.0) for name in flatten(tree)}
    found |= dict.fromkeys(named("freeze", tree, config), 0.0)
    if not any(found.values()):
        raise ValueError(
            f"freeze={shown(config.freeze)} and the rates of the parts leave nothing to learn"
        )
    return found


def paces(tree: dict[str, Any], config: Config) -> dict[str, tuple[float, float]]:
    """{name: (factor of the learning rate, decay of a matrix)} of the leaves that learn, in order.
    Raises ValueError as `factors`."""
    kept = set(named("init_parts", tree, config)) if config.init_decay != 1 else ()
    decay = config.weight_decay
    return {
        name: (factor, decay * config.init_decay if name in kept else decay)
        for name, factor in factors(tree, config).items()
        if factor
    }


def decaying(config: Config, decay: float) -> Config:
    """The same config, with another weight decay."""
    return config if decay == config.weight_decay else replace(config, weight_decay=decay)


def by_muon(tree: dict[str, Any], config: Config) -> set[str]:
    """The names of what Muon moves: the matrices of the blocks, where it is the optimizer. All else
    (vectors, embeddings, the head, poolers, the temperature) is AdamW's."""
    if config.optimizer != "muon":
        return set()
    inside = (name for name in flatten(tree) if ".blocks." in f".{name}")
    return {name for name in inside if name.endswith(".weight")}


def same_shapes(
    leaves: dict[str, Any], own: dict[str, tuple[float, float]], names: set[str]
) -> Iterator[tuple[list[str], tuple[float, float]]]:
    """Those of the names that learn, by shape and pace (as `paces` gives them), so that matrices of
    one kind are moved as one stack: a small model pays for few products then."""
    kinds = {}
    for name in sorted(names & own.keys()):
        kinds.setdefault((leaves[name].shape, own[name]), []).append(name)
    for (_, pace), alike in kinds.items():
        yield alike, pace


def learning(config: Config) -> int:
    """How many numbers of a model learn. Raises ValueError as `factors`."""
    tree = specs_of(config)
    sizes = {name: math.prod(shape) for name, shape in shapes(tree).items()}
    return sum(sizes[name] for name, factor in factors(tree, config).items() if factor)


def shares(squares: dict[str, float]) -> dict[str, float]:
    """What part of all squares each of BRANCHES has, and "rest" (projections, temperature), from
    {name: sum of squares} of any leaves of a tree. All 0 where there are no squares but 0."""
    found = dict.fromkeys((*BRANCHES, "rest"), 0.0)
    for name, square in squares.items():
        branch = name.split(".")[0]
        found[branch if branch in BRANCHES else "rest"] += square
    total = sum(found.values())
    return {branch: square / total if total else 0.0 for branch, square in found.items()}


def named(setting: str, tree: dict[str, Any], config: Config) -> Iterator[str]:
    """The leaves of a tree that a setting of the config means, `freeze` or `init_parts`: a name of
    one, or its beginning; `0-5` in it stands for six numbers. Raises ValueError for a name that the
    tree has not."""
    below = {}
    for name in flatten(tree):
        for at in accumulate(name.split("."), "{}.{}".format):
            below.setdefault(at, []).append(name)
    for pattern in filter(None, map(str.strip, getattr(config, setting).split(","))):
        for at in map(".".join, product(*map(_counted, pattern.split(".")))):
            if at not in below:
                near = difflib.get_close_matches(at[:80], below, 1, 0)[0]
                what = f"there is no parameter {shown(at)}; did you mean {near!r}?"
                raise ValueError(f"{setting}={shown(pattern)}: {what}")
            yield from below[at]


def _counted(word):
    """What a word of a pattern stands for."""
    if ends := re.fullmatch("([0-9]{1,3})-([0-9]{1,3})", word):
        first, last = map(int, ends.groups())
        if first <= last:
            return [str(i) for i in range(first, last + 1)]
    return [word]


def move_positions(tree: dict[str, Any], config: Config) -> dict[str, Any]:
    """A tree of weights for the image size of `config`: positions of patches, an even square after
    a class token's where there is one, are interpolated to the new one, and a class token's stays
    as it is. The same size gives the same tree; no other leaf is touched. The patches' own size
    must be the same.
    """
    wanted, leaves = shapes(specs_of(config)), flatten(tree)
    places = [n for n in leaves if n.endswith("position") and not n.startswith("text.")]
    moved = [name for name in places if leaves[name].shape != wanted[name]]
    return unflatten(leaves | {n: _moved(leaves[n], *wanted[n]) for n in moved}) if moved else tree


def _moved(old_SD, tokens, width):
    """Positions [S, D], a class token's first where S is one more than a square, as so many."""
    first = len(old_SD) - math.isqrt(len(old_SD)) ** 2
    moved_ND = _resized(old_SD[first:], math.isqrt(tokens))
    return np.concatenate([old_SD[:first], moved_ND])


def grow(tree: dict[str, Any], config: Config) -> dict[str, Any]:
    """A tree of weights for the vocabulary and the answers of `config`: further words, and a head
    that is not there, begin as in a fresh model of its seed. No other leaf is touched."""
    fresh = initialise(config, config.seed, tree=specs_of(config))
    known = len(tree["text"]["token"])
    token_VD, words_DV = fresh["text"]["token"], fresh["decoder"]["head"]["weight"]
    token_VD[:known] = tree["text"]["token"]
    words_DV[:, :known] = tree["decoder"]["head"]["weight"]
    grown = tree | {"text": tree["text"] | {"token": token_VD}}
    grown["decoder"] = tree["decoder"] | {"head": {"weight": words_DV}}
    return {name: grown.get(name, fresh[name]) for name in fresh}


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


def kept_tokens(config: Config, step: int, batch: int) -> np.ndarray | None:
    """The image tokens that a training step reads (FLIP, Li et al. 2023): places [B, L], rising, a
    class token's always among them; the patches are drawn for each image, by seed and step alone.
    None where all are kept."""
    if config.kept_patches == config.patches:
        return None
    drawn_BN = stream("patches", config.seed, step).random((batch, config.patches))
    places_BL = np.sort(drawn_BN.argsort(1)[:, : config.kept_patches], 1)
    if config.stem == "clip":
        places_BL = np.concatenate([np.zeros((batch, 1), places_BL.dtype), places_BL + 1], 1)
    return places_BL


class Locked:
    """What an image side that is frozen makes of pictures, each read once. Pictures are known by
    their bytes: it does not matter in which batch, or epoch, one comes again.

    encode: of uint8 [B, I, I, 3], arrays whose rows are the pictures'; stack: makes one of rows."""

    def __init__(self, pictures: int, say: Callable[[str], None]):
        self.pictures, self.say, self.made, self.size = pictures, say, {}, 0

    def __call__(self, images: np.ndarray, encode: Callable, stack: Callable) -> tuple:
        """What `encode` makes of a batch, or what it made of these pictures before. A batch that
        holds a new one is encoded whole, and one of another size is not kept: to the last bit it is
        as it would be without all this, which is tried with the first batch."""
        if self.made is None or self.size not in (0, len(images)):
            return encode(images)
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
        if all(key in self.made for key in keys):
            return tuple(map(stack, zip(*(self.made[key] for key in keys), strict=True)))
        made = encode(images)
        if not self.size and (why := self._unfit(images, made, encode)):
            self.made = None
            self.say(f"the locked image tower reads its pictures anew in each epoch: {why}")
            return made
        self.size = len(images)
        self.made |= zip(keys, zip(*made, strict=True), strict=True)
        return made

    def _unfit(self, images, made, encode):
        """Why nothing can be kept; empty where it can."""
        need = self.pictures * sum(x[0].nbytes for x in made)
        if need > KEPT_BYTES:
            most = f"{need / 1e9:.1f} GB, over {KEPT_BYTES / 1e9:.1f}"
            return f"vectors and image tokens of {self.pictures:,} would take {most}"
        order = np.arange(len(images))[::-1].copy()
        turned = zip(encode(images[order]), made, strict=True)
        if all(bool((a == b[order]).all()) for a, b in turned):
            return ""
        return (
            "in another batch they differ in the last bit (of torch, widths that 16 divides mend "
            "that; NumPy's BLAS may multiply a row by its place)"
        )


def locked(tree: dict[str, Any], config: Config, pictures: int, say: Callable) -> Locked | None:
    """A Locked of so many pictures, where what the image side makes of one is the same at every
    step: all of it is frozen, and a step sees the picture as it is, and its batch in one piece.
    None elsewhere."""
    learn = {name.split(".")[0] for name in paces(tree, config)}
    whole = (config.augment, config.patch_keep, config.accumulate, config.compile)
    plain = config.objective in ("coca", "siglip") and config.task == "captions"
    if learn & IMAGE_SIDE or whole != (0, 1, 1, False) or not plain:
        return None
    return Locked(pictures, say)
