"""Captions to token ids and back: what every tokenizer does, and SentencePiece as in the paper.
(CLIP's byte pairs, which imported weights know, are in clip_tokenizer.py.)

Four ids stand for no text at all, whatever a caption says: pad, start, end and unknown (the last
is what a word or character that training did not see becomes). The text embedding's CLS is a
learned vector of the model and has no id here.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from .config import END, PAD, START, UNKNOWN
from .files import read_bytes, write_atomically
from .words import clean

MODEL_TYPES = ("word", "bpe", "unigram")
MOST_LETTERS = 1900  # of a caption that is learned from: "unigram" takes their square where it
# repeats itself, and no model holds a piece of over 8 kB
MOST_BYTES = 2**27  # of a model; one of a million pieces has a fifth
MARK = "\u2047"  # what `decode` writes for unknown
# SentencePiece keeps these for itself (a space, an unknown, an end of text, the names of its ids):
# inside it, code points that are no text stand for them.
STAND_INS = str.maketrans("\u2581\u2585\0<", "\ufdd0\ufdd1\ufdd2\ufdd3")
STOOD_FOR = {stand_in: character for character, stand_in in STAND_INS.items()}


class AnyTokenizer(ABC):
    """What the rest of minicoca knows of a tokenizer; a kind of it says how text is cut."""

    pad, start, end, unknown = PAD, START, END, UNKNOWN

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, the four special ones included."""

    @property
    @abstractmethod
    def folds(self) -> bool:
        """Whether case and compatibility letters are folded away before the text is split."""

    @abstractmethod
    def serialised(self) -> bytes:
        """All of it, as `save` writes it and clip_tokenizer.tokenizer_of reads it."""

    @abstractmethod
    def normalise(self, text: str) -> str:
        """The text as the model sees it."""

    @abstractmethod
    def unseen(self, text: str) -> list[str]:
        """What in a text has no piece, each once."""

    @abstractmethod
    def pieces(self) -> list[bytes]:
        """What each id stands for, by id: those of a row, joined, read as UTF-8 and set in single
        spaces, are what `decode` gives. Empty for pad, start and end."""

    @abstractmethod
    def _split(self, captions: Sequence[str]) -> list[list[int]]:
        """The pieces' ids of each text, without start and end. Raises TypeError for one string."""

    @abstractmethod
    def _joined(self, ids: list[int]) -> str:
        """The text of pieces."""

    def save(self, path: str | os.PathLike) -> None:
        """Write it; a reader sees the old file or the new one, never a part of it."""
        write_atomically(path, self.serialised())

    def encode(self, captions: Sequence[str], length: int) -> np.ndarray:
        """Ids, int64 [B, T]: start, pieces, end, then pad. T is the longest row, at most `length`.

        A longer caption loses its last pieces, never its end; `too_long` counts those. Raises
        TypeError for a lone string, and ValueError for a `length` below 2.
        """
        if length < 2:
            raise ValueError(f"length {length} has no room for start and end")
        rows = [[START, *row[: length - 2], END] for row in self._split(captions)]
        ids = np.full((len(rows), max(map(len, rows), default=0)), PAD, np.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        return ids

    def beginning(self, text: str) -> list[int]:
        """Start and the pieces of a text, for a model to go on from."""
        return [START, *self._split([text])[0]]

    def too_long(self, captions: Sequence[str], length: int) -> int:
        """How many of the captions `encode` would cut."""
        return sum(len(row) + 2 > length for row in self._split(captions))

    def unknown_share(self, captions: Sequence[str]) -> float:
        """How many of the captions' pieces the vocabulary does not have, as a part of all."""
        pieces = [piece for row in self._split(captions) for piece in row]
        return pieces.count(UNKNOWN) / max(1, len(pieces))

    def count(self, text: str) -> int:
        """Pieces of a text, without start and end."""
        return len(self._split([text])[0])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of one row [T]: up to the first end, without start and pad.

        Raises ValueError for an id outside the vocabulary.
        """
        kept = []
        for token in map(int, ids):
            if token == END:
                break
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"id {token} is outside the vocabulary of {self.vocab_size}")
            if token not in (PAD, START):
                kept.append(token)
        return self._joined(kept)


class Tokenizer(AnyTokenizer):
    """A trained vocabulary of SentencePiece. Make one with `train` or `load`."""

    def __init__(self, model: bytes) -> None:
        """Wrap a serialised SentencePiece model.

        Raises ValueError if it is none, or one whose special ids are not 0 to 3 as here.
        """
        if len(model) > MOST_BYTES:
            raise ValueError(f"{len(model):,} bytes are no tokenizer's; at most {MOST_BYTES:,} are")
        pieces = self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            pieces.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError, LookupError) as error:
            raise ValueError("this is no SentencePiece model, or it is damaged") from error
        special = (pieces.pad_id(), pieces.bos_id(), pieces.eos_id(), pieces.unk_id())
        if special != (PAD, START, END, UNKNOWN):
            raise ValueError(f"pad, start, end and unknown are {special}, not 0, 1, 2, 3")
        # Of a run from before captions were kept as written, the mark brings spaces.
        self._stands_in = _text(pieces.decode, [UNKNOWN]) == MARK

    @classmethod
    def train(
        cls,
        captions: Iterable[str],
        vocab_size: int,
        model_type: str = "word",
        fold: bool = False,
        coverage: float = 1.0,
        say: Callable[[str], None] | None = None,
    ) -> Tokenizer:
        """Learn a vocabulary of at most `vocab_size` pieces, fewer if the text has no more to give.

        "word" splits at spaces, "bpe" and "unigram" also spell unseen words from known parts.
        Text is taken as `clean` leaves it, here and in `encode` alike; `fold` brings it to lower
        case and Unicode form NFKC too (SentencePiece's nfkc_cf), which `decode` cannot undo.
        `coverage` is the share of all characters that must have a piece; below 1 the rarest become
        unknown. The same captions give the same vocabulary. It is learned from the first
        MOST_LETTERS letters of a caption; `say` hears how many have more.
        Raises ValueError for an unknown type, no text, or too few pieces for the characters.
        """
        if model_type not in MODEL_TYPES:
            raise ValueError(f"no model type {model_type!r}; there are {', '.join(MODEL_TYPES)}")
        model, captions = io.BytesIO(), [clean(text).translate(STAND_INS) for text in captions]
        if say and (long := sum(len(text) > MOST_LETTERS for text in captions)):
            limit = f"{long:,} captions have over {MOST_LETTERS:,} letters"
            say(f"{limit}: the tokenizer learns from their beginnings")
        captions = [_beginning(text) for text in captions]
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(captions),
                model_writer=model,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                model_type=model_type,
                character_coverage=coverage,
                max_sentence_length=4 * MOST_LETTERS,  # bytes; longer ones would be left out
                normalization_rule_name="nfkc_cf" if fold else "identity",
                pad_id=PAD,
                bos_id=START,
                eos_id=END,
                unk_id=UNKNOWN,
                unk_surface=MARK,
                num_threads=1,  # sums in a fixed order
                minloglevel=2,  # errors only, and those are raised
            )
        except RuntimeError as error:
            letters, reason = len(set("".join(captions))), str(error)
            if coverage == 1 and captions and letters > vocab_size - 4:
                reason = f"{letters} different characters do not fit in --vocabulary {vocab_size}"
            raise ValueError(f"cannot train a {model_type} tokenizer: {reason}") from error
        try:
            return cls(model.getvalue())
        except ValueError as error:  # of "word", whose words are what stands between spaces
            what = f"cannot train a {model_type} tokenizer: a word is too long"
            raise ValueError(f"{what}; take --tokenizer unigram") from error

    def with_words(self, texts: Iterable[str]) -> Tokenizer:
        """This vocabulary of words and, with ids after its own, those of the texts that it lacks,
        by alphabet. One that spells words from parts needs no more, and is given back."""
        if not all(piece[:1] == b" " for piece in self.pieces()[UNKNOWN + 1 :]):
            return self
        words = {word for text in texts for word in text.split()}
        new = sorted({part for word in words for part in self.unseen(word)})
        pieces = ("\u2581" + word.translate(STAND_INS) for word in new)
        # A message of protobuf repeated at the end of another is one more of its list: field 1 of
        # the model, whose field 1 is the piece, and its field 2 a score, which words do not use.
        added = [_field(1, piece.encode()) + b"\x15\0\0\0\0" for piece in pieces]
        return Tokenizer(self.serialised() + b"".join(_field(1, each) for each in added))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Tokenizer:
        """Read what `save` wrote. Raises ValueError, naming the file, if it is no such thing."""
        model = read_bytes(Path(path))
        try:
            return cls(model)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def serialised(self) -> bytes:
        """The model as `save` writes it."""
        return self._pieces.serialized_model_proto()

    @property
    def vocab_size(self) -> int:
        """Number of ids, the four special ones included."""
        return self._pieces.vocab_size()

    @property
    def folds(self) -> bool:
        """Whether case and compatibility letters are folded away before the text is split."""
        return _text(self._pieces.normalize, "A").endswith("a")

    def normalise(self, text: str) -> str:
        """The text as the model sees it: as written, in single spaces, or folded if it folds."""
        read = _text(self._pieces.normalize, self._prepared(text))
        return self._plain(read.replace("\u2581", " "))

    def unseen(self, text: str) -> list[str]:
        """What in a text has no piece, each once: words, or letters for "bpe" and "unigram"."""
        pieces = _text(self._pieces.encode_as_pieces, self._prepared(text))
        ids = self._split([text])[0]
        unknown = (piece for piece, id in zip(pieces, ids, strict=True) if id == UNKNOWN)
        parts = " ".join(unknown).replace("\u2581", " ")
        return list(dict.fromkeys(self._plain(parts).split()))

    def pieces(self) -> list[bytes]:
        texts = [self._pieces.id_to_piece(id) for id in range(self.vocab_size)]
        texts[PAD] = texts[START] = texts[END] = ""
        texts[UNKNOWN] = self._pieces.decode([UNKNOWN])
        return [text.replace("\u2581", " ").translate(STOOD_FOR).encode() for text in texts]

    def _joined(self, ids: list[int]) -> str:
        return self._plain(_text(self._pieces.decode, ids))

    def _prepared(self, text: str) -> str:
        return clean(text).translate(STAND_INS if self._stands_in else {})

    def _plain(self, text: str) -> str:
        return " ".join(text.translate(STOOD_FOR).split())

    def _split(self, captions: Sequence[str]) -> list[list[int]]:
        if isinstance(captions, str):
            raise TypeError("captions is a sequence of strings, not a string")
        return self._pieces.encode(list(map(self._prepared, captions)))


def _text(function: Callable, argument: object) -> Any:
    """What SentencePiece gives for an argument, where it is text."""
    try:
        return function(argument)
    except UnicodeDecodeError as error:
        raise ValueError(
            "the tokenizer's file is damaged: it makes bytes that are no text"
        ) from error


def _field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds bytes."""
    length, size = len(content), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def _beginning(text: str) -> str:
    """The first words of a text, those of MOST_LETTERS letters at most."""
    if len(text) <= MOST_LETTERS:
        return text
    return text[: MOST_LETTERS + 1].rpartition(" ")[0] or text[:MOST_LETTERS]
