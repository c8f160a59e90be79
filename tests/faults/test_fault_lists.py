"""Every hostile list ends in the right captions or in one line that names it, in little time."""

import os

import hostile_layouts
import hostile_lists as hostile
import numpy as np
import pytest
from hostile_use import one_line, used
from hypothesis import given, settings
from hypothesis import strategies as st
from trials import trial

from minicoca.data.files import Report
from minicoca.data.layouts import read_captions

pytestmark = pytest.mark.slow
MEMORY, SECONDS = 400_000_000, 5.0
TIMES = float(os.environ.get("MINICOCA_FUZZ", "1"))


def look(case):
    path, right = case
    report = Report()
    found = read_captions(path, report)
    long = [line for line in str(report).splitlines() if len(line) > 310]
    return (right is None or found == right) and not long


def test_each_is_right_or_named(tmp_path):
    cases = []
    corpus = [*hostile.all_of_them(), *hostile_layouts.all_of_them()]
    for name, content, right in corpus:
        (tmp_path / name).write_bytes(content)
        cases.append((tmp_path / name, right))
    assert len(cases) >= 400
    trial("hostile lists", len(cases))
    found = used(look, cases)
    assert len(found) == len(cases), f"died of {cases[len(found)][0]}"
    wrong = []
    for (path, right), (result, memory, seconds) in zip(cases, found, strict=True):
        good = result is True
        if isinstance(result, tuple):
            good = right is None and result[0] == "ValueError" and one_line(result[1], path.name)
        if not good or memory > MEMORY or seconds > SECONDS:
            wrong.append((path.name, result, f"{memory / 1e6:.0f} MB", f"{seconds:.1f} s"))
    assert not wrong


def test_a_long_field_is_not_called_a_quote_to_mend(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(hostile.table([*hostile.ROWS, ("a.png", "x" * (2**24 + 1))]))
    with pytest.raises(ValueError, match="x.csv, line 4: a field has over 16,777,216 letters"):
        read_captions(path, Report())
    path.write_text(hostile.table([("a.png", '"a cat'), *hostile.ROWS * 9]))
    with pytest.raises(ValueError, match="x.csv, line 2: a double quote is not closed"):
        read_captions(path, Report())


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_damage_is_read_or_named(kind, tmp_path):
    """Bytes exchanged and cut, in headers with their right sums too, in a process of its own: what
    reads Parquet is not Python."""
    make = hostile_layouts.damaged_tars if kind == "tar" else hostile_layouts.damaged_parquet
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    cases = []
    for number, content in enumerate(make(np.random.default_rng(0), int(600 * TIMES))):
        (tmp_path / f"{number}.{kind}").write_bytes(content)
        cases.append((tmp_path / f"{number}.{kind}", None))
    trial("hostile lists", len(cases))
    found = used(look, cases)
    assert len(found) == len(cases), f"died of {cases[len(found)][0]}"
    results = list(zip(cases, found, strict=True))
    assert sum(result is True for _, (result, *_) in results) > 20  # some are still whole
    for (path, _), (result, memory, seconds) in results:
        named = isinstance(result, tuple) and result[0] == "ValueError"
        assert result is True or (named and one_line(result[1], path.name)), (path, result)
        assert memory <= MEMORY and seconds <= SECONDS, (path, memory, seconds)


WORDS = [
    "image",
    "caption",
    "images",
    "annotations",
    "id",
    "filename",
    "sentences",
    "raw",
    "split",
    "image_id",
    "file_name",
    "a.png",
    "",
    "\0",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("lists")


def is_read_or_named(path):
    trial("fuzzed inputs")
    try:
        found = read_captions(path, Report())
    except ValueError as error:
        assert one_line(str(error), path.name), str(error)
    else:
        assert all(name and all(texts) for name, texts in found.items())


@settings(max_examples=int(2500 * TIMES))
@given(st.sampled_from(["csv", "json", "jsonl", "txt", "token", "tar"]), st.binary(max_size=200))
def test_any_bytes(place, kind, content):
    (place / f"x.{kind}").write_bytes(content)
    is_read_or_named(place / f"x.{kind}")


@settings(max_examples=int(1500 * TIMES))
@given(st.sampled_from(["csv", "tsv"]), st.text(alphabet='ab",\t\n\r\0 é\u2028', max_size=60))
def test_any_table(place, kind, rows):
    head = "image,caption\n" if kind == "csv" else "image\tcaption\n"
    (place / f"x.{kind}").write_bytes((head + rows).encode())
    is_read_or_named(place / f"x.{kind}")


@settings(max_examples=int(1500 * TIMES))
@given(JSON, st.booleans())
def test_any_json(place, value, as_lines):
    path = place / ("x.jsonl" if as_lines else "x.json")
    path.write_text(hostile.json.dumps(value))
    is_read_or_named(path)
