"""FAMILY.md says what was measured: its tables are of the raw figures, and nobody is left out."""

import json
from pathlib import Path

import pytest

from minicoca.family.markdown import tables
from minicoca.family.members import FAMILY
from minicoca.family.rows import ROWS

ROOT = Path(__file__).parent.parent / "minicoca"
PAGE = (ROOT / "FAMILY.md").read_text()
RAW = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "family").glob("*.json"))}


@pytest.mark.parametrize("of", RAW)
def test_the_tables_are_those_of_the_raw_figures(of):
    text = "\n".join(tables(RAW[of]["figures"], of, RAW[of]["pace"]))
    assert text in PAGE


def test_nobody_is_left_out():
    assert not [name for name in FAMILY if f"(`{name}`" not in PAGE]
    assert not [row for row, own in ROWS.items() if f"| {own.label} |" not in PAGE]


@pytest.mark.parametrize("of", RAW)
def test_every_row_has_every_seed_once(of):
    runs = [(one["row"], one["seconds"], one["seed"]) for one in RAW[of]["figures"]]
    assert len(runs) == len({*runs})
    for seconds in {seconds for _, seconds, _ in runs}:
        seeds = {row: {s for r, t, s in runs if (r, t) == (row, seconds)} for row, *_ in runs}
        assert len({frozenset(own) for own in seeds.values() if own}) == 1


def test_rates_were_chosen_with_a_seed_that_is_not_reported():
    from minicoca.family.table import TRIED

    assert TRIED not in {one["seed"] for raw in RAW.values() for one in raw["figures"]}
