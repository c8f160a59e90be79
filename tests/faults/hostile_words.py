"""Seeded hostile configs and tokenizers, by the hundred."""

import json
import random

from minicoca.config import Config
from minicoca.tokenizer import MODEL_TYPES, Tokenizer

VALUES = (
    None, True, False, 10**400, -(10**400), 10**19, 10**6 + 1, -1, 0, 1e308, -1e308, 4093,
    float("nan"), float("inf"), -float("inf"), "", "x" * 9999, "\ud800", "a\0b", "7", [], [1], [[]],
    [[[[]]]] * 3, ["\udcff"] * 3, [1e999] * 3, [0.5] * 1000, {}, {"a": {}}, {"x": [None]},
)  # fmt: skip
NAMES = ("", "x" * 9999, "image_sise", "\ud800", "preset ", "__class__", "of", "sha256", "minicoca")
CAPTIONS = ["a red circle", "the large blue square", "ein Café", "Ａ ﬁ 语"] * 5
MODELS = [
    Tokenizer.train(CAPTIONS, 60, kind, fold).serialised()
    for kind in MODEL_TYPES
    for fold in (False, True)
]


def settings(seed):
    """Fields of a config, some of them spoilt."""
    draw = random.Random(seed)
    fields = Config().to_dict()
    for _ in range(draw.choice((1, 1, 1, 3, 10))):
        fields[draw.choice((*fields, *NAMES))] = draw.choice(VALUES)
    return fields


def config_bytes(seed):
    """What stands in a hostile config.json."""
    draw, text = random.Random(seed), json.dumps(settings(seed))
    ways = (
        lambda: text.encode(),
        lambda: text[: draw.randrange(len(text))].encode(),
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: text.encode("utf-16"),
        lambda: text.encode().replace(b"shapes", b"\xff\xfe"),
        lambda: (text[:-1] + ', "steps": 3, "steps": null}').encode(),
        lambda: b"[" * draw.choice((10, 900, 100_000)),
        lambda: ('{"minicoca": 2, "sha256": "", "seed": ' + "[" * 800 + "]" * 800 + "}").encode(),
        lambda: ('{"seed": ' + "9" * draw.choice((30, 5000)) + "}").encode(),
        lambda: draw.choice((b"", b"null", b"[]", b"3", b'"x"', b"{}", b"\0" * 1000)),
    )
    return draw.choice(ways)()


def model_bytes(seed):
    """What stands in a hostile tokenizer.model."""
    draw = random.Random(seed)
    data = bytearray(draw.choice(MODELS))
    place = draw.randrange(len(data))
    if draw.random() < 0.5:  # among the pieces, or in the settings behind them
        place = draw.randrange(min(len(data), 1200))
    ways = (
        lambda: data[:place],
        lambda: data[:place] + data[place + draw.choice((1, 4, 1000)) :],
        lambda: data[:place] + draw.randbytes(draw.choice((1, 4, 1000))) + data[place:],
        lambda: data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :],
        lambda: data[:place] + draw.randbytes(len(data[place : place + 64])) + data[place + 64 :],
        lambda: data + data,
        lambda: draw.randbytes(place),
        lambda: draw.choice((b"", b"\0" * 1000, b"\xff" * 1000, b'{"model": {}}')),
    )
    return bytes(draw.choice(ways)())
