"""The figures of the family as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from .measure import LANGUAGE
from .rows import ROWS

SPLITS = {"shapes": ("held_out", "compositional"), "emoji": ("held_out",)}
DOES = {
    "exact": "captions exact",
    "image_to_text": "R@1 image to text",
    "text_to_image": "R@1 text to image",
    "reranked_image_to_text": "re-ranked image to text",
    "reranked_text_to_image": "re-ranked text to image",
    "zero_shot": "zero-shot",
    "nearest": "the most alike drawing's name, by frozen tokens",
}
KNOWS = {
    "probe_colour": "colour", "probe_shape": "shape", "probe_place": "place",
    "answers_held_out": "answers", "answers_compositional": "answers, compositional",
    "answers_exists_compositional": "is it there, compositional",
}  # fmt: skip
KINDS = {
    f"answers_{kind}_{split}": f"{kind}, {split}".removesuffix(", held_out")
    for split in ("held_out", "compositional")
    for kind in ("count", "exists", "colour", "size", "shape", "where")
}
ORDER = {
    "order_things_cosine": "order, by cosine", "order_things_likelihood": "order, by likelihood",
}  # fmt: skip
# By the beginning of a column's name; of shapes.
CHANCE = {
    "image_to_text": 1 / 256, "text_to_image": 1 / 256, "reranked": 1 / 256,
    "zero_shot": 1 / 64, "order": 1 / 2,
    "probe_colour": 1 / 8, "probe_shape": 1 / 8, "probe_place": 1 / 5,
}  # fmt: skip


def tables(found: Sequence[dict[str, Any]], of: str, pace: dict[str, Any]) -> Iterator[str]:
    """The figures as Markdown, a table after the other."""
    does = {
        f"{key}_{split}": _titled(title, split)
        for key, title in DOES.items()
        for split in SPLITS[of]
    }
    for seconds in sorted({own["seconds"] for own in found}):
        here = [own for own in found if own["seconds"] == seconds]
        still = [own for own in found if ROWS[own["row"]].flags is None and own not in here]
        yield f"### {seconds} s of training: what it does\n"
        yield from _table(still + here, does | ORDER, of)
        if of == "shapes":
            yield f"### {seconds} s of training: what its frozen tokens know\n"
            yield from _table(still + here, KNOWS, of)
            told = [own for own in still + here if KINDS.keys() <= own.keys()]
            if any(own in here and ROWS[own["row"]].flags is not None for own in told):
                yield f"### {seconds} s of training: what its frozen tokens answer, by kind\n"
                yield from _table(told, KINDS, of)
    yield from _perplexity(found, of)
    yield from _router(found)
    yield "### What it takes\n"
    yield from _cost(found, pace)


def _perplexity(found, of):
    own = [one for one in found if "perplexity_held_out" in one]
    if not own:
        return
    kinds = ["", *(f"_{name}" for name in LANGUAGE)]
    yield "### Captions without pictures: perplexity a token\n"
    yield _line(["", "GPT", "the grammar", "pairs counted", "tokens counted", "any alike"])
    yield _line(["---"] * (1 + len(kinds)))
    for seconds in sorted({one["seconds"] for one in own}):
        for split in SPLITS[of]:
            at = [one for one in own if one["seconds"] == seconds]
            values = [[one.get(f"perplexity{kind}_{split}") for one in at] for kind in kinds]
            cells = ["-" if None in value else f"{fmean(value):.3f}" for value in values]
            yield _line([f"{seconds} s, {split.replace('_', ' ')}", *cells])
    yield ""


def _router(found):
    own = [one for one in found if "router_0" in one]
    if not own:
        return
    layers = sorted(key for key in own[0] if key.startswith("router_"))
    yield "### What the choice of an expert tells of the modality, in bits, of 1\n"
    yield _line(["", *(f"layer {key.removeprefix('router_')}" for key in layers)])
    yield _line(["---"] * (1 + len(layers)))
    for seconds in sorted({one["seconds"] for one in own}):
        at = [one for one in own if one["seconds"] == seconds]
        cells = [", ".join(f"{one[key]:.2f}" for one in at) for key in layers]
        yield _line([f"{seconds} s, seed by seed", *cells])
    yield ""


def _titled(title, split):
    return title if split == "held_out" else f"{title}, {split}"


def _table(found, columns, of):
    columns = {key: title for key, title in columns.items() if any(key in own for own in found)}
    rows = [name for name in ROWS if any(own["row"] == name for own in found)]
    values = {
        (row, key): [own[key] for own in found if own["row"] == row and key in own]
        for row in rows
        for key in columns
    }
    rows = [row for row in rows if any(values[row, key] for key in columns)]
    yield _line(["", *columns.values()])
    yield _line(["---"] * (1 + len(columns)))
    chances = [
        next((c for name, c in CHANCE.items() if key.startswith(name)), None) for key in columns
    ]
    if of == "shapes":
        yield _line(["chance", *("-" if c is None else f"{c:.1%}" for c in chances)])
    for row in rows:
        cells = [_cell(values, rows, row, key) for key in columns]
        yield _line([ROWS[row].label, *cells])
    yield ""


def _cell(values, rows, row, key):
    """Mean (lowest to highest); bold where no row is better by more than what seeds differ."""
    own = values[row, key]
    if not own:
        return "-"
    best = max((values[other, key] for other in rows if values[other, key]), key=fmean)
    text = f"{100 * fmean(own):.1f}"
    text += f" ({100 * min(own):.1f} to {100 * max(own):.1f})" if len(own) > 1 else ""
    return f"**{text}**" if max(own) >= min(best) else text


def _cost(found, pace):
    yield _line(["", "parameters", "of these learn", "ms a step", "rate", "steps"])
    yield _line(["---"] * 6)
    for name, row in ROWS.items():
        own = [one for one in found if one["row"] == name]
        if row.flags is None or not own:
            continue
        steps = ", ".join(f"{n:,}" for n in sorted({one["steps"] for one in own}))
        steps += f" after {ROWS[row.begins].label}" if row.begins else ""
        milliseconds = f"{1e3 * pace['seconds'][name]:.1f}"
        rates = " ".join(f"{rate:g}" for rate in sorted({one["learning_rate"] for one in own}))
        sizes = (f"{own[0][n]:,}" if n in own[0] else "-" for n in ("parameters", "learning"))
        yield _line([row.label, *sizes, milliseconds, rates, steps])
    yield ""


def _line(cells):
    return f"| {' | '.join(cells)} |"
