"""Several gloo processes do what one does with the whole batch: losses, every gradient, weights."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed import in_processes
from strategies import model_and_batch, small_config
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minicoca import scale
from minicoca.config import preset
from minicoca.engine import train as engine_train
from minicoca.kernels.info_nce_ranks import info_nce_over_ranks
from minicoca.params import flatten, unflatten
from minicoca.ranks import ALONE, Ranks

ROWS = 7  # comes out even for no number of processes but 1
WEIGHTS = dict(both={}, contrastive=dict(caption_weight=0.0), caption=dict(contrastive_weight=0.0))
WAYS = dict(
    whole={},
    parts=dict(accumulate=2, recompute=True),
    fsdp=dict(parallel="fsdp"),
    fsdp_parts=dict(parallel="fsdp", accumulate=3, recompute=True),
    muon=dict(optimizer="muon", augment=1.0, patch_keep=0.5),
    frozen=dict(freeze="image.blocks.0,log_temperature", augment=1.0),
)
CASES = {
    f"{way} {what}": dict(clip_norm=0.05, **changes, **weights)
    for way, changes in WAYS.items()
    for what, weights in WEIGHTS.items()
}


def drawn(config, rows=ROWS):
    """Pictures and captions of very unequal lengths."""
    rng, T = np.random.default_rng(0), config.text_length
    images = rng.integers(0, 256, (rows, *2 * [config.image_size], 3)).astype(np.uint8)
    tokens = np.zeros((rows, T), np.int64)
    for i, own in enumerate(tokens):
        own[: 2 + i % (T - 2)] = rng.integers(4, config.vocabulary, 2 + i % (T - 2))
    return images, tokens


def one_step(ranks, changes, dtype=torch.float64):
    """(what a step says, {name: gradient}) of this process's rows."""
    config = small_config(**changes)
    params, _, _ = model_and_batch(config, 0)
    images, tokens = drawn(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_train, "pick_dtype", lambda *given: dtype)
        if dtype == torch.float32:
            params = engine_train.tree_map(lambda a: a.astype(np.float32), params)
        trainer = engine_train.Trainer(params, config, ranks)
    mine = ranks.mine(len(images))
    report = trainer.step(3, images[mine], tokens[mine])
    report |= {f"part of {name}": x for name, x in trainer.gradient_shares().items()}
    gradients = {name: engine_train.whole(p.grad) for name, p in trainer.leaves.items()}
    return report, {n: g.numpy() for n, g in gradients.items() if g is not None}


def steps_of(ranks, cases, dtype=torch.float64):
    return [one_step(ranks, changes, dtype) for changes in cases]


def check_as_one(world, names=tuple(CASES), dtype=torch.float64, tolerance=1e-10):
    cases = [CASES[name] for name in names]
    want = steps_of(ALONE, [case | {"accumulate": 1, "compile": False} for case in cases], dtype)
    for rank, found in enumerate(in_processes(world, steps_of, cases, dtype)):
        for name, (report, gradients), (said, own) in zip(names, want, found, strict=True):
            assert gradients.keys() == own.keys(), name
            for key, value in report.items():
                assert said[key] == pytest.approx(value, rel=tolerance, abs=tolerance), (name, key)
            norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
            for leaf, gradient in gradients.items():
                far = np.abs(own[leaf] - gradient).max()
                assert far <= tolerance * norm, (world, rank, name, leaf)


def test_losses_and_every_gradient_are_those_of_one_process():
    check_as_one(3, ["whole both", "parts both", "whole caption", "muon contrastive"])
    check_as_one(2, ["fsdp both", "fsdp_parts caption", "frozen both"])


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
def test_all_ways_are_those_of_one_process(world):
    check_as_one(world)
    check_as_one(world, dtype=torch.float32, tolerance=1e-5)


@pytest.mark.slow
def test_a_step_may_be_compiled():
    CASES["compiled"] = dict(compile=True)
    check_as_one(2, ["compiled"], torch.float32, 1e-5)


def ten_steps(ranks, changes):
    """(weights and moments after ten steps, what the last one says)."""
    config = small_config(steps=10, warmup=2, learning_rate=0.01, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_train, "pick_dtype", lambda *given: torch.float64)
        first, trainer = (
            engine_train.Trainer(model_and_batch(config, 0)[0], config, ranks) for _ in range(2)
        )
    images, tokens = drawn(config, 6)
    mine = ranks.mine(6)
    for step in range(10):
        report = (first if step < 5 else trainer).step(step, images[mine], tokens[mine])
        if step == 4:
            trainer.load(first.state() if ranks.world == 1 else everywhere(ranks, first))
    return flatten(trainer.state()), report  # of the first process; the others have none


def everywhere(ranks, trainer):
    """A state that the first process has, in all."""
    state = flatten(trainer.state())
    text = ranks.text(json.dumps({name: value.tolist() for name, value in state.items()}))
    return unflatten({name: np.array(value) for name, value in json.loads(text).items()})


STEPS = dict(optimizer="muon", ema=0.9, clip_norm=0.5, weight_decay=0.1)


def check_ten_steps(world=2, **changes):
    (want, said), *_ = [ten_steps(ALONE, STEPS | changes)]
    (found, report), *_ = in_processes(world, ten_steps, STEPS | changes)
    assert want.keys() == found.keys()
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-7, atol=1e-9, err_msg=name)
    assert report == pytest.approx(said, rel=1e-9)


@pytest.mark.parametrize(("world", "parallel"), [(3, "ddp"), (2, "fsdp")])
def test_ten_steps_end_where_one_process_ends(world, parallel):
    """Weights, averages and moments of both optimizers; half way another Trainer takes over."""
    check_ten_steps(world, parallel=parallel)


class Largest(TorchDispatchMode):
    """The most numbers of any tensor that is made."""

    most = 0

    def __torch_dispatch__(self, function, types, given=(), how=None):
        made = function(*given, **(how or {}))
        sizes = [x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.most = max(self.most, *sizes, 0)
        return made


def pairs_of(ranks, B=512, E=8):
    """This process's unit vectors, and how many each process has."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randn(2, B, E, generator=generator, dtype=torch.float64)
    image, text = F.normalize(sides, dim=-1)[:, ranks.mine(B)]
    return image.requires_grad_(), text.requires_grad_(), ranks.shares(B)


def largest(ranks):
    image, text, counts = pairs_of(ranks)
    sigma, workspace = torch.tensor(9.0, dtype=torch.float64), 1 << 18
    with Largest() as made:
        loss = info_nce_over_ranks(
            image, text, sigma, ranks, counts, workspace=workspace, fused=False
        )
        loss.backward()
    return made.most


def test_nothing_is_as_large_as_all_pairs_by_all_pairs():
    """Nor as a process's by all: a chunk of rows, and the vectors of one side."""
    most = max(in_processes(2, largest))
    assert most <= max((1 << 18) // 32, 512 * 8) < 256 * 512 // 8


def sent(ranks, way):
    """(gradients of image and text, bytes that this process sends) in one of the five ways."""
    image, text, counts = pairs_of(ranks, B=12)
    sigma, moved = torch.tensor(9.0, dtype=torch.float64), []

    def counting(name, size):
        original = getattr(dist, name)

        def counted(*given, **how):
            moved.append(size(given))
            return original(*given, **how)

        return counted

    part, others = (ranks.world - 1) / ranks.world, ranks.world - 1
    sizes = {
        "all_gather": lambda given: others * given[1].nbytes,
        "all_to_all_single": lambda given: part * given[1].nbytes,
        "all_to_all": lambda given: part * sum(x.nbytes for x in given[1]),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(dist, name, counting(name, size))
        if way == "ours":
            loss = info_nce_over_ranks(image, text, sigma, ranks, counts, fused=False)
            loss = loss * ranks.world  # which the mean over the processes undoes
        else:
            loss = theirs(image, text, sigma, ranks, *WAYS_OF_THEIRS[way])
        loss.backward()
    return image.grad.numpy() / ranks.world, text.grad.numpy() / ranks.world, sum(moved)


WAYS_OF_THEIRS = dict(
    none=(False, False), gather_with_grad=(False, True), local_loss=(True, False), both=(True, True)
)


class Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, ranks):
        ctx.ranks = ranks
        return ranks.gather(x, [len(x)] * ranks.world)

    @staticmethod
    def backward(ctx, d):
        ranks = ctx.ranks
        return ranks.to_owners(d, [len(d) // ranks.world] * ranks.world).sum(0), None


def theirs(image, text, sigma, ranks, local, with_grad):
    """The contrastive loss as open_clip's flags have it: whose rows, and through what gradients
    flow."""
    sides, n = [], len(image)
    for own in (image, text):
        if with_grad:
            parts = [Gathered.apply(own, ranks)]
        else:
            parts = [torch.empty_like(own) for _ in range(ranks.world)]
            dist.all_gather(parts, own.detach())
            if not local:
                parts[ranks.rank] = own
        sides.append(torch.cat(parts))
    images, texts = sides
    rows, labels = (image, text), torch.arange(n) + n * ranks.rank
    if not local:
        rows, labels = (images, texts), torch.arange(n * ranks.world)
    both = F.cross_entropy(sigma * rows[0] @ texts.T, labels)
    return (both + F.cross_entropy(sigma * rows[1] @ images.T, labels)) / 2


def all_ways(ranks):
    return {way: sent(ranks, way) for way in ("ours", *WAYS_OF_THEIRS)}


def test_what_travels_is_what_the_model_says_and_others_send_more_or_are_wrong():
    """open_clip's four ways: two are exact and send twice as much, one has a half (1 / world) of
    the gradient, one another direction."""
    world, B, E = 2, 12, 8
    found = in_processes(world, all_ways)
    image, text, _ = pairs_of(ALONE, B=B)
    logits = 9.0 * image @ text.T
    labels = torch.arange(B)
    ((F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2).backward()
    config = small_config(embed_width=E)
    for rank, ways in enumerate(found):
        mine = Ranks(rank, world).mine(B)
        for way, (dimage, dtext, moved) in ways.items():
            want = [side.grad[mine].numpy() for side in (image, text)]
            exact = all(
                np.allclose(a, b, atol=1e-12) for a, b in zip((dimage, dtext), want, strict=True)
            )
            assert exact == (way in ("ours", "gather_with_grad", "both")), way
            if way == "none":
                np.testing.assert_allclose(dimage * world, want[0], atol=1e-12)
            own = scale.wire(config, world, B)
            said = own["texts"] + own["columns"] + own["text gradients"]
            if way != "ours":
                said = scale.open_clips(B, E, world)[way]
            assert moved == 2 * said, way  # float64


def gradients_sent(ranks):
    config, moved = small_config(freeze="image"), []
    params = engine_train.tree_map(lambda a: a.astype(np.float32), model_and_batch(config, 0)[0])
    trainer = engine_train.Trainer(params, config, ranks)

    def hook(group, bucket):
        moved.append(2 * (ranks.world - 1) / ranks.world * bucket.buffer().nbytes)
        return allreduce_hook(group, bucket)

    trainer.module.register_comm_hook(None, hook)
    images, tokens = drawn(config)
    mine = ranks.mine(len(images))
    trainer.step(0, images[mine], tokens[mine])
    return sum(moved), scale.wire(config, ranks.world)["weights' gradients"]


def test_gradients_travel_once_and_of_what_learns_alone():
    for moved, said in in_processes(2, gradients_sent):
        assert 0.99 * said < moved <= said  # a vector or two is reached by no loss


def test_the_model_of_many_cards():
    """More cards, less of each; what is on the wire nears its limit; FSDP2 keeps less."""
    config = preset("tiny", batch_size=9)
    one, eight, many = scale.report(config)
    assert not any(one["sent"].values())
    for name in ("texts", "text gradients", "columns"):
        assert eight["sent"][name] < many["sent"][name] < eight["sent"][name] * 8 / 7
    assert many["pairs each"] == 128 and many["micro-batches"] == 1
    busy = [row["seconds"]["all other products"] for row in (one, eight, many)]
    assert busy[0] == pytest.approx(8 * busy[1]) and busy[1] > 64 * busy[2]
    fsdp = scale.report(dataclasses.replace(config, parallel="fsdp"))[-1]
    assert sum(fsdp["memory"].values()) < sum(many["memory"].values())
