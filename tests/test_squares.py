"""Pixels are open_clip's, bit for bit, for whatever picture both read as RGB or grey."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

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
