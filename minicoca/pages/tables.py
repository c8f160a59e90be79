"""Tables of a report: figures with their intervals, and what two runs have side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

Labels = Mapping[str, str]
ABOUT = (
    "<p>Behind a figure stands its 95 % interval over images drawn anew from these; it says "
    "nothing of another training run.</p>"
)


class Names(NamedTuple):
    """What figures are called, by their keys: those that are parts of 1, and others. A figure that
    is in neither is called as its key."""

    shares: Labels
    numbers: Labels

    def label(self, key: str) -> str:
        return escape(self.shares.get(key) or self.numbers.get(key) or spaced(key))

    def value(self, key: str, value: Any) -> str:
        """As HTML, in which a number stands to its last digit too."""
        if not isinstance(value, int | float):
            return escape(str(value))
        text = f"{value:,}"
        if key in self.shares:
            text = f"{100 * value:.1f} %"
        elif isinstance(value, float):
            text = f"{value:.2f}" if key in self.numbers else f"{value:.4g}"
        return f'<data value="{value!r}">{text}</data>'

    def figure(self, key: str, of: Mapping[str, Any]) -> str:
        """A split's figure and its interval."""
        if key not in of:
            return "-"
        ends = " to ".join(self.value(key, end) for end in of.get("intervals", {}).get(key, ()))
        return self.value(key, of[key]) + (f' <span class="interval">{ends}</span>' if ends else "")

    def compared(self, key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
        """[how much the second figure is over the first, whether their intervals overlap]; nothing
        of what is no figure but a count."""
        known = key in self.shares or key in self.numbers
        if not known or key not in one or key not in other:
            return ["-", "-"]
        more = other[key] - one[key]
        text = f"{100 * more:+.1f} points" if key in self.shares else f"{more:+.2f}"
        ends = [own.get("intervals", {}).get(key) for own in (one, other)]
        if not all(ends):
            return [text, "-"]
        apart = max(low for low, _ in ends) > min(high for _, high in ends)
        return [text, "<b>apart</b>" if apart else "overlap"]


def spaced(name: str) -> str:
    return name.replace("_", " ")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Cells are HTML, and so is the caption. It scrolls in a box of its own where it is too wide,
    under its caption, which does not."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'
        for first, *others in rows
    )
    return (
        (f"<p>{caption}:</p>" if caption else "")
        + f'<div class="wide" tabindex="0" role="group" aria-label="{caption or "table"}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figures(told: Sequence, names: Names) -> str:
    """All figures of results.json: of one run in a table, a column a split; of two in a table a
    split, with their differences."""
    of = [{k: own for k, own in one.results.items() if isinstance(own, dict)} for one in told]
    splits = list(dict.fromkeys(split for own in of for split in own))
    if not splits:
        return ""
    about = ABOUT if any("intervals" in cell for own in of for cell in own.values()) else ""
    if len(told) == 1:
        cells = [of[0][split] for split in splits]
        rows = [[names.label(k), *(names.figure(k, c) for c in cells)] for k in keys(cells, names)]
        return about + table(["", *(escape(spaced(split)) for split in splits)], rows)
    parts = [about]
    if told[0].settings.get("data") != told[1].settings.get("data"):
        parts.append("<p>The two runs were measured on different data.</p>")
    for split in splits:
        cells = [own.get(split, {}) for own in of]
        rows = [
            [names.label(k), *(names.figure(k, c) for c in cells), *names.compared(k, *cells)]
            for k in keys(cells, names)
        ]
        head = ["", *(escape(one.name) for one in told), "difference", "intervals"]
        parts.append(f"<h3>{escape(spaced(split))}</h3>{table(head, rows)}")
    return "".join(parts)


def keys(cells: Sequence[Mapping], names: Names) -> list[str]:
    """Every figure that a split has: those with a name first, in the order of the names."""
    there = dict.fromkeys(k for own in cells for k in own if k != "intervals")
    known = [k for k in (*names.shares, *names.numbers) if k in there]
    return [*known, *(k for k in there if k not in known)]


def side_by_side(of: Sequence[Mapping], first: Sequence[str] = ()) -> list[list[str]]:
    """Rows of a table: a name, and its value in each."""
    there = dict.fromkeys(key for own in of for key in own)
    order = [*(key for key in first if key in there), *(key for key in there if key not in first)]
    return [
        [
            escape(spaced(key)),
            *(f"<code>{escape(str(own[key]))}</code>" if key in own else "-" for own in of),
        ]
        for key in order
    ]
