"""What `minicoca data` says of a data set is so: each figure against a slow definition."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from minicoca import __main__ as cli
from minicoca import data
from minicoca.config import preset
from minicoca.data import alike
from minicoca.data.alike import bits_of, cells_of, near_equal
from minicoca.images import load_image
from minicoca.reference.losses import contrastive_loss
from minicoca.survey import floor_of_repeats, in_words, lowest, survey
from minicoca.tokenizer import Tokenizer

CAPTIONS = st.lists(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True).map(tuple),
    min_size=1,
    max_size=6,
)


def slow_floor(captions, batch):
    """The mean of ln k over all batches and all choices of captions."""
    floors, weights = [], []
    for rows in itertools.combinations(captions, batch):
        for chosen in itertools.product(*rows):
            floors.append(np.mean([math.log(chosen.count(text)) for text in chosen]))
            weights.append(1 / math.prod(map(len, rows)))
    return np.average(floors, weights=weights)


@given(CAPTIONS, st.integers(1, 6))
def test_the_floor_of_repeats_is_the_mean_over_all_batches(captions, batch):
    assume(batch <= len(captions))
    floor = floor_of_repeats(captions, batch)
    assert floor == pytest.approx(slow_floor(captions, batch), abs=1e-9)


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=8), st.integers(0, 2**32))
def test_no_vectors_are_better_than_the_floor_and_some_reach_it(texts, seed):
    batch = len(texts)
    floor = floor_of_repeats([(text,) for text in texts], batch)
    own = np.eye(3)[["abc".index(text) for text in texts]]
    best = contrastive_loss(own, own, math.log(0.01))[0]
    assert best == pytest.approx(floor, abs=1e-9)
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(batch, 5))
    by_text = {text: rng.normal(size=5) for text in "abc"}
    words = np.stack([by_text[text] for text in texts])
    for sigma in (0.01, 0.3, 5.0):
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, words)]
        assert contrastive_loss(*unit, math.log(sigma))[0] >= floor - 1e-9


def test_large_groups_are_counted_in_time():
    captions = [(f"only {n}", "the same") for n in range(20_000)] + [("the same",)] * 20_000
    others = np.random.default_rng(0).integers(0, 2, (2000, 64))  # whether a pair shows it
    alone = np.random.default_rng(1).integers(0, 2, (2000, 64)).astype(bool)
    shows = np.where(others == 1, True, alone)
    k = shows.sum(1)
    drawn = np.mean(k * np.log(k) / 64)
    assert floor_of_repeats(captions, 64) == pytest.approx(drawn, rel=0.02)


@pytest.mark.parametrize("batch", [2, 3, 8, 64])
@pytest.mark.parametrize("sigma", [0.07, 0.3, 1.0])
def test_the_corners_of_a_simplex_have_the_lowest_loss(batch, sigma):
    corners = np.eye(batch) - 1 / batch
    corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    floor = lowest(batch, sigma)
    assert contrastive_loss(corners, corners, math.log(sigma))[0] == pytest.approx(floor, abs=1e-12)
    noisy = corners + np.random.default_rng(0).normal(size=corners.shape) / 9
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    assert contrastive_loss(noisy, noisy, math.log(sigma))[0] > floor
    assert lowest(1, sigma) == 0


def photo(seed, side=90) -> Image.Image:
    """Smooth, as photographs are: noise of 6 x 6 points, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


@given(st.integers(0, 2**20), st.integers(60, 200), st.sampled_from([75, 95]))
@settings(max_examples=30)
def test_the_same_photo_scaled_and_saved_again_is_near_equal(tmp_path_factory, seed, side, quality):
    path = tmp_path_factory.mktemp("photos") / "a.jpg"
    photo(seed).resize((side, side), Image.Resampling.LANCZOS).save(path, quality=quality)
    for number, image in enumerate((photo(seed), photo(seed + 1))):
        image.save(path.with_name(f"{number}.png"))
    paths = [path.with_name("0.png"), path, path.with_name("1.png")]
    cells = [cells_of(load_image(path, 36, fit="squash")[None]) for path in paths]
    assert near_equal(cells[0], cells[1]) == [(0, 0)] == near_equal(cells[1], cells[0])
    assert near_equal(cells[0], cells[2]) == []


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_near_equal_pairs_are_those_of_the_definition(seed, chunk):
    rng = np.random.default_rng(seed)
    one = rng.integers(0, 256, (5, 9, 9, 3)).astype(np.float32)
    other = one[rng.integers(0, 5, 9)] + rng.choice([0, 1, 4, 9], (9, 1, 1, 1)) * rng.normal(
        size=(9, 9, 9, 3)
    )
    other[:3, 8, 8, 0] += rng.integers(0, 90)  # one cell alone, of which no bit is made
    expected = []
    for i in range(5):
        for j in range(9):
            differ = abs(one[i] - other[j])
            bits = 0
            for y in range(8):
                for x in range(8):
                    steps = [c[y, x + 1].mean() > c[y, x].mean() + 2 for c in (one[i], other[j])]
                    bits += steps[0] != steps[1]
            if bits <= 6 and differ.mean() <= 4 and differ.max() <= 24:
                expected.append((i, j))
                break
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alike, "CHUNK", chunk)
        assert near_equal(one, other.astype(np.float32)) == expected


@given(st.integers(1, 50), st.integers(0, 2**32))
def test_cells_are_means(side, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    cells = cells_of(images)
    assert cells.shape == (2, 9, 9, 3) and bits_of(cells).shape == (2,)
    if side >= 9:
        edges = [round(side * n / 9) for n in range(10)]
        for y, x in itertools.product(range(9), repeat=2):
            part = images[:, edges[y] : edges[y + 1], edges[x] : edges[x + 1]]
            np.testing.assert_allclose(cells[:, y, x], part.mean((1, 2)), rtol=1e-5)


@pytest.fixture
def place(tmp_path):
    """Forty photos in given splits; what is held out has one copy and one that is near."""
    rows = ["image,caption,split\n"]
    for number in range(40):
        photo(number).save(tmp_path / f"{number}.png")
        split = ("train", "train", "train", "test")[number % 4]
        text = "the same thing" if number % 8 == 0 else f"the thing called n{number}"
        rows.append(f"{number}.png,{text},{split}\n")
    (tmp_path / "3.png").write_bytes((tmp_path / "4.png").read_bytes())
    photo(8).resize((60, 60)).save(tmp_path / "7.jpg", quality=80)
    (tmp_path / "7.png").write_bytes((tmp_path / "7.jpg").read_bytes())
    (tmp_path / "list.csv").write_text("".join(rows))
    return tmp_path


def test_all_that_is_said(place):
    config = preset(
        "tiny", data=str(place / "list.csv"), image_size=64, text_length=5, batch_size=16,
        vocabulary=100,
    )  # fmt: skip
    dataset = data.load(config)
    found = survey(dataset, config)
    assert found["splits"]["train"]["images"] == 30 and found["splits"]["held_out"]["images"] == 10
    assert found["pictures"]["formats"] == {"PNG": 39, "JPEG": 1}
    assert found["pictures"]["smaller_than_image_size"] == 1
    assert found["pictures"]["shorter_side"] == [60, 90.0, 90]
    texts = [text for own in dataset.train.captions for text in own]
    tokenizer = Tokenizer.train(texts, 100, "word")
    assert found["tokens"]["cut"] == tokenizer.too_long(texts, 5) == 25
    assert found["tokens"]["cut_share"] == 25 / 30
    assert found["tokens"]["lengths"][0] == 5 and found["tokens"]["lengths"][-1] == 6
    again = found["repeats"]
    assert again["most_frequent"] == [["the same thing", 5]] and again["images_with_one"] == 5
    assert again["floor_of_repeats"] == floor_of_repeats([(text,) for text in texts], 16) > 0
    assert found["words"]["once"] == 25 and found["words"]["different"] == 29
    (across,) = found["across_splits"].values()
    assert (across["equal"], across["near_equal"]) == (1, 1)
    pairs = [[name.rpartition("/")[2] for name in pair] for pair in across["examples"]]
    assert pairs == [["3.png", "4.png"], ["7.png", "8.png"]]
    said = "\n".join(in_words(found))
    for part in ("25 captions (83.3%) are cut", "39 PNG, 1 JPEG", "1 equal pictures, 1 near-equal"):
        assert part in said


def test_the_command_says_it_as_json_and_keeps_pictures(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert (
        cli.main(["data", "list.csv", "--json", "--sheet", "sheet.png", "--batch-size", "9"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["repeats"]["batch_size"] == 9 and found["sheet"] == "sheet.png"
    before = (place / "sheet.png").read_bytes()
    with Image.open("sheet.png") as sheet:
        assert sheet.size[0] == 6 * 128
    assert cli.main(["data", "list.csv", "--sheet", "sheet.png"]) == 2
    assert "sheet.png" in capsys.readouterr().err and (place / "sheet.png").read_bytes() == before
    assert cli.main(["data", "list.csv"]) == 0
    assert "held_out in train: 1 equal" in capsys.readouterr().out


def test_a_tokenizer_that_cannot_be_trained_is_said(place):
    config = preset("tiny", data=str(place / "list.csv"), vocabulary=5, tokenizer="bpe")
    found = survey(data.load(config), config)
    assert "do not fit" in found["tokens"]["error"] and found["tokens"]["error"] in "\n".join(
        in_words(found)
    )
