"""The engine is the reference: outputs, losses, gradients, optimiser, names."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from backends import Engine, Reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import configs, model_and_batch, seeds, small_config

import minicoca
from minicoca.engine import optim as engine_optim
from minicoca.engine import text as engine_text
from minicoca.kernels import caption_loss as caption_kernel
from minicoca.params import flatten, tree_map
from minicoca.reference import optim as reference_optim

ROOT = Path(minicoca.__file__).parent


def check_engine_equals_reference(config, seed, **batch):
    params, images, tokens = model_and_batch(config, seed, **batch)
    a = Reference.outputs(params, config, images, tokens)
    b = Engine.outputs(params, config, images, tokens)
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-10, atol=1e-10, err_msg=name)
    g = flatten(Reference.gradients(params, config, images, tokens))
    h = flatten(Engine.gradients(params, config, images, tokens))
    assert g.keys() == h.keys()
    for name in g:
        gap = np.abs(g[name] - h[name]).max()
        assert gap <= 1e-8 * max(np.abs(g[name]).max(), 1e-6), f"{name}: off by {gap:.1e}"


@given(config=configs(), seed=seeds, batch=st.integers(2, 4), tokens=st.integers(3, 8))
def test_engine_equals_reference(config, seed, batch, tokens):
    check_engine_equals_reference(config, seed, batch=batch, tokens=tokens)


@pytest.mark.parametrize("mode", ["cascade", "parallel", "shared", "none"])
@pytest.mark.parametrize("packed", [False, True])
def test_engine_equals_reference_in_every_pooler_mode(mode, packed, monkeypatch):
    monkeypatch.setattr(engine_text, "PACK_BELOW", 2.0 if packed else 0.0)
    check_engine_equals_reference(small_config(pooler=mode), 3)


def test_caption_loss_in_chunks_is_the_caption_loss(monkeypatch):
    config = small_config()
    whole = Engine.gradients(*[config if i == 1 else x for i, x in enumerate(_batch(config))])
    monkeypatch.setattr(caption_kernel, "CHUNK", 2)
    chunked = Engine.gradients(*[config if i == 1 else x for i, x in enumerate(_batch(config))])
    tree_map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), whole, chunked)


def _batch(config):
    params, images, tokens = model_and_batch(config, 0)
    return params, config, images, tokens


# What one side has alone, or elsewhere: pieces that torch has, masks where they are used, the
# cache's own step, and what the engine's packing, precision and devices need.
ONLY_REFERENCE = {
    "ops.py": {"erf", "softmax", "log_softmax"},
    "attention.py": {"attention", "text_mask"},
    "optim.py": {"start", "adamw", "muon", "optimise", "global_norm"},
    "generate.py": {"next_logits", "likeliest", "scores"},
}
ONLY_ENGINE = {
    "ops.py": {"attention", "contrastive_loss", "caption_loss", "sigmoid_loss",
               "attention_pool", "pick_device", "pick_dtype", "use", "with_own_backend",
               "has_kernels", "implementations", "complaint", "recomputed", "widened"},
    "attention.py": {"Packing", "absorbing_pays", "joint"},
    "decoding.py": {"largest"},
    "text.py": {"TextRows", "text_mask"},
    "model.py": {"total_loss"},
    "vision.py": {"image_blocks"},
    "optim.py": {"optimizers", "Muon"},
    "generate.py": {"Search"},
    "probe.py": {"fit_pooler", "fit_linear", "scores"},
}  # fmt: skip


def test_both_have_the_same_names_in_the_same_files():
    def names(side):
        found = {}
        for path in sorted((ROOT / side).glob("*.py")):
            kinds = (ast.FunctionDef, ast.ClassDef)
            all_ = {n.name for n in ast.parse(path.read_text()).body if isinstance(n, kinds)}
            found[path.name] = {n for n in all_ if not n.startswith("_")}
            found[path.name] -= {n for n in all_ if n.endswith("_backward")}
        return found

    reference, engine = names("reference"), names("engine")
    for file in reference:
        missing = reference[file] - engine[file] - ONLY_REFERENCE.get(file, set())
        extra = engine[file] - reference[file] - ONLY_ENGINE.get(file, set())
        assert not missing and not extra, f"{file}: engine lacks {missing}, has also {extra}"


def check_optimizer(seed, config):
    """Five steps, clipped and scheduled, leave both with the same parameters."""
    params, _, _ = model_and_batch(config, seed)
    leaves = tree_map(lambda a: torch.tensor(a, requires_grad=True), params)
    optimizers, state = (
        engine_optim.optimizers(leaves, config),
        reference_optim.start(params, config),
    )
    rng = np.random.default_rng(seed)
    for step in range(5):
        gradients = tree_map(lambda a: rng.standard_normal(a.shape), params)
        for name, leaf in flatten(leaves).items():
            leaf.grad = torch.tensor(flatten(gradients)[name])
        rate = reference_optim.learning_rate(step, config)
        assert engine_optim.learning_rate(step, config) == rate
        gradients, norm = reference_optim.clip_by_global_norm(gradients, config.clip_norm)
        flat = list(flatten(leaves).values())
        assert float(engine_optim.clip_by_global_norm(flat, config.clip_norm)) == pytest.approx(
            norm
        )
        params, state = reference_optim.optimise(params, gradients, state, rate, config)
        params = reference_optim.clamp_temperature(params)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            optimizer.step()
        engine_optim.clamp_temperature(leaves)
    a, b = flatten(params), flatten(leaves)
    for name in a:
        np.testing.assert_allclose(b[name].detach().numpy(), a[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize(
    "parts",
    [{}, dict(image_rate=0.3, pooler_rate=2.0, text_rate=0.0), dict(freeze="image,text.token")],
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer(schedule, clip, parts, optimizer):
    settings = dict(weight_decay=0.3, warmup=2, steps=5, learning_rate=0.1, embed_width=22)
    settings |= dict(optimizer=optimizer, momentum=0.8, muon_rate=0.7)
    check_optimizer(0, small_config(schedule=schedule, clip_norm=clip, **settings, **parts))


def check_adamw_by_hand():
    """One parameter, two steps, worked by hand from Loshchilov and Hutter's Algorithm 2."""
    config = small_config(beta1=0.5, beta2=0.75, weight_decay=0.1, epsilon=0.0)
    params = {"w": np.array([[2.0]]), "v": np.array([2.0])}
    state = reference_optim.start(params, config)
    for g in (1.0, 3.0):
        gradients = {"w": np.array([[g]]), "v": np.array([g])}
        params, state = reference_optim.adamw(params, gradients, state, 0.1, config)
    # Step 1: m = .5, s = .25, corrected 1 and 1:            v = 2 - .1 = 1.9
    # Step 2: m = 1.75, s = 2.4375, corrected 7/3, 39/7:     v = 1.9 - .1 (7/3) / sqrt(39/7)
    v = 1.9 - 0.1 * (7 / 3) / np.sqrt(39 / 7)
    assert params["v"][0] == pytest.approx(v, abs=1e-12)  # a vector does not decay
    w1 = 2 - 0.1 * (1 + 0.1 * 2)
    w2 = w1 - 0.1 * ((7 / 3) / np.sqrt(39 / 7) + 0.1 * w1)
    assert params["w"][0, 0] == pytest.approx(w2, abs=1e-12)


def test_adamw_by_hand():
    check_adamw_by_hand()


def check_schedules():
    config = small_config(learning_rate=1.0, warmup=4, steps=14, final_rate=0.1)
    rates = [reference_optim.learning_rate(s, config) for s in range(14)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1, 1])
    assert rates[-1] == pytest.approx(0.1) and all(np.diff(rates[4:]) < 0)
    middle = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * 3 / 9))
    assert rates[7] == pytest.approx(middle)
    linear = small_config(learning_rate=1.0, warmup=4, steps=14, final_rate=0.1, schedule="linear")
    assert reference_optim.learning_rate(7, linear) == pytest.approx(0.1 + 0.9 * (1 - 3 / 9))


def test_schedules():
    check_schedules()


def check_clipping():
    gradients = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    clipped, norm = reference_optim.clip_by_global_norm(gradients, 1.0)
    assert norm == 5 and reference_optim.global_norm(clipped) == pytest.approx(1, abs=1e-6)
    same, _ = reference_optim.clip_by_global_norm(gradients, 10.0)
    assert same["a"][0] == 3


def test_clipping():
    check_clipping()
