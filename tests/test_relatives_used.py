"""What a relative has learned is used as CoCa is: its own encoders serve every task."""

import json

import numpy as np
import pytest
import relatives
import torch
from oracles import planted
from PIL import Image
from relatives import on
from runs import few_shapes, load, untrained  # noqa: F401
from strategies import small_config

from minicoca import __main__ as cli
from minicoca.engine import generate as engine_generate
from minicoca.engine.relatives import coca as engine_coca
from minicoca.engine.relatives import resnet as engine_resnet
from minicoca.engine.relatives import vlmo as engine_vlmo
from minicoca.params import tree_map
from minicoca.reference import generate
from minicoca.reference.relatives import coca, vlmo

SIDES = {"reference": generate, "engine": engine_generate}
COMPARE = [row for row in relatives.ALL if row[0] in ("coca", "siglip", "resnet", "vlmo")]
WRITE = [row for row in relatives.ALL if row[0] in ("siglip", "simvlm", "cappa", "resnet")]
WHOLE = {"stages": 2, "depth": 2, "transformer": True, "attention_pool": True}
EXPERTS = {"experts": 3, "capacity": 0.8}


def given(name, own, options, seed=0, batch=4):
    """(params, a config that names the relative, its batch): what a loss has, and a run keeps."""
    config = small_config(objective=name, settings=tuple(sorted(own.items())), **options)
    _, params, batch = relatives.given(name, config, seed, batch, **own)
    return params, config, batch


def model(which, params, config):
    params = tree_map(np.float32, params)  # as a run has them
    if which == "reference":
        return generate.CoCa(params, config)
    return engine_generate.CoCa(params, config, torch.device("cpu"))


def pixels(config, count=5, seed=0):
    shape = count, config.image_size, config.image_size, 3
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def features(which, params, config, batch):
    """(vectors of the images, of the texts, image tokens) of a batch, as NumPy."""
    read = SIDES[which]
    if which == "reference":
        image, _, tokens = read.image_features(params, config, batch["images"])
        return image, read.text_features(params, config, batch["tokens"])[0], tokens
    tree = tree_map(torch.tensor, params)
    image, _, tokens = read.image_features(tree, config, torch.tensor(batch["images"]))
    text, _ = read.text_features(tree, config, torch.tensor(batch["tokens"]))
    return image.numpy(), text.numpy(), tokens.numpy()


def check_vectors_are_the_losss(which, name, own, options):
    """What is compared afterwards is what the contrastive loss compared."""
    own = own | ({"capacity": 0.0} if own.get("experts") else {})
    params, config, batch = given(name, own, options)
    settings = relatives.RELATIVES[name](**own)
    outputs, _ = relatives.SIDES[which](name, params, config, settings, batch)
    image, text, tokens = features(which, params, config, batch)
    np.testing.assert_allclose(image, outputs["image"], rtol=1e-10)
    np.testing.assert_allclose(text, outputs["text"], rtol=1e-10)
    assert tokens.ndim == 3 and tokens.shape[::2] == (4, config.image_width)


@pytest.mark.parametrize("which", SIDES)
@pytest.mark.parametrize(("name", "own", "options"), COMPARE)
def test_vectors_are_those_of_the_loss(which, name, own, options):
    check_vectors_are_the_losss(which, name, own, options)


def check_words_are_the_losss(which, name, own, options):
    """log P of a caption's tokens given its image sums to minus what the captioning loss sums."""
    params, config, batch = given(name, own, options | {"caption_weight": 1.0})
    batch |= {"prefix": np.zeros(4, int), "parallel": np.zeros(4, bool)}
    batch["tokens"][1:, 2:] = [2, 0, 0, 0, 0]  # so much padding that rows are packed
    settings = relatives.RELATIVES[name](**own)
    outputs, _ = relatives.SIDES[which](name, params, config, settings, batch)
    images, tokens = batch["images"], batch["tokens"]
    if which == "engine":
        params, images = tree_map(torch.tensor, params), torch.tensor(images)
        tokens = torch.tensor(tokens)
    log_p = np.asarray(SIDES[which].log_likelihoods(params, config, images, tokens))
    own_T = log_p[np.arange(4), np.arange(4)]
    count = (batch["tokens"][:, 1:] != 0).sum()
    np.testing.assert_allclose(-own_T.sum() / count, outputs["caption"], rtol=1e-9)


@pytest.mark.parametrize("which", SIDES)
@pytest.mark.parametrize(("name", "own", "options"), WRITE)
def test_likelihoods_are_those_of_the_loss(which, name, own, options):
    check_words_are_the_losss(which, name, own, options)


def check_one_by_one(which, name, own, options):
    """An image and a text are what they are, whatever stands beside them."""
    params, config, batch = given(name, own, options)
    whole = features(which, params, config, batch)
    for b in range(4):
        count = (batch["tokens"][b] != 0).sum()
        one = {"images": batch["images"][b : b + 1], "tokens": batch["tokens"][b : b + 1, :count]}
        for found, want in zip(features(which, params, config, one), whole, strict=True):
            np.testing.assert_allclose(found[0], want[b], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("which", SIDES)
@pytest.mark.parametrize(("name", "own", "options"), COMPARE)
def test_an_image_and_a_text_do_not_depend_on_their_batch(which, name, own, options):
    check_one_by_one(which, name, own, options)


def check_both_write_alike(own, options):
    """The cached decoding of the engine and the uncached one of the reference: greedily, by beams,
    and of prompts; one image as many."""
    params, config, _ = given("resnet", own, options)
    images, prompt = pixels(config), np.array([1, 5])
    ours, theirs = (model(which, params, config) for which in SIDES)
    for how in ({}, {"beams": 3}, {"temperature": 1.5, "seed": 4}):
        want = ours.generate(images, prompt, **how)
        np.testing.assert_array_equal(theirs.generate(images, prompt, **how), want)
        one = theirs.generate(images[:1], prompt, **how)[0]
        np.testing.assert_array_equal(one, want[0, : len(one)])
    for found, wanted in zip(theirs.features(images), ours.features(images), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "own", "options"), [r for r in WRITE if r[0] == "resnet"])
def test_cached_is_uncached_of_a_convolutional_tower(name, own, options):
    check_both_write_alike(own, options)


# --- the commands ---------------------------------------------------------------------------------

OWN = {"resnet": {"stages": 2}, "vlmo": {"experts": 2}}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A run of each, of weights at random, and pictures in two folders."""
    folder, dataset = tmp_path_factory.mktemp("used"), load(0, 32, 60, 20)
    for name, own in OWN.items():
        untrained(folder / "runs" / name, 0.1, objective=name, settings=tuple(own.items()))
    for i, image in enumerate(dataset.train.images[:6]):
        (folder / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "pictures" / "ab"[i % 2] / f"{i}.png")
    return folder


def call(capsys, *words):
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


COMMANDS = {
    "classify": ["pictures", "--labels", "a red star", "a blue ring"],
    "search": ["pictures", "a red star"],
    "embed": ["--text", "a red star", "--out"],
    "evaluate": [],
    "probe": ["--data", "pictures", "--by", "knn", "--shots", "1", "--seeds", "1"],
    "caption": ["pictures", "--beams", "2"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", OWN)
def test_a_run_is_used_in_both_backends(name, command, here, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(here)
    words, said = list(COMMANDS[command]), []
    if command == "caption" and name == "vlmo":
        code, _, err = call(capsys, "caption", *words, "--run", f"runs/{name}")
        assert code == 1 and "objective vlmo: it cannot caption" in err
        return
    run = [f"runs/{name}"] if command == "evaluate" else ["--run", f"runs/{name}"]
    for backend in ("torch", "numpy"):
        more = [tmp_path / f"{backend}.npz"] if command == "embed" else []
        given = [command, *words, *more, *run, "--backend", backend, "--json"]
        code, out, err = call(capsys, *given)
        assert code == 0, err
        said.append(json.loads(out)["results"])
    assert len(said[0]) == len(said[1]) > 0
    for ours, theirs in zip(*said, strict=True):
        assert flat(ours).keys() == flat(theirs).keys()
        for key, value in flat(ours).items():
            close = pytest.approx(value, abs=2e-3) if isinstance(value, float) else value
            assert (command, key) == ("embed", ".file") or flat(theirs)[key] == close, key


def flat(row, name=""):
    if isinstance(row, dict | list):
        items = row.items() if isinstance(row, dict) else enumerate(row)
        return {k: v for key, one in items for k, v in flat(one, f"{name}.{key}").items()}
    return {name: row}


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "pictures/a/0.png", "--run", "runs/resnet"],
        ["page", "runs/resnet"],
        ["export", "onnx", "runs/resnet"],
        ["export", "open_clip", "runs/vlmo"],
    ],
)
def test_what_looks_inside_cocas_tower_says_that_it_is_none(words, here, capsys, monkeypatch):
    monkeypatch.chdir(here)
    code, _, err = call(capsys, *words)
    assert code in (1, 2) and "its image tower is not CoCa's" in err and "Traceback" not in err


VLMO = ("vlmo", EXPERTS, relatives.ONE_WIDTH)
RESNET = ("resnet", WHOLE, relatives.WIDE)
BUGS = [
    (vlmo, "replace(settings, capacity=0.0)", "settings", on(check_one_by_one, "reference", *VLMO)),
    (engine_vlmo, "replace(settings, capacity=0.0)", "settings",
     on(check_one_by_one, "engine", *VLMO)),
    (vlmo, 'used(settings), real_BS, "text")', 'used(settings), real_BS | True, "text")',
     on(check_one_by_one, "reference", *VLMO)),
    (engine_vlmo, "return image_BD, None, x_BSD", "return x_BSD[:, 0], None, x_BSD",
     on(check_vectors_are_the_losss, "engine", *VLMO)),
    (engine_resnet, 'embed(contrast_BD, params, "image_projection"), memory, tokens_BSM',
     'embed(contrast_BD, params, "image_projection"), memory.flip(0), tokens_BSM',
     on(check_both_write_alike, *RESNET[1:])),
    (coca, 'embed(contrast_BD, params, "image_projection")[0]', "contrast_BD",
     on(check_vectors_are_the_losss, "reference", "siglip", {}, {"embed_width": 22})),
    (engine_coca, "rows.decoder_packing.pad(x) if", "rows.decoder_packing.pad(x).flip(1) if",
     on(check_words_are_the_losss, "engine", "siglip", {}, {})),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()
