"""Write captions (paper section 4.2.3)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

MOST_BEAMS, MOST_TOP_K, MOST_SEED = 64, 10**6, 2**64 - 1


def decoding(
    beams: int = 0,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    *,
    spelt: Callable[[str], str] = str,
) -> dict[str, Any]:
    """How to write captions, as `caption` takes it: by beams, by sampling, or else greedily.

    Raises ValueError for what is out of range or does not go together; `spelt`: of a name, for it.
    """
    whole = {"beams": beams, "top_k": top_k or 0, "seed": seed or 0}
    for name, most in (("beams", MOST_BEAMS), ("top_k", MOST_TOP_K), ("seed", MOST_SEED)):
        try:
            whole[name] = operator.index(whole[name])
        except TypeError:
            raise ValueError(f"{spelt(name)} {whole[name]!r} is not a whole number") from None
        if not 0 <= whole[name] <= most:
            raise ValueError(f"{spelt(name)} {whole[name]} is not from 0 to {most:,}")
    beams = whole.pop("beams")
    if temperature is None:
        if top_k is not None or top_p is not None or seed is not None:
            names = f"{spelt('top_k')}, {spelt('top_p')} and {spelt('seed')}"
            raise ValueError(f"{names} are for sampling: give {spelt('temperature')} too")
        return {"beams": beams} if beams else {}
    if beams:
        raise ValueError(f"{spelt('beams')} and {spelt('temperature')} exclude each other")
    if not 1e-3 <= temperature <= 1e3:
        raise ValueError(f"{spelt('temperature')} {temperature} is not from 0.001 to 1000")
    top_p = 1.0 if top_p is None else top_p
    if not 0 < top_p <= 1:
        raise ValueError(f"{spelt('top_p')} {top_p} is not over 0 and at most 1")
    return whole | {"top_p": top_p, "temperature": temperature}


def caption(model, tokenizer, images: np.ndarray, prompt: str = "", **how) -> list[str]:
    """One caption for each image. `how`: as `decoding` gives it.

    A prompt is the beginning of every caption, letter for letter. Raises ValueError if it holds
    what the model never saw or leaves no room for more, and for a model that was not trained to
    caption.
    """
    demand_captions(model)
    if unseen := tokenizer.unseen(prompt):
        raise ValueError(
            f"the prompt {prompt!r} holds {', '.join(map(repr, unseen[:5]))}, which this model "
            "never saw and cannot go on from; leave it out"
        )
    length, ids = model.config.text_length, tokenizer.beginning(prompt)
    if len(ids) > length - 1:
        raise ValueError(f"the prompt has {len(ids) - 1} tokens; at most {length - 2} leave room")
    known = len(tokenizer.decode(ids))
    rows = model.generate(images, tuple(ids), **how)
    return [_joined(prompt, tokenizer.decode(row)[known:]) for row in rows]


def _joined(prompt, rest):
    return prompt + (rest.lstrip() if prompt[-1:].isspace() else rest)


def captions(
    model,
    tokenizer,
    batches: Iterable[tuple[list, np.ndarray]],
    prompt: str = "",
    *,
    first: int = 0,
    **how,
) -> Iterator[tuple[list, list[str]]]:
    """(what, captions) of each batch (what, images), as of one batch of all: where it samples,
    every image draws from a stream of its own, after those of `first` that came before."""
    done = first
    for what, images in batches:
        if "seed" in how:
            how["first_stream"] = done
        yield what, caption(model, tokenizer, images, prompt, **how)
        done += len(images)


def demand_captions(model) -> None:
    """Raises ValueError for a model that was not trained to caption."""
    if not model.config.caption_weight:
        raise ValueError("this model was trained with caption_weight 0: it cannot caption")
