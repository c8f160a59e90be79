"""What a report shows of one split: captions, mistakes, similarities, confusions, word maps."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from .drawing import FAINT, faded, heat, matrix, png
from .tables import table

LEAST = 1e-3  # of a rival's probability, to be shown


def section(told: Sequence, name: str) -> str:
    """Kind after kind, with the runs side by side."""
    parts = []
    for heading, show in KINDS.items():
        found = [show(one.looks[name]) if name in one.looks else "" for one in told]
        if not any(found):
            continue
        if len(told) == 1:
            parts.append(f"<h3>{heading}</h3>{found[0]}")
            continue
        sides = "".join(
            f"<div><h4>{escape(one.name)}</h4>{html or '<p>nothing of this kind</p>'}</div>"
            for one, html in zip(told, found, strict=True)
        )
        parts.append(f'<h3>{heading}</h3><div class="sides">{sides}</div>')
    return "".join(parts)


def picture(looks, place: int, truth: str) -> str:
    return f'<img src="{png(looks.pictures[place])}" alt="picture {place + 1}: {escape(truth)}">'


def verdict(one) -> str:
    """What was written, and where it is wrong the truth."""
    mark = "right" if one.right else "wrong"
    said = f'<b class="{mark}">{mark}</b> {escape(one.caption) or "<i>nothing</i>"}'
    return said if one.right else f'{said} <span class="truth">truth: {escape(one.truth)}</span>'


def captions(looks) -> str:
    """The first pictures, with what was written of them."""
    if not looks.said:
        return ""
    right = sum(one.right for one in looks.said)
    items = "".join(
        f"<li>{picture(looks, one.place, one.truth)}<span>{verdict(one)}</span></li>"
        for one in looks.first
    )
    said = f"{right:,} of {looks.images:,} are right, word for word. The first {len(looks.first)}:"
    if looks.asked:
        said = (
            f"{right:,} of {looks.images:,} questions got an answer that somebody gave. The first "
        )
        said += f"{len(looks.first)}:"
    return f'<p>{said}</p><ul class="pictures">{items}</ul>'


def worst(looks) -> str:
    """Those pictures whose truth the model finds the least likely."""
    if not looks.said:
        return ""
    what, kind = ("log p", "answer") if looks.asked else ("log p per token", "caption")
    items = "".join(
        f"<li>{picture(looks, one.place, one.truth)}<span>{verdict(one)} "
        f"<small>{what}: of the truth {one.log_truth:.3f}"
        + ("" if one.right else f", of the {kind} {one.log_caption:.3f}")
        + "</small></span></li>"
        for one in looks.worst
    )
    said = f"Of all {looks.images:,} those whose truth the model finds the least likely"
    said += (
        ":" if not all(one.right for one in looks.worst) else "; even so, what it wrote is right:"
    )
    return f'<p>{said}</p><ul class="pictures">{items}</ul>'


def similarity(looks) -> str:
    """Cosines of the first pictures and their texts."""
    if looks.cosines is None:
        return ""
    n = len(looks.cosines)
    own = np.diag(looks.cosines)
    others = looks.cosines[~np.eye(n, dtype=bool)]
    first = int((own >= looks.cosines.max(1)).sum())
    said = f"Of {first} of {n} pictures their own text is the nearest; the mean cosine is "
    said += f"{own.mean():.2f} with their own" + (
        f" and {others.mean():.2f} with other texts." if len(others) else "."
    )
    drawn = matrix(looks.cosines, looks.texts, [png(looks.pictures[i]) for i in range(n)], said)
    items = "".join(f"<li>{escape(text)}</li>" for text in looks.texts)
    return (
        f"<p>{said} Rows are pictures, columns the texts of the same pictures in the same order; "
        f"the stronger a cell, the further from 0 the cosine, and red is below.</p>{drawn}"
        f"<details><summary>The {n} texts</summary><ol>{items}</ol></details>"
    )


def retrieval(looks) -> str:
    """Queries that found something wrong first."""
    parts = []
    for way, (missed, many, queries) in looks.missed.items():
        asks = "pictures" if way == "image_to_text" else "texts"
        wrong = "text" if way == "image_to_text" else "picture"
        if not many:
            parts.append(f"<p>All {queries:,} {asks} found their own first.</p>")
            continue
        rows = []
        for one in missed:
            right = picture(looks, one.image, one.text)
            if way == "image_to_text":
                row = [right, escape(one.taken), escape(one.text)]
            else:
                row = [escape(one.text), picture(looks, one.taken, "taken for it"), right]
            rows.append([*row, f"{one.rank:,}"])
        count = f"{many:,} of {queries:,} {asks} found a wrong {wrong} first"
        if many > len(missed):
            count += f"; the {len(missed)} worst"
        parts.append(table(["asked", "found first", "the right one", "its rank"], rows, count))
    if parts:
        parts.append(f"<p>Among {looks.gallery:,} pictures at a time, with all their texts.</p>")
    return "".join(parts)


def classes(looks) -> str:
    """The classes that are taken for others the most often."""
    if not looks.classified:
        return ""
    said = f"{looks.mistaken:,} of {looks.classified:,} pictures are taken for another class"
    if not looks.confused:
        return f"<p>{said}.</p>"
    rows = [
        [
            escape(one.truth),
            escape(one.taken),
            f"{one.times:,} of {one.images:,}",
            picture(looks, one.place, one.truth),
        ]
        for one in looks.confused
    ]
    shown = sum(one.times for one in looks.confused)
    if shown < looks.mistaken:
        said += f"; the most frequent pairs, {shown:,} of them"
    return table(["class", "taken for", "times", "one of them"], rows, said)


def words(looks) -> str:
    """Where each word of a caption looked, and what it hangs on."""
    parts = []
    for place, found in looks.explained.items():
        shown = looks.pictures[place]
        items = "".join(word_of(word) for word in found.words)
        parts.append(
            f'<div class="explained">{picture(looks, place, looks.said[place].truth)}'
            f"<p>{verdict(looks.said[place])}</p></div>"
            f'<ol class="words" style="--picture: url({png(faded(shown))})">{items}</ol>'
        )
    if not parts:
        return ""
    return (
        "<p>Under each word how likely it was, what it read of the picture (red), what it would "
        "miss if that patch were grey (red; blue: it would be likelier), and its rivals.</p>"
        + "".join(parts)
    )


def word_of(word) -> str:
    others = "".join(
        f"<small>{escape(text) or '(end)'} {p:.1%}</small>" for text, p in word.rivals if p >= LEAST
    )
    read = map_of(heat(word.attention), f"read most: {place_of(word.attention)}")
    missed = map_of(heat(word.occlusion, FAINT), f"would miss most: {place_of(word.occlusion)}")
    maps = read + missed
    return (
        f"<li><b>{escape(word.text) or '(end)'}</b><i>{word.probability:.1%}</i>{maps}{others}</li>"
    )


def map_of(pixels: np.ndarray, said: str) -> str:
    return f'<span class="map"><img src="{png(pixels)}" alt="{said}"></span>'


def place_of(grid: np.ndarray) -> str:
    row, column = np.unravel_index(grid.argmax(), grid.shape)
    return f"row {row + 1}, column {column + 1}"


KINDS = {
    "What it says": captions,
    "The worst mistakes": worst,
    "Similarity": similarity,
    "Retrieval": retrieval,
    "Classes": classes,
    "Word by word": words,
}
