"""Augmentation changes how a picture looks, repeatably, and nothing else about it."""

import numpy as np
import pytest
import torch

from minicoca.engine.augment import augment


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def drawings():
    """A dark ring on white paper, in the middle of each of 40 images."""
    place = torch.linspace(-1, 1, 32)
    radius = (place[:, None] ** 2 + place**2).sqrt()
    ring = ((radius > 0.4) & (radius < 0.6)).float()[..., None]
    return (1 - ring * torch.tensor([0.9, 0.5, 0.2])).expand(40, 32, 32, 3).contiguous()


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_images_stay_images(count, strength):
    images = torch.from_numpy(generator().random((count, 24, 24, 3), np.float32))
    changed = augment(images, strength, generator())
    assert changed.shape == images.shape and changed.dtype == images.dtype
    assert changed.isfinite().all() and changed.min() >= 0 and changed.max() <= 1


def test_the_generator_decides_everything(drawings):
    first = augment(drawings, 1.0, generator(1))
    assert torch.equal(first, augment(drawings, 1.0, generator(1)))
    assert not torch.equal(first, augment(drawings, 1.0, generator(2)))


def test_every_image_is_changed_in_its_own_way(drawings):
    changed = augment(drawings, 1.0, generator()).flatten(1)
    distance = torch.cdist(changed, changed) + 1e9 * torch.eye(len(changed))
    assert distance.min() > 0.5


def test_the_given_images_are_left_alone(drawings):
    before = drawings.clone()
    augment(drawings, 1.0, generator())
    assert torch.equal(drawings, before)


def test_strength_0_changes_nothing(drawings):
    torch.testing.assert_close(augment(drawings, 0.0, generator()), drawings, atol=1e-5, rtol=0)


def test_more_strength_changes_more(drawings):
    change = [
        (augment(drawings, strength, generator()) - drawings).abs().mean()
        for strength in (0.1, 0.4, 1.0)
    ]
    assert change[0] < change[1] < change[2]


def test_what_is_drawn_can_still_be_seen(drawings):
    """The ring stays darker than what it surrounds, in all but images that lost much of it."""
    place = torch.linspace(-1, 1, 32)
    radius = (place[:, None] ** 2 + place**2).sqrt()
    changed = augment(drawings, 1.0, generator()).mean(3)
    ring = changed[:, (radius > 0.4) & (radius < 0.6)].mean(1)
    around = changed[:, radius > 0.95].mean(1)
    assert ((around - ring) > 0.1).float().mean() > 0.8
