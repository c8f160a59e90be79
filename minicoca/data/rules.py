"""Which captions and pictures are not worth training on, by rules that need no model.

Numbers are those of who collected pairs from the web, as far as they tell them:

- ALIGN (Jia et al. 2021, section 3): 3 to 20 words, captions of 10 pictures at most; the shorter
  side over 200 pixels, the longer less than 3 times as long.
- LAION-400M (Schuhmann et al. 2021): 5 characters at least.
- Conceptual Captions (Sharma et al. 2018): over 400 pixels, a ratio of 2 at most, and little
  repetition, without a number. Conceptual 12M (Changpinyo et al. 2021): a ratio of 2.5, 3 to 256
  words, a part of 0.2 of them repeated; how that is counted it does not say. As it is here, 0.2
  would drop "a large red ring left of a large red star", so half is the default.
- That half of the characters are letters is ours: "1920x1080" and "IMG_0012" are no captions.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from minicoca.words import words_of


class Rules(NamedTuple):
    """What is kept. 0 asks for nothing."""

    min_words: int = 3
    max_words: int = 20
    min_characters: int = 5
    min_letters: float = 0.5  # part of the characters that are no spaces
    max_repeated: float = 0.5  # part of the words that stand there already
    max_shared: int = 10  # pictures that have the caption
    min_side: int = 200  # pixels, of the shorter side
    max_ratio: float = 3.0  # of the longer side to the shorter

    def against(self, caption: str, shared: int) -> str:
        """Why a caption is dropped, which so many pictures have; empty if it is kept."""
        words = words_of(caption)
        characters = caption.replace(" ", "")
        letters = sum(unicodedata.category(c)[0] in "LM" for c in characters)
        repeated = len(words) - len(set(words))
        if len(words) < self.min_words:
            return f"captions of fewer than {self.min_words} words"
        if self.max_words and len(words) > self.max_words:
            return f"captions of more than {self.max_words} words"
        if len(caption) < self.min_characters:
            return f"captions of fewer than {self.min_characters} characters"
        if letters < self.min_letters * len(characters):
            return f"captions of which less than {self.min_letters:g} are letters"
        if self.max_repeated and repeated > self.max_repeated * len(words):
            return f"captions that repeat more than {self.max_repeated:g} of their words"
        if self.max_shared and shared > self.max_shared:
            return f"captions of more than {self.max_shared} pictures"
        return ""

    def against_size(self, size: tuple[int, int]) -> str:
        """Why a picture of so many pixels is dropped."""
        shorter, longer = sorted(size)
        if shorter < self.min_side:
            return f"pictures whose shorter side is under {self.min_side} pixels"
        if self.max_ratio and longer > self.max_ratio * shorter:
            return f"pictures over {self.max_ratio:g} times as long as wide"
        return ""


def owners(captions: Iterable[Sequence[str]]) -> Mapping[str, int]:
    """How many pictures have each caption, in whatever case; counted before anything is dropped."""
    return Counter(text for own in captions for text in {text.lower() for text in own})
