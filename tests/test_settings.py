"""Every setting reaches what it names: two values have two effects, in each backend, and nowhere
before the stage that the setting is of; or the backend refuses it in words."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from runs import TRAINERS
from settings_trace import COLUMNS, MORE_ROWS, STAGES, TINY, places, same, small_data, trace

from minicoca import data, params
from minicoca.config import DATA_FIELDS, PRESETS, TASKS, Config, from_dict, preset
from minicoca.engine import ops
from minicoca.engine import train as engine_train
from minicoca.params import flatten, initialise
from minicoca.training import run
from minicoca.training.checkpoint import load_model, read_config, save_config
from minicoca.training.run import make_trainer

EMOJI = dict(data="emoji", held_out="one", emoji_source="one={}/one,two={}/two,three={}/three")

# A line a setting: its name, two values (neither a default that a lost setting falls back to), the
# stages that must differ (none before the first of them may), and what else is set. {}: the places.
ROWS = [
    ("preset", "small", "base", "results"),
    ("init", "{}/first", "{}/second", "tokenizer weights last kept", dict(vocabulary=30)),
    ("image_size", 24, 32, "data weights last"),
    ("patch_size", 4, 16, "weights last"),
    ("image_width", 12, 16, "weights last"),
    ("image_layers", 2, 3, "weights last"),
    ("image_heads", 1, 4, "loss last"),
    ("image_hidden", 10, 14, "weights last"),
    ("stem", "plain", "clip", "weights loss"),
    ("pooler", "cascade", "parallel", "weights loss"),
    ("pooler", "shared", "none", "weights loss"),
    ("caption_queries", 2, 5, "weights last"),
    ("pooler_heads", 1, 4, "loss last"),
    ("vocabulary", 20, 30, "tokenizer weights batches"),
    ("text_length", 6, 9, "weights batches"),
    ("text_width", 12, 16, "weights last"),
    ("text_heads", 1, 4, "loss last"),
    ("text_hidden", 10, 14, "weights last"),
    ("unimodal_layers", 2, 3, "weights last"),
    ("multimodal_layers", 2, 3, "weights last"),
    ("multimodal_mlps", 1, 2, "weights last"),
    ("legacy_cls_mask", False, True, "loss last"),
    ("gelu", "tanh", "exact", "loss last"),
    ("embed_width", 4, 6, "weights last"),
    ("contrastive_weight", 0.5, 3.0, "loss step"),
    ("caption_weight", 0.5, 3.0, "loss step"),
    *MORE_ROWS,
    ("data", "{}/red", "{}/blue", "data"),
    ("data", "shapes", "emoji", "data", EMOJI),
    ("image_root", "{}/red", "{}/blue", "data", dict(data="{}/list.csv")),
    ("image_column", "one", "two", "data", COLUMNS),
    ("caption_column", "said", "told", "data", COLUMNS),
    ("split_column", "left", "right", "data", COLUMNS),
    ("class_template", "a {} thing", "one {}", "data", dict(data="{}/classes")),
    ("validation_part", 0.2, 0.5, "data", dict(data="{}/red", held_out_part=0.1)),
    ("held_out_part", 0.2, 0.5, "data", dict(data="{}/red", validation_part=0.1)),
    ("keep_copies", False, True, "data", dict(data="{}/copies", validation_part=0.5)),
    ("held_out", "two", "three", "data", EMOJI),
    ("exclude", "two", "three", "data", EMOJI),
    ("emoji_source", "one={}/one,two={}/two", "one={}/one,two={}/three", "data", EMOJI),
    ("unseen_names", False, True, "data", EMOJI),
    ("tokenizer", "word", "unigram", "tokenizer"),
    ("tokenizer", "bpe", "unigram", "tokenizer"),
    ("fold", False, True, "tokenizer batches", dict(data="{}/red")),
    ("distinct", False, True, "batches", dict(data="{}/list.csv", image_root="{}/red")),
    ("augment", 0.3, 1.0, "loss last"),
    ("patch_keep", 0.5, 0.75, "loss last"),
    ("pixel_mean", (0.1, 0.3, 0.9), (0.9, 0.3, 0.1), "loss last"),
    ("pixel_std", (0.1, 0.3, 0.9), (0.9, 0.3, 0.1), "loss last"),
    ("precision", "float32", "bfloat16", "loss"),
    ("compile", False, True, "compiled"),
    ("recompute", False, True, "recomputed"),
    ("steps", 2, 3, "batches rates"),
    ("batch_size", 5, 7, "batches"),
    ("accumulate", 2, 3, "passes"),
    ("optimizer", "adamw", "muon", "step last"),
    ("learning_rate", 0.01, 0.03, "rates step"),
    ("muon_rate", 0.5, 2.0, "step last", dict(optimizer="muon")),
    ("momentum", 0.3, 0.7, "last", dict(optimizer="muon")),
    ("warmup", 2, 3, "rates step"),
    ("schedule", "cosine", "linear", "rates last", dict(steps=5)),
    ("final_rate", 0.1, 0.5, "rates last"),
    ("weight_decay", 0.3, 3.0, "step"),
    ("beta1", 0.3, 0.7, "last"),
    ("beta2", 0.3, 0.7, "last"),
    ("epsilon", 1e-3, 1e-1, "step"),
    ("clip_norm", 0.01, 0.1, "step", dict(epsilon=0.1)),
    ("ema", 0.05, 0.2, "kept"),
    ("image_rate", 0.5, 2.0, "step last"),
    ("pooler_rate", 0.0, 0.5, "norm step"),
    ("text_rate", 0.5, 2.0, "step last"),
    ("freeze", "image", "text.token,decoder.blocks.0-0", "norm step"),
    ("seed", 3, 4, "data weights batches"),
    ("evaluate_every", 1, 2, "looks"),
    ("checkpoint_every", 1, 2, "checkpoints"),
]
# Looked at below: `backend` chooses between these columns, `device` is where tensors are. `answers`
# are what training's are (test_ask.py); `parallel` is of several processes (test_distributed.py).
APART = {"backend", "device", "answers", "parallel", "objective", "settings"}
NUMPY_REFUSES = {"augment", "accumulate", "ema", "compile", "recompute", "precision", "device"}

# Each number's least value, and the first one over its range.
LIMITS = {
    "image_width image_heads image_hidden caption_queries pooler_heads text_width text_heads "
    "text_hidden batch_size accumulate per_picture scenes": (1, 10**6 + 1),
    "image_size patch_size": (1, 4097),
    "image_layers unimodal_layers multimodal_layers": (1, 1001),
    "steps checkpoint_every": (1, 10**9 + 1),
    "warmup evaluate_every": (0, 10**9 + 1),
    "embed_width": (0, 10**6 + 1),
    "vocabulary": (5, 10**6 + 1),
    "text_length": (3, 10**6 + 1),
    "contrastive_weight caption_weight answer_weight augment learning_rate final_rate weight_decay "
    "init_decay epsilon clip_norm muon_rate image_rate pooler_rate text_rate": (0.0, 1e6),
    "beta1 beta2 momentum ema validation_part held_out_part noise": (0.0, 1.0),
    "seed": (0, 2**40),
}
PARTS = ("patch_keep",)  # over 0 and at most 1: see test_kept_patches.py
FIELDS = {field.name: field for field in dataclasses.fields(Config)}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return places(tmp_path_factory.mktemp("places"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Where drawn emoji are kept."""
    monkeypatch.chdir(tmp_path)


def placed(value, here):
    return value.replace("{}/", f"{here}/") if isinstance(value, str) else value


def config_of(here, backend, name, value, others):
    given = {**TINY, **others, name: value, "backend": backend}
    if name in DATA_FIELDS:  # they come with the weights of another run, or from the data
        begun = shutil.copytree(here / "first", here / f"{name}{value}", dirs_exist_ok=True)
        changed = dataclasses.replace(read_config(begun), **{name: value})
        save_config(changed, begun)
        weights = begun / "model.safetensors"
        params.save(weights, params.load(weights)[0], changed)
        given |= {"init": str(begun), "vocabulary": 30}
    return preset("tiny", **{k: placed(v, here) for k, v in given.items()})


def folder(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_every_setting_is_listed():
    assert {row[0] for row in ROWS} | APART == FIELDS.keys()
    numbers = {
        name
        for name, field in FIELDS.items()
        if type(field.default) in (int, float) and not field.metadata["choices"]
    }
    listed = " ".join(LIMITS).split()
    assert {*listed, *PARTS} == numbers and len([*listed, *PARTS]) == len(numbers)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_two_values_have_two_effects(row, here, tmp_path):
    """In each backend, and the backends agree: later losses tell what earlier steps did."""
    name, *values, stages, others = row if len(row) == 5 else (*row, {})
    seen = {}
    for backend in TRAINERS:
        configs = [config_of(here, backend, name, value, others) for value in values]
        if backend == "numpy" and name in NUMPY_REFUSES:
            refused(name, configs)
            continue
        seen[backend] = one, other = [
            trace(config, folder(tmp_path, f"{backend}{i}"))[0] for i, config in enumerate(configs)
        ]
        differ = [stage for stage in STAGES if not same(one[stage], other[stage])]
        assert set(stages.split()) <= set(differ), f"{name} changes only {differ}"
        assert differ[0] == stages.split()[0], f"{name} already changes {differ[0]}"
    for ours, theirs in zip(*seen.values(), strict=True) if len(seen) == 2 else ():
        assert ours["rates"] == theirs["rates"]
        for stage in ("loss", "norm", "last"):
            for a, b in zip(ours[stage], theirs[stage], strict=True):
                assert isinstance(a, dict) or a == pytest.approx(b, rel=3e-3), stage


def refused(name, configs):
    for config in configs:
        if getattr(config, name) not in (FIELDS[name].default, "float32"):
            with pytest.raises(ValueError, match=f"{name} needs --backend torch"):
                make_trainer({}, config)


@pytest.mark.parametrize("backend", TRAINERS)
def test_the_same_settings_have_the_same_effect(backend, tmp_path):
    """So that no difference above is chance; and all that is built learns, but keys' biases, which
    softmax does not feel."""
    chancy = dict(augment=1.0, ema=0.3, accumulate=2) if backend == "torch" else {}
    config = preset("tiny", **TINY, **chancy, backend=backend, embed_width=6)
    one, other = (trace(config, folder(tmp_path, name))[0] for name in ("one", "other"))
    assert all(same(one[stage], other[stage]) for stage in STAGES)
    still = {n for n, value in one["weights"].items() if np.array_equal(value, one["last"][-1][n])}
    assert all(name.endswith("key.bias") for name in still), still


@pytest.mark.parametrize("backend", TRAINERS)
@pytest.mark.parametrize("pooler", FIELDS["pooler"].metadata["choices"])
def test_freezing_keeps_the_image_encoder_and_nothing_else(pooler, backend, tmp_path):
    """Not its poolers, and not its projection, whose name begins alike."""
    options = dict(freeze="image", embed_width=6, pooler=pooler, stem="clip", weight_decay=0.5)
    seen, _ = trace(preset("tiny", **TINY | options, backend=backend), folder(tmp_path, "run"))
    for name, value in seen["weights"].items():
        frozen = name.split(".")[0] == "image"
        if frozen or not name.endswith("key.bias"):
            assert np.array_equal(value, seen["last"][-1][name]) == frozen, name


def test_the_seed_draws_weights_order_and_augmentation(tmp_path, monkeypatch):
    """Each by itself: the data stay the same here."""
    with small_data():
        kept = data.load(preset("tiny", **TINY))
    monkeypatch.setattr(run.data, "load", lambda config: kept)
    one, other, images = *({}, {}), np.full((2, 16, 16, 3), 90, np.uint8)
    for found, seed in ((one, 1), (other, 2)):
        config = preset("tiny", **TINY | dict(seed=seed, augment=1.0, steps=1))
        seen, trainer = trace(config, folder(tmp_path, str(seed)))
        found |= {k: seen[k] for k in ("tokenizer", "weights", "batches")}
        found["augmented"] = trainer._images(0, images).numpy()
    assert same(one.pop("tokenizer"), other.pop("tokenizer"))
    assert not any(same(one[what], other[what]) for what in one)


@pytest.mark.parametrize("name", ["cpu", "meta"])
def test_the_device_is_where_the_tensors_are(name, here):
    """`meta` is the second device that every machine has."""
    config = preset("tiny", **TINY, device=name, backend="torch", ema=0.5)
    trainer = engine_train.Trainer(initialise(config), config)
    leaves = [*trainer.leaves.values(), *flatten(trainer.ema).values()]
    assert {leaf.device.type for leaf in leaves} == {name}
    model, _ = load_model(here / "first", "torch", name)
    assert {leaf.device.type for leaf in flatten(model.params).values()} == {name}
    for backend in ("numpy",) if name == "meta" else ():
        with pytest.raises(ValueError, match="device needs --backend torch"):
            make_trainer({}, dataclasses.replace(config, backend=backend, ema=0.0))
        with pytest.raises(ValueError, match="device needs --backend torch"):
            load_model(here / "first", backend, name)


@pytest.mark.parametrize(
    "name, module, kernels",
    [("numpy", "reference", ""), ("torch", "engine", "torch"), ("triton", "engine", "Triton")],
)
def test_the_backend_is_who_computes(name, module, kernels, here, monkeypatch):
    """In training and in an opened run, whatever the run was trained with."""
    config, run_folder, asked = preset("tiny", **TINY, backend=name), here / "first", []
    note = lambda x, *size: asked.append(ops.implementations()["attention"])  # noqa: E731
    monkeypatch.setattr(ops, "has_kernels", note)
    images, tokens = np.zeros((2, 16, 16, 3), np.uint8), np.array([[1, 5, 2], [1, 6, 2]])
    trainer, model = make_trainer(initialise(config), config), load_model(run_folder, name)[0]
    works = {
        trainer: [lambda: trainer.step(0, images, tokens)],
        model: [
            lambda: model.embed_images(images),
            lambda: model.embed_texts(tokens),
            lambda: model.generate(images),
            lambda: model.log_likelihoods(images, tokens),
        ],
    }
    for made, calls in works.items():
        assert type(made).__module__.split(".")[1] == module
        assert made.config.backend == name
        for call in calls:
            asked.clear()
            call()
            assert {said.split()[0] for said in asked} == {kernels} - {""}


@pytest.mark.parametrize(
    "name", ["learning_rate", "clip_norm", "precision", "compile", "recompute"]
)
def test_what_is_changed_on_resuming_has_an_effect(name, here, tmp_path):
    """The rest of the run is another, and config.json says so for the next time."""
    _, *values, stages, others = (*next(row for row in ROWS if row[0] == name), {})[:5]
    config = config_of(here, "torch", "steps", 2, others)
    trace(config, folder(tmp_path, "begun"))
    save_config(dataclasses.replace(read_config(tmp_path / "begun"), steps=4), tmp_path / "begun")
    seen = []
    for value in values:
        again = shutil.copytree(tmp_path / "begun", tmp_path / str(value))
        seen.append(trace(None, again, taking_up=True, changes={name: value})[0])
        assert getattr(read_config(again), name) == value
        assert len(seen[-1]["batches"]) == 2 * 2
    differ = [stage for stage in STAGES if not same(seen[0][stage], seen[1][stage])]
    assert differ[0] == stages.split()[0]


WHOLES = [
    ("image_size", "patch_size"),
    ("image_width", "image_heads"),
    ("text_width", "text_heads"),
    ("text_width", "pooler_heads"),
]
# All as small as can be, and each pair of a whole and its part 1 and 1.
LEAST = {
    name: low for names, (low, _) in LIMITS.items() for name in names.split() if type(low) is int
} | dict(validation_part=0.0, held_out_part=0.0)


@pytest.mark.parametrize("name", " ".join(LIMITS).split())
def test_a_number_just_inside_passes_and_just_outside_is_refused(name):
    low, high = next(limits for names, limits in LIMITS.items() if name in names.split())
    integer = type(low) is int
    inside = [low, high - 1 if integer else math.nextafter(high, 0)]
    outside = [low - 1 if integer else -5e-324, high, 10**5000]
    outside += [] if integer else [math.nan, math.inf, -math.inf]
    most = f"at most {high - 1:,}" if integer else f"under {high:,.0f}"
    whole = next((whole for whole, part in WHOLES if part == name), name)
    for value in inside:
        assert getattr(Config(**{**LEAST, whole: value, name: value}), name) == value
    for value in outside:
        with pytest.raises(ValueError) as refusal:
            Config(**{**LEAST, name: value})
        said = "(a number of 16,610 bits)" if value == 10**5000 else value
        assert str(refusal.value) == f"{name}={said}; it must be at least {low:.0f} and {most}"


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_another_type_or_no_choice_is_refused_by_name(name):
    default, choices = FIELDS[name].default, FIELDS[name].metadata["choices"]
    kind = type(default)
    for value in (None, "7", 7, 7.5, True, (7,)):
        if type(value) is not kind and (kind, type(value)) != (float, int):
            with pytest.raises(ValueError, match=f"^{name}=.* is not of type {kind.__name__}"):
                Config(**{name: value})
    for choice in choices or ():
        alone = {"contrastive_weight": 0.0, "caption_weight": 0.0} if choice in TASKS[1:] else {}
        assert getattr(Config(**{name: choice}, **alone), name) == choice
    if choices and kind is str:
        with pytest.raises(ValueError) as refusal:
            Config(**{name: choices[-1] + "x"})
        assert f"did you mean '{choices[-1]}'?" in str(refusal.value)
        assert all(choice in str(refusal.value) for choice in choices)


@pytest.mark.parametrize("whole, part", WHOLES)
def test_what_must_divide_divides(whole, part):
    for size, by in ((12, 12), (12, 1), (12, 4)):
        assert getattr(Config(**{**LEAST, whole: size, part: by}), part) == by
    for size, by, nearest in ((12, 5, 4), (12, 11, 12), (12, 24, 12), (7, 2, 1)):
        with pytest.raises(ValueError) as refusal:
            Config(**{**LEAST, whole: size, part: by})
        message = f"{whole}={size} is not a multiple of {part}={by}; nearest {part}: {nearest}"
        assert message == str(refusal.value)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(data=""), "data is empty"),
        (dict(contrastive_weight=0.0, caption_weight=0.0), "are both 0: nothing to learn"),
        (dict(validation_part=0.5, held_out_part=0.5), "are 1.0 together; keep them under 1"),
        (dict(emoji_source="noto"), "emoji_source='noto': write vendor=PATH"),
        (dict(emoji_source="noto=,a=b"), "emoji_source='noto=,a=b': write vendor=PATH"),
        (dict(emoji_source="=x"), "emoji_source='=x': write vendor=PATH"),
    ],
)
def test_what_cannot_be_used_is_refused(wrong, message):
    with pytest.raises(ValueError) as refusal:
        Config(**wrong)
    assert message in str(refusal.value)


@pytest.mark.parametrize("one", ["contrastive_weight", "caption_weight"])
def test_one_loss_is_enough(one):
    other = {"contrastive_weight", "caption_weight"} - {one}
    assert getattr(Config(**{one: 1e-9, other.pop(): 0.0}), one) == 1e-9


def test_an_unknown_setting_or_preset_names_the_nearest():
    with pytest.raises(ValueError, match="unknown setting 'epsilom'; did you mean 'epsilon'"):
        from_dict({"epsilom": 1.0})
    with pytest.raises(ValueError, match="no preset 'tinny'; did you mean 'tiny'"):
        preset("tinny")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_own_settings_under_those_given(name):
    for field, value in PRESETS[name].items():
        assert getattr(preset(name), field) == value
    assert preset(name).preset == name
    assert preset(name, learning_rate=0.5).learning_rate == 0.5
    assert from_dict(json.loads(json.dumps(preset(name).to_dict()))) == preset(name)
