"""bfloat16 around float32 weights, on a CPU: what is rounded, what is not, and who chooses it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import planted
from runs import few_shapes, load, short, silent  # noqa: F401
from strategies import model_and_batch, small_config
from test_objectives import config_of

from minicoca.config import preset
from minicoca.data.order import Order, batches
from minicoca.engine import attention, ops, precision, text
from minicoca.engine.model import coca
from minicoca.engine.train import Trainer
from minicoca.kernels import products
from minicoca.params import flatten, initialise, tree_map
from minicoca.relatives import RELATIVES, specs_of
from minicoca.tokenizer import Tokenizer
from minicoca.training.checkpoint import read_config

NARROW = torch.bfloat16
HALF = 2.0**-8  # what rounding to bfloat16 may change, relative


def gradients(config, tree, images, tokens, dtype):
    """(losses, {name: gradient}) with the float32 tree computed in a dtype; float64: exactly."""
    held = torch.promote_types(dtype, torch.float32)
    leaves = tree_map(lambda a: torch.tensor(a, dtype=held, requires_grad=True), tree)
    given = leaves if dtype == held else precision.in_type(leaves, dtype)
    outputs = coca(given, config, torch.tensor(images, dtype=dtype), torch.tensor(tokens))
    outputs["loss"].backward()
    losses = {n: outputs[n].detach() for n in ("contrastive", "caption")}
    return losses, {n: p.grad for n, p in flatten(leaves).items() if p.grad is not None}


def check_step(**changes):
    """Losses within 1 %, the gradient within 5 % of that in float64 of the same weights, and each
    parameter's part of it within 20 % (one that is next to nothing: of a part of the whole)."""
    config = small_config(**changes)
    tree, images, tokens = model_and_batch(config, 1, batch=6)
    want, exact = gradients(config, tree, images, tokens, torch.float64)
    have, found = gradients(config, tree, images, tokens, NARROW)
    for name in want:
        assert have[name].dtype == torch.float32
        assert float(have[name]) == pytest.approx(float(want[name]), rel=0.01), name
    assert found.keys() == exact.keys()
    gaps = {name: (gradient.double() - exact[name]).norm() for name, gradient in found.items()}
    sizes = {name: gradient.norm() for name, gradient in exact.items()}
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert np.hypot.reduce([*gaps.values()]) < 0.05 * np.hypot.reduce([*sizes.values()])
    for name, gap in gaps.items():
        assert gap < 0.2 * max(sizes[name], 0.02 * max(sizes.values())), name


@pytest.mark.parametrize("pooler", ["cascade", "parallel", "shared", "none"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_step_in_bfloat16_is_the_step(pooler, packed, monkeypatch):
    monkeypatch.setattr(text, "PACK_BELOW", 2.0 if packed else 0.0)
    monkeypatch.setattr(attention, "ABSORB_FROM", 0)  # where the rows are packed
    check_step(pooler=pooler)


def test_a_step_of_open_clips_form_in_bfloat16_is_the_step():
    check_step(stem="clip", pooler="shared", multimodal_mlps=2, embed_width=22, gelu="exact")


def near(have, want, times=1.0):
    """Off by no more than so many roundings to bfloat16."""
    gap = (have.double() - want).abs().max() / want.abs().max()
    assert gap <= times * HALF, float(gap)


def large_scores():
    """Queries and keys, in bfloat16, whose scores are 100 and differ by less than a step of it."""
    generator = torch.Generator().manual_seed(0)
    q_1THK = torch.zeros(1, 3, 2, 16, dtype=NARROW)
    k_1SHK = torch.zeros(1, 9, 2, 16, dtype=NARROW)
    q_1THK[..., 0], k_1SHK[..., 0] = 20, 20  # 20 x 20 / sqrt(16)
    q_1THK[..., 1] = 1
    k_1SHK[..., 1] = torch.rand(9, 2, generator=generator).to(NARROW)
    return q_1THK, k_1SHK, torch.randn(1, 9, 2, 16, generator=generator).to(NARROW)


def check_scores():
    q, k, v = large_scores()
    want = torch.nn.functional.scaled_dot_product_attention(
        *(x.double().transpose(1, 2) for x in (q, k, v))
    ).transpose(1, 2)
    near(ops.attention(q, k, v), want)


def check_absorbed_scores():
    """As attention that forms keys and values from the same numbers: one head of identity maps."""
    q, k, v = (x[:, :, 0] for x in large_scores())
    identity = {"weight": torch.eye(16, dtype=NARROW), "bias": torch.zeros(16, dtype=NARROW)}
    params = dict.fromkeys(("query", "key", "value", "output"), identity)
    have = attention._absorbed_attention(q[0], k, params, 1, [3])
    p = torch.softmax(q[0].double() @ k[0].double().T / 4, -1)
    near(have, p @ k[0].double(), 3)  # p and q W_key' are rounded too
    # A sum of k tells little of p: its second number is what differs between the keys.
    near(have[:, 1], p @ k[0, :, 1].double(), 3)


def check_pooled_scores():
    generator = torch.Generator().manual_seed(0)
    x_1SM = torch.randn(1, 9, 16, generator=generator).to(NARROW)
    g_HM = 30 * torch.randn(2, 16, generator=generator)
    xhat = torch.nn.functional.layer_norm(x_1SM.double(), (16,))
    want = torch.softmax(g_HM.double() @ xhat.transpose(1, 2), -1) @ xhat
    near(ops.attention_pool(x_1SM, g_HM), want)


def check_norm():
    """Its numbers are not rounded: a scale of 1 + 2^-10 and a bias that takes nearly all away."""
    generator = torch.Generator().manual_seed(0)
    x_RD = torch.randn(5, 32, generator=generator).to(NARROW)
    tree = {"a": {"norm": {"scale": torch.full((32,), 1 + 2**-10), "bias": torch.zeros(32)}}}
    exact = torch.nn.functional.layer_norm(x_RD.double(), (32,))
    tree["a"]["norm"]["bias"] = -exact[0].float()
    want = exact * (1 + 2**-10) - exact[0].float()
    have = ops.layer_norm(x_RD, precision.in_type(tree, NARROW)["a"]["norm"])
    near(have[0], want[0])


def check_sums():
    """A product is added as it is summed, in float32: 1/512 to 1, which bfloat16 would not see."""
    total = torch.ones(1, 1)
    one = torch.ones(1, 1, dtype=NARROW)
    for _ in range(512):
        products.add_product(total, one / 512, one)
    assert float(total) == 2
    products.add_product(
        total, torch.tensor([[1, 2**-9]], dtype=NARROW), torch.ones(2, 1).to(NARROW)
    )
    assert float(total) == 3 + 2**-9


CHECKS = (check_scores, check_absorbed_scores, check_pooled_scores, check_norm, check_sums)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_must_not_be_rounded_is_not(check):
    check()


BUGS = [
    (ops, "o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)",
     "o = torch.softmax((q @ k.mT / q.shape[-1] ** 0.5).bfloat16().float(), -1) @ v", check_scores),
    (attention, "widened(q_RHM).split", "q_RHM.split", check_absorbed_scores),
    (ops, "torch.softmax(widened(g_HM) @", "torch.softmax(g_HM.bfloat16() @", check_pooled_scores),
    (precision, "if WIDE.fullmatch(n) else", "if n == 'log_temperature' else", check_norm),
    (products, "total.addmm_(a.to(total.dtype), b.to(total.dtype))", "total += a @ b", check_sums),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS)
def test_a_planted_rounding_is_caught(module, old, new, check):
    with planted(module, old, new), pytest.raises((AssertionError, RuntimeError)):
        check()


def test_the_table_of_tokens_is_not_copied():
    tree = tree_map(torch.tensor, initialise(small_config()))
    given = flatten(precision.in_type(tree, NARROW))
    kept = {name for name, p in flatten(tree).items() if given[name] is p}
    assert "text.token" in kept and "log_temperature" in kept
    assert all("norm" in name for name in kept - {"text.token", "log_temperature"})
    assert {p.dtype for n, p in given.items() if n not in kept} == {NARROW}


@pytest.mark.parametrize("there", [True, False])
def test_without_one_dnns_own_operator_nothing_breaks(there, monkeypatch):
    """It is taken in float32 alone: a step by it, or without it, is the step in float64."""
    monkeypatch.setattr(ops, "ONEDNN", there and ops.ONEDNN)
    monkeypatch.setattr(ops, "ONEDNN_FROM", 0)
    took = []
    product = ops._product
    monkeypatch.setattr(ops, "_product", lambda *given: took.append(1) or product(*given))
    config = small_config()
    tree, images, tokens = model_and_batch(config, 1, batch=6)
    want, exact = gradients(config, tree, images, tokens, torch.float64)
    have, found = gradients(config, tree, images, tokens, torch.float32)
    for name in want:
        assert float(have[name]) == pytest.approx(float(want[name]), rel=1e-5), name
    for name, gradient in exact.items():
        np.testing.assert_allclose(found[name].double(), gradient, atol=1e-4, err_msg=name)
    assert bool(took) == (there and bool(ops.ONEDNN))


@pytest.fixture
def fast(monkeypatch):
    """A CPU that has bfloat16, and on which a step of any model takes as long as this says."""
    seconds = {"float32": 3.0, "bfloat16": 1.0}
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "LARGE", 1)
    monkeypatch.setattr(precision, "_seconds", lambda config, params: seconds)
    return seconds


def settled(**changes):
    said, config = [], small_config(device="cpu", **changes)
    found = precision.settled(config, initialise(config), said.append)
    assert dataclasses.replace(found, precision=config.precision) == config
    return found.precision, " ".join(said)


@pytest.mark.parametrize(
    ("bfloat16", "chosen"), [(1.0, "bfloat16"), (2.7, "bfloat16"), (2.8, "float32"), (9, "float32")]
)
def test_auto_is_what_is_faster(bfloat16, chosen, fast):
    fast["bfloat16"] = bfloat16
    found, said = settled()
    assert found == chosen and f"--precision {chosen}: in bfloat16" in said
    assert f"{3 / bfloat16:.1f} times" in said


@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_a_person_s_choice_is_not_measured(given, fast, monkeypatch):
    monkeypatch.setattr(precision, "_seconds", None)
    assert settled(precision=given) == (given, "")


def test_small_models_and_plain_cpus_stay_as_they_are_unmeasured(fast, monkeypatch):
    monkeypatch.setattr(precision, "_seconds", None)
    monkeypatch.setattr(precision, "LARGE", 10**7)
    assert settled() == ("auto", "")
    monkeypatch.setattr(precision, "LARGE", 1)
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    assert settled() == ("auto", "")
    assert ops.pick_dtype("auto", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("name", RELATIVES)
def test_both_types_are_timed_and_nothing_is_left_behind(name):
    config = small_config(batch_size=4) if name == "coca" else config_of(name)
    tree = initialise(config, tree=specs_of(config))
    leaves = tree_map(lambda a: torch.tensor(np.float32(a)).requires_grad_(), tree)
    before = tree_map(lambda p: p.detach().clone(), leaves)
    seconds = precision._seconds(config, leaves)
    assert seconds.keys() == {"float32", "bfloat16"} and all(0 < s < 60 for s in seconds.values())
    for name, leaf in flatten(leaves).items():
        assert leaf.grad is None and torch.equal(leaf, flatten(before)[name]), name


def test_a_run_goes_on_in_the_type_it_began_with(tmp_path, fast):
    """Also where the measurement would now say otherwise."""
    silent(short(steps=3, device="cpu"), tmp_path)
    assert read_config(tmp_path).precision == "bfloat16"
    fast["bfloat16"] = 9.0
    silent(short(steps=3), tmp_path, taking_up=True, changes={"steps": 4})
    assert read_config(tmp_path).precision == "bfloat16"


def test_what_a_cpu_has_is_asked_of_torch(monkeypatch):
    for has in ((True, False), (False, True), (False, False)):
        amx, avx = has
        fake = SimpleNamespace(
            _is_amx_tile_supported=lambda amx=amx: amx,
            _is_avx512_bf16_supported=lambda avx=avx: avx,
        )
        monkeypatch.setattr(torch, "cpu", fake)
        assert precision.has_bfloat16() == any(has)
    monkeypatch.setattr(torch, "cpu", SimpleNamespace())  # a torch that does not tell
    assert not precision.has_bfloat16()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_200_steps_lose_as_much_as_in_float32(optimizer):
    """From the same weights, the same pairs in the same order: the mean loss of the run within 1 %,
    and with AdamW at a rate at which rounding is not multiplied that of every 20 steps."""
    scenes = load(0, 32, 3000, 20).train
    tokenizer = Tokenizer.train([own[0] for own in scenes.captions], 64)
    order = Order(scenes.captions, 64, 0, False, scenes.same)
    how = dict(device="cpu", vocabulary=tokenizer.vocab_size, steps=200, optimizer=optimizer)
    how |= {"learning_rate": 3e-4} if optimizer == "adamw" else {}
    curves = []
    for name in ("float32", "bfloat16"):
        config = preset("tiny", **how, precision=name)
        trainer = Trainer(initialise(config), config)
        encode = lambda texts, *rest: tokenizer.encode(texts, 24)  # noqa: E731
        made = batches(scenes, order, encode, 0, config.steps)
        curves.append([trainer.step(*batch)["loss"] for batch in made])
    exact, rounded = np.array(curves)
    assert exact[-20:].mean() < 0.8 * exact[:20].mean() and (exact != rounded).all()
    assert rounded.mean() == pytest.approx(exact.mean(), rel=0.01)
    if optimizer == "muon":
        return
    for a, b in zip(exact.reshape(10, 20).mean(1), rounded.reshape(10, 20).mean(1), strict=True):
        assert b == pytest.approx(a, rel=0.01)
