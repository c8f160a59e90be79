"""The front door for Python: what it takes, what it gives, what it says, and that it is lazy."""

import inspect
import io
import json
import re
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import untrained

import minicoca
from minicoca import __main__ as cli
from minicoca import params
from minicoca.config import from_dict
from minicoca.engine import generate as engine_generate
from minicoca.model import Model
from minicoca.reference import generate as reference_generate
from minicoca.reference.model import coca
from minicoca.tasks import captioning, files, retrieval, scoring, zero_shot
from minicoca.training.checkpoint import read_own

TEXTS = ["a small red circle", "a large blue ring left of a small green star", "a star"]
LABELS = ["a red star", "a blue ring", "a circle"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A run whose weights are far from their first values, in runs/shapes; and pictures."""
    folder = tmp_path_factory.mktemp("model")
    run = folder / "runs" / "shapes"
    config, rng = untrained(run), np.random.default_rng(0)
    tree = params.tree_map(
        lambda a: (a + 0.2 * rng.standard_normal(a.shape)).astype(np.float32),
        params.initialise(config),
    )
    _, of = read_own(run)
    params.save(run / "model.safetensors", tree, config, **of.as_dict())
    (folder / "pictures").mkdir()
    for i in range(5):
        size = (40 + 7 * i, 52, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"pictures/{i}.png")
    return folder


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)


@pytest.fixture(scope="module")
def model(here):
    return quiet(here / "runs" / "shapes")


def quiet(folder, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the files were not checked for damage
        return minicoca.load(folder, **how)


def paths(here):
    return sorted((here / "pictures").glob("*.png"))


# --- lazy -----------------------------------------------------------------------------------------


def test_importing_takes_nothing_along():
    """Nothing but the standard library, in a fresh process, until the front door is used."""
    code = """if True:
        import sys
        import minicoca
        first = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
        print(sorted(name for name in sys.modules if name.startswith("minicoca")))
        print(sorted(first & {"torch", "numpy", "PIL", "triton", "sentencepiece", "safetensors"}))
        print(minicoca.__version__, "torch" in sys.modules)
        from minicoca import Model, load
        print(Model.__module__, load.__module__, "torch" in sys.modules)
        print(minicoca.load is load, hasattr(minicoca, "lode"))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "['minicoca']", "[]", f"{minicoca.__version__} False",
        "minicoca.model minicoca.model False", "True False",
    ]  # fmt: skip


def test_numpy_needs_no_torch(here):
    code = """if True:
        import sys, warnings
        warnings.simplefilter("ignore")
        import minicoca
        model = minicoca.load("runs/shapes", backend="numpy")
        assert model.score("pictures/0.png", "a star").tokens == 3
        print("torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("module", [captioning, files, retrieval, scoring, zero_shot, Model])
def test_everything_public_has_type_hints(module):
    if module is Model:
        functions = [f for _, f in inspect.getmembers(Model, inspect.isfunction)]
        functions += [minicoca.load, Model.config.fget]
    else:
        functions = [f for _, f in inspect.getmembers(module, inspect.isfunction)]
        functions = [f for f in functions if f.__module__ == module.__name__]
    for f in functions:
        if not f.__name__.startswith("_") or f.__name__ == "__init__":
            signature = inspect.signature(f)
            assert signature.return_annotation is not signature.empty, f
            bare = {n for n, p in signature.parameters.items() if p.annotation is p.empty}
            assert bare <= {"self", "model", "tokenizer", "how"}, f"{f}: {bare}"
            assert inspect.getdoc(f), f


# --- one in, one out ------------------------------------------------------------------------------


def forms(path):
    """The same picture as each thing that it may be given as."""
    picture = Image.open(path)
    return [path, str(path), picture, np.asarray(picture), picture.convert("RGBA")]


@given(kinds=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=4))
def test_every_form_of_an_image_gives_the_same_and_a_list_gives_a_list(here, model, kinds):
    plain = [paths(here)[i] for i, _ in kinds]
    mixed = [forms(path)[form] for path, (_, form) in zip(plain, kinds, strict=True)]
    captions, vectors = model.caption(mixed), model.embed_images(mixed)
    assert isinstance(captions, list) and vectors.shape == (len(kinds), model.config.text_width)
    assert captions == [model.caption(path) for path in plain]
    assert [found.label for found in model.classify(mixed, LABELS)] == [
        model.classify(path, LABELS).label for path in plain
    ]
    for vector, path in zip(vectors, plain, strict=True):
        np.testing.assert_allclose(vector, model.embed_images(path), atol=2e-6)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    scores = model.score(mixed, TEXTS)
    assert scores.cosines.shape == scores.log_likelihoods.shape == (len(kinds), 3)
    np.testing.assert_allclose(scores.cosines, vectors @ model.embed_texts(TEXTS).T, atol=2e-6)


def test_what_is_given_stays_as_it_is(here, model, tmp_path):
    """Turned by its EXIF as the file is, in a copy; a batch is an array of four axes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(paths(here)[0]).save(tmp_path / "turned.png", exif=exif)
    picture = Image.open(tmp_path / "turned.png")
    size = picture.size
    vector = model.embed_images(picture)
    assert picture.size == size
    np.testing.assert_array_equal(vector, model.embed_images(tmp_path / "turned.png"))
    assert np.abs(vector - model.embed_images(paths(here)[0])).max() > 1e-3
    rng = np.random.default_rng(1)
    batch, grey = (
        rng.integers(0, 256, (2, 3, 40, 30, 3), np.uint8)[0],
        rng.integers(0, 256, (33, 47), np.uint8),
    )
    np.testing.assert_array_equal(model.embed_images(batch), model.embed_images(list(batch)))
    in_colour = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(model.embed_images(grey), model.embed_images(in_colour))
    np.testing.assert_array_equal(
        model.embed_images(grey.T), model.embed_images(in_colour.swapaxes(0, 1))
    )
    assert model.embed_images(torch.from_numpy(batch[0])).shape == (model.config.text_width,)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16"])
def test_a_picture_of_any_kind_is_as_its_file(mode, here, model, tmp_path):
    """Transparency lies on white, and 16 bits are scaled: not as PIL alone would have it."""
    values = np.random.default_rng(2).integers(0, 256, (40, 36, 4), np.uint8)
    picture = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode != "I;16":
        picture = (
            Image.fromarray(values).convert("RGBA" if mode[-1] == "A" else "RGB").convert(mode)
        )
    picture.save(tmp_path / "it.png")
    assert picture.mode == mode
    vector = model.embed_images(tmp_path / "it.png")
    np.testing.assert_allclose(model.embed_images(picture), vector, atol=1e-6)


def test_axes_of_what_is_given_alone_are_left_out(here, model):
    image, whole = paths(here)[0], model.score(paths(here), TEXTS)
    for images, texts, cut in (
        (image, TEXTS, np.s_[0]), (paths(here), TEXTS[1], np.s_[:, 1]), (image, TEXTS[1], (0, 1)),
        ([image], [TEXTS[1]], np.s_[:1, 1:2]), ([], TEXTS, np.s_[:0]), (image, [], np.s_[0, :0]),
    ):  # fmt: skip
        part = model.score(images, texts)
        for found, want in zip(part[:2], whole[:2], strict=True):
            assert np.shape(found) == np.shape(want[cut])
            np.testing.assert_allclose(found, want[cut], rtol=1e-4, atol=1e-5)
        assert np.shape(part.per_token) == np.shape(part.cosines)
    np.testing.assert_array_equal(whole.tokens, [5, 11, 3])
    assert model.embed_texts(TEXTS[0]).shape == (model.config.text_width,)
    assert model.embed_texts([]).shape == model.embed_images([]).shape == (0, 64)
    assert model.classify([], LABELS) == model.caption([]) == []


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_score_is_minus_the_loss_times_the_tokens(here, backend):
    """By the reference's own loss, of each pair alone."""
    model = quiet("shapes", backend=backend)
    scores = model.score(paths(here)[:2], TEXTS)
    tree = params.load(here / "runs/shapes/model.safetensors")[0]
    side = model.config.image_size
    for i, path in enumerate(paths(here)[:2]):
        pixels = reference_generate.normalise(files.pixels(path, side)[None], model.config)
        for j, text in enumerate(TEXTS):
            ids = model.tokenizer.encode([text], model.config.text_length)
            loss = coca(tree, model.config, pixels, ids)[0]["caption"]
            assert scores.per_token[i, j] == pytest.approx(-loss, rel=2e-5)
            assert scores.log_likelihoods[i, j] == pytest.approx(-loss * (ids.size - 1), rel=2e-5)


# --- as the commands ------------------------------------------------------------------------------


def printed(*arguments):
    out = io.StringIO()
    with redirect_stdout(out):
        assert cli.main([*arguments, "--run", "runs/shapes", "--json"]) == 0
    return json.loads(out.getvalue())["results"]


@pytest.mark.parametrize(
    "how", [{}, {"beams": 3}, {"temperature": 2.0, "seed": 7, "top_k": 9, "top_p": 0.9},
            {"prompt": "a small"}],
    ids=str,
)  # fmt: skip
def test_captions_are_those_of_the_command(here, model, how, monkeypatch):
    monkeypatch.setattr(files, "BATCH", 2)  # what is drawn does not depend on the batches
    flags = [part for k, v in how.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    rows = printed("caption", "pictures", *flags)
    assert model.caption(paths(here), **how) == [row["caption"] for row in rows]
    monkeypatch.setattr(files, "BATCH", 64)
    assert model.caption(iter(paths(here)), **how) == [row["caption"] for row in rows]


def test_classes_and_what_is_found_are_those_of_the_commands(here, model):
    rows = printed("classify", "pictures", "--labels", *LABELS, "--template", "a small {}")
    found = model.classify(paths(here), LABELS, templates="a small {}")
    for row, classified in zip(rows, found, strict=True):
        assert (row["label"], row["probability"]) == (
            classified.label, round(classified.probability, 4),
        )  # fmt: skip
        assert row["scores"] == {k: round(v, 4) for k, v in classified.scores.items()}
        assert classified.label == max(classified.scores, key=classified.scores.get)
    assert model.classify(paths(here)[0], LABELS[:1]).probability is None
    rows = printed("search", "pictures", "a red star", "-k", "3")
    for images in ("pictures", paths(here), ["pictures"], model.embed_images(paths(here))):
        found = model.search("a red star", images, k=3)
        assert [paths(here)[f.place].name for f in found] == [Path(r["file"]).name for r in rows]
        assert [round(f.cosine, 4) for f in found] == [row["cosine"] for row in rows]
    places, images = [[f.place for f in found]], paths(here)
    assert [str(f.image) for f in model.search("a red star", "pictures", k=9)][:3] == [
        row["file"] for row in rows
    ]
    both = model.search(["a red star", Image.open(images[3])], images, k=3)
    assert [[f.place for f in own] for own in both][:1] == places
    assert (both[1][0].place, both[1][0].image) == (3, images[3])
    assert model.search(images[3], images, k=1)[0].cosine == pytest.approx(1, abs=1e-5)
    assert model.search("a red star", []) == [] and model.search([], images) == []


# --- what is said ---------------------------------------------------------------------------------

PICTURE, TORN = np.zeros((8, 8, 3), np.uint8), io.BytesIO()
WRONG = {
    "a floating array": (lambda m: m.caption(PICTURE / 255), r"not float64 \[8, 8, 3\].*by 255"),
    "channels first": (lambda m: m.caption(PICTURE.reshape(3, 8, 8)), r"not uint8 \[3, 8, 8\]"),
    "wide integers": (lambda m: m.embed_images(PICTURE.astype(int)), "not int64"),
    "no pixels": (lambda m: m.caption(PICTURE[:0]), r"not uint8 \[0, 8, 3\]"),
    "a number": (lambda m: m.caption(7), "a path, a PIL image or an array, and not int"),
    "bytes": (lambda m: m.caption([b"x"]), "and not bytes"),
    "no file": (lambda m: m.classify(["none.png"], LABELS), "none.png: no such file"),
    "a folder": (lambda m: m.caption("pictures"), "pictures: no file, but a folder"),
    "no image": (lambda m: m.score("bad.png", "a"), "bad.png: not an image"),
    "torn": (lambda m: m.score(Image.open(TORN), "a"), "a picture: "),
    "no text": (lambda m: m.embed_texts([7]), "a text is a str, and not int"),
    "no texts": (lambda m: m.score(PICTURE, None), "a text is a str, and not NoneType"),
    "half a letter": (lambda m: m.embed_texts("a \ud800"), "half a letter at position 2"),
    "one label": (lambda m: m.classify(PICTURE, "a star"), "give a list of one label or more"),
    "no label": (lambda m: m.classify(PICTURE, []), "give a list of one label or more"),
    "an empty label": (lambda m: m.classify(PICTURE, ["a", " "]), "label 2, ' ', is empty"),
    "equal labels": (lambda m: m.classify(PICTURE, ["a", "a"]), "'a' is given twice"),
    "a template": (lambda m: m.classify(PICTURE, LABELS, templates="of"), "'of' has no {}"),
    "no template": (lambda m: m.classify(PICTURE, LABELS, templates=[]), "no template: give one"),
    "no k": (lambda m: m.search("a", "pictures", k=0), "k=0: at least 1"),
    "vectors": (lambda m: m.search("a", np.zeros((2, 3))), "of width 3; this model's have 64"),
    "no pictures": (lambda m: m.search("a", ["empty"]), "no images in empty"),
    "beams": (lambda m: m.caption(PICTURE, beams=65), "beams 65 is not from 0 to 64"),
    "half a beam": (lambda m: m.caption(PICTURE, beams=2.5), "beams 2.5 is not a whole number"),
    "both": (lambda m: m.caption(PICTURE, beams=2, temperature=1), "exclude each other"),
    "no temperature": (lambda m: m.caption(PICTURE, seed=1), "give temperature too"),
    "cold": (lambda m: m.caption(PICTURE, temperature=0), "temperature 0 is not from 0.001"),
    "top_p": (lambda m: m.caption(PICTURE, temperature=1, top_p=0), "top_p 0 is not over 0"),
    "seed": (lambda m: m.caption(PICTURE, temperature=1, seed=-1), "seed -1 is not from 0"),
    "a prompt": (lambda m: m.caption(PICTURE, "unicorn"), "'unicorn', which this model never saw"),
    "no run": (lambda m: minicoca.load("none"), "none"),
    "a device": (lambda m: minicoca.load("shapes", device="gpu"), "device 'gpu' cannot be used"),
    "a backend": (lambda m: minicoca.load("shapes", backend="jax"), "backend='jax'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_a_value_error(case, here, model):
    Path("bad.png").write_text("this is none")
    TORN.seek(0), TORN.write(paths(here)[0].read_bytes()[:500])
    Path("empty").mkdir(exist_ok=True)
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as refusal:
        call(model)
    assert "\n" not in str(refusal.value)


def test_what_is_not_read_is_told_once_at_the_callers_line(here, model):
    long, picture = "a red star " * 20, paths(here)[0]
    calls = [
        lambda: model.embed_texts([long, "a unicorn"]),
        lambda: model.score(picture, [long, "a unicorn"]),
        lambda: model.classify(picture, ["a unicorn", long.strip()]),
        lambda: model.search([long, "a unicorn"], [picture]),
    ]
    for call in calls:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            call()
        assert [str(w.message)[:33] for w in told] == [
            "this model never saw a word of 'a", "this model reads 24 tokens of a t",
        ]  # fmt: skip
        assert {w.filename for w in told} == {__file__}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.score(picture, TEXTS), model.caption(picture, "a small")
    assert not told


def test_what_is_left_out_of_a_folder_is_told(model, here, tmp_path):
    for path in paths(here):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "3.png").write_text("this is none")
    with pytest.warns(UserWarning, match=r"1 could not be used:\n.*3.png: not an image"):
        found = model.search("a star", tmp_path, k=9)
    assert sorted(f.image.name for f in found) == ["0.png", "1.png", "2.png", "4.png"]


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_a_model_of_one_loss_does_what_it_was_trained_for(backend, here, tmp_path):
    config, of = read_own(here / "runs" / "shapes")
    tree = params.load(here / "runs/shapes/model.safetensors")[0]
    kind = {"torch": engine_generate.CoCa, "numpy": reference_generate.CoCa}[backend]
    tokenizer = quiet("shapes").tokenizer

    def of_weights(**weights):
        changed = {**config.to_dict(), "backend": backend, "device": "auto", **weights}
        return Model(kind(tree, from_dict(changed)), tokenizer)

    picture = paths(here)[0]
    matches, captions = of_weights(caption_weight=0.0), of_weights(contrastive_weight=0.0)
    assert matches.score(picture, TEXTS).log_likelihoods is None
    assert matches.score(picture, TEXTS).per_token is None
    assert captions.score(picture, TEXTS).cosines is None
    assert captions.score(picture, TEXTS).log_likelihoods.shape == (3,)
    for call in (
        lambda: captions.embed_images(picture), lambda: captions.embed_texts(TEXTS),
        lambda: captions.classify(picture, LABELS), lambda: captions.search("a", "pictures"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="contrastive_weight 0: it cannot compare"):
            call()
    with pytest.raises(ValueError, match="caption_weight 0: it cannot caption"):
        matches.caption(picture)


# --- the README -----------------------------------------------------------------------------------


def test_the_readme_example_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "README.md").read_text()
    section = page[page.index("## From Python") :]
    code, output = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", section, re.S).groups()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, {})
    assert capsys.readouterr().out == output
