"""The page as a file: small, whole, alone, readable; and the command that writes it."""

import json
import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from javascript import scripts

import minicoca
from minicoca import __main__ as cli
from minicoca.config import preset
from minicoca.pages.page import MOST_BYTES, SCRIPTS, page, source, unpacked
from minicoca.params import flatten, initialise
from minicoca.reference import attention, decoding, generate, model, ops, pooling, text, vision
from minicoca.tokenizer import Tokenizer
from minicoca.training.checkpoint import TRAINED

ROOT = Path(__file__).parent.parent
SHIPPED_PAGE = ROOT / "lessons" / "page.html"
INSIDE = re.compile(r'<script type="application/json" id="model">(.*?)</script>', re.S)


@pytest.fixture(scope="module")
def shapes_model():
    loaded = minicoca.load("shapes", backend="numpy")
    return loaded.coca.params, loaded.config, loaded.tokenizer


@pytest.fixture(scope="module")
def html(shapes_model):
    return page(*shapes_model, "shapes").decode()


def parts_of(html):
    """(the page without its model, the model, its weights)."""
    inside = json.loads(INSIDE.search(html)[1])
    return INSIDE.sub("", html), inside, unpacked(inside.pop("numbers"))


def test_the_page_holds_the_model_bit_for_bit(html, shapes_model):
    flat = flatten(shapes_model[0])
    _, inside, numbers = parts_of(html)
    assert list(inside["shapes"]) == list(flat)
    assert numbers.tobytes() == np.concatenate([x.ravel() for x in flat.values()]).tobytes()
    assert (
        len(html.encode()) <= MOST_BYTES and "[[" not in INSIDE.sub("", html).split("<script>")[0]
    )


def test_the_page_in_the_lessons_is_the_shipped_models(html):
    """Compressors differ from machine to machine; all else is the same to the byte."""
    there = parts_of(SHIPPED_PAGE.read_text())
    assert there[:2] == parts_of(html)[:2], "minicoca page shapes --out lessons/page.html"
    assert there[2].tobytes() == parts_of(html)[2].tobytes()


def test_it_asks_for_nothing(html):
    shown, inside, _ = parts_of(html)
    assert "default-src 'none'" in shown
    assert not re.search(r"https?://|\b(src|href|import|fetch|url)\s*[=(]", shown)
    for private in ("/work", "/root", "/home", "/tmp"):
        assert private not in shown and private not in json.dumps(inside)


def test_scripts_find_what_they_name(html):
    shown = parts_of(html)[0]
    ids = re.findall(r'\bid="([^"]+)"', shown)
    assert len(ids) == len(set(ids))
    code = "\n".join(map(source, SCRIPTS))
    named = set(re.findall(r'(?:\$|\bon)\("([^"]+)"', code))
    named |= set(re.findall(r'each\(\$\("[^"]+"\), "([^"]+)"', code))
    assert named <= {*ids, "model"} and len(named) > 15


def test_functions_have_the_names_of_the_reference():
    own = {"add", "sum", "dot", "mean_of", "caption_logits", "looked_at"}
    modules = (ops, attention, vision, pooling, text, model, decoding, generate)
    known = {name for module in modules for name in vars(module)}
    for name in ("ops.js", "attention.js", "vision.js", "text.js", "generate.js"):
        found = set(re.findall(r"^(?:function|const) (\w+)(?=\(| = \()", scripts()[name], re.M))
        assert found - own <= known and len(found) > 3


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_everything_can_be_read(scheme):
    """WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for edges of what can be pressed."""
    roots = re.findall(r":root \{(.*?)\}", source("colours.css"), re.S)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", roots[scheme]))
    for ink, ground in product(("ink", "soft"), ("paper", "card", "wash", "bar")):
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    for ink, ground in product(("accent", "warn"), ("paper", "card")):
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    assert contrast(colours["edge"], colours["card"]) >= 3


def test_what_cannot_be_a_page_is_said(shapes_model):
    params, config, tokenizer = shapes_model
    with pytest.raises(ValueError, match=r"page of 1,\d\d\d,\d{3} parameters .* MB, and may"):
        page(initialise(preset("tiny", image_layers=20)), config, tokenizer, "x")
    with pytest.raises(ValueError, match=r"page of 3\d\d,\d{3} parameters would have 1\.\d MB"):
        page(initialise(preset("tiny", image_layers=4)), config, tokenizer, "x")
    texts = ["a small red star", "a large blue ring"] * 9
    with pytest.raises(ValueError, match="tokenizer is unigram, .* --tokenizer word"):
        page(params, replace(config, tokenizer="unigram"), Tokenizer.train(texts, 30), "x")
    with pytest.raises(ValueError, match="word, folded"):
        page(params, config, Tokenizer.train(texts, 30, fold=True), "x")
    with pytest.raises(ValueError, match="caption_weight 0"):
        page(params, replace(config, caption_weight=0.0), tokenizer, "x")


def test_names_and_words_are_text_and_no_html(shapes_model):
    params, config, _ = shapes_model
    tokenizer = Tokenizer.train(["a </script> star <b> & [[MODEL]]"] * 3, 36)
    made = page(params, replace(config, vocabulary=36), tokenizer, "<i>&").decode()
    assert "<i>" not in made.split("<title>")[1].split("</title>")[0]
    assert made.count("</script>") == 2
    assert "</script>" in parts_of(made)[1]["pieces"]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["page", "shapes"]) == 0
    assert capsys.readouterr().out == "shapes.html: 1.45 MB; open it in a browser\n"
    assert cli.main(["page", "shapes"]) == 2
    assert "shapes.html is there already" in capsys.readouterr().err
    shutil.copytree(TRAINED / "shapes", "runs/mine")
    assert cli.main(["page", "mine"]) == 0 and Path("runs/mine/page.html").is_file()
    assert cli.main(["page", "emoji", "--out", "e.html"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a page of 1,240,609 parameters would have 5.0 MB" in said
    assert not Path("e.html").exists()
    assert cli.main(["page", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("minicoca: nowhere is not a run folder")
