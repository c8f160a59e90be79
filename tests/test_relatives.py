"""What holds for every relative: complex step, engine equals reference, names, shapes, types."""

import ast
from pathlib import Path

import numpy as np
import pytest
import relatives
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import SuffixTracer, complex_step_error
from strategies import configs, seeds, small_config

import minicoca
from minicoca.engine.precision import in_type
from minicoca.params import flatten, shapes, specs, tree_map
from minicoca.relatives import RELATIVES

ROOT = Path(minicoca.__file__).parent
EVERY = pytest.mark.parametrize(("name", "own", "options"), relatives.ALL)


def check_gradient(name, config, seed, **own):
    settings, params, batch = relatives.given(name, config, seed, **own)
    module = relatives.side("reference", name)

    def forward(params):
        outputs, cache = module.loss(params, config, settings, batch)
        return (np.asarray(outputs["loss"]),), cache

    def backward(dy, cache):
        return {"params": module.loss_backward(dy[0], cache)}

    rng = np.random.default_rng(seed)
    error = complex_step_error(forward, backward, {"params": params}, rng)
    assert error < 1e-10, f"{name}: complex step and backward differ by {error:.1e}"


def check_every_leaf(name, config, seed, **own):
    """Leaf by leaf: a small gradient cannot hide behind a large one."""
    settings, params, batch = relatives.given(name, config, seed, **own)
    module, rng = relatives.side("reference", name), np.random.default_rng(seed)
    _, gradients = relatives.by_reference(name, params, config, settings, batch)
    for leaf in flatten(params):
        moved, way = {}, None
        for other, array in flatten(params).items():
            v = rng.standard_normal(array.shape) if other == leaf else None
            moved[other], way = (array, way) if v is None else (array + 1e-30j * v, v)
        outputs, _ = module.loss(relatives.unflatten(moved), config, settings, batch)
        by_step, by_hand = outputs["loss"].imag / 1e-30, (gradients[leaf] * way).sum()
        scale = max(np.abs(gradients[leaf] * way).sum(), 1e-4)  # a true 0 is one to 1e-14
        assert abs(by_step - by_hand) <= 1e-10 * scale, f"{name}: {leaf}: {by_step} {by_hand}"


def check_sides(name, config, seed, **own):
    given_ = relatives.given(name, config, seed, **own)
    settings, params, batch = given_
    ours, wanted = relatives.by_reference(name, params, config, settings, batch)
    theirs, found = relatives.by_engine(name, params, config, settings, batch)
    assert "loss" in theirs and theirs.keys() <= ours.keys()
    for key, value in theirs.items():
        np.testing.assert_allclose(value, ours[key], rtol=1e-10, atol=1e-10, err_msg=key)
    assert wanted.keys() == found.keys() == shapes(settings.specs(config)).keys()
    for leaf, gradient in wanted.items():
        gap = np.abs(gradient - found[leaf]).max()
        assert gap <= 1e-8 * max(np.abs(gradient).max(), 1e-6), f"{leaf}: off by {gap:.1e}"


@EVERY
def test_the_gradient_of_every_leaf_is_that_of_the_complex_step(name, own, options):
    check_every_leaf(name, small_config(**options), 0, **own)


@pytest.mark.parametrize("name", RELATIVES)
@given(data=st.data(), seed=seeds)
def test_gradient_and_engine_whatever_the_config(name, data, seed):
    config = data.draw(configs(**relatives.FIXED.get(name, {})))
    check_gradient(name, config, seed)
    check_sides(name, config, seed)


@EVERY
def test_the_engine_is_the_reference(name, own, options):
    for seed in range(3):
        check_sides(name, small_config(**options), seed, **own)


@EVERY
def test_names_tell_the_truth_and_floats_stay_narrow(name, own, options):
    config = small_config(**options)
    settings, params, batch = relatives.given(name, config, 0, **own)
    with SuffixTracer(ROOT / "reference") as tracer:
        relatives.by_reference(name, params, config, settings, batch)
    assert not tracer.complaints, tracer.complaints[:3]

    def narrow(a):
        return a.astype(np.float32) if a.dtype == np.float64 else a

    params, batch = tree_map(narrow, params), tree_map(narrow, batch)
    outputs, gradients = relatives.by_reference(name, params, config, settings, batch)
    assert {g.dtype for g in gradients.values()} == {np.dtype(np.float32)}
    assert outputs["loss"].dtype == np.float32


@EVERY
def test_the_engine_computes_in_bfloat16(name, own, options):
    """Around float32 weights, as a run does: nearly the same loss and gradient."""
    config = small_config(**options)
    settings, params, batch = relatives.given(name, config, 0, **own)
    wanted, gradients = relatives.by_reference(name, params, config, settings, batch)

    def narrow(a):
        return torch.tensor(a, dtype=torch.bfloat16 if a.dtype == np.float64 else None)

    leaves = tree_map(lambda a: torch.tensor(a, dtype=torch.float32, requires_grad=True), params)
    batch = {key: narrow(array) for key, array in batch.items()}
    tree = in_type(leaves, torch.bfloat16)
    loss = relatives.side("engine", name).loss(tree, config, settings, batch)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.item(), wanted["loss"], rtol=0.06)
    found = {k: v.grad.numpy() for k, v in flatten(leaves).items() if v.grad is not None}
    one, other = (np.concatenate([g[k].ravel() for k in found]) for g in (found, gradients))
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert cosine > (0.9 if own.get("experts") else 0.99), cosine  # a router may choose another


@pytest.mark.parametrize("name", RELATIVES)
def test_each_learns(name):
    """The loss of one batch falls: a sign that both sides had wrong would let it rise."""
    own, options = relatives.CASES[name][0]
    config = small_config(**options)
    settings, params, batch = relatives.given(name, config, 0, **own)
    leaves = tree_map(lambda a: torch.tensor(a, requires_grad=True), params)
    batch = {key: torch.tensor(array) for key, array in batch.items()}
    optimizer = torch.optim.Adam(flatten(leaves).values(), 1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = relatives.side("engine", name).loss(leaves, config, settings, batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses[::10]


@EVERY
def test_what_is_cocas_has_its_name_shape_and_first_value(name, own, options):
    """So that a run of one can begin with the weights of another (--init)."""
    config = small_config(**options)
    ours, cocas = shapes(RELATIVES[name](**own).specs(config)), shapes(specs(config))
    shared = ours.keys() & cocas.keys()
    assert shared and {leaf: ours[leaf] for leaf in shared} == {x: cocas[x] for x in shared}


def test_every_relative_is_a_file_of_its_name_on_both_sides():
    for which, names in (("reference", {"loss", "loss_backward"}), ("engine", {"loss"})):
        for name in RELATIVES:
            tree = ast.parse((ROOT / which / "relatives" / f"{name}.py").read_text())
            assert names <= {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert relatives.CASES.keys() == RELATIVES.keys()


def test_both_sides_have_the_same_names_in_the_same_files():
    def names(which):
        found = {}
        for path in sorted((ROOT / which / "relatives").glob("*.py")):
            all_ = {n.name for n in ast.parse(path.read_text()).body if hasattr(n, "name")}
            backward = {n for n in all_ if n.endswith("_backward")}
            found[path.name] = {n for n in all_ if not n.startswith("_")} - backward
        return found

    ours, theirs = names("reference"), names("engine")
    ours["__init__.py"] -= {"batch_of", "reported"}  # which the engine's Trainer does, of
    theirs["__init__.py"] -= {"inputs", "plain_batch"}
    ours["siglip.py"] -= {"counted_pairs", "sigmoid_loss"}  # which kernels/sigmoid.py does
    ours["layers.py"] -= {"added", "of_all"}  # of gradients, which torch adds by itself
    ours["convolution.py"] -= {"im2col", "group_norm", "relu", "mean_pool"}  # torch has its own
    assert ours == theirs
