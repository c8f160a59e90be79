"""Does a model read the order of words? A true sentence against one of the same words that is not
(as in Winoground: Thrush et al. 2022, and ARO: Yuksekgonul et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from .scoring import scores

# Kinds of exchange, each of pairs of words that stand for each other.
EXCHANGES = {
    "left_right": (("left", "right"),),
    "above_below": (("above", "below"), ("top", "bottom")),
}
COLOURS = (
    "red orange yellow green blue purple pink black white brown grey gray violet golden silver"
)
COLOUR = re.compile(rf"\b({COLOURS.replace(' ', '|')})\b")
RELATION = re.compile(
    r"^(.+?) ((?:(?:is|are) )?(?:(?:(?:to|on|at) the )?(?:left|right)(?: side)? of"
    r"|above|below|over|under)) (.+?)([.!]?)$"
)
# A sentence whose beginning ends so is of another form than "one thing left of another".
BESIDE = re.compile(r".*\b(on|to|at|in|of|the|is|are|was|and|from|just|far|directly)$")
KINDS = (*EXCHANGES, "colours", "things")
HEADS = ("cosine", "likelihood", "pmi")


def exchanged(text: str) -> dict[str, str]:
    """Sentences with the words of `text` in other places, by kind of exchange; of each kind one at
    most, and none that is the text itself.

    left_right, above_below: these words (top and bottom too), wherever they stand. colours: the
    first two that are named, wherever they stand. things: what stands on either side of "left of",
    "right of", "above" or "below", in a sentence that has one of them and says nothing else.
    """
    found = {}
    for kind, pairs in EXCHANGES.items():
        found[kind] = _swap(text, {a: b for pair in pairs for a, b in (pair, pair[::-1])})
    first = list(dict.fromkeys(COLOUR.findall(text)))[:2]
    if len(first) == 2:
        found["colours"] = _swap(text, dict(zip(first, first[::-1], strict=True)))
    relation = RELATION.match(text)
    sides = relation.group(1, 3) if relation else ()
    if relation and not BESIDE.match(sides[0]) and not any(map(RELATION.match, sides)):
        one, between, other, end = relation.groups()
        found["things"] = f"{other} {between} {one}{end}"
    return {kind: other for kind, other in found.items() if other != text}


def _swap(text: str, words: Mapping[str, str]) -> str:
    return re.sub(rf"\b({'|'.join(words)})\b", lambda word: words[word[0]], text)


def preferences(
    model, tokenizer, images: np.ndarray, captions: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Whether the true sentence scores more than the exchanged one: {"KIND_HEAD": int64 [2, trials]
    of 1 or 0 and the image}, a trial being a caption of an image and an exchange that is none.

    Heads: the cosine; log p(text | image) per token; and pmi, without which a sentence may win for
    being more usual, whatever the image shows. A tie is no preference.
    """
    found: dict[str, list[tuple[bool, int]]] = {}
    for i, own in enumerate(captions):
        trials = [(text, *trial) for text in own for trial in exchanged(text).items()]
        trials = [trial for trial in trials if trial[2] not in own]
        if not trials:
            continue
        texts = list(dict.fromkeys(text for true, _, wrong in trials for text in (true, wrong)))
        place = {text: at for at, text in enumerate(texts)}
        scored = scores(model, tokenizer, [(None, images[i : i + 1])], texts)
        for head, values in zip(HEADS, (scored.cosines, scored.per_token, scored.pmi), strict=True):
            for true, kind, wrong in trials if values is not None else ():
                won = bool(values[0, place[true]] > values[0, place[wrong]])
                found.setdefault(f"{kind}_{head}", []).append((won, i))
    return {name: np.array(rows, np.int64).T for name, rows in found.items()}
