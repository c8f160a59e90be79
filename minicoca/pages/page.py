"""A page with a trained model inside: one HTML file that needs no server, network or library.

Weights are float32, bit for bit, so that the page's numbers are NumPy's. The scripts beside this
file are the reference's forward functions by their names; the page holds them as they are.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from html import escape
from importlib.resources import files

import numpy as np

from ..config import UNKNOWN, Config, demand_vit
from ..data import shapes
from ..params import count, flatten, specs
from ..tokenizer import AnyTokenizer, Tokenizer

MOST_BYTES = 1_500_000  # of a page
MODEL_SCRIPTS = ("ops.js", "attention.js", "vision.js", "text.js", "generate.js", "files.js")
SCRIPTS = (*MODEL_SCRIPTS, "scene.js", "page.js", "controls.js")
SCENES = 60  # that training never saw, to begin with
MARK = re.compile(r"\[\[([A-Z_]+)\]\]")
ORDER = ("image", "pooler", "text", "decoder")
SETTINGS = (
    "image_size", "patch_size", "image_heads", "pooler", "pooler_heads", "text_length",
    "text_heads", "legacy_cls_mask", "gelu", "pixel_mean", "pixel_std",
)  # fmt: skip
FIRST = [
    {"size": "large", "colour": "red", "shape": "star", "row": 0.5, "column": 0.25},
    {"size": "small", "colour": "blue", "shape": "ring", "row": 0.5, "column": 0.75},
]
LIMITS = {
    "shapes": "It never saw a picture of no thing, or of more than three, and talks of them as if "
    "they were others.",
    "other": "It was trained on other pictures than these shapes: open one of those.",
}
SENTENCES = (
    "a large red star left of a small blue ring",
    "a small blue ring left of a large red star",
    "a large red star left of a small blue square",
)


def page(params: dict, config: Config, tokenizer: AnyTokenizer, name: str) -> bytes:
    """The page of a model, whose run is called `name`.

    Raises ValueError where its words are not what stands between spaces, where its image tower is
    not CoCa's or it was not trained both to compare and to write, or where the page would have over
    MOST_BYTES.
    """
    if not isinstance(tokenizer, Tokenizer) or config.tokenizer != "word" or tokenizer.folds:
        kind = f"{config.tokenizer}{', folded' if tokenizer.folds else ''}"
        raise ValueError(
            f"the run's tokenizer is {kind}, and a page can cut sentences only at spaces: train "
            "with --tokenizer word and without --fold"
        )
    demand_vit(config)
    params = {name: part for name, part in params.items() if name in specs(config)}
    if not (config.compares and config.writes):
        raise ValueError(
            "the run was trained with contrastive_weight or caption_weight 0, or with an objective "
            "that lacks one of them, and a page shows both"
        )
    numbers = count(params)
    if 3 * numbers > MOST_BYTES:  # three of a number's four bytes are noise: no need to try
        raise ValueError(too_large(numbers, 4 * numbers))
    words = [word for id, word in enumerate(words_of(tokenizer)) if word and id != UNKNOWN]
    parts = {
        "NAME": escape(name),
        "PARAMETERS": f"{numbers:,}",
        "KNOWN": f"{len(words):,}",
        "WORDS": escape(", ".join(sorted(words))),
        "POOLED": "" if config.pooler == "none" else ", carried back through the pooler's",
        "LIMITS": LIMITS["shapes" if config.data == "shapes" else "other"],
        "ACROSS": str(config.image_size // config.patch_size),
        "CONTRAST": f"{float(params['log_temperature']) / math.log(10):.2f}",
        "CHOICES_OF_SHAPE": choices("shape", {n: icon(outline(n)) for n in shapes.SHAPES}),
        "CHOICES_OF_COLOUR": choices("colour", {n: swatch(c) for n, c in colours().items()}),
        "CHOICES_OF_SIZE": choices("size", {n: n for n in reversed(shapes.SIZES)}),
        "HEADS": "".join(heads(path, config) for path in attentions(params)),
        "STYLE": source("colours.css") + source("page.css"),
        "SCRIPTS": "\n".join(map(source, SCRIPTS)),
        "MODEL": as_json(contents(params, config, tokenizer)),
    }
    made = MARK.sub(lambda mark: parts[mark[1]], source("page.html")).encode()
    if len(made) > MOST_BYTES:
        raise ValueError(too_large(numbers, len(made)))
    return made


def too_large(numbers: int, size: int) -> str:
    least, most = f"{size / 1e6:.1f} MB", f"{MOST_BYTES / 1e6:.1f} MB"
    return (
        f"a page of {numbers:,} parameters would have {least}, and may have {most}: take a model "
        "of 310,000 or fewer, as the preset tiny or the run shapes"
    )


def contents(params: dict, config: Config, tokenizer: AnyTokenizer) -> dict:
    """What the scripts know of the model, ready for JSON."""
    flat, known = flatten(params), config.data == "shapes"
    sizes = {name: sum(radii) / 2 for name, radii in shapes.SIZES.items()}
    outlines = {name: outline(name) for name in shapes.SHAPES}
    return {
        "config": {name: getattr(config, name) for name in SETTINGS},
        "pieces": words_of(tokenizer),
        "shapes": {name: list(leaf.shape) for name, leaf in flat.items()},
        "numbers": packed(np.concatenate([np.ravel(leaf) for leaf in flat.values()])),
        "drawing": {"shapes": outlines, "colours": colours(), "sizes": sizes},
        "seats": [shapes.LEFT, shapes.RIGHT, shapes.TOP, shapes.BOTTOM, (0.5, 0.5)],
        "scenes": [FIRST, *map(things_of, shapes.scenes("held_out", SCENES))],
        "sentences": SENTENCES if known else ("", "", ""),
    }


def words_of(tokenizer: AnyTokenizer) -> list[str]:
    """What each id stands for; pad, start and end for nothing."""
    return [piece.decode(errors="replace").strip() for piece in tokenizer.pieces()]


def things_of(scene: shapes.Scene) -> list[dict]:
    names = ("size", "colour", "shape", "row", "column")
    return [{name: getattr(thing, name) for name in names} for thing in scene.things]


def outline(shape: str) -> str:
    """A path of SVG, in the square from -1 to 1; a second outline is a hole."""
    corners = [["{:.4g} {:.4g}".format(*at) for at in points] for points in shapes.SHAPES[shape]]
    return "".join(f"M{'L'.join(points)}Z" for points in corners)


def colours() -> dict[str, str]:
    return {name: f"rgb({' '.join(map(str, rgb))})" for name, rgb in shapes.COLOURS.items()}


def choices(group: str, shown: dict[str, str]) -> str:
    """Radio buttons, the first of them chosen."""
    return "".join(
        f'<label title="{name}"><input type="radio" name="{group}" value="{name}" '
        f'aria-label="{name}"{" checked" * (name == next(iter(shown)))}>{html}</label>'
        for name, html in shown.items()
    )


def icon(path: str) -> str:
    return f'<svg viewBox="-1.1 -1.1 2.2 2.2" aria-hidden="true"><path d="{path}"/></svg>'


def swatch(colour: str) -> str:
    return f'<span class="swatch" style="background:{colour}"></span>'


def attentions(params: dict) -> list[str]:
    """Where every attention is in the tree, those of the image first."""
    end = ".query.weight"
    paths = [name.removesuffix(end) for name in flatten(params) if name.endswith(end)]
    return sorted(paths, key=lambda path: ORDER.index(path.split(".")[0]))


def heads(path: str, config: Config) -> str:
    """A row of buttons, one a head."""
    tower = {"image": config.image_heads, "pooler": config.pooler_heads}
    buttons = "".join(
        f'<button data-of="{path}" value="{head}" aria-pressed="true" '
        f'aria-label="head {head} of {path}">{head}</button>'
        for head in range(tower.get(path.split(".")[0], config.text_heads))
    )
    return f"<li><code>{path}</code><span>{buttons}</span></li>"


def packed(numbers: np.ndarray) -> str:
    """Numbers as float32, bit for bit, in base64 of zlib of their bytes in planes.

    Turned left by a bit, a number has its sign last and all of its exponent in one byte. Exponents
    of weights are alike, so their plane shrinks to two fifths; the other bytes are noise.
    """
    bits = numbers.astype("<f4").view("<u4")
    planes = (bits << 1 | bits >> 31).view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()


def unpacked(text: str) -> np.ndarray:
    """What was packed, float32."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(4, -1)
    bits = np.ascontiguousarray(planes.T).view("<u4")[:, 0]
    return (bits >> 1 | bits << 31).view("<f4")


def as_json(fields: dict) -> str:
    """JSON that cannot end the element of HTML that it stands in."""
    return json.dumps(fields, separators=(",", ":")).replace("<", "\\u003c")


def source(name: str) -> str:
    """One of the files beside this one."""
    return files(__package__).joinpath(name).read_text("utf-8")
