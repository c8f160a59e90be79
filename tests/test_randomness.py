"""Every draw of the project is a stream of its own: no two seeds, steps, rows or uses share one."""

import random

import numpy as np
import pytest
import torch
from backends import BACKENDS, Engine
from hypothesis import given
from hypothesis import strategies as st
from strategies import small_config
from test_generation import IMAGE, by_last_token, sparse

from minicoca.config import from_dict, preset
from minicoca.data import shapes
from minicoca.data.order import Order
from minicoca.engine.train import Trainer
from minicoca.params import STREAMS, initialise, stream
from minicoca.relatives import drawn
from minicoca.tuning import kept_tokens

both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
# A model that writes any of 7 words, each as likely as the others, and never ends.
ANY_WORD = small_config(vocabulary=11, text_length=12)
ANY = by_last_token(
    ANY_WORD, sparse(11, {token: dict.fromkeys(range(4, 11), 1 / 7) for token in range(11)})
)
TINY = preset("tiny", augment=1.0, image_layers=1)
FIRST = initialise(TINY)
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
CAPTIONS = [(f"a {i}", f"one {i}") for i in range(40)]


def sampled(backend, seed, first, rows):
    """Captions [rows, 12] of one image, each one of a great many."""
    images, prompt = np.repeat(IMAGE, rows, 0), np.ones((rows, 1), np.int64)
    how = dict(temperature=1.0, seed=seed, first_stream=first)
    return backend.generate(ANY, ANY_WORD, images, prompt, **how)


def augmented(seed, step):
    """What a trainer makes of the same pictures."""
    trainer = Trainer(FIRST, from_dict(TINY.to_dict() | {"seed": seed}))
    return trainer._images(step, PICTURES).numpy()


def ordered(seed, epoch):
    return Order(CAPTIONS, 40, seed).indices(epoch)  # here a step is an epoch


def chosen(seed, step):
    return Order(CAPTIONS, 40, seed).chosen(step, np.arange(40))


def written(seed, row):
    return sampled(Engine, seed, row, 1)


def kept(seed, step):
    """Of a picture of 256 patches, 128."""
    config = from_dict(TINY.to_dict() | dict(seed=seed, patch_size=2, patch_keep=0.5))
    return kept_tokens(config, step, 2)


# What draws in training and use, from (seed, place). Scenes have Python's own generator: below.
def masked(seed, place):
    config = small_config(objective="mae", seed=seed)
    images = np.zeros((2, config.image_size, config.image_size, 3), np.uint8)
    return drawn(config, place, images, np.ones((2, 3), np.int64))["seen"]


USES = {
    "order": ordered,
    "captions": chosen,
    "augment": augmented,
    "sample": written,
    "patches": kept,
    "objective": masked,
}


def test_no_two_draws_share_a_stream(monkeypatch):
    """The beginnings of all generators that are made, by what is made with them."""
    make, made, owners = np.random.default_rng, [], {}

    def recorded(*seed):
        rng = make(*seed)
        made.append(str(rng.bit_generator.state))
        return rng

    def note(owner, draw, *arguments):
        made.clear()
        draw(*arguments)
        assert made, f"{owner} draws from no generator that is seeded here"
        for state in set(made):
            owners.setdefault(state, set()).add(owner)

    monkeypatch.setattr(np.random, "default_rng", recorded)
    for seed in range(3):
        note(("parameters", seed), initialise, TINY, seed)
        for use, draw in USES.items():
            for place in range(3):
                note((use, seed, place), draw, seed, place)
    assert USES.keys() == set(STREAMS)
    shared = [sorted(who, key=str) for who in owners.values() if len(who) > 1]
    assert not shared, f"one stream for {shared}"


# Seeds and steps whose sums, products and 32-bit halves meet.
numbers = st.one_of(
    st.integers(0, 3),
    st.sampled_from([k * m + j for k in (1, 2) for m in (1_000_003, 2**16, 2**32) for j in (0, 1)]),
)


@pytest.mark.parametrize("use", USES)
@given(seed=numbers, place=numbers)
def test_neighbours_draw_otherwise(use, seed, place):
    """(seed, place + 1) is not (seed + 1, place), nor any other near it; the same is the same."""
    draw = USES[use]
    near = [(seed, place), (seed, place + 1), (seed + 1, place), (seed + 1, place + 1)]
    near += [(place, seed)] if place != seed and place + 1 != seed and seed + 1 != place else []
    near += [(seed + 1, place - 1_000_003)] if place > 1_000_003 else []
    near += [(seed, place + 2**32), (seed + 2**32, place)]
    drawn = {np.asarray(draw(*at)).tobytes() for at in near}
    assert len(drawn) == len(set(near))
    assert np.asarray(draw(seed, place)).tobytes() in drawn


@given(a=st.tuples(st.sampled_from(STREAMS), numbers, numbers),
       b=st.tuples(st.sampled_from(STREAMS), numbers, numbers))  # fmt: skip
def test_streams_are_equal_only_if_all_that_names_them_is(a, b):
    drawn = [stream(*key).random(4).tolist() for key in (a, b)]
    assert (drawn[0] == drawn[1]) == (a == b)
    assert np.random.default_rng(a[1]).random(4).tolist() not in drawn  # that of first values


@both
def test_rows_of_all_seeds_are_captions_of_their_own(backend):
    rows = np.concatenate([sampled(backend, seed, 0, 6) for seed in range(5)])
    assert len(np.unique(rows, axis=0)) == 30


def test_images_of_a_batch_are_changed_each_in_its_own_way_at_every_step():
    changed = np.concatenate([augmented(seed, step) for seed in range(3) for step in range(3)])
    assert len(np.unique(changed.reshape(len(changed), -1), axis=0)) == len(changed)


def test_no_two_scenes_are_alike():
    """Places are real numbers: two scenes that are equal came from one stream."""
    places = [(0, 1), (1, 0), (1, 1), (1, 11), (11, 1), (1, 12), (11, 2), (111, 1)]
    drawn = [shapes.scene(split, index, seed) for split in shapes.SPLITS for seed, index in places]
    assert len(set(map(repr, drawn))) == len(drawn)


def test_nothing_draws_from_a_generator_that_all_share():
    """What else a program draws can then change no run."""

    def shared():
        return str(np.random.get_state()), torch.get_rng_state().tolist(), random.getstate()

    before = shared()
    for draw in USES.values():
        draw(0, 0)
    tokens = np.array([[1, 5, 6, 2], [1, 7, 2, 0]])
    Trainer(FIRST, TINY).step(0, PICTURES, tokens)
    shapes.scene("train", 0)
    assert shared() == before


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed {seed} is not from 0 to"):
        stream("sample", seed, 0)
