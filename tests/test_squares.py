"""Pictures as squares: pixels are open_clip's, bit for bit, for whatever both read as RGB or grey;
and every way to ask for a fit, or for more pixels, comes down to the same."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import untrained

import minicoca
from minicoca import __main__ as cli
from minicoca.data import folder
from minicoca.images import from_picture, load_image

MODES = {"crop": "shortest", "pad": "longest", "squash": "squash"}
SIZES = st.one_of(st.integers(1, 60), st.integers(60, 700))


def bytes_of(tensor):
    return tensor.mul(255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("fit", MODES)
@given(SIZES, SIZES, st.integers(1, 96), st.sampled_from(["RGB", "L"]), st.integers(0, 9))
def test_pixels_are_open_clips(kind, fit, width, height, side, mode, seed):
    """Twenty times as many sizes as other tests draw, since roundings differ at few of them."""
    transform = pytest.importorskip("open_clip.transform")
    rng = np.random.default_rng([seed, width, height])
    how = transform.image_transform(
        side, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize_mode=MODES[fit]
    )
    for _ in range(20):
        small = rng.integers(0, 256, (max(1, height // 3), max(1, width // 3), 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((width, height)).convert(mode)
        file = io.BytesIO()
        picture.save(file, kind)
        content = file.getvalue()
        if fit != "pad" or round(side * min(width, height) / max(width, height)):
            theirs = bytes_of(how(Image.open(io.BytesIO(content))))
            np.testing.assert_array_equal(load_image(io.BytesIO(content), side, fit=fit), theirs)
            again = from_picture(Image.open(io.BytesIO(content)), side, fit)
            np.testing.assert_array_equal(again, theirs)
        width, height, side = (int(n) for n in rng.integers(1, (700, 700, 97)))
        how.transforms[:2] = transform.image_transform(
            side, is_train=False, resize_mode=MODES[fit]
        ).transforms[:2]


@pytest.mark.extras
@pytest.mark.parametrize("width, height", [(4000, 3000), (2999, 4001), (6000, 900), (1500, 4500)])
@pytest.mark.parametrize("side", [224, 288])
def test_photographs_are_not_decoded_smaller(width, height, side):
    """Of these a quarter or an eighth would do, and nearly be the same."""
    transform = pytest.importorskip("open_clip.transform")
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (height // 9, width // 9, 3), dtype=np.uint8))
    file = io.BytesIO()
    blobs.resize((width, height)).save(file, "JPEG", quality=90)
    how = transform.image_transform(side, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    theirs = bytes_of(how(Image.open(file)))
    np.testing.assert_array_equal(load_image(io.BytesIO(file.getvalue()), side), theirs)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, and a wide picture."""
    place = tmp_path_factory.mktemp("squares")
    untrained(place / "run")
    wide = Image.linear_gradient("L").resize((90, 40))
    Image.merge("RGB", [wide, wide.rotate(180), wide]).save(place / "wide.jpg", quality=95)
    return place


class Seen:
    """A CoCa that writes down the images that it is asked about."""

    def __init__(self, coca):
        self.coca, self.images = coca, []

    def __getattr__(self, name):
        found = getattr(self.coca, name)
        if name not in ("embed_images", "generate", "log_likelihoods"):
            return found
        return lambda images, *more, **how: (
            self.images.append(images) or found(images, *more, **how)
        )


@pytest.mark.parametrize("fit", MODES)
@pytest.mark.parametrize("kind", ["path", "picture", "array"])
def test_every_task_takes_a_fit(fit, kind, place):
    path = place / "wide.jpg"
    with Image.open(path) as opened:
        opened.load()
    image = {"path": path, "picture": opened, "array": np.asarray(opened)}[kind]
    model = minicoca.load(place / "run", backend="numpy")
    seen = model.coca = Seen(model.coca)
    model.caption(image, fit=fit)
    model.classify([image], ["a star", "a ring"], fit=fit)
    model.embed_images(image, fit=fit)
    model.search(image, [image], fit=fit)
    model.score(image, "a star", fit=fit)
    blank = seen.images.pop()  # what `score` looks at for the likelihood without an image
    assert len(seen.images) == 7 and len(blank) == 3
    for images in seen.images:
        np.testing.assert_array_equal(images, load_image(path, 32, fit=fit)[None])
    for task in (model.caption, model.embed_images, lambda x, fit: model.score(x, "a", fit=fit)):
        with pytest.raises(ValueError, match="fit='center' is none of crop, pad, squash"):
            task(image, fit="center")


def test_pictures_over_the_limit_are_told(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    said = "wide.jpg: 90 x 40 is over the limit of 1000 pixels: decoded at 1/2 of its sides"
    model = minicoca.load("run", backend="numpy")
    model.max_pixels = 1000
    tasks = [
        lambda: model.caption("wide.jpg"),
        lambda: model.classify("wide.jpg", ["a star"]),
        lambda: model.embed_images("wide.jpg"),
        lambda: model.search("a star", ["wide.jpg"]),
        lambda: model.score("wide.jpg", "a star"),
    ]
    for task in tasks:
        with pytest.warns(UserWarning) as told:
            task()
        assert [str(one.message) for one in told] == [said]
        assert told[0].filename == __file__
    flags = ["--run", "run", "--max-pixels"]
    assert cli.main(["caption", "wide.jpg", *flags, "1000"]) == 0
    assert capsys.readouterr().err.count(f"minicoca: {said}\n") == 1
    assert cli.main(["caption", "wide.jpg", *flags, "50"]) == 1  # an eighth is 12 x 5
    assert "90 x 40 is over the limit of 50 pixels" in capsys.readouterr().err
    for number in ("0", "178956971"):
        assert cli.main(["caption", "wide.jpg", *flags, number]) == 2
        assert "is not from 1 to 178,956,970" in capsys.readouterr().err


def test_a_data_set_says_which_pictures_are_decoded_smaller(tmp_path, monkeypatch):
    rows = "".join(f"{i}.jpg,thing {i}\n" for i in range(4))
    (tmp_path / "list.csv").write_text("image,caption\n" + rows)
    for i in range(4):
        Image.new("RGB", (40 + i, 20), (60 * i, 9, 9)).save(tmp_path / f"{i}.jpg")
    monkeypatch.setattr(folder.load_image.__globals__["bounds"], "MAX_PIXELS", 840)
    data = folder.load(tmp_path / "list.csv", 8, validation=0, held_out=0)
    assert len(data.train) == 4 and "1 images decoded smaller than they are:" in data.notes
    assert "3.jpg: 43 x 20 is over the limit of 840 pixels: decoded at 1/2" in data.notes
    for path, image in zip(data.train.paths, data.train.batch(range(4)), strict=True):
        np.testing.assert_array_equal(image, load_image(path, 8))
