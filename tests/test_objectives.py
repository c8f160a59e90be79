"""Every relative in both trainers: the same steps, frozen parts, exact going on, its flags."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from runs import TRAINERS, untrained

from minicoca import relatives
from minicoca.__main__ import main
from minicoca.commands import build_parser
from minicoca.commands.flags import from_flags
from minicoca.config import OBJECTIVES, from_dict, preset
from minicoca.engine import vision
from minicoca.family.members import FAMILY
from minicoca.files import write_json
from minicoca.params import flatten, initialise
from minicoca.relatives import RELATIVES, drawn, settings_of, specs_of
from minicoca.training.checkpoint import read_config, save_config
from minicoca.views import view

ROOT = Path(__file__).parent.parent

SMALL = dict(
    image_size=16, image_layers=1, image_width=16, image_hidden=16, image_heads=2, text_width=16,
    text_hidden=16, text_heads=2, pooler_heads=2, caption_queries=3, vocabulary=20, text_length=8,
    batch_size=4, warmup=2, steps=8, weight_decay=0.3, clip_norm=0.1,
)  # fmt: skip
OWN = {"resnet": (("stages", 2),), "mae": (("decoder_width", 8),), "vlmo": (("masked", 0.5),)}
# A part of each tree that is frozen here.
PARTS = {
    "coca": "text.token", "gpt": "text.blocks.0", "simvlm": "decoder", "cappa": "word_mask",
    "siglip": "sigmoid_bias,log_temperature", "matching": "matching", "simclr": "projector",
    "mae": "image", "simmim": "drawing.mask", "resnet": "image.stem",
    "vlmo": "blocks.0.experts.image,log_temperature",
}  # fmt: skip


def config_of(name, backend="torch", **more):
    more = {"objective": name, "settings": OWN.get(name, ())} | more
    return preset("tiny", **{**SMALL, "backend": backend, "device": "cpu", **more})


def trainer_of(config):
    return TRAINERS[config.backend](initialise(config, 3, tree=specs_of(config)), config)


def batch(step=0):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)
    tokens = np.zeros((4, 8), np.int64)
    for row, length in zip(tokens, (5, 8, 6, 7), strict=True):
        row[:length] = [1, *rng.integers(4, 20, length - 2), 2]
    return images, tokens


def test_all_are_there():
    assert RELATIVES.keys() == OBJECTIVES.keys() == PARTS.keys()
    taught = {word for own in OBJECTIVES.values() for word in own.split()}
    assert taught == {"compare", "write", "match", "continue", "tokens", "vit"}


@pytest.mark.parametrize("name", RELATIVES)
def test_both_trainers_take_the_same_steps(name):
    """Of what no loss reaches the reference knows a gradient of 0, by which it decays."""
    of = {b: trainer_of(config_of(name, b, weight_decay=0.0)) for b in TRAINERS}
    for step in range(3):
        reports = [trainer.step(step, *batch(step)) for trainer in of.values()]
        assert reports[0].keys() == reports[1].keys() and "loss" in reports[0]
        for key, value in reports[0].items():
            assert reports[1][key] == pytest.approx(value, rel=2e-4, abs=1e-6), (step, key)


@pytest.mark.parametrize("backend", TRAINERS)
@pytest.mark.parametrize("name", RELATIVES)
def test_frozen_is_the_same_to_the_bit(name, backend):
    """After 100 steps with decay, Muon, clipping and, in torch, averaged weights; all else that a
    loss reaches has moved."""
    more = {"ema": 0.9} if backend == "torch" else {}
    config = config_of(name, backend, freeze=PARTS[name], steps=100, **more)
    tree = initialise(config, 3, tree=specs_of(config))
    if "log_temperature" in PARTS[name]:
        tree["log_temperature"] = np.float32(0.5) + np.zeros_like(tree["log_temperature"])  # beyond
    before = {n: np.array(x) for n, x in flatten(tree).items()}
    trainer = TRAINERS[backend](tree, config)
    for step in range(100):
        trainer.step(step, *batch(step % 5))
    moved = 0
    for found in (trainer.weights(), trainer.state()["params"]):
        for leaf, value in flatten(found).items():
            if f"{leaf}.".startswith(tuple(f"{part}." for part in PARTS[name].split(","))):
                assert value.tobytes() == before[leaf].tobytes(), leaf
            else:
                moved += not np.array_equal(value, before[leaf])
    assert moved > 5


@pytest.mark.parametrize("backend", TRAINERS)
@pytest.mark.parametrize("name", RELATIVES)
def test_going_on_is_exact(name, backend):
    whole, first = (trainer_of(config_of(name, backend)) for _ in range(2))
    for step in range(4):
        whole.step(step, *batch(step))
    for step in range(2):
        first.step(step, *batch(step))
    second = trainer_of(config_of(name, backend, seed=0))
    second.load(first.state())
    for step in range(2, 4):
        second.step(step, *batch(step))
    ours, theirs = flatten(whole.state()), flatten(second.state())
    assert all(np.array_equal(value, theirs[leaf]) for leaf, value in ours.items())


@pytest.mark.parametrize("name", RELATIVES)
def test_settings_are_saved_and_come_back(name):
    config = config_of(name)
    saved = json.loads(json.dumps(config.to_dict()))
    assert from_dict(saved) == config
    assert ("objective" in saved) == ("settings" in saved) == (name != "coca")


@pytest.mark.parametrize("name", RELATIVES)
def test_draws_are_of_seed_and_step_alone(name):
    """Those that a look has are of no step."""
    config, given = config_of(name), batch()

    def raw(config, step):
        return {k: v.tobytes() for k, v in drawn(config, step, *given).items()}

    assert raw(config, 3) == raw(config, 3) and raw(config, None) == raw(config, None)
    if raw(config, 3):
        other = dataclasses.replace(config, seed=1)
        for many in ([(config, step) for step in range(20)], [(config, 3), (other, 3)] * 10):
            apart = {str(raw(*of)) for of in many}
            assert len(apart) > 1 or (len({*many}) == 2 and name in ("simvlm", "cappa"))


def test_a_relatives_flags_show_with_it_alone(capsys):
    parser = build_parser()
    words = ["train", "--objective", "mae", "--masked", "0.5", "--no-normalise-patches"]
    config = from_flags(parser.parse_args(words))
    assert settings_of(config) == relatives.MAE(masked=0.5, normalise_patches=False)
    for words in (["train", "--masked", "0.5"], ["train", "--objective=gpt", "--masked", "0.5"]):
        with pytest.raises(SystemExit):
            build_parser().parse_args(words)
    assert "unrecognized arguments: --masked" in capsys.readouterr().err


def test_a_relatives_flags_show_with_a_run_of_it(tmp_path, capsys):
    """That one begins with; unless another objective is named, or there is no such run."""
    untrained(tmp_path / "run", objective="mae", settings=(("masked", 0.5),))
    words = ["train", "--init", str(tmp_path / "run"), "--decoder-width", "16"]
    arguments = build_parser().parse_args(words)
    own = settings_of(from_flags(arguments, read_config(tmp_path / "run")))
    assert own == relatives.MAE(masked=0.5, decoder_width=16)
    none = ["train", "--init", str(tmp_path / "none"), *words[3:]]
    for wrong in ([*words, "--objective", "gpt"], none):
        with pytest.raises(SystemExit):
            build_parser().parse_args(wrong)
    assert "unrecognized arguments: --decoder-width" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--objective", "mae", "--masked", "1.5"], "masked=1.5; it must be over 0"),
        (["--objective", "mae", "--stem", "clip"], "mae wants plain"),
        (["--objective", "vlmo", "--text-width", "32"], "vlmo has one width for both"),
        (["--objective", "gpt", "--task", "questions"], "with objective=gpt it is captions"),
        (["--objective", "gpt", "--accumulate", "2"], "with objective=gpt it is 1"),
    ],
)
def test_what_a_relative_cannot_have_is_said(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_relative_goes_on_with_its_own_settings():
    """Those not given stay; of another objective none does."""
    earlier = config_of("mae", settings=(("decoder_width", 8), ("masked", 0.25)))

    def settled(*words):
        return from_flags(build_parser().parse_args(["train", *words]), earlier)

    assert settled() == earlier
    more = settled("--objective", "mae", "--masked", "0.5")
    assert dict(more.settings) == {"decoder_width": 8, "masked": 0.5}
    assert (
        settled("--objective", "simmim").settings == settled("--objective", "coca").settings == ()
    )


def test_settings_of_another_are_refused():
    with pytest.raises(ValueError, match="gpt has no setting 'masked'; it has tied"):
        settings_of(config_of("gpt", settings=(("masked", 0.5),)))
    with pytest.raises(ValueError, match="CoCa has none of its own"):
        config_of("coca", settings=(("masked", 0.5),))


def test_views():
    """Greys stay grey, without colours none changes, and a view is of its own image alone."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 12, 12, 3), np.uint8)
    grey = np.repeat(images[..., :1], 3, -1)
    seen = view(grey, np.random.default_rng(1), 0.3, 1.0).astype(int)
    assert np.ptp(seen, -1).max() <= 1 and not np.array_equal(seen, grey)
    flat = np.broadcast_to(np.uint8([10, 200, 90]), (5, 12, 12, 3))
    assert (view(flat, np.random.default_rng(1), 0.3, 0) == flat).all()
    assert not (view(flat, np.random.default_rng(1), 0.3, 0.5) == flat).all()
    one = view(images, np.random.default_rng(2), 0.5, 0.5)
    other = images.copy()
    other[0] = 0
    assert (view(other, np.random.default_rng(2), 0.5, 0.5)[1:] == one[1:]).all()


def test_a_run_has_the_name_of_what_it_trained(tmp_path, capsys):
    """CLIP, LiT and Switch are settings; the figures of each are of the newest run of its own."""
    runs = {
        "coca": {}, "CLIP": {"caption_weight": 0.0},
        "LiT": {"init": "shapes", "freeze": "image", "caption_weight": 0.0},
        "vlmo": {"objective": "vlmo"},
        "Switch": {"objective": "vlmo", "settings": (("experts", 4),)},
    }  # fmt: skip
    for number, (name, own) in enumerate(runs.items()):
        (tmp_path / name).mkdir()
        save_config(config_of(**{"name": "coca", **own}), tmp_path / name)
        write_json(tmp_path / name / "results.json", {"held_out": {"images": 3, "loss": number}})
    assert main(["family", "--runs", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ours = {own["name"]: own["run"] for own in found["built"] + found["settings"] if own["run"]}
    assert ours == {name: str(tmp_path / name) for name in runs}


@pytest.mark.parametrize("name", RELATIVES)
def test_image_layers_are_computed_again_or_it_is_refused(name, monkeypatch):
    """The same step, whose image layers are run once more."""
    if not config_of(name).has_vit:
        with pytest.raises(ValueError, match=f"recompute=True: objective={name} has none of"):
            config_of(name, recompute=True)
        return
    again, reports = [], []
    recomputed = vision.recomputed
    monkeypatch.setattr(vision, "recomputed", lambda *g: again.append(1) or recomputed(*g))
    kinds = [(), (("mask_tokens", True),)] if name == "mae" else [OWN.get(name, ())]
    for settings in kinds:
        again.clear()
        for way in (False, True):
            trainer = trainer_of(config_of(name, settings=settings, recompute=way))
            reports.append([trainer.step(step, *batch(step)) for step in range(2)])
        assert reports[-1] == reports[-2] and len(again) >= 2 * trainer.config.image_layers


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_one_patch_cannot_be_hidden(name):
    with pytest.raises(ValueError, match="one patch, of which .* can hide nothing"):
        specs_of(config_of(name, image_size=8, patch_size=8))


def test_the_image_encoder_may_be_named():
    asked = lambda *words: from_flags(build_parser().parse_args(["train", *words]))  # noqa: E731
    one = asked("--image-encoder", "resnet", "--stages", "2")
    assert one == asked("--objective", "resnet", "--stages", "2") != asked()
    assert asked("--image-encoder", "vit") == asked()
    assert asked("--image-encoder", "vit", "--objective", "siglip").objective == "siglip"
    for encoder, objective in (("resnet", "siglip"), ("vit", "resnet")):
        with pytest.raises(ValueError, match=f"--image-encoder {encoder} and --objective"):
            asked("--image-encoder", encoder, "--objective", objective)


def test_the_family_is_listed(tmp_path, capsys):
    """Each with its two files, which are there, the later ones, and the figures of its newest run;
    a damaged run is none."""
    for name, objective in (("a", "coca"), ("b", "mae"), ("broken", "gpt")):
        (tmp_path / name).mkdir()
        save_config(config_of(objective), tmp_path / name)
        write_json(tmp_path / name / "results.json", {"held_out": {"images": 3, "loss": 0.125}})
    (tmp_path / "broken/results.json").write_text("{")
    assert main(["family", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'b'}: loss 0.125" in said and "broken" not in said
    assert "minicoca train --objective simvlm" in said and "Flamingo" in said.split("not built")[1]
    assert main(["family", "--runs", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [own["name"] for own in found["built"]] == [
        *FAMILY
    ] and FAMILY.keys() == RELATIVES.keys()
    for own in found["built"]:
        assert all((ROOT / path).is_file() for path in own["files"])
        parser = build_parser()
        assert from_flags(parser.parse_args(own["command"].split()[1:])).objective == own["name"]
    for own in found["settings"]:
        words = own["command"].replace("RUN", "shapes").split()[1:]
        config = from_flags(build_parser().parse_args(words))
        assert own["files"][0].endswith(f"/{config.objective}.py"), own
        assert all((ROOT / path).is_file() for path in own["files"]) and specs_of(config)
    assert not FAMILY.keys() & {own["name"].lower() for own in found["later"]}
