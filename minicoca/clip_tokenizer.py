"""CLIP's byte-pair tokenizer behind the same interface, for weights that know its words.

CLIP's pad is the id of "!" too. Here the four ids that stand for no text come first, as everywhere
in minicoca, and CLIP's piece i has id i + 4: a "!" is text then, wherever it stands.
"""

from __future__ import annotations

import gzip
import heapq
import html
import html.entities
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from .config import END, PAD, START
from .files import read_bytes, sealed, unsealed
from .tokenizer import AnyTokenizer, Tokenizer
from .words import composed

SPECIAL = 4  # ids that stand for no text
PIECES = 512  # the bytes, inside a word and at its end
END_OF_WORD = "</w>"
MERGES = 48_894  # of CLIP's vocabulary; its published file has more, which nothing uses
MOST_BYTES = 2**26  # of a file of merges
MOST_ROUNDS = 64  # of undoing what was escaped more than once
CACHED = 2**16  # words
LONG = 64  # bytes of a word that is not worth keeping

ESCAPE = re.compile(r"\x1b\[[0-9;]*[a-zA-Z]")  # a terminal's colours
ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
ENDING = re.compile(r"'(?:s|t|re|ve|m|ll|d)", re.IGNORECASE)
RUN = re.compile("L+|N|O+")  # letters, one digit, anything else
ODD = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")
QUOTES = str.maketrans("\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", "'''''\"\"\"\"")
LIGATURES = "\u0132\u0133\u0149\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06"
DIGRAPHS = "\u01c4\u01c5\u01c6\u01c7\u01c8\u01c9\u01ca\u01cb\u01cc\u01f1\u01f2\u01f3"
PLAIN = re.compile("[ -%'-~]*")  # text that no step of `tidy` changes


def byte_letters() -> list[str]:
    """The letter that stands for each byte, in the order of CLIP's ids: bytes that can be seen come
    first and stand for themselves, the others for letters from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, seen), *(chr(256 + n) for n in range(256 - len(seen)))]


def byte_order() -> list[int]:
    """The bytes in the order of `byte_letters`."""
    seen = [ord(letter) for letter in byte_letters() if ord(letter) < 256]
    return seen + sorted(set(range(256)) - set(seen))


class ClipTokenizer(AnyTokenizer):
    """Byte pairs in the order of a list of merges."""

    def __init__(self, merges: Iterable[str]) -> None:
        """merges: "left right", the first of the list first; "</w>" ends what ends a word.

        Raises ValueError where one joins what is no piece yet, or what is one already.
        """
        letters = byte_letters()
        pieces = letters + [letter + END_OF_WORD for letter in letters]
        ids, self._ranks = {piece: i for i, piece in enumerate(pieces)}, {}
        self.merges = list(merges)
        for number, merge in enumerate(self.merges, 1):
            parts = merge.split(" ") if isinstance(merge, str) else ()
            if len(parts) != 2 or not all(part in ids for part in parts):
                raise ValueError(f"merge {number}, {str(merge)[:60]!r}, is not of two known pieces")
            piece = "".join(parts)
            if piece in ids:
                raise ValueError(f"merge {number}, {merge[:60]!r}, makes a piece that was there")
            ids[piece] = len(pieces)
            self._ranks[ids[parts[0]], ids[parts[1]]] = len(pieces)
            pieces.append(piece)
        byte_of = dict(zip(letters, byte_order(), strict=True))
        self._first = {byte: ids[letter] for letter, byte in byte_of.items()}
        self._bytes = [
            bytes(byte_of[letter] for letter in piece.removesuffix(END_OF_WORD))
            + b" " * piece.endswith(END_OF_WORD)
            for piece in pieces
        ]
        self._pieces_of = lru_cache(CACHED)(self._cut)

    @classmethod
    def of(cls, model: bytes) -> ClipTokenizer:
        """What `serialised` gave. Raises ValueError if it is no such thing, or damaged."""
        if len(model) > MOST_BYTES:
            raise ValueError(f"{len(model):,} bytes are no tokenizer's; at most {MOST_BYTES:,} are")
        try:
            fields, was_sealed = unsealed(json.loads(model.decode()), "the tokenizer")
        except RecursionError as error:
            raise ValueError("this is no tokenizer of ours, or it is damaged") from error
        merges = fields.get("merges")
        if not was_sealed or fields.get("kind") != "clip" or not isinstance(merges, list):
            raise ValueError("this is no tokenizer of ours, or it is damaged")
        return cls(merges)

    def serialised(self) -> bytes:
        return json.dumps(sealed({"kind": "clip", "merges": self.merges})).encode()

    @property
    def vocab_size(self) -> int:
        return SPECIAL + len(self._bytes)

    @property
    def folds(self) -> bool:
        return True

    def normalise(self, text: str) -> str:
        """In lower case, with a space between all that is cut apart."""
        return self._joined(self._split([text])[0])

    def unseen(self, text: str) -> list[str]:
        """Nothing: what is no piece is spelled in bytes."""
        return []

    def pieces(self) -> list[bytes]:
        return [b""] * SPECIAL + self._bytes

    def encode(self, captions: Sequence[str], length: int) -> np.ndarray:
        """As every tokenizer, with a column of padding where there is room: the mask that
        open_clip's weights were trained with lets CLS see one, so no row may depend on whether
        another row of its batch was longer."""
        ids = super().encode(captions, length)
        return np.pad(ids, ((0, 0), (0, int(ids.shape[1] < length))), constant_values=PAD)

    def theirs(self, ids: np.ndarray) -> np.ndarray:
        """Our ids as open_clip writes them; unknown, which is never written, as their pad."""
        return theirs(self.vocab_size)[ids]

    def _split(self, captions: Sequence[str]) -> list[list[int]]:
        if isinstance(captions, str):
            raise TypeError("captions is a sequence of strings, not a string")
        words = (words_of(tidy(text)) for text in captions)
        return [[SPECIAL + id for word in own for id in self._ids(word)] for own in words]

    def _joined(self, ids: list[int]) -> str:
        kept = b"".join(self._bytes[id - SPECIAL] for id in ids if id >= SPECIAL)
        return " ".join(kept.decode(errors="replace").split())

    def _ids(self, word: str) -> Sequence[int]:
        content = word.encode()
        return self._pieces_of(content) if len(content) <= LONG else self._cut(content)

    def _cut(self, word: bytes) -> Sequence[int]:
        """Pieces of a word: of all neighbours that make a piece the earliest merge is made first,
        from the left, until there are none."""
        ids: list[int] = [self._first[byte] for byte in word]
        ids[-1] += PIECES // 2
        after, before = [*range(1, len(ids)), -1], [*range(-1, len(ids) - 1)]
        found: list[tuple[int, int, int, int]] = []

        def look(i: int) -> None:
            if i >= 0 and after[i] >= 0:
                pair = ids[i], ids[after[i]]
                if pair in self._ranks:
                    heapq.heappush(found, (self._ranks[pair], i, *pair))

        for i in range(len(ids)):
            look(i)
        while found:
            made, i, left, right = heapq.heappop(found)
            j = after[i]
            if ids[i] != left or j < 0 or ids[j] != right:
                continue  # one of the two has become another piece
            ids[i], ids[j], after[i] = made, -1, after[j]
            if after[j] >= 0:
                before[after[j]] = i
            look(before[i])
            look(i)
        return tuple(id for id in ids if id >= 0)


def theirs(vocabulary: int) -> np.ndarray:
    """Which of open_clip's ids each of ours is, int64 [vocabulary]: pad and unknown are their 0."""
    count = vocabulary - SPECIAL
    ids = np.arange(-SPECIAL, count)
    ids[[PAD, START, END, SPECIAL - 1]] = 0, count, count + 1, 0
    return ids


def tokenizer_of(model: bytes) -> AnyTokenizer:
    """The tokenizer that a file of ours holds, of whichever kind. Raises ValueError."""
    return ClipTokenizer.of(model) if model[:1] == b"{" else Tokenizer(model)


def read_merges(path: Path) -> list[str]:
    """The merges of a file as people have it: merges.txt, tokenizer.json, or open_clip_torch's
    bpe_simple_vocab_16e6.txt.gz. Raises ValueError, naming the file."""
    content = read_bytes(path)
    try:
        if content[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"over {MOST_BYTES:,} bytes")
        text = content.decode()
        if text.lstrip()[:1] == "{":
            model = json.loads(text)["model"]
            pairs = model["merges"]
            return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    except (ValueError, OSError, EOFError, zlib.error, LookupError, TypeError, RecursionError) as e:
        reason = str(e)[:100] or type(e).__name__
        raise ValueError(f"{path}: no merges.txt, and no tokenizer.json ({reason})") from e
    lines = text.split("\n")
    begins = lines[0].startswith(("#version", '"bpe_simple_vocab'))  # a title, of either file
    return [line.rstrip("\r") for line in lines[begins:] if line.strip()]


def tidy(text: str) -> str:
    """A text as CLIP reads it: escapes of HTML undone, plain quotes, ligatures and wide letters
    taken apart, nothing that only a terminal understands, single spaces, lower case.

    What open_clip's tokenizer does, but for one thing: text that was once decoded wrongly ("Ã©" for
    "é") is not guessed at, and stays as it is written.
    """
    if not PLAIN.fullmatch(text):
        parts, escaped = [], True
        for line in re.split("(?<=\n)", text):
            escaped = escaped and "<" not in line  # then it is HTML, whose escapes are meant
            parts.append(_repaired(line, escaped))
        text = html.unescape(html.unescape("".join(parts)))
    return " ".join(text.split()).lower()


def _repaired(text: str, escaped: bool) -> str:
    for _ in range(MOST_ROUNDS):
        before = text
        if escaped and "&" in text:
            text = ENTITY.sub(_character, text)
        text = text.translate(_replaced())
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = composed(ODD.sub("", ESCAPE.sub("", text)))
        if text == before:
            break
    return text


def _character(found: re.Match) -> str:
    """What an escape that is complete stands for, also where all of its name is in capitals."""
    name = found[0]
    if name[1] == "#":
        text = html.unescape(name)
        return name if ";" in text else text
    if name[1:] in html.entities.html5:
        return html.entities.html5[name[1:]]
    lower = name[1:].lower()
    if name[1:] == lower.upper() and lower in html.entities.html5 and html.unescape(name) == name:
        return html.entities.html5[lower].upper()
    return name


@lru_cache(maxsize=1)
def _replaced() -> dict[int, str]:
    """Letters that are other letters: {code point: text}."""
    taken = {ord(c): _apart(c).translate(QUOTES) for c in LIGATURES + DIGRAPHS}
    wide = {n: unicodedata.normalize("NFKC", chr(n)) for n in range(0xFF01, 0xFFF0)}
    controls = {}
    for n in range(0x80, 0xA0):  # of Latin-1, which nobody means
        controls[n] = bytes([n]).decode("windows-1252", "replace").replace("\ufffd", chr(n))
    changed = {n: text.translate(QUOTES) for n, text in (controls | wide).items() if text != chr(n)}
    return {0x3000: " "} | QUOTES | taken | changed


def _apart(letter: str) -> str:
    """The letters of a ligature, by one step of its decomposition."""
    return "".join(chr(int(n, 16)) for n in unicodedata.decomposition(letter).split()[1:])


def words_of(text: str) -> list[str]:
    """What pairs are made inside of: runs of letters, single digits, runs of anything else, and the
    endings of English ('s, 't, ...)."""
    kinds, words, at = "".join(map(_kind, text)), [], 0
    while at < len(text):
        found = ENDING.match(text, at) or RUN.match(kinds, at)
        if found:
            words.append(text[at : found.end()])
        at = found.end() if found else at + 1
    return words


@lru_cache(maxsize=2**14)
def _kind(character: str) -> str:
    kind = unicodedata.category(character)[0]
    if character.isspace() or character == "\u0345":  # in capitals a letter; it belongs to no run
        return " "
    return kind if kind in "LN" else "O"
