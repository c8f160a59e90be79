"""What fine-tuning forgets, and what a lock keeps: the experiments do what they say, in little, and
at full size the direction is the paper's."""

from dataclasses import replace

import forgetting
import numpy as np
import pytest
from forgetting import changed, figures, forget, tuned, turned_round, written

from minicoca import params
from minicoca.data import shapes
from minicoca.params import flatten
from minicoca.training.checkpoint import WEIGHTS, find_run


def test_turned_round_captions_hold_the_same_words():
    texts = [shapes.caption(scene) for scene in shapes.scenes("train", 200)]
    turned = [*map(turned_round, texts)]
    for text, other in zip(texts, turned, strict=True):
        assert sorted(text.split()) == sorted(other.split()) and text != other
    assert len(set(turned)) == len(set(texts))
    assert turned_round("a small red cross left of a small black heart") == (
        "left of a small black heart a small red cross"
    )
    assert turned_round("red apple") == "apple red"


@pytest.mark.parametrize("freeze", ["image", "text", ""])
def test_a_locked_tower_is_the_same_to_the_last_bit(freeze, tmp_path, monkeypatch):
    """Both ways of LiT, and neither; whatever the losses of a run, it can be asked to compare."""
    monkeypatch.setattr(forgetting, "STEPS", 2)
    dataset = shapes.load(0, 32, 120, 24)
    source = written(tmp_path / "data", changed(dataset.train, turned_round))
    weight = 1.0 if freeze else 0.0
    run = tuned("shapes", tmp_path / "run", source, 0, freeze=freeze, contrastive_weight=weight)
    before, after = (flatten(params.load(f / WEIGHTS)[0]) for f in (find_run("shapes"), run))
    moved = {name.split(".")[0] for name in before if (before[name] != after[name]).any()}
    # The captioning loss alone reaches no contrastive query and no temperature.
    want = {"image", "pooler", "text", "decoder", "log_temperature"} - {freeze}
    assert moved == (want if freeze else {"image", "text", "decoder"})
    found = figures(run, changed(dataset.evaluations["held_out"], turned_round))
    assert found.shape == (1, 4) and np.isfinite(found).all()


def test_few_pairs_are_learned_in_three_ways(monkeypatch):
    for name, value in dict(STEPS=2, FEW=(70,), TRAIN=120, TESTED=70).items():
        monkeypatch.setattr(forgetting, name, value)
    rows = forgetting.few("shapes", [0])
    assert [*rows] == ["70 pairs: Lu", "70 pairs: Uu", "70 pairs: uu"]
    assert all(found.shape == (5,) and np.isfinite(found).all() for (found,) in rows.values())


def test_the_loss_of_pairs_is_little_where_they_belong_together():
    pairs = shapes.load(0, 32, 10, 128).evaluations["held_out"]
    others = replace(pairs, captions=pairs.captions[1:] + pairs.captions[:1])
    right, wrong = (forgetting.contrast(find_run("shapes"), own) for own in (pairs, others))
    assert right < 0.2 and wrong > np.log(forgetting.BATCH)


@pytest.mark.slow
def test_captioning_alone_forgets_far_more_than_both_losses(monkeypatch):
    """On emoji, in a fifth of the guide's steps: zero-shot accuracy, in points of a hundred."""
    monkeypatch.setattr(forgetting, "STEPS", 60)
    rows = forget("emoji", [0])
    before, alone, both = (float(found[0][0, 0]) for found in [*rows.values()][:3])
    assert alone < before - 10 and both > alone + 8
