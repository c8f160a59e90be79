"""The report of a run, or of two side by side: one HTML file that needs no server, network or
script. What it shows is gathered by `commands/report.py`; here it becomes a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from . import split
from .drawing import Curve, areas, chart
from .page import MARK, source
from .tables import Names, figures, side_by_side, spaced, table

IDENTITY = ("run", "tokenizer", "weights")  # digests, by which a run's files know each other
FIRST = ("command", "machine", "date", "data", "preset", "backend", "seed", "steps")
THIRDS = ("first third", "second", "last")


class Told(NamedTuple):
    """What is known of one run.

    settings: of config.json. results: of results.json; empty where there is none. records: of
    metrics.jsonl. looks: {split: mistakes.Looks}. notes: what is not here and why, in a line each.
    """

    name: str
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    looks: Mapping[str, Any]
    notes: Sequence[str]


def report(told: Sequence[Told], panels: Mapping[str, tuple[str, bool]], names: Names) -> bytes:
    """The page of one run or two. panels: {title: (key of a record, whether its axis is
    logarithmic)}; records are flat."""
    splits = dict.fromkeys(name for one in told for name in one.looks)
    sections = {
        "figures": ("Figures", figures(told, names)),
        "samples": ("Captions", samples(told)),
        "advice": ("What is wrong", advice(told)),
        "curves": ("Curves", curves(told, panels) + gradients(told)),
        "throughput": ("Throughput", throughput(told)),
        **{f"split-{i}": (spaced(name), split.section(told, name))
           for i, name in enumerate(splits)},
        "made": ("How it was made", made(told)),
    }  # fmt: skip
    sections = {key: own for key, own in sections.items() if own[1]}
    parts = {
        "TITLE": escape(" and ".join(one.name for one in told)),
        "STYLE": "".join(map(source, ("colours.css", "page.css", "report.css"))),
        "ABOUT": "".join(map(about, told)),
        "LINKS": "".join(
            f'<li><a href="#{key}">{escape(title)}</a></li>'
            for key, (title, _) in sections.items()
        ),
        "SECTIONS": "\n".join(
            f'<section id="{key}"><h2>{escape(title)}</h2>{html}</section>'
            for key, (title, html) in sections.items()
        ),
    }  # fmt: skip
    made_of = MARK.sub(lambda mark: parts[mark[1]], source("report.html"))
    return made_of.encode(errors="backslashreplace")  # a file's name may be no text


def about(one: Told) -> str:
    """A run in a line, and what is missing of it."""
    results, said = one.results, [f"trained on {one.settings['data']}"]
    if "parameters" in results:
        said.append(f"{results['parameters']:,} parameters")
    if "train_seconds" in results:
        said.append(f"{results['steps']:,} steps in {results['train_seconds']:,.0f} s")
    if "date" in results:
        said.append(str(results["date"]))
    notes = "".join(f"<li>{escape(note)}</li>" for note in one.notes)
    notes = f'<ul class="notes">{notes}</ul>' if notes else ""
    return f"<p><b>{escape(one.name)}</b>: {escape(', '.join(said))}</p>{notes}"


def samples(told: Sequence[Told]) -> str:
    """The few captions in the results of runs whose pictures are not at hand."""
    parts = []
    for one in told:
        rows = [
            [escape(str(own[key])) for key in ("caption", "truth", "split")]
            for own in one.results.get("samples", ())
        ]
        if rows and not one.looks:
            parts.append(table(["written", "truth", "of"], rows, escape(one.name)))
    return "".join(parts)


def advice(told: Sequence[Told]) -> str:
    """What stood when each run was last asked."""
    rows = []
    for one in told:
        standing = next((r["advice"] for r in reversed(one.records) if "advice" in r), {})
        rows += [[escape(one.name), escape(str(text))] for text in standing.values()]
    return table(["run", ""], rows) if rows else ""


def throughput(told: Sequence[Told]) -> str:
    """The middle of what was logged of speed, memory and the parts of a step."""
    facts = []
    for one in told:
        logged = [r["throughput"] for r in one.records if "throughput" in r]
        every = {name: [own[name] for own in logged if name in own] for name in chain(*logged)}
        facts.append({name: f"{np.median(own):.4g}" for name, own in every.items()})
    if not any(facts):
        return ""
    head = ["", *(escape(one.name) for one in told)]
    return table(head, side_by_side(facts), "medians of what was logged")


def curves(told: Sequence[Told], panels: Mapping[str, tuple[str, bool]]) -> str:
    """Every panel that a record has something for; both runs in one frame."""
    drawn = []
    for title, (key, log) in panels.items():
        found = []
        for kind, one in enumerate(told):
            points = [(r["step"], r[key]) for r in one.records if is_number(r.get(key))]
            if points:
                found.append(Curve(one.name, *np.array(points, float).T, kind))
        if found:
            drawn.append(chart(title, found, log))
    return (legend(told) + f'<div class="charts">{"".join(drawn)}</div>') if drawn else ""


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def legend(told: Sequence[Told]) -> str:
    """Whose line is which, where there are two."""
    if len(told) < 2:
        return ""
    items = "".join(
        f'<li><svg viewBox="0 0 30 10" aria-hidden="true"><path class="line{i}" d="M0 5H30"/></svg>'
        f"{escape(one.name)}</li>"
        for i, one in enumerate(told)
    )
    return f'<ul class="key">{items}</ul>'


def gradients(told: Sequence[Told]) -> str:
    """What part of the squared gradient each branch of the model had, over the steps."""
    logs = []
    for one in told:
        found = [(r["step"], r["gradient_shares"]) for r in one.records if "gradient_shares" in r]
        logs += [(one.name, found)] if found else []
    if not logs:
        return ""
    steps = [step for _, records in logs for step, _ in records]
    drawn, rows = [], []
    for name, records in logs:
        x = np.array([step for step, _ in records], float)
        parts = {part: np.array([r[part] for _, r in records], float) for part in records[0][1]}
        title = "parts of the squared gradient" + (f", {name}" if len(logs) > 1 else "")
        drawn.append(areas(title, x, parts, (min(steps), max(steps))))
        for i, (part, own) in enumerate(parts.items()):
            means = [f"{g.mean():.1%}" if len(g) else "-" for g in np.array_split(own, 3)]
            what = f'<span class="swatch part{i}"></span>{escape(part)}'
            rows.append([what, *([escape(name)] if len(logs) > 1 else []), *means])
    head = ["", *(["run"] if len(logs) > 1 else []), *THIRDS]
    key = table(head, rows, "means of the steps that were logged")
    return f'<h3>Where the gradient is</h3><div class="charts">{"".join(drawn)}</div>{key}'


def made(told: Sequence[Told]) -> str:
    """The command, the machine, all that the results say beside figures, and all settings."""
    facts = []
    for one in told:
        began = [{"command": r["command"]} for r in one.records if "command" in r][:1]
        said = {k: v for k, v in one.results.items() if isinstance(v, str | int | float)}
        facts.append({**(began[0] if began else {}), **said})
    head = ["", *(escape(one.name) for one in told)]
    plain = [{k: v for k, v in own.items() if k not in IDENTITY} for own in facts]
    parts = [table(head, side_by_side(plain, FIRST))] if any(plain) else []
    rows = side_by_side([one.settings for one in told])
    if len(told) > 1:
        differ = [row for row in rows if row[1] != row[2]]
        said = table(head, differ) if differ else "<p>None: all are the same.</p>"
        parts.append(f"<h3>Settings that differ</h3>{said}")
    rows += side_by_side([{k: v for k, v in own.items() if k in IDENTITY} for own in facts])
    parts.append(f"<details><summary>All settings</summary>{table(head, rows)}</details>")
    return "".join(parts)
