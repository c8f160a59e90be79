"""lessons/one_page.py is the reference: same losses, same gradients, same steps on same weights."""

import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from minicoca.config import UNKNOWN, preset
from minicoca.params import flatten, initialise, unflatten
from minicoca.reference import generate, model, optim

PATH = Path(__file__).parents[1] / "lessons" / "one_page.py"


@pytest.fixture
def page():
    return made(PATH.read_text())


def made(source):
    """The page as a module of its own, whose weights nobody else has."""
    module = types.ModuleType("one_page")
    exec(compile(source, str(PATH), "exec"), module.__dict__)
    return module


def config_of(page):
    return preset(
        "tiny", image_size=page.SIDE, patch_size=page.PATCH, pooler="cascade",
        caption_queries=page.QUERIES, vocabulary=len(page.WORDS), text_length=page.LENGTH,
        image_width=page.WIDTH, text_width=page.WIDTH, image_hidden=page.HIDDEN,
        text_hidden=page.HIDDEN, image_heads=page.HEADS, text_heads=page.HEADS,
        pooler_heads=page.HEADS, image_layers=page.LAYERS["image"],
        unimodal_layers=page.LAYERS["text"], multimodal_layers=page.LAYERS["decoder"],
        steps=page.STEPS, batch_size=page.BATCH, warmup=page.WARMUP, learning_rate=page.RATE,
        final_rate=0.0, schedule="cosine", optimizer="muon",
    )  # fmt: skip


def given_weights(page, seed=0):
    """The reference's first weights, moved off their zeros and ones, in float64 in both."""
    rng = np.random.default_rng(seed)
    flat = flatten(initialise(config_of(page)))
    flat = {name: w + 0.1 * rng.standard_normal(np.shape(w)) for name, w in flat.items()}
    page.WEIGHTS.update({name: page.Node(np.array(w)) for name, w in flat.items()})
    return unflatten(flat)


def pairs(page, size=6):
    pictures, tokens = page.batch(np.random.default_rng(3), size=size)
    assert len(set((tokens != page.PAD).sum(1))) > 1  # padding of several lengths
    return pictures.astype(np.float64), tokens


def test_losses_and_every_gradient_are_the_references(page):
    check_gradients(page)


def check_gradients(page):
    params, (pictures, tokens) = given_weights(page), pairs(page)
    outputs, cache = model.coca(params, config_of(page), pictures, tokens)
    want = flatten(model.coca_backward(1.0, cache)[0])
    told = page.losses(pictures, tokens)
    np.testing.assert_allclose(told, (outputs["contrastive"], outputs["caption"]), rtol=1e-12)
    assert page.WEIGHTS.keys() == want.keys()
    for name, gradient in want.items():
        error = np.abs(page.WEIGHTS[name].d - gradient).max()
        assert error < 1e-10 * max(1, np.abs(gradient).max()), name


def test_the_page_draws_every_weight_that_the_reference_has_and_no_other(page):
    page.losses(*page.batch(np.random.default_rng(0), size=2))
    want = {name: np.shape(w) for name, w in flatten(initialise(config_of(page))).items()}
    assert {name: node.y.shape for name, node in page.WEIGHTS.items()} == want
    assert {node.y.dtype for node in page.WEIGHTS.values()} == {np.dtype(np.float32)}
    assert {node.d.dtype for node in page.WEIGHTS.values()} == {np.dtype(np.float32)}


def test_two_steps_are_the_references(page):
    check_steps(page)


def check_steps(page):
    config, params, (pictures, tokens) = config_of(page), given_weights(page), pairs(page)
    page.np = _Wide()  # the page rounds its weights to float32 after each step
    state, moments = optim.start(params, config), {}
    for number in range(2):
        _, cache = model.coca(params, config, pictures, tokens)
        gradients = optim.clip_by_global_norm(model.coca_backward(1.0, cache)[0], 1.0)[0]
        rate = optim.learning_rate(number, config)
        params, state = optim.optimise(params, gradients, state, rate, config)
        page.losses(pictures, tokens)
        page.step(moments, number)
    for name, w in flatten(params).items():
        np.testing.assert_allclose(page.WEIGHTS[name].y, w, rtol=1e-6, atol=1e-8, err_msg=name)


class _Wide:
    """NumPy whose float32 is float64."""

    float32 = np.float64

    def __getattr__(self, name):
        return getattr(np, name)


def test_it_writes_what_the_reference_writes(page):
    params, (pictures, _) = given_weights(page), pairs(page)
    head = params["decoder"]["head"]["weight"]
    head[:, UNKNOWN] = 0  # which the reference never writes; the page has a word there
    page.WEIGHTS["decoder.head.weight"].y = head
    written = page.write(pictures)
    prompts = np.full((len(pictures), 1), page.START)
    want = generate.generate(params, config_of(page), pictures, prompts)
    short = min(written.shape[1], want.shape[1])
    np.testing.assert_array_equal(written[:, :short], want[:, :short])


def test_scenes_are_told_apart_by_their_sentences_and_kept_pairs_are_kept(page):
    rng = np.random.default_rng(5)
    texts = [page.scene(rng, page.SEEN)[1] for _ in range(300)]
    assert not any(f"{colour} {shape}" in text for text in texts for colour, shape in page.KEPT)
    assert {word for text in texts for word in text.split()} == set(page.WORDS[3:])
    picture, text = page.scene(rng, page.KEPT)
    assert picture.shape == (32, 32, 3) and np.abs(picture).max() <= 1.2
    assert any(f"{colour} {shape}" in text for colour, shape in page.KEPT)


@pytest.mark.slow
def test_it_learns_and_says_so(tmp_path):
    """A fifth of its steps: losses fall, and captions and what is found are far above chance."""
    source = PATH.read_text()
    assert "1000, 64, 50, 3e-3" in source
    (tmp_path / "page.py").write_text(source.replace("1000, 64, 50, 3e-3", "200, 64, 20, 3e-3"))
    run = [sys.executable, "page.py"]
    told = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    lost = re.findall(r"step +(\d+): contrastive ([\d.]+), caption ([\d.]+)", told)
    assert [int(number) for number, *_ in lost] == [10, 100, 110, 200]
    first, last = ([float(x) for x in row[1:]] for row in (lost[0], lost[-1]))
    assert last[0] < 0.4 * first[0] and last[1] < 0.4 * first[1], told
    found = re.findall(r"captions right ([\d.]+)%, of 256 the right one found ([\d.]+)%", told)
    (right, seen), (_, new) = found
    assert float(right) > 10 and float(seen) > 60 and float(new) > 40, found
    marked = [line for line in told.splitlines() if line[:2] in ("= ", "x ")]
    assert len(marked) == 16


def test_it_is_one_page_that_needs_numpy_alone():
    lines = PATH.read_text().splitlines()
    assert len(lines) <= 300
    imports = [line for line in lines if line.lstrip().startswith(("import", "from"))]
    assert imports == ["import math", "import time", "import numpy as np"]


@pytest.mark.parametrize(
    "right, wrong, check",
    [
        ("* (dp - (dp * p).sum(-1, keepdims=True)) * factor", "* dp * factor", check_gradients),
        ("- through_spread)", ")", check_gradients),
        ("np.add.at(dy, where, d)", "dy[where] = d", check_gradients),
        ("tokens != PAD", "True", check_gradients),
        ("parent.d = parent.d + d.sum(", "parent.d = d.sum(", check_gradients),
        ("caption.d + 2", "caption.d + 1", check_gradients),
        ("+ (r - right).T", "", check_gradients),
        ("np.tri(x.y.shape[1], dtype=bool)", "True", check_gradients),
        ("- 4.775 * s", "- 4.7 * s", check_steps),
        ("ahead = orthogonal(0.95 * mean + 0.05 * g)", "ahead = orthogonal(mean)", check_steps),
        ("(np.sqrt(second) + 1e-8)", "(np.sqrt(second) + 1e-3)", check_steps),
    ],
)
def test_a_planted_bug_is_seen(right, wrong, check):
    source = PATH.read_text()
    assert source.count(right) == 1
    with pytest.raises(AssertionError):
        check(made(source.replace(right, wrong)))
