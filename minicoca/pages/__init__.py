"""A page with a trained model inside: one HTML file that needs no server, network or library.

Weights are float32, bit for bit, so that the page's numbers are NumPy's. The scripts beside this
file are the reference's forward functions by their names; the page holds them as they are.
"""

from __future__ import annotations

import base64
import json
import zlib
from html import escape
from importlib.resources import files

import numpy as np

from ..config import Config
from ..data import shapes
from ..params import count, flatten
from ..tokenizer import AnyTokenizer, Tokenizer

MOST_BYTES = 1_500_000  # of a page
MODEL_SCRIPTS = ("ops.js", "attention.js", "vision.js", "text.js", "generate.js", "files.js")
SCRIPTS = (*MODEL_SCRIPTS, "scene.js", "page.js")
SENTENCES = (
    "a large red star left of a small blue ring",
    "a small blue ring left of a large red star",
    "a large red star left of a small blue square",
)


def page(params: dict, config: Config, tokenizer: AnyTokenizer, name: str) -> bytes:
    """The page of a model, whose run is called `name`.

    Raises ValueError where its words are not what stands between spaces, or the page would have
    over MOST_BYTES.
    """
    if not isinstance(tokenizer, Tokenizer) or config.tokenizer != "word" or tokenizer.folds:
        kind = f"{config.tokenizer}{', folded' if tokenizer.folds else ''}"
        raise ValueError(
            f"the run's tokenizer is {kind}, and a page can cut sentences only at spaces: train "
            "with --tokenizer word and without --fold"
        )
    numbers = count(params)
    if 3 * numbers > MOST_BYTES:  # three of a number's four bytes are noise: no need to try
        raise ValueError(too_large(numbers, 4 * numbers))
    template = files(__package__).joinpath("page.html").read_text("utf-8")
    parts = {
        "NAME": escape(name),
        "PARAMETERS": f"{numbers:,}",
        "STYLE": source("page.css"),
        "MODEL": as_json(contents(params, config, tokenizer)),
        "SCRIPTS": "\n".join(map(source, SCRIPTS)),
    }
    for mark, text in parts.items():
        template = template.replace(f"[[{mark}]]", text)
    made = template.encode()
    if len(made) > MOST_BYTES:
        raise ValueError(too_large(numbers, len(made)))
    return made


def too_large(numbers: int, size: int) -> str:
    least, most = f"{size / 1e6:.1f} MB", f"{MOST_BYTES / 1e6:.1f} MB"
    return (
        f"a page of {numbers:,} parameters would have {least}, and may have {most}: take a model "
        "of 330,000 or fewer, as the preset tiny or the run shapes"
    )


def contents(params: dict, config: Config, tokenizer: AnyTokenizer) -> dict:
    """What the scripts know of the model, ready for JSON."""
    flat = flatten(params)
    things = {name: getattr(shapes, name.upper()) for name in ("colours", "shapes", "sizes")}
    known = config.data == "shapes"
    return {
        "config": config.to_dict() | {"init": "", "data": "shapes" if known else "", "image_root": ""},
        "pieces": [piece.decode(errors="replace").strip() for piece in tokenizer.pieces()],
        "shapes": {name: list(leaf.shape) for name, leaf in flat.items()},
        "numbers": packed(np.concatenate([np.ravel(leaf) for leaf in flat.values()])),
        "drawing": things,
        "sentences": SENTENCES if known else (),
    }


def packed(numbers: np.ndarray) -> str:
    """Numbers as float32, bit for bit, in base64 of zlib of their bytes in planes.

    Turned left by a bit, a number has its sign last and all of its exponent in one byte. Exponents
    of weights are alike, so their plane shrinks to a third; the other bytes are noise.
    """
    bits = numbers.astype("<f4").view("<u4")
    planes = (bits << 1 | bits >> 31).view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()


def as_json(fields: dict) -> str:
    """JSON that cannot end the element of HTML that it stands in."""
    return json.dumps(fields, separators=(",", ":")).replace("<", "\\u003c")


def source(name: str) -> str:
    """One of the files beside this one."""
    return files(__package__).joinpath(name).read_text("utf-8")
