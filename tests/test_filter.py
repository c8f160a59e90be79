"""What is noise is left out, named and counted, and nothing else is; what is kept can be trained
on, from files and from shards."""

import hashlib
import json

import filtering
import numpy as np
import pytest
from filtering import exchanged, found_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minicoca import __main__ as cli
from minicoca import load
from minicoca.data import folder as own
from minicoca.data import shapes
from minicoca.data.rules import Rules, owners
from minicoca.tasks.filtering import cosines, judged, least_of, written

ANY = Rules(*[0] * 8)
NO_RULES = ["--min-side", "0", "--max-words", "0", "--max-shared", "0", "--min-words", "0"]


@pytest.mark.parametrize(
    ("caption", "shared", "rules", "why"),
    [
        ("a dog", 1, {"min_words": 3}, "fewer than 3 words"),
        ("a dog runs", 1, {"min_words": 3}, ""),
        ("one two three four", 1, {"max_words": 3}, "more than 3 words"),
        ("one two three", 1, {"max_words": 3}, ""),
        ("a 犬", 1, {"min_characters": 4}, "fewer than 4 characters"),
        ("a 犬!", 1, {"min_characters": 4}, ""),
        ("IMG 0012 a", 1, {"min_letters": 0.55}, "less than 0.55 are letters"),
        ("IMG 0012 a", 1, {"min_letters": 0.5}, ""),
        ("คำ", 1, {"min_letters": 1.0}, ""),  # marks are of letters
        ("red red red blue", 1, {"max_repeated": 0.49}, "repeat more than 0.49"),
        ("red red red blue", 1, {"max_repeated": 0.5}, ""),
        ("Red red", 1, {"max_repeated": 0.4}, "repeat more than 0.4"),
        ("x", 11, {"max_shared": 10}, "more than 10 pictures"),
        ("x", 10, {"max_shared": 10}, ""),
    ],
)
def test_each_rule_at_its_border(caption, shared, rules, why):
    """Each alone, on either side of its number; and 0 asks for nothing."""
    found = ANY._replace(**rules).against(caption, shared)
    assert why in found and bool(found) == bool(why)
    assert ANY.against(caption, shared) == ""


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 400), st.sampled_from([0, 2, 3]))
def test_sizes_do_not_depend_on_which_way_a_picture_lies(width, height, side, ratio):
    rules = ANY._replace(min_side=side, max_ratio=ratio)
    shorter, longer = min(width, height), max(width, height)
    good = shorter >= side and (not ratio or longer / shorter <= ratio)
    assert bool(rules.against_size((width, height))) == (not good)
    assert rules.against_size((width, height)) == rules.against_size((height, width))


def test_no_caption_of_clean_data_is_dropped():
    """Of scenes, by the sources' numbers; pictures with one caption are counted, not captions."""
    texts = [shapes.caption(scene) for scene in shapes.scenes("train", 500)]
    shared = owners([(text, text.upper()) for text in texts])
    assert max(shared.values()) == max(texts.count(text) for text in texts)
    dropped = [text for text in texts if Rules().against(text, shared[text])]
    assert not dropped, dropped[:3]


COSINES = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40)


@given(COSINES, COSINES, st.floats(0, 1) | st.sampled_from([0.0, 1.0]))
def test_the_least_cosine_lets_through_what_was_asked(own_cosines, others, share):
    """At most the share of other pictures' captions, and one more would be too many; a share kept
    to the nearest caption, or more where cosines are equal."""
    own_cosines = {i: np.array([x], np.float32) for i, x in enumerate(own_cosines)}
    others = np.array(others, np.float32)
    least = least_of(own_cosines, others, None, share)
    assert (others >= least).sum() <= share * len(others)
    if (rest := others[others < least]).size:
        assert (others >= rest.max()).sum() > share * len(others)
    least = least_of(own_cosines, others, share, 0.01)
    values = np.concatenate([*own_cosines.values()])
    wanted = max(1, round(share * len(values)))
    assert (values >= least).sum() >= wanted and (values > least).sum() < wanted


def test_equal_captions_leave_nothing_to_compare_with():
    with pytest.raises(ValueError, match="all captions are the same"):
        least_of({0: np.ones(1)}, np.zeros(0), None, 0.01)


def test_where_nothing_was_judged_nothing_is_dropped():
    assert least_of({}, np.zeros(0), 0.5, 0.01) < -1


@pytest.fixture(scope="module")
def scenes():
    """Scenes with three captions in ten exchanged, and which of them are wrong."""
    train = shapes.load(0, 32, 400, 8).train
    captions, wrong = exchanged(train.captions, 0.3)
    return train.images, train.captions, captions, wrong


@pytest.fixture(scope="module")
def model():
    found = load("shapes")
    return found.coca, found.tokenizer


def test_exchanged_captions_are_as_many_as_said(scenes):
    _, truth, captions, wrong = scenes
    assert abs(wrong.mean() - 0.3) < 0.05 and {*captions} <= {*truth}
    assert wrong.tolist() == [a != b for a, b in zip(truth, captions, strict=True)]


@pytest.mark.parametrize("batch", [7, 400])
def test_cosines_are_the_models_whatever_the_batches(scenes, model, batch, monkeypatch):
    images, _, captions, _ = scenes
    many = [(*one, "a small red cross") for one in captions]
    monkeypatch.setattr(filtering, "BATCH", batch)
    near, others = cosines(*model, filtering.batches(images, np.arange(60)), many[:60])
    found = load("shapes")
    for row in (0, 31, 59):
        right = found.embed_images(images[row]) @ found.embed_texts(many[row]).T
        np.testing.assert_allclose(near[row], right, atol=1e-5)
    assert len(near) == 60 and 50 < len(others) <= 60
    pairs = found.embed_images(list(images[:60])) @ found.embed_texts([t[0] for t in many[:60]]).T
    apart = pairs[[[many[j][0] not in many[i] for j in range(60)] for i in range(60)]]
    assert np.abs(others[:, None] - apart).min(1).max() < 1e-5  # each of another's picture
    assert abs(others.mean() - apart.mean()) < 0.1 < pairs.diagonal().mean() - others.mean()


def test_which_rows_the_rules_left_does_not_decide_what_is_compared(scenes, model, monkeypatch):
    """Were it every n-th row by its number, none of these would be there."""
    images, _, captions, _ = scenes
    monkeypatch.setattr("minicoca.tasks.filtering.SAMPLE", 15)  # so every second
    rows = np.arange(1, 60, 2)
    left = {int(row): captions[row] for row in rows}
    near, others = cosines(*model, filtering.batches(images, rows), left)
    assert [*near] == rows.tolist() and 8 <= len(others) <= 15


def test_the_filter_finds_exchanged_captions(scenes, model):
    """Precision and recall of the shipped model, and the truth in their place."""
    images, truth, captions, wrong = scenes

    def look(rows):
        return filtering.batches(images, np.asarray(rows))

    everything = dict(enumerate(captions))
    found = judged(*model, look, everything, passing=0.02, replace=range(len(images)))
    kept = np.array([found.own[row][0] >= found.least for row in range(len(images))])
    precision, recall, good = found_of(kept, wrong)
    assert precision > 98 and recall > 95 and good > 99
    assert set(found.written) == set(np.flatnonzero(~kept))
    right = [(text,) == truth[row] for row, (text, _) in found.written.items()]
    assert np.mean(right) > 0.95
    some = written(*model, look([3, 5]))
    assert set(some) == {3, 5} and all(x > found.least for _, x in some.values())
    high = judged(*model, look, everything, min_cosine=0.99, replace=range(9))
    assert all(near >= 0.99 for _, near in high.written.values()) and len(high.written) < 9
    half = judged(*model, look, everything, keep=0.5)
    assert sum(x[0] >= half.least for x in half.own.values()) == 200 and not half.written


@pytest.fixture
def place(scenes, tmp_path):
    """Scenes as files, of which two are damaged or away from what the rules ask."""
    images, _, captions, _ = scenes
    (tmp_path / "in").mkdir()
    for i in range(40):
        Image.fromarray(images[i]).save(tmp_path / "in" / f"{i:02}.png")
        (tmp_path / "in" / f"{i:02}.txt").write_text("\n".join(captions[i]))
    wide = Image.new("RGB", (200, 32))
    wide.save(tmp_path / "in" / "wide.png")
    (tmp_path / "in" / "wide.txt").write_text("a wide white wall")
    broken = (tmp_path / "in" / "07.png").read_bytes()
    (tmp_path / "in" / "07.png").write_bytes(broken[: len(broken) // 2])
    return tmp_path


def said_of(capsys):
    return json.loads(capsys.readouterr().out)


def sums(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("sharded", [False, True])
def test_what_is_kept_can_be_trained_on(place, scenes, capsys, sharded):
    """The same from files and from shards; splits stay, what is left out is named, and nothing of
    the source is changed."""
    _, _, captions, wrong = scenes
    source, before = place / "in", sums(place / "in")
    drop = ["--held-out-part", "0.2", "--seed", "2"]
    if sharded:
        cli.main(["shards", str(source), "--out", str(place / "sh"), *drop])
        source = place / "sh"
        capsys.readouterr()
    out, sheet = place / "kept.jsonl", place / "sheet.png"
    call = ["filter", str(source), "--out", str(out), *NO_RULES, *drop, "--by", "shapes"]
    assert not cli.main([*call, "--sheet", str(sheet), "--passing", "0.05", "--json"])
    said = said_of(capsys)
    everything = own.load(source, 8, held_out=0.2, seed=2)
    kept = own.load(out, 8)
    assert len(kept.evaluations["held_out"]) == len(everything.evaluations["held_out"])
    assert kept.evaluations["held_out"].captions == everything.evaluations["held_out"].captions
    assert len(kept.train) == said["kept_pictures"] == said["kept_captions"] > 10
    assert len(said["dropped"]["pictures over 3 times as long as wide"]) == 1
    truth = {captions[i][0] for i in range(40) if not wrong[i]}
    good = [texts[0] in truth for texts in kept.train.captions]
    assert np.mean(good) > 0.9 and kept.train.batch([0, len(good) - 1]).shape == (2, 8, 8, 3)
    with Image.open(sheet) as drawn:
        assert drawn.width == 768
    assert sums(place / "in") == before
    # Asked for anew, it says the same.
    out.unlink()
    sheet.unlink()
    assert not cli.main([*call, "--passing", "0.05", "--json"])
    assert said_of(capsys) == said


def test_damaged_pictures_are_named_and_replaced_captions_kept(place, capsys):
    """Also where it was a rule that dropped them."""
    (place / "in" / "05.txt").write_text("IMG_0012 1 2 3")
    call = ["filter", str(place / "in"), *NO_RULES, "--held-out-part", "0", "--by", "shapes"]
    call += ["--validation-part", "0", "--json"]
    found = {}
    for name, more in (("kept", []), ("replaced", ["--replace"])):
        assert not cli.main([*call, "--out", str(place / f"{name}.jsonl"), *more])
        found[name] = said_of(capsys)
        assert "07.png" in found[name]["dropped"]["pictures that cannot be decoded"][0]
    lines = [json.loads(line) for line in (place / "replaced.jsonl").read_text().splitlines()]
    lines = {line["image"]: line for line in lines}
    assert not any("07.png" in image or "wide" in image for image in lines)
    assert found["replaced"]["kept_captions"] == found["kept"]["kept_captions"]
    replaced = [line for line in lines.values() if "replaces" in line]
    assert len(replaced) == found["replaced"]["replaced"] > 5
    assert len(lines) == found["replaced"]["kept_pictures"] and "replaces" in lines["in/05.png"]
    for line in replaced:
        before = (place / line["image"]).with_suffix(".txt").read_text().split("\n")
        assert line["replaces"] == before and line["caption"] != before


def test_rules_alone_need_no_model(place, capsys):
    (place / "in" / "01.txt").write_text("\n".join(["IMG_0012", "a small red cross on the left"]))
    call = [
        "filter",
        str(place / "in"),
        "--min-side",
        "32",
        "--max-shared",
        "0",
        "--max-words",
        "0",
    ]
    assert not cli.main([*call, "--out", str(place / "kept.jsonl"), "--held-out-part", "0"])
    printed = capsys.readouterr().out
    assert "captions of fewer than 3 words:" in printed and "IMG_0012" in printed
    assert "held out as they are\nminicoca train --data" in printed
    texts = own.load(place / "kept.jsonl", 8, held_out=0, validation=0).train.captions
    assert ("a small red cross on the left",) in texts


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["shapes", "--out", "k.jsonl"], "shapes is made without noise"),
        (["in", "--out", "k.csv"], "must end in .jsonl"),
        (["in", "--out", "k.jsonl", "--replace"], "--replace is of a model's judgement: give --by"),
        (["in", "--out", "k.jsonl", "--keep", "0.5"], "--keep is of a model's judgement"),
        (
            ["in", "--out", "k.jsonl", "--by", "shapes", "--keep", "2"],
            "--keep 2 is not from 0 to 1",
        ),
        (
            ["in", "--out", "k.jsonl", "--by", "shapes", "--keep", "1", "--min-cosine", "0"],
            "exclude each other",
        ),
        (["in", "--out", "k.jsonl", "--min-words", "-1"], "--min-words -1: 0 or more"),
        (["in", "--out", "k.jsonl"], "nothing is left of in: .*shorter side is under 200 pixels"),
    ],
)
def test_mistakes_are_one_line(place, given, why, capsys, monkeypatch):
    import re

    monkeypatch.chdir(place)
    assert cli.main(["filter", *given])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(why, said) and not (place / "k.jsonl").exists()


def test_the_experiment_in_little(tmp_path, capsys):
    """The table's script, of few scenes and steps."""
    dataset = shapes.load(0, 32, 300, 16)
    rows = filtering.experiment(tmp_path, [0], dataset, steps=3)
    assert rows["found by shapes, 1%"][0][0] > 95 and len(rows) == 11
    table = filtering.table(rows).splitlines()
    assert len(table) == 11 and all(" ± 0.0" in line for line in table)
