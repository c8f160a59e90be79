"""LiT's grid: what a run takes of another's weights, what of it decays, and an image tower that is
locked reads each picture once, with the same result to the last bit."""

from dataclasses import replace

import numpy as np
import pytest
from oracles import planted
from runs import TRAINERS, few_shapes, load, short, silent, tensors, untrained  # noqa: F401 - a fixture
from strategies import small_config

from minicoca import tuning
from minicoca.commands import build_parser
from minicoca.commands.flags import from_flags
from minicoca.config import OBJECTIVES
from minicoca.data import shapes
from minicoca.engine import optim as engine_optim
from minicoca.params import flatten, initialise
from minicoca.params import shapes as shapes_of
from minicoca.reference import optim
from minicoca.relatives import specs_of
from minicoca.training import start
from minicoca.training.checkpoint import read_config
from minicoca.training.run import make_trainer, train

# Of NumPy on a machine whose BLAS multiplies a row otherwise by its place: seen with AVX-512.
DIFFER = "in another batch they differ in the last bit"
both_trainers = pytest.mark.parametrize("backend", TRAINERS)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Finished runs: a CoCa, and an image tower of MAE's."""
    folder, draw = tmp_path_factory.mktemp("earlier"), shapes.load
    shapes.load = lambda seed, side, *_: load(seed, side, 60, 20)
    silent(short(steps=2, seed=7), folder / "coca")
    silent(short(steps=2, seed=7, objective="mae", image_layers=2), folder / "mae")
    shapes.load = draw
    return folder


def begun(folder, earlier, of="coca", said=None, **changes):
    """(first weights of a run that begins so, its config)."""
    config = replace(read_config(earlier / of), init=str(earlier / of), seed=3, steps=5, **changes)
    said = [] if said is None else said
    trainer, _, _, config = start.start(config, folder, said.append)
    return flatten(trainer.weights()), config


def check_parts_are_taken(folder, earlier):
    """Those that are named, to the last bit; all others as in a fresh run of the seed."""
    theirs, said = flatten(tensors(earlier / "coca", "model.safetensors")), []
    found, config = begun(folder, earlier, said=said, init_parts="image.blocks.0, text")
    fresh = flatten(initialise(config, 3))
    for name, value in found.items():
        taken = name.startswith(("image.blocks.0.", "text."))
        assert np.array_equal(value, (theirs if taken else fresh)[name]), name
    count = sum(x.size for n, x in found.items() if n.startswith(("image.blocks.0.", "text.")))
    assert any(f"{count:,} of " in line and "(image, text)" in line for line in said)


def test_parts_are_taken(tmp_path, earlier):
    check_parts_are_taken(tmp_path, earlier)


def test_without_parts_all_is_taken(tmp_path, earlier):
    theirs = flatten(tensors(earlier / "coca", "model.safetensors"))
    found, _ = begun(tmp_path, earlier)
    assert all(np.array_equal(value, theirs[name]) for name, value in found.items())


def test_what_begins_anew_may_be_of_another_size(tmp_path, earlier):
    """A wider text tower beside an image tower; a CoCa around an image tower of MAE's."""
    found, config = begun(tmp_path, earlier, init_parts="image", text_width=128)
    assert found["text.token"].shape[1] == 128 == config.text_width
    found, _ = begun(tmp_path, earlier, of="mae", init_parts="image", objective="coca", settings=())
    theirs = flatten(tensors(earlier / "mae", "model.safetensors"))
    assert all(np.array_equal(found[n], theirs[n]) for n in found if n.startswith("image."))


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("of", OBJECTIVES)
def test_every_relative_goes_on_into_every_other(tmp_path, of, size):
    """What the two have of one name and shape, to the last bit, patches' positions of the new
    size; or one line that says that there is nothing."""
    untrained(tmp_path / of, 0.1, objective=of)
    theirs = flatten(tensors(tmp_path / of, "model.safetensors"))
    for to in OBJECTIVES:
        try:
            given = dict(objective=to, settings=(), image_size=size)
            found, config = begun(tmp_path, tmp_path, of, **given)
        except ValueError as error:
            assert "has no weights that objective=" in str(error) and "\n" not in str(error)
            continue
        assert {n: x.shape for n, x in found.items()} == shapes_of(specs_of(config))
        alike = [n for n, x in theirs.items() if n in found and x.shape == found[n].shape]
        assert alike and all(np.array_equal(found[n], theirs[n]) for n in alike), (of, to)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(init_parts="imag"), "init_parts='imag': there is no parameter 'imag'; did you mean"),
        (dict(init_parts="image", image_hidden=128), "has no image.blocks.0.mlp"),
        (dict(init_parts="image,text", of="mae", objective="coca", settings=()), "has no text."),
        (dict(init_decay=0.0), "init_decay=0 is of what --init-parts names: give it too"),
    ],
)
def test_what_cannot_be_taken_is_said(changes, message, tmp_path, earlier):
    with pytest.raises(ValueError) as refusal:
        begun(tmp_path, earlier, **changes)
    assert message in str(refusal.value) and len(str(refusal.value)) < 400


def test_parts_of_no_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match="init_parts is of a run's weights: give --init too"):
        silent(short(init_parts="image"), tmp_path / "run")


def test_how_a_run_began_is_not_how_the_next_one_does():
    first = short(init="x", init_parts="image", init_decay=0.0, freeze="image")
    given = from_flags(build_parser().parse_args(["train", "--init", "y"]), first)
    assert (given.init_parts, given.init_decay, given.freeze) == ("", 1.0, "image")


# --- what was taken does not decay ------------------------------------------------------------


def pairs_of(config, seed=0, pictures=6, batch=6):
    """uint8 images, so many of so many pictures, and token ids, as a trainer takes them."""
    side, rng = config.image_size, np.random.default_rng(0)
    known = rng.integers(0, 256, (pictures, side, side, 3)).astype(np.uint8)
    rng = np.random.default_rng((1, seed))
    ids = rng.integers(4, config.vocabulary, (batch, 5))
    tokens = np.concatenate([np.ones((batch, 1), int), ids], 1)
    return known[rng.permutation(pictures)[:batch]], tokens


HARD = dict(weight_decay=0.5, clip_norm=0.1, learning_rate=0.05, warmup=1, steps=9, batch_size=6)


def check_decay(backend, optimizer):
    """The first step of each leaf, to the last bit: as without decay, or as with all of it."""
    base = small_config(**HARD, backend=backend, optimizer=optimizer, text_rate=0.5)
    parts = dict(init="x", init_parts="image,text.token")
    ways = [dict(weight_decay=0.0), {}, dict(init_decay=0.0, **parts)]
    none, whole, own = (stepped(replace(base, **changes)) for changes in ways)
    for name, value in own.items():
        taken = name == "text.token" or name.startswith("image.")
        assert np.array_equal(value, (none if taken else whole)[name]), name
    assert sum(not np.array_equal(none[name], whole[name]) for name in own) > 20


def stepped(config):
    trainer = make_trainer(initialise(config, 0), config)
    trainer.step(0, *pairs_of(config))
    return flatten(trainer.weights())


@both_trainers
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_was_taken_decays_as_it_is_told(backend, optimizer):
    check_decay(backend, optimizer)


# --- a locked tower reads each picture once ------------------------------------------------------

LOCKED = dict(freeze="image,pooler,image_projection,log_temperature", embed_width=22)
EVEN = dict(image_width=16, image_hidden=32)
FORMS = [
    EVEN | dict(pooler="cascade"),
    EVEN | dict(pooler="none", caption_weight=0.0),
    EVEN | dict(pooler="shared", objective="siglip", stem="clip"),
    EVEN | dict(pooler="parallel", contrastive_weight=0.0),
]


def trained(config, locked, first=0, state=None, steps=9, pictures=15):
    """(reports, state) of steps over 15 pictures, six at a time, which come again in other company;
    the last one is of a smaller batch. locked: a Locked, or None: as without all this."""
    trainer = make_trainer(initialise(config, 0, tree=specs_of(config)), config)
    if state:
        trainer.load(state)
    trainer.locked, reports = locked, []
    for step in range(first, steps):
        batch = 5 if step == steps - 1 else 6
        reports.append(trainer.step(step, *pairs_of(config, step, pictures, batch)))
    return reports, trainer.state()


def same(one, other):
    a, b = flatten(one[1]), flatten(other[1])
    assert a.keys() == b.keys() and one[0] == other[0]
    return all(np.array_equal(value, b[name]) for name, value in a.items())


def check_locked_is_the_same(backend, **form):
    config = small_config(**HARD, **LOCKED, **form, backend=backend)
    said = []
    made = tuning.locked(specs_of(config), config, 15, said.append)
    plain = trained(config, None)
    assert same(trained(config, made), plain)
    if said:
        assert backend == "numpy" and DIFFER in said[0] and made.made is None
    else:
        assert 6 < len(made.made) <= 15
    half = trained(config, tuning.locked(specs_of(config), config, 15, print), steps=5)
    rest = trained(config, tuning.locked(specs_of(config), config, 15, print), 5, half[1])
    whole = trained(config, None, steps=5)
    assert same(rest, trained(config, None, 5, whole[1]))


@both_trainers
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["pooler"])
def test_a_locked_tower_read_once_is_the_same_to_the_last_bit(form, backend):
    check_locked_is_the_same(backend, **form)


def check_each_is_read_once():
    """Whatever company it comes back in; another picture, by one number, is another."""
    images = np.zeros((4, 2, 2, 3), np.uint8)
    images[1:, 0, 0, 0] = 1, 2, 3
    calls = []

    def encode(images):
        calls.append(len(images))
        return images.sum((1, 2, 3)), images.reshape(len(images), 4, 3)

    made = tuning.Locked(4, print)
    for rows in ([0, 1], [1, 2], [2, 0], [0, 0], [3, 0], [1, 3], [3, 2, 1], [1, 1]):
        given = images[rows]
        found = made(given, encode, np.stack)
        for a, b in zip(found, encode(given), strict=True):
            np.testing.assert_array_equal(a, b)
        calls.pop()
    assert calls == [2, 2, 2, 2, 3]  # the first twice; another size as without all this


def test_each_is_read_once():
    check_each_is_read_once()


def check_what_is_not_kept_is_said(pictures, why, **form):
    config, said = small_config(**HARD, **LOCKED, **form, backend="torch"), []
    made = tuning.locked(specs_of(config), config, pictures, said.append)
    assert same(trained(config, made), trained(config, None))
    assert len(said) == 1 and made.made is None
    assert f"reads its pictures anew in each epoch: {why}" in said[0]


def check_too_many_are_not_kept():
    why = "vectors and image tokens of 10,000,000 would take 3.3 GB, over 1.1"
    check_what_is_not_kept_is_said(10**7, why, **EVEN)


def check_what_depends_on_its_company_is_not_kept():
    """torch's GELU takes the last numbers of a tensor one by one, with another tanh."""
    check_what_is_not_kept_is_said(15, "in another batch they differ in the last bit")


def test_too_many_are_not_kept():
    check_too_many_are_not_kept()


def test_what_depends_on_its_company_is_not_kept():
    check_what_depends_on_its_company_is_not_kept()


@pytest.mark.parametrize(
    "changes",
    [
        dict(freeze="image"),
        dict(freeze="image,pooler"),  # the projection learns
        dict(augment=0.5),
        dict(patch_keep=0.5),
        dict(accumulate=2),
        dict(compile=True),
        dict(objective="matching"),
    ],
    ids=str,
)
def test_it_is_not_taken_where_a_picture_may_be_seen_otherwise(changes):
    config = small_config(**LOCKED | changes)
    assert tuning.locked(specs_of(config), config, 9, print) is None
    assert tuning.locked(specs_of(base := small_config(**LOCKED)), base, 9, print)


@both_trainers
def test_a_run_locks_its_tower(backend, tmp_path, monkeypatch):
    """Through the loop, three epochs of 60 pictures: the same weights as with nothing kept, after
    the tower was called for one epoch, and once to be tried."""
    config, found = short(backend=backend, freeze="image,pooler", steps=24), {}
    for name, most in (("kept", tuning.KEPT_BYTES), ("anew", 0)):
        monkeypatch.setattr(tuning, "KEPT_BYTES", most)
        calls, said, call = [], [], tuning.Locked.__call__

        def watched(self, images, encode, stack, call=call, calls=calls):
            return call(self, images, lambda x: calls.append(len(x)) or encode(x), stack)

        with monkeypatch.context() as patched:
            patched.setattr(tuning.Locked, "__call__", watched)
            (tmp_path / name).mkdir()
            train(config, tmp_path / name, say=said.append, command="")
        found[name] = flatten(tensors(tmp_path / name, "model.safetensors"))
        anew = [line for line in said if "anew in each epoch" in line]
        if name == "kept" and anew:
            assert backend == "numpy" and DIFFER in anew[0] and len(calls) == 25
            continue
        assert bool(anew) == (name == "anew") and len(calls) == (24 if anew else 9)
    assert all(np.array_equal(value, found["anew"][name]) for name, value in found["kept"].items())


BUGS = [
    (tuning, "decay * config.init_decay if", "decay if", lambda *_: check_decay("torch", "adamw")),
    (tuning, "decay * config.init_decay if name in kept", "decay * config.init_decay if name",
     lambda *_: check_decay("numpy", "muon")),
    (optim, "config.muon_rate, decaying(config, decay)", "config.muon_rate, config",
     lambda *_: check_decay("numpy", "muon")),
    (engine_optim, '            "weight_decay": decay,\n', '            "weight_decay": 0.5,\n',
     lambda *_: check_decay("torch", "muon")),
    (tuning, "sha256(image.tobytes())", "sha256(image[:, 1:].tobytes())",
     lambda *_: check_each_is_read_once()),
    (tuning, "if all(key in self.made", "if any(key in self.made",
     lambda *_: check_each_is_read_once()),
    (tuning, "self.size not in (0, len(images))", "False", lambda *_: check_each_is_read_once()),
    (tuning, "if need > KEPT_BYTES", "if need < 0", lambda *_: check_too_many_are_not_kept()),
    (tuning, "(a == b[order]).all()", "(a == b[order]).any()",
     lambda *_: check_what_depends_on_its_company_is_not_kept()),
    (start, "taken = {name: taken[name] for name in asked}", "taken = dict(taken)",
     check_parts_are_taken),
    (start, "(config.init_parts or", "(False or", check_parts_are_taken),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check, tmp_path, earlier):
    with planted(module, old, new), pytest.raises((AssertionError, KeyError, TypeError)):
        check(tmp_path, earlier)
