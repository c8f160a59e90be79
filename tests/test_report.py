"""The report of a run: it holds every figure, loads nothing, and says what is not there."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from oracles import planted
from settings_trace import TINY, draw_shapes

from minicoca import __main__ as cli
from minicoca import mistakes
from minicoca.commands.evaluate import NUMBERS, SHARES
from minicoca.commands.plot import PANELS
from minicoca.config import preset
from minicoca.data import shapes
from minicoca.pages import report as page
from minicoca.pages import split, tables
from minicoca.pages.report import Told, report
from minicoca.pages.tables import Names
from minicoca.tasks.explain import Explanation, Word
from minicoca.training import run
from minicoca.training.log import Log

NAMES = Names(SHARES, NUMBERS)
EVIL = "<script>alert(\"1\")</script> & 'x' <b>"
VOID = {"meta", "img"}


def few(seed, side, *_):
    with mock.patch.object(shapes, "STATISTICS", 8):
        return draw_shapes(seed, side, 40, 30)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Two finished runs, a and b, and one that was begun."""
    folder = tmp_path_factory.mktemp("report")
    with (
        mock.patch.object(shapes, "load", few),
        mock.patch.object(run, "make_picture", lambda *given: ""),
    ):
        for seed, name in enumerate("ab"):
            config = preset("tiny", **TINY | dict(steps=40, evaluate_every=20, seed=seed))
            run.train(config, folder / name, say=lambda text: None, command=f"train {EVIL}")
    (folder / "begun").mkdir()
    for name in ("config.json", "tokenizer.model"):
        (folder / "begun" / name).write_bytes((folder / "a" / name).read_bytes())
    return folder


@pytest.fixture(autouse=True)
def inside(here, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shapes, "load", few)


def written(capsys, *arguments):
    """The page that a command wrote, and what it said."""
    assert cli.main(["report", *map(str, arguments), "--out", "r.html"]) == 0
    text = Path("r.html").read_text()
    Path("r.html").unlink()
    return text, capsys.readouterr().out


class Seen(HTMLParser):
    """What a browser would make of a page: tags with their attributes, texts, unclosed elements."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open, self.values = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "data":
            self.values.append(float(dict(attributes)["value"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] != "style":
            self.texts.append(text)

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


def numbers_of(results):
    """Every number of every split, with the ends of the intervals."""
    for own in results.values():
        if isinstance(own, dict):
            yield from (v for v in own.values() if isinstance(v, int | float))
            for ends in own.get("intervals", {}).values():
                yield from ends


def test_every_figure_of_the_results_is_in_the_page(here, capsys):
    results = [json.loads((here / name / "results.json").read_text()) for name in "ab"]
    for names, own in ((["a"], results[:1]), (["a", "b"], results)):
        html, _ = written(capsys, *(here / name for name in names))
        want = sorted(value for one in own for value in numbers_of(one))
        seen = Seen(html)
        assert sorted(seen.values) == want and len(want) > 60
        text = " ".join(seen.texts)
        for one in own:
            for name in ("held_out", "compositional"):
                assert f"{100 * one[name]['image_to_text_r5']:.1f} %" in text
                assert f"{one[name]['caption_cider_d']:.2f}" in text
            for key in ("command", "machine", "date"):
                assert one[key] in text


def test_it_loads_nothing_and_is_one_file(here, capsys):
    html, said = written(capsys, here / "a", here / "b")
    seen = Seen(html)
    assert "default-src 'none'" in html and not seen.all("script", "link", "iframe")
    for tag, attributes in seen.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert all(url.startswith("data:image/png") for url in re.findall(r"url\((.*?)\)", html))
    assert len(html) < 2_000_000 and said.endswith(" MB; open it in a browser\n")
    ids = {attributes["id"] for _, attributes in seen.tags if "id" in attributes}
    assert {link["href"][1:] for link in seen.all("a")} <= ids


def check_reading(html):
    """Headings in order, a word for every picture, tables with heads, ids once."""
    seen = Seen(html)
    levels = [int(tag[1]) for tag, _ in seen.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(image["alt"].strip() for image in seen.all("img"))
    assert all(head["scope"] in ("row", "col") for head in seen.all("th"))
    for drawn in seen.all("svg"):
        hidden = drawn.get("aria-hidden") == "true"
        assert hidden or (drawn["role"] == "img" and drawn["aria-label"])
    ids = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    boxes = seen.all("div")
    assert sum(box.get("class") == "wide" for box in boxes) == len(seen.all("table"))


@pytest.mark.parametrize("names", ["a", "ab"])
def test_it_can_be_read_by_everyone(here, capsys, names):
    html, _ = written(capsys, *(here / name for name in names))
    check_reading(html)
    headings = "What it says", "The worst mistakes", "Similarity", "Retrieval", "Word by word"
    for heading in (*headings, "Classes"):
        assert f"<h3>{heading}</h3>" in html


def evil_looks():
    grid = np.array([[0.5, -0.25], [0.0, 0.25]])
    pictures = {i: np.full((8, 8, 3), 40 * i, np.uint8) for i in range(3)}
    word = Word(EVIL, 0.25, [(EVIL, 0.5)], grid, grid)
    said = [mistakes.Said(i, EVIL, f"{EVIL} {i}", False, -1.0 - i, -0.5) for i in range(3)]
    missed = {
        "image_to_text": ([mistakes.Missed(0, EVIL, EVIL, 3)], 1, 3),
        "text_to_image": ([mistakes.Missed(0, EVIL, 1, 2)], 1, 3),
    }
    confused = [mistakes.Confused(EVIL, EVIL, 1, 2, 0)]
    explained = {0: Explanation(EVIL, [word], None)}
    cosines = np.array([[0.9, -0.5], [0.1, 0.3]])
    return mistakes.Looks(
        3, said, missed, 3, cosines, [EVIL, EVIL], confused, 1, 2, explained, pictures
    )


def evil_told():
    results = {EVIL: {EVIL: 0.5, "images": 3}, "command": EVIL, "samples": []}
    settings = {"data": EVIL, EVIL: EVIL}
    records = [{"step": 1, "learning_rate": 0.1, "caption": 1.0, "command": EVIL}]
    return Told(EVIL, settings, results, records, {EVIL: evil_looks()}, [EVIL])


def check_escaped():
    """Whatever people write is text: the same elements as of a tame run, and all of it is there."""
    for count in (1, 2):
        evil = report([evil_told()] * count, PANELS, NAMES).decode()
        tame = Seen(evil.replace("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;", "tame"))
        seen = Seen(evil)
        assert [tag for tag, _ in seen.tags] == [tag for tag, _ in tame.tags]
        assert not seen.all("script")
        assert sum(EVIL in text for text in seen.texts) > 20 * count
        assert any(EVIL in image["alt"] for image in seen.all("img"))
        check_reading(evil)


def test_names_and_captions_are_text_and_no_html():
    check_escaped()


def test_names_that_are_no_text():
    told = evil_told()._replace(name="half \ud800 a pair")
    assert b"half \\ud800 a pair" in report([told], PANELS, NAMES)


def check_two_runs():
    """Differences with their sign, and intervals that part or meet."""
    of = [
        {"caption_exact": 0.5, "intervals": {"caption_exact": [0.4, 0.6]}},
        {"caption_exact": 0.75, "intervals": {"caption_exact": [0.65, 0.8]}},
        {"caption_exact": 0.7, "intervals": {"caption_exact": [0.6, 0.8]}},
        {"caption_exact": 0.7},
    ]
    found = [NAMES.compared("caption_exact", of[0], other) for other in of]
    assert [text for text, _ in found] == [f"{x:+.1f} points" for x in (0, 25, 20, 20)]
    assert [re.sub("<.*?>", "", said) for _, said in found] == ["overlap", "apart", "overlap", "-"]
    assert NAMES.compared("caption_exact", of[0], {}) == ["-", "-"]
    ten = {"caption_cider_d": 2.5}
    assert NAMES.compared("caption_cider_d", ten, {"caption_cider_d": 1.0})[0] == "-1.50"
    assert NAMES.compared("images", {"images": 3}, {"images": 5}) == ["-", "-"]


def test_two_runs_have_their_differences(here, capsys):
    check_two_runs()
    html, _ = written(capsys, here / "a", here / "b")
    assert html.count('class="sides"') == 12  # six kinds of two splits
    assert '<th scope="row">seed</th><td><code>0</code></td><td><code>1</code></td>' in html
    drawn = re.findall(r'<svg viewBox="0 0 360.*?</svg>', html)
    both = [svg for svg in drawn if "line0" in svg and "line1" in svg]
    assert len(both) == 9


def test_what_is_not_there_is_said(here, capsys, monkeypatch):
    html, said = written(capsys, here / "begun")
    assert "no figures: there is no results.json" in said and "no curves" in said
    assert "no pictures, mistakes and word maps" in said and "has no model.safetensors" in said
    for line in said.strip().splitlines()[:3]:
        assert line.split(": ", 1)[1] in " ".join(Seen(html).texts)
    assert "<h2>Figures" not in html and "<h2>How it was made" in html

    def gone(config):
        raise ValueError("data/nowhere: there is no such file or folder")

    monkeypatch.setattr("minicoca.data.load", gone)
    html, said = written(capsys, here / "a")
    assert "word maps: data/nowhere: there is no such file" in said
    assert "<h2>Figures" in html and "<h2>Curves" in html and "Word by word" not in html
    samples = json.loads((here / "a" / "results.json").read_text())["samples"]
    assert all(one["truth"] in html for one in samples) and samples


def test_damaged_lines_are_counted(here, capsys, tmp_path):
    run = shutil.copytree(here / "a", tmp_path / "damaged")
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1].replace("1", "2"), *lines[2:], "{"]))
    _, said = written(capsys, run, "--limit", 2)
    assert "2 damaged lines of metrics.jsonl are left out" in said


def test_the_command(here, capsys, tmp_path):
    name = str(here / "a")
    assert cli.main(["report", name, "--limit", "2"]) == 0
    path = here / "a" / "report.html"
    assert capsys.readouterr().out.startswith(f"{path}: 0.")
    before = path.read_bytes()
    for given, why in (
        ([name], "report.html is there already"),
        ([name] * 3, "3 runs: one, or two to be compared"),
        ([name, "--limit", "0"], "--limit 0: at least 1"),
        ([name, "--out", "r.html", "--limit", "2", "--device", "none"], ""),
    )[:3]:
        assert cli.main(["report", *given]) == 2
        assert why in capsys.readouterr().err
    assert path.read_bytes() == before
    path.unlink()
    assert cli.main(["report", "nowhere"]) == 1
    assert capsys.readouterr().err == (
        "minicoca: nowhere is not a run folder: it has no config.json\n"
    )
    assert cli.main(["report", name, str(here / "b"), "--limit", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == "a-b-report.html" and told["notes"] == []
    assert told["bytes"] == Path("a-b-report.html").stat().st_size


def test_a_model_that_comes_with_us_has_a_report_here(capsys):
    assert cli.main(["report", "shapes", "--limit", "4"]) == 0
    said = capsys.readouterr().out
    assert "shapes: no curves: there is no metrics.jsonl" in said
    html = Path("shapes-report.html").read_text()
    assert "100.0 %" in html and "Word by word" in html


def test_the_log_has_what_is_drawn(here):
    logged = [r for r in Log.read(here / "a" / "metrics.jsonl") if "gradient_shares" in r]
    assert [r["step"] for r in logged] == [10, 20, 30, 40]


BUGS = [
    (tables, "max(low for low, _ in ends) > min(", "min(low for low, _ in ends) > min(",
     check_two_runs),
    (tables, "other[key] - one[key]", "one[key] - other[key]", check_two_runs),
    (split, "f\"<li><b>{escape(word.text) or '(end)'}", "f\"<li><b>{word.text or '(end)'}",
     check_escaped),
    (page, "{escape(note)}", "{note}", check_escaped),
]  # fmt: skip


@pytest.mark.parametrize("module, old, new, check", BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_seen(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()
