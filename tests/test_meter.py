"""How fast a run is and where its time goes: as a slow run of known parts says."""

import time
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import planted
from runs import short
from sick import Slow, dataset, squares, trained
from test_run import some_pairs

from minicoca.bench import model_flops
from minicoca.config import preset
from minicoca.params import initialise
from minicoca.training import flops, meter
from minicoca.training.meter import Meter
from minicoca.training.run import make_trainer

PARTS = {"data": 0.02, "forward": 0.03, "backward": 0.04, "optimiser": 0.01}  # seconds


class Sleeper:
    """A trainer whose parts take a known time."""

    device, dtype = SimpleNamespace(type="cpu"), torch.float32

    def tell_parts(self, mark):
        self.mark = mark

    def step(self):
        for part in ("forward", "backward", "optimiser"):
            self.mark(part)
            time.sleep(PARTS[part])


def check_parts():
    """A sleep is never shorter than asked for; on a busy machine it can be a good deal longer."""
    config, trainer, steps = short(), Sleeper(), 3
    meter_ = Meter(trainer, config, lambda step: True)

    def made():
        for step in range(steps):
            time.sleep(PARTS["data"])
            yield step, *some_pairs(5)

    for _, images, tokens in meter_.steps(made()):
        trainer.step()
        meter_.count(images, tokens)
        time.sleep(0.3)  # a look, which is no part of a step
    found = meter_.read()
    for part, seconds in PARTS.items():
        assert 1e3 * seconds * 0.99 <= found[f"{part}_ms"] < 1e3 * seconds + 200, part
    whole = sum(found[f"{part}_ms"] for part in PARTS)
    assert found["images_per_second"] == pytest.approx(5e3 / whole, rel=0.1)
    per_image = config.kept_patches + 6  # six tokens each
    assert found["tokens_per_second"] == pytest.approx(per_image * found["images_per_second"], 1e-3)
    one_step = flops.flops(config, np.full(5, 6)) * found["images_per_second"] / 5
    assert found["flop_utilisation"] == pytest.approx(one_step / meter_.peak, rel=1e-2)
    assert found["memory_mb"] > 50 and "decoding_per_second" not in found


def test_parts():
    check_parts()


def test_padding_is_no_token():
    config = short()
    meter_ = Meter(Sleeper(), config, lambda step: True)
    tokens = np.array([[1, 5, 2, 0, 0], [1, 2, 0, 0, 0]])
    for _ in meter_.steps([(0, None, None)]):
        meter_.count(np.zeros((2, 32, 32, 3), np.uint8), tokens)
    assert meter_.seen["tokens"] == 2 * config.kept_patches + 5


def test_on_a_card_the_parts_are_of_logged_steps_and_it_is_waited_for(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5e6)
    trainer = Sleeper()
    trainer.device = SimpleNamespace(type="cuda")  # and its float32 has no known peak
    meter_ = Meter(trainer, short(), lambda step: step == 2)
    for _, images, tokens in meter_.steps((step, *some_pairs(2)) for step in range(4)):
        trainer.step()
        meter_.count(images, tokens)
    assert len(waits) == 4, "at three beginnings and the end, of one step"
    found = meter_.read()
    assert 30 <= found["forward_ms"] < 90, "of one step, not a fourth of it"
    assert found["memory_mb"] == 5 and "flop_utilisation" not in found


@pytest.mark.parametrize(("card", "peak"), [("NVIDIA H100 80GB HBM3", 989e12),
                                            ("NVIDIA H100 PCIe", float("inf")),
                                            ("NVIDIA A100-SXM4-80GB", 312e12)])  # fmt: skip
def test_what_a_card_can_do(monkeypatch, card, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    trainer = SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=torch.bfloat16)
    assert flops.peak(short(), trainer) == peak


SHAPES = (
    {"patch_size": 4, "image_layers": 6},
    {"pooler": "cascade", "caption_queries": 12, "multimodal_mlps": 2},
    {"pooler": "shared", "caption_queries": 12, "stem": "clip", "embed_width": 32},
    {"pooler": "parallel", "caption_queries": 12, "unimodal_layers": 3, "vocabulary": 5000},
)


@cache
def torchs(which):
    return model_flops(preset("tiny", **SHAPES[which]), 3)


def check_flops():
    """As torch counts them, but for the contrastive pooler, whose keys and values the engine does
    not form."""
    for which, settings in enumerate(SHAPES):
        config = preset("tiny", **settings)
        ours = flops.flops(config, np.full(3, config.text_length))
        assert ours == pytest.approx(torchs(which), rel=0.05), settings
    few, many = (flops.flops(preset("tiny"), np.full(3, n)) for n in (5, 20))
    assert few < many < 4 * few


def test_flops_are_torchs():
    check_flops()


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_a_trainer_tells_its_parts(backend):
    """In this order, as often with accumulation as there are micro-batches."""
    config, told = short(backend=backend), []
    trainer = make_trainer(initialise(config), config)
    trainer.tell_parts(told.append)
    trainer.step(0, *some_pairs())
    assert told == ["forward", "backward", "optimiser"]
    if backend == "torch":
        parts, config = [], short(accumulate=2)
        trainer = make_trainer(initialise(config), config)
        trainer.tell_parts(parts.append)
        trainer.step(0, *some_pairs())
        assert parts == ["forward", *["forward", "backward"] * 2, "optimiser"]


def test_decoding_is_timed_where_it_is_done(tmp_path):
    """In the thread that makes batches ahead: 16 pictures in 0.05 s each time."""
    _, records = trained(tmp_path, dataset(*squares(), kind=Slow), steps=20, evaluate_every=0)
    speeds = [record["throughput"] for record in records if "throughput" in record]
    assert len(speeds) == 2
    for own in speeds:
        assert 100 < own["decoding_per_second"] <= 16 / 0.05
        assert own["images_per_second"] < 1.2 * own["decoding_per_second"]
        assert {"data_ms", "forward_ms", "backward_ms", "optimiser_ms"} <= own.keys()


BUGS = [
    (flops, "6.0 * shape[0]", "4.0 * shape[0]", check_flops),
    (flops, '"decoder": predicts', '"decoder": B', check_flops),
    (flops, "B * image**2", "B * image", check_flops),
    (flops, "return total + 12.0 * pairs", "return total", check_flops),
    (meter, 'self.took["step"] += time.perf_counter() - self.began',
     'self.took["step"] += time.perf_counter() - self.began + 0.1', check_parts),
    (meter, "            began = time.perf_counter()\n\n", "\n", check_parts),
    (meter, "self.took[self.part] += now - self.since", "self.took[part] += now - self.since",
     check_parts),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_seen(module, old, new, check):
    with planted(module, old, new), pytest.raises((AssertionError, KeyError)):
        check()
