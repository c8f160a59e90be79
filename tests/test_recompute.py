"""Image layers that are computed again in the backward pass: the same to the last bit, in less
memory. Memory is counted in tensors, not measured in processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import configs, model_and_batch, seeds, small_config
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minicoca import memory
from minicoca.config import preset
from minicoca.engine import model as engine
from minicoca.engine import ops, vision
from minicoca.engine import train as engine_train
from minicoca.params import flatten, initialise, tree_map
from minicoca.training.run import make_trainer


def gradients(config, tree, images, tokens):
    """(the loss, {name: gradient}) of the whole objective, in the tree's own type."""
    leaves = tree_map(lambda a: torch.tensor(a, requires_grad=True), tree)
    images = torch.tensor(images, dtype=leaves["log_temperature"].dtype)
    loss = engine.coca(leaves, config, images, torch.tensor(tokens))["loss"]
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in flatten(leaves).items()}


@given(config=configs(), seed=seeds)
def test_the_gradient_is_the_same_to_the_last_bit(config, seed):
    tree, images, tokens = model_and_batch(config, seed)
    for kind in (np.float32, np.float64):
        typed = tree_map(lambda leaf, kind=kind: leaf.astype(kind), tree)
        ways = (replace(config, recompute=way) for way in (False, True))
        (a, one), (b, other) = (gradients(way, typed, images, tokens) for way in ways)
        assert torch.equal(a, b)
        for name, value in one.items():
            assert value is other[name] is None or torch.equal(value, other[name]), name


def batch_of(config, seed=0, size=6):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, config.image_size, config.image_size, 3))
    tokens = rng.integers(4, config.vocabulary, (size, 5))
    return images.astype(np.uint8), np.concatenate([np.ones((size, 1), int), tokens], 1)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(precision="bfloat16", stem="clip", pooler="shared"),
        dict(accumulate=3, patch_keep=0.5, stem="clip", ema=0.5),
        dict(freeze="image.blocks.0", augment=1.0),
        dict(freeze="image"),
    ],
    ids=str,
)
def test_steps_are_the_same_to_the_last_bit(options):
    config = small_config(**options, image_layers=3)
    trainers = [
        make_trainer(initialise(config), replace(config, recompute=way)) for way in (False, True)
    ]
    for step in range(3):
        one, other = (trainer.step(step, *batch_of(config, step)) for trainer in trainers)
        assert one == other
    one, other = (flatten(trainer.state()) for trainer in trainers)
    assert one.keys() == other.keys()
    assert all(np.array_equal(value, other[name]) for name, value in one.items())


def large(**changes):
    """Nearly all that a step keeps is of the image layers."""
    sizes = dict(image_size=64, patch_size=4, image_width=32, image_layers=6, image_hidden=128)
    sizes |= dict(text_width=8, text_hidden=8, text_heads=2, pooler_heads=2, pooler="cascade")
    return preset("tiny", **sizes | dict(caption_queries=4, vocabulary=20) | changes)


def step_of(config, size=4):
    """A function that computes the objective, and the tensors that are there beforehand."""
    leaves = tree_map(lambda a: torch.tensor(a, requires_grad=True), initialise(config))
    images, tokens = (torch.from_numpy(x) for x in batch_of(config, size=size))
    images = vision.normalise(images.float() / 255, config)
    known = {leaf.untyped_storage().data_ptr() for leaf in [*flatten(leaves).values(), images]}
    return lambda: engine.coca(leaves, config, images, tokens)["loss"], known


def kept(config):
    """Bytes that the forward pass keeps for the backward pass, parameters and pixels apart."""
    compute, known = step_of(config)
    storages = {}

    def pack(tensor):
        own = tensor.untyped_storage()
        storages[own.data_ptr()] = (own.nbytes(), tensor)  # held, so that no place is used twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = compute()
    loss.backward()
    return sum(size for place, (size, _) in storages.items() if place not in known)


class Live(TorchDispatchMode):
    """The most bytes that tensors made here hold at once."""

    def __init__(self):
        super().__init__()
        self.held, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, given=(), how=None):
        made = function(*given, **how or {})
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                own = tensor.untyped_storage()
                self.held[own.data_ptr()] = StorageWeakRef(own), own.nbytes()
        self.held = {k: (ref, size) for k, (ref, size) in self.held.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return made


def peak(config):
    """The most bytes at once of a forward and a backward pass."""
    compute, _ = step_of(config)
    with Live() as live:
        compute().backward()
    return live.peak


def test_a_layer_keeps_its_input_alone():
    """From six layers to twelve: for each the tokens that it was given, and nothing else."""
    tokens = 4 * 4 * 256 * 32  # bytes of a float, batch, patches, width
    few, many = (kept(large(image_layers=n, recompute=True)) for n in (6, 12))
    assert many - few == 6 * tokens
    plain_few, plain_many = (kept(large(image_layers=n)) for n in (6, 12))
    assert plain_many - plain_few > 10 * (many - few)


def test_the_peak_is_lower_and_grows_by_inputs():
    """What is computed again is of one layer at a time."""
    tokens = 4 * 4 * 256 * 32
    few, many = (peak(large(image_layers=n, recompute=True)) for n in (6, 12))
    plain_few, plain_many = (peak(large(image_layers=n)) for n in (6, 12))
    assert few < 0.5 * plain_few and many < 0.35 * plain_many
    weights = 6 * 4 * (12 * 32**2)  # of six layers, and their gradients are there at the end
    assert 6 * tokens <= many - few <= 6 * tokens + 2 * weights


def test_a_layer_is_computed_twice_and_only_in_training(monkeypatch):
    calls, block = [], vision.block
    monkeypatch.setattr(vision, "block", lambda *given: calls.append(1) or block(*given))
    config = large(image_layers=3, recompute=True)
    compute, _ = step_of(config)
    compute().backward()
    assert len(calls) == 2 * 3
    calls.clear()
    with torch.no_grad():
        compute()
    trainer = make_trainer(initialise(config), config)
    trainer.model().embed_images(batch_of(config)[0])
    assert len(calls) == 2 * 3
    calls.clear()
    make_trainer(initialise(config), replace(config, freeze="image")).step(0, *batch_of(config))
    assert len(calls) == 3  # no gradient goes there


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_it_is_computed_again_by_the_same_backend(name, monkeypatch):
    """The backward pass runs outside of the `with` that chose it, and perhaps in another thread."""
    asked = []
    monkeypatch.setattr(ops, "has_kernels", lambda x, *size: asked.append(ops._chosen.backend))
    compute, _ = step_of(large(recompute=True))
    with ops.use(name):
        loss = compute()
    forward = len(asked)
    loss.backward()
    assert len(asked) > forward and set(asked) == {name}


def test_numpy_refuses_it():
    with pytest.raises(ValueError, match="recompute needs --backend torch; here it is False"):
        make_trainer({}, small_config(recompute=True, backend="numpy"))


@pytest.mark.slow
def test_the_memory_that_is_asked_for_is_no_more_than_is_taken():
    """Of a step on a CPU, weights and all: whoever is refused could not have been served."""
    for changes in (
        dict(),
        dict(recompute=True),
        dict(patch_keep=0.5),
        dict(freeze="image"),
        dict(freeze="image.blocks.0-3,image.patch,image.position"),
        dict(freeze="image.blocks.0-3"),
        dict(recompute=True, freeze="image.blocks.1", patch_keep=0.25),
    ):
        config = large(batch_size=4, data="mine", device="cpu", **changes)
        with Live() as live:
            trainer = make_trainer(initialise(config), config)
            trainer.step(0, *batch_of(config, size=4))
        asked = memory.needed(config, training=True)
        assert 0.2 * live.peak < asked <= live.peak, (changes, asked, live.peak)


@pytest.mark.slow
def test_the_step_can_be_compiled():
    """As one graph, backward too, and it gives the same gradient."""
    config = small_config(recompute=True)
    compiled = torch.compile(engine_train.coca, backend="aot_eager", fullgraph=True)
    tree, images, tokens = model_and_batch(config, 0)
    images, tokens, found = torch.tensor(images), torch.tensor(tokens), []
    for way in (compiled, engine_train.coca):
        leaves = tree_map(lambda a: torch.tensor(a, requires_grad=True), tree)
        way(leaves, config, images, tokens)["loss"].backward()
        found.append(flatten(leaves))
    for name, leaf in found[0].items():
        torch.testing.assert_close(leaf.grad, found[1][name].grad, rtol=1e-8, atol=1e-9)
