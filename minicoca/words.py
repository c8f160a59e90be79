"""Text as people write it, in any script: one spelling of it, and its words."""

from __future__ import annotations

import itertools
import re
import unicodedata
from functools import lru_cache

# Letters of these are words by themselves: no spaces stand between words there.
UNSPACED = frozenset(
    "CJK IDEOGRAPHIC HIRAGANA KATAKANA KATAKANA-HIRAGANA THAI LAO KHMER MYANMAR TAI JAVANESE "
    "BALINESE YI".split()
)
SYMBOLS = frozenset("#%&*@/\\§¶†‡‰‱＃％＆＊＠／＼")  # punctuation to Unicode, a word to a reader
JOINED_MARKS = frozenset("ำຳ")  # vowels that Unicode counts as letters, never without one
INSIDE = "'-\u2010\u2011·׳״"  # of a word, between two letters

MOST_MARKS = 256
NO_TEXT = re.compile("[\ud800-\udfff\ufdd0-\ufdef]")

# A word in the kinds of its characters: _kind says what a letter of these stands for.
WORD = re.compile(
    "RR"  # a flag
    "|[SR][ME]*(?:Z[SR][ME]*)*"  # a symbol; an emoji with its skin and what is joined to it
    "|CM*"  # a letter of a script without spaces
    "|[LDM](?:[LDMJZ]*[LDM])?(?:(?:'|(?<=D)[.](?=D))[LD](?:[LDMJZ]*[LDM])?)*"
    "|E"
)


def clip(text: str, most: int = 100) -> str:
    """For a message: on one line, and of one over `most` letters both ends."""
    text = text if len(text) <= 4 * most else f"{text[: 2 * most]}{text[-2 * most :]}"
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[3 - most // 2 :]}"


def clean(text: str) -> str:
    """One way to write what looks the same: Unicode NFC, single spaces, none at the ends.

    Nothing else is changed. Text in which nothing can be seen becomes empty. Halves of surrogate
    pairs and the 32 code points that Unicode keeps for programs' own use are no text, and dropped.
    """
    text = NO_TEXT.sub("", text)
    text = composed(text)
    text = " ".join(text.split())
    return text if any(map(_is_seen, text)) else ""


def composed(text: str) -> str:
    """Unicode NFC. Runs of MOST_MARKS combining marks or more, which no script has, are left as
    they are: the time to sort one is the square of its length."""
    if text.isascii() or len(text) < MOST_MARKS:
        return unicodedata.normalize("NFC", text)
    ends = [end for run in _marks().finditer(text) for end in run.span()]
    parts = [text[i:j] for i, j in itertools.pairwise([0, *ends, len(text)])]
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return "".join(parts)


@lru_cache(maxsize=1)
def _marks() -> re.Pattern:
    marks = filter(unicodedata.combining, map(chr, range(0x300, 0x1F000)))
    return re.compile(f"[{''.join(marks)}]{{{MOST_MARKS},}}")


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, for counting; punctuation is none.

    A word is letters and digits with their marks and joiners, also over an apostrophe, a hyphen
    ("dog's", "t-shirt") or a number's point between them. A letter of a script without spaces
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese, ...) is a word with its marks, and so is every
    symbol (+, #, %) and emoji, however many characters it is made of.
    Of English this is what sacrebleu's 13a tokens are in lower case without the punctuation; the
    tokens of COCO's evaluation are the same but for "dog 's" and "is n't", its two words.
    """
    text = composed(text).lower().translate({0x2019: "'", 0xFF07: "'"})
    kinds = "".join(map(_kind, text))
    return [text[found.start() : found.end()] for found in WORD.finditer(kinds)]


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Zs")


@lru_cache(maxsize=2**14)
def _kind(character: str) -> str:
    """L letter, C letter of a script without spaces, D digit, M mark, J and Z joiners, S symbol,
    R half a flag, E skin of an emoji; ' and . what may stand inside a word; a space: none of it."""
    category, name = unicodedata.category(character), unicodedata.name(character, "")
    if character in INSIDE:
        return "'"
    if character in ".,:٫٬":
        return "."
    if character == "\u200d":
        return "Z"
    if "REGIONAL INDICATOR" in name:
        return "R"
    if "EMOJI MODIFIER" in name:
        return "E"
    if category[0] == "M" or character in JOINED_MARKS or "\U000e0020" <= character <= "\U000e007f":
        return "M"
    if category[0] in "LN" or category == "Pc":
        return "C" if UNSPACED.intersection(name.split()) else "D" if category == "Nd" else "L"
    if category == "Cf" and character != "\u200b":  # which is a space that has no width
        return "J"
    seen = category[0] == "S" or category in ("Cn", "Co") or character in SYMBOLS
    return "S" if seen and character not in "`´" else " "
