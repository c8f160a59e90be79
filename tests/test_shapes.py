"""The drawn data set says what its pictures show, and keeps its splits apart."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicoca.data import Pairs, ZeroShot, shapes

COUNT = 400
SCENES = {split: shapes.scenes(split, COUNT) for split in shapes.SPLITS}
EVERY = [scene for split in SCENES.values() for scene in split]

# Written out here again, on purpose: the grammar as a reader of captions would state it.
THING = r"a (small|large) (\w+) (\w+)"
ONE = re.compile(rf"{THING} (at the top|at the bottom|on the left|on the right|in the middle)")
TWO = re.compile(rf"{THING} (left of|above) {THING}")
THREE = re.compile(rf"{THING} (left of|right of) {THING} and (above|below) {THING}")
LEFT_UP = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


def parse(text):
    """Caption -> kinds (size, colour, shape) and claims (first, relation or place, second)."""
    if found := THREE.fullmatch(text):
        a, beside, b, over, c = (
            found.group(1, 2, 3),
            found[4],
            found.group(5, 6, 7),
            found[8],
            found.group(9, 10, 11),
        )
        return [a, b, c], [(a, beside, b), (a, over, c)]
    if found := TWO.fullmatch(text):
        a, relation, b = found.group(1, 2, 3), found[4], found.group(5, 6, 7)
        return [a, b], [(a, relation, b)]
    found = ONE.fullmatch(text)
    assert found, text
    return [found.group(1, 2, 3)], [(found.group(1, 2, 3), found[4], None)]


def kind(thing):
    return thing.size, thing.colour, thing.shape


def ink(scene, side=96):
    """Per thing, bool [side, side]: where the picture has exactly its colour."""
    picture = shapes.draw(scene, side)
    return [(picture == thing.tint).all(axis=-1) for thing in scene.things]


def distinct(scene):
    return len({thing.colour for thing in scene.things}) == len(scene.things)


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_caption_says_what_the_picture_shows(split):
    """Read the caption, then look for what it claims among the pixels, not in the scene."""
    for scene in filter(distinct, SCENES[split][:150]):
        kinds, claims = parse(shapes.caption(scene))
        assert sorted(kinds) == sorted(map(kind, scene.things))
        spots = {}
        for thing, mask in zip(scene.things, ink(scene), strict=True):
            rows, columns = np.nonzero(mask)
            top, bottom = rows.min() / 96, (rows.max() + 1) / 96
            left, right = columns.min() / 96, (columns.max() + 1) / 96
            spots[kind(thing)] = np.array([top + bottom, left + right]) / 2
            width = {"small": (0.12, 0.27), "large": (0.24, 0.46)}[thing.size]
            assert width[0] < max(bottom - top, right - left) < width[1]
            shade = {
                name: np.abs(np.subtract(rgb, thing.tint)).sum()
                for name, rgb in shapes.COLOURS.items()
            }
            assert min(shade, key=shade.get) == thing.colour
        for first, claim, second in claims:
            if second is None:
                assert np.abs(spots[first] - shapes.PLACES[claim]).max() < 0.15
            else:
                direction = np.array(LEFT_UP[claim])
                gap = spots[first] - spots[second]
                assert gap @ direction > 0.3  # clearly that way
                assert np.abs(gap[direction == 0]).max() < 0.2  # and not another


def test_one_right_caption():
    """Whatever the order of the things, the caption is the same, and no other one is true."""
    for scene in EVERY:
        caption = shapes.caption(scene)
        for order in itertools.permutations(scene.things):
            assert shapes.caption(shapes.Scene(order, scene.background)) == caption
        assert len(set(map(kind, scene.things))) == len(scene.things)
        for one, other in itertools.combinations(scene.things, 2):
            gap = max(abs(one.row - other.row), abs(one.column - other.column))
            assert gap > one.radius + other.radius  # they do not touch
        for thing in scene.things:
            assert thing.radius < min(thing.row, thing.column)
            assert thing.radius < 1 - max(thing.row, thing.column)


def test_vocabulary_and_length():
    captions = [shapes.caption(scene) for scene in EVERY]
    assert max(len(caption.split()) for caption in captions) == 16
    assert len(set(" ".join(captions).split())) == 32
    assert len(set(captions)) > 0.6 * len(captions)


def test_every_word_is_used_alike():
    """Each colour, shape, size, place and relation turns up about as often as its rivals."""
    train = shapes.scenes("train", 4000)
    for name, options in (("colour", 8), ("shape", 8), ("size", 2)):
        values = [getattr(thing, name) for scene in train for thing in scene.things]
        shares = np.unique(values, return_counts=True)[1] / len(values) * options
        assert len(shares) == options and 0.85 < shares.min() <= shares.max() < 1.15
    claims = [parse(shapes.caption(scene))[1] for scene in train]
    for size, options in ((1, 5), (2, 2)):
        words = [
            each[0][1]
            for each, scene in zip(claims, train, strict=True)
            if len(scene.things) == size
        ]
        assert (np.unique(words, return_counts=True)[1] / len(words) * options > 0.8).all()
    corners = [(each[0][1], each[1][1]) for each in claims if len(each) == 2]
    assert len(set(corners)) == 4 and min(map(corners.count, corners)) > 0.2 * len(corners)
    sizes = [len(scene.things) for scene in train]
    assert np.allclose(np.bincount(sizes)[1:] / len(sizes), [0.4, 0.4, 0.2], atol=0.03)
    sizes = [len(scene.things) for scene in shapes.scenes("held_out", 4000)]
    assert np.allclose(np.bincount(sizes)[1:] / len(sizes), [0.2, 0.4, 0.4], atol=0.03)


def test_kept_pairs_are_seen_in_one_split_only():
    assert len({colour for colour, _ in shapes.KEPT_PAIRS}) == 8
    assert len({shape for _, shape in shapes.KEPT_PAIRS}) == 8
    for split, scenes in SCENES.items():
        for scene in scenes:
            pairs = {(thing.colour, thing.shape) for thing in scene.things}
            assert bool(pairs & set(shapes.KEPT_PAIRS)) == (split == "compositional")
    named = [thing.pair for scene in SCENES["compositional"] for thing in scene.things]
    assert set(named) > set(shapes.KEPT_PAIRS)  # all of them, and others beside them


def test_scenes_depend_on_seed_split_and_index_alone():
    assert shapes.scenes("train", 5) == SCENES["train"][:5]
    assert shapes.scene("train", 7) == SCENES["train"][7]
    assert len(set(EVERY)) == len(EVERY)  # no split repeats another's scenes
    assert not set(shapes.scenes("train", COUNT, seed=1)) & set(EVERY)
    # A changed stream would silently change every figure that was ever reported.
    assert (
        shapes.caption(shapes.scene("train", 0)) == "a small orange heart left of a small pink star"
    )


def test_pictures_are_the_same_at_any_side():
    for scene in EVERY[:100]:
        for thing in scene.things:
            assert all(0 <= channel <= 255 for channel in thing.tint)
        picture = shapes.draw(scene, 32)
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
        assert (picture[0, 0] == scene.background).all() and min(scene.background) >= 225
        large = shapes.draw(scene, 96).reshape(32, 3, 32, 3, 3).mean((1, 3))
        assert np.abs(picture - large).mean() < 4  # only edges differ


def test_things_are_whole_and_apart():
    """None is cut by the picture's edge; no two of their surrounding squares meet."""
    for scene in EVERY:
        for thing in scene.things:
            edges = thing.row, thing.column, 1 - thing.row, 1 - thing.column
            assert thing.radius < min(edges), scene
        for one, other in itertools.combinations(scene.things, 2):
            apart = max(abs(one.row - other.row), abs(one.column - other.column))
            assert one.radius + other.radius < apart, scene


@pytest.mark.parametrize("shape", ["circle", "square", "cross", "diamond", "ring"])
def test_things_are_drawn_where_they_say(shape):
    """The centre of mass of a symmetric shape is its centre: on average, not a half pixel off."""
    offsets = []
    for row, column in np.random.default_rng(0).uniform(0.4, 0.6, (100, 2)):
        thing = shapes.Thing("small", "black", shape, row, column, 0.11, (0, 0, 0))
        mass = 255.0 - shapes.draw(shapes.Scene((thing,), (255, 255, 255)))[:, :, 0]
        pixels = np.arange(32) + 0.5
        centre = np.array([mass.sum(1) @ pixels, mass.sum(0) @ pixels]) / mass.sum()
        offsets.append(centre - [32 * row, 32 * column])
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.05
    assert np.abs(offsets).max() < 0.25


def test_shapes_differ_at_the_default_side():
    """Drawn at the same spot, any two shapes differ by much more than a shape and its shift."""
    for size, radii in shapes.SIZES.items():
        masks = {}
        for shape in shapes.SHAPES:
            thing = shapes.Thing(size, "black", shape, 0.5, 0.5, sum(radii) / 2, (0, 0, 0))
            masks[shape] = 1 - shapes.draw(shapes.Scene((thing,), (255, 255, 255))) / 255.0
        for one, other in itertools.combinations(masks, 2):
            difference = np.abs(masks[one] - masks[other]).sum()
            assert difference > 0.15 * max(masks[one].sum(), masks[other].sum()), (one, other)


def answer(question, scene):
    """What a reader of the question would say, from the geometry and the words alone."""
    words = question.split()
    things = scene.things
    if words[0] == "how":
        return {1: "one", 2: "two", 3: "three"}[len(things)]
    if words[:2] == ["is", "there"]:
        return "yes" if any([t.colour, t.shape] == words[3:] for t in things) else "no"
    described = [t for t in things if {t.size, t.colour, t.shape} >= set(words[4:]) - {"thing"}]
    if words[0] == "what":
        assert len(described) == 1, question
        return getattr(described[0], words[1])
    target = [t for t in things if f"{t.size} {t.colour} {t.shape}" == " ".join(words[3:6])]
    assert len(target) == 1, question
    down, across = target[0].row - 0.5, target[0].column - 0.5
    if "seen" in words:
        origin = [t for t in things if f"{t.size} {t.colour} {t.shape}" == " ".join(words[-3:])]
        assert len(origin) == 1, question
        down, across = target[0].row - origin[0].row, target[0].column - origin[0].column
        assert min(abs(down), abs(across)) < 0.15 and max(abs(down), abs(across)) > 0.3
        names = ("above", "below")
    else:
        names = ("top", "bottom")
        if max(abs(down), abs(across)) < 0.1:
            return "middle"
    return ("left", "right")[across > 0] if abs(across) > abs(down) else names[down > 0]


def test_questions_have_their_true_answer():
    for split, scenes in SCENES.items():
        for scene in scenes:
            asked = shapes.questions(scene)
            assert asked == shapes.questions(scene)
            assert len({question.text for question in asked}) == len(asked)
            assert [question.kind for question in asked if question.kind == "count"] == ["count"]
            exists = [question.answer for question in asked if question.kind == "exists"]
            assert exists.count("yes") == exists.count("no") >= 1
            assert any(question.kind == "where" for question in asked)
            for question in asked:
                assert question.answer == answer(question.text, scene), question
                if split != "compositional":
                    for colour, shape in shapes.KEPT_PAIRS:
                        assert f"{colour} {shape}" not in question.text
    kinds = {question.kind for question in shapes.questions(SCENES["train"][0])}
    assert kinds == {"count", "exists", "colour", "size", "shape", "where"}


def test_load():
    data = shapes.load(side=16, train=60, evaluation=80)
    assert (len(data.train), len(data.validation)) == (60, 80)
    assert set(data.evaluations) == {"held_out", "compositional"}
    assert data.train.zero_shot is None
    for split, pairs in [("validation", data.validation), *data.evaluations.items()]:
        assert pairs.captions == tuple((shapes.caption(s),) for s in SCENES[split][:80])
        for index in (0, 79):
            assert (pairs.images[index] == shapes.draw(SCENES[split][index], 16)).all()
        task = pairs.zero_shot
        singles = [i for i, s in enumerate(SCENES[split][:80]) if len(s.things) == 1]
        assert task.images.tolist() == singles
        assert len(task.names) == 64 and {len(set(prompts)) for prompts in task.prompts} == {10}
        for image, label in zip(task.images, task.labels, strict=True):
            right = [pairs.captions[image][0] in prompts for prompts in task.prompts]
            assert np.flatnonzero(right).tolist() == [label]  # its own class's prompts and no other
            kept = tuple(task.names[label].split()) in shapes.KEPT_PAIRS
            assert kept == (split == "compositional")
    shorter = shapes.load(side=16, train=20, evaluation=0)
    assert (shorter.train.images == data.train.images[:20]).all()
    assert (shorter.mean, shorter.std) == (data.mean, data.std)
    sample = np.stack([shapes.draw(s, 16) for s in shapes.scenes("train", 1000)]) / 255
    assert np.allclose(data.mean, sample.mean((0, 1, 2)))
    assert np.allclose(data.std, sample.std((0, 1, 2)))


def test_more_workers_draw_the_same(monkeypatch):
    monkeypatch.setattr(shapes, "CHUNK", 30)
    one, two = (shapes.load(side=16, train=70, evaluation=0, workers=n) for n in (1, 2))
    assert (one.train.images == two.train.images).all()
    assert one.train.captions == two.train.captions


def test_no_processes_to_be_had(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no semaphores")

    monkeypatch.setattr(shapes, "ProcessPoolExecutor", refuse)
    data = shapes.load(side=16, train=3, evaluation=0, workers=4)
    assert (data.train.images[2] == shapes.draw(SCENES["train"][2], 16)).all()


@given(st.lists(st.integers(0, 9)))
def test_batch_picks_images(indices):
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] + np.zeros((10, 2, 2, 3), np.uint8)
    pairs = Pairs(images, (("a",),) * 10)
    assert pairs.batch(indices).shape == (len(indices), 2, 2, 3)
    assert pairs.batch(indices)[:, 0, 0, 0].tolist() == indices
    pairs.batch([0])[:] = 99  # a batch is the caller's own
    assert images[0].max() == 0


def test_parts_that_do_not_fit_are_refused():
    images, captions = np.zeros((2, 4, 4, 3), np.uint8), (("a",), ("b",))
    for wrong in (images.astype(float), images[:, :3], images[..., :1], images[:1]):
        with pytest.raises(ValueError):
            Pairs(wrong, captions)
    with pytest.raises(ValueError, match="caption"):
        Pairs(images, (("a",), ()))
    for labels in ([2, 0], [-1, 0], [0]):
        with pytest.raises(ValueError):
            ZeroShot(("x", "y"), (("x",), ("y",)), np.array([0, 1]), np.array(labels))
    with pytest.raises(ValueError, match="prompt"):
        ZeroShot(("x", "y"), (("x",), ()), np.array([0]), np.array([0]))
    with pytest.raises(ValueError, match="no split"):
        shapes.scene("test", 0)
    for wrong in ({"side": 8}, {"train": -1}, {"evaluation": -1}):
        with pytest.raises(ValueError, match="cannot draw"):
            shapes.load(**wrong)
