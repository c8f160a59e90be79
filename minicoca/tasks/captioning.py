"""Write captions (paper section 4.2.3)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from . import demand_vectors, embed_texts, trained

MOST_BEAMS, MOST_TOP_K, MOST_SEED, MOST_LENGTH = 64, 10**6, 2**64 - 1, 10**6
RERANKED = 5  # captions that are found to rank again where nobody says how many
DIVERSITY = 0.5  # of groups, where nobody says; its authors found 0.2 to 0.8 to serve


def decoding(
    beams: int = 0,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    *,
    min_length: int = 0,
    max_length: int = 0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    length_penalty: float | None = None,
    beam_groups: int | None = None,
    diversity: float | None = None,
    best: int | None = None,
    rerank: bool = False,
    spelt: Callable[[str], str] = str,
) -> dict[str, Any]:
    """How to write captions, as `caption` takes it: by beams, by sampling, or else greedily.

    Raises ValueError for what is out of range or does not go together; `spelt`: of a name, for it.
    """
    limits = {"min_length": min_length, "max_length": max_length}
    for_all = {
        name: _whole(spelt(name), value, MOST_LENGTH)
        for name, value in (limits | {"no_repeat_ngram": no_repeat_ngram}).items()
        if value != 0
    }
    if max_length and for_all.get("min_length", 0) > max_length:
        names = f"{spelt('min_length')} {min_length} and {spelt('max_length')} {max_length}"
        raise ValueError(f"{names} leave no length")
    if repetition_penalty != 1:
        name = "repetition_penalty"
        for_all[name] = _number(spelt(name), repetition_penalty, 0.01, 100)
    by_beams = {"length_penalty": length_penalty, "beam_groups": beam_groups}
    by_beams |= {"diversity": diversity, "best": best, "rerank": rerank or None}
    by_beams = {name: value for name, value in by_beams.items() if value is not None}
    beams = _whole(spelt("beams"), beams, MOST_BEAMS)
    sampling = {
        "top_k": _whole(spelt("top_k"), top_k or 0, MOST_TOP_K),
        "seed": _whole(spelt("seed"), seed or 0, MOST_SEED),
    }
    if temperature is None:
        if top_k is not None or top_p is not None or seed is not None:
            names = f"{spelt('top_k')}, {spelt('top_p')} and {spelt('seed')}"
            raise ValueError(f"{names} are for sampling: give {spelt('temperature')} too")
        return for_all | _by_beams(beams, by_beams, spelt)
    if beams or by_beams:
        name = spelt("beams" if beams else next(iter(by_beams)))
        raise ValueError(f"{name} and {spelt('temperature')} exclude each other")
    _number(spelt("temperature"), temperature, 1e-3, 1e3)
    top_p = 1.0 if top_p is None else top_p
    if not 0 < top_p <= 1:
        raise ValueError(f"{spelt('top_p')} {top_p} is not over 0 and at most 1")
    return for_all | sampling | {"top_p": top_p, "temperature": temperature}


def _by_beams(beams, given, spelt):
    """What is for beam search alone, checked."""
    if "best" in given:
        given["best"] = _whole(spelt("best"), given["best"], MOST_BEAMS, 1)
    if not beams and ("best" in given or "rerank" in given):
        beams = given.get("best", RERANKED)
    if given and not beams:
        name = spelt(next(iter(given)))
        raise ValueError(f"{name} is for beam search: give {spelt('beams')} too")
    if given.get("best", 0) > beams:
        raise ValueError(f"{spelt('best')} {given['best']} needs as many {spelt('beams')}")
    if "length_penalty" in given:
        _number(spelt("length_penalty"), given["length_penalty"], -10, 10)
    groups = 1
    if "beam_groups" in given:
        groups = _whole(spelt("beam_groups"), given["beam_groups"], MOST_BEAMS, 1)
        given["beam_groups"] = groups
        if beams % groups:
            names = f"{spelt('beams')} {beams}, {spelt('beam_groups')} {groups}"
            raise ValueError(f"{names}: every group has as many beams as another")
    if groups > 1:
        given.setdefault("diversity", DIVERSITY)
        _number(spelt("diversity"), given["diversity"], 0, 1000)
    elif "diversity" in given:
        raise ValueError(f"{spelt('diversity')} is of groups: give {spelt('beam_groups')} too")
    return {"beams": beams} | given if beams else {}


def _whole(name, value, most, least=0):
    try:
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} {value!r} is not a whole number") from None
    if not least <= value <= most:
        raise ValueError(f"{name} {value} is not from {least} to {most:,}")
    return value


def _number(name, value, least, most):
    try:
        inside = least <= value <= most
    except TypeError:
        raise ValueError(f"{name} {value!r} is not a number") from None
    if not inside:
        raise ValueError(f"{name} {value} is not from {least:g} to {most:g}")
    return value


class Candidate(NamedTuple):
    """One caption of several.

    score: its log probability over (its tokens, the end too) ** length_penalty, so per token where
        nothing else is asked for; of what may be written, so that a control that forbids tokens
        makes the others likelier. Tokens of the prompt are given, and do not count.
    cosine: of the image's vector and the caption's, where captions were ranked by it.
    """

    caption: str
    score: float
    cosine: float | None = None


def caption(model, tokenizer, images: np.ndarray, prompt: str = "", **how) -> list[str]:
    """One caption for each image. `how`: as `decoding` gives it.

    A prompt is the beginning of every caption, letter for letter. Raises ValueError if it holds
    what the model never saw or leaves no room for more, and for a model that was not trained to
    caption.
    """
    if "best" in how or "rerank" in how:
        return [own[0].caption for own in candidates(model, tokenizer, images, prompt, **how)]
    ids, known = _beginning(model, tokenizer, images, prompt, how)
    rows = model.generate(images, ids, **how)
    return [_joined(prompt, tokenizer.decode(row)[known:]) for row in rows]


def candidates(
    model, tokenizer, images: np.ndarray, prompt: str = "", *, best: int | None = None,
    rerank: bool = False, **how
) -> list[list[Candidate]]:  # fmt: skip
    """The `best` captions that beams find for each image, of different texts, the likeliest first,
    or, to `rerank`, those first whose vectors are the nearest to the image's. Fewer where the
    search finds fewer. Raises ValueError as `caption`, and to rerank for a model that was not
    trained to match images and texts.
    """
    if rerank:
        demand_vectors(model)
    ids, known = _beginning(model, tokenizer, images, prompt, how)
    found = []
    for rows in model.beam_search(images, ids, **how):
        texts = {}
        for row, score in rows:
            texts.setdefault(_joined(prompt, tokenizer.decode(row)[known:]), float(score))
        found.append([Candidate(text, score) for text, score in texts.items()])
    if rerank and found:
        vectors = embed_texts(model, tokenizer, [one.caption for own in found for one in own])
        ends = np.cumsum([len(own) for own in found])[:-1]
        pairs = zip(model.embed_images(images), np.split(vectors, ends), strict=True)
        for own, (image, texts) in zip(found, pairs, strict=True):
            own[:] = [c._replace(cosine=float(x)) for c, x in zip(own, texts @ image, strict=True)]
            own.sort(key=lambda one: -one.cosine)
    return [own[:best] for own in found]


def _beginning(model, tokenizer, images, prompt, how):
    """(the prompt's ids, how many letters of text they are). Raises ValueError as `caption`."""
    (demand_language if np.shape(images)[1:2] == (0,) else demand_captions)(model)
    if unseen := tokenizer.unseen(prompt):
        raise ValueError(
            f"the prompt {prompt!r} holds {', '.join(map(repr, unseen[:5]))}, which this model "
            "never saw and cannot go on from; leave it out"
        )
    length, ids = model.config.text_length, tokenizer.beginning(prompt)
    if len(ids) > length - 1:
        raise ValueError(f"the prompt has {len(ids) - 1} tokens; at most {length - 2} leave room")
    if (least := how.get("min_length", 0)) > length - len(ids):
        limit = f"with this prompt the model writes at most {length - len(ids)}"
        raise ValueError(f"a least length of {least} tokens is too much: {limit}")
    return tuple(ids), len(tokenizer.decode(ids))


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
) -> Iterator[tuple[list, list[str] | list[list[Candidate]]]]:
    """(what, captions) of each batch (what, images), as of one batch of all: where it samples,
    every image draws from a stream of its own, after those of `first` that came before. Where `how`
    asks for the `best` or to `rerank`, what `candidates` gives."""
    done, write = first, candidates if "best" in how or "rerank" in how else caption
    for what, images in batches:
        if "seed" in how:
            how["first_stream"] = done
        yield what, write(model, tokenizer, images, prompt, **how)
        done += len(images)


def no_images(count: int) -> np.ndarray:
    """So many images without a pixel, which is what a language model of captions sees."""
    return np.zeros((count, 0, 0, 3), np.uint8)


def demand_language(model) -> None:
    """Raises ValueError for a model that is no language model of captions."""
    if not model.config.continues:
        raise ValueError(
            "this model writes of pictures, if at all: minicoca caption; what writes of none comes "
            "from: minicoca train --objective gpt"
        )


def demand_captions(model) -> None:
    """Raises ValueError for a model that was not trained to caption."""
    if model.config.task != "captions":
        raise ValueError("this model was trained to answer questions, not to caption: minicoca ask")
    if not model.config.writes:
        more = ", but write without a picture: minicoca write" if model.config.continues else ""
        raise ValueError(f"{trained(model.config, 'caption')}: it cannot caption{more}")
