"""What people have of open_clip's CoCa becomes a run that every command takes, and goes back."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from downloads import LEARNED, MODEL, bring, described, downloaded, weights
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import few_shapes  # noqa: F401
from safetensors.numpy import load_file
from safetensors.torch import save_file

from minicoca import __main__ as cli
from minicoca import params
from minicoca.clip_tokenizer import theirs
from minicoca.config import from_dict, preset
from minicoca.interop.open_clip import their_shapes
from minicoca.interop.open_clip_config import JSON, config_of_json, config_of_shapes, to_json
from minicoca.interop.open_clip_files import WEIGHTS, read_state, write_folder
from minicoca.training.checkpoint import load_model, read_config


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return weights(tmp_path_factory.mktemp("json"))


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return downloaded(tmp_path / "CoCa-small")


def tree_of(run):
    return params.flatten(params.load(Path(run) / "model.safetensors")[0])


# --- whatever holds the weights -------------------------------------------------------------------


def nested(state, path, **more):
    torch.save({"epoch": 3, "optimizer": {"state": {0: torch.zeros(2)}}, **more,
                "state_dict": {f"module.{n}": t for n, t in state.items()}}, path)  # fmt: skip


def masks(state):
    return state | {
        "text.attn_mask": torch.zeros(9, 9), "text_decoder.attn_mask": torch.zeros(8, 8),
        "logit_scale": state["logit_scale"].reshape(1),
    }  # fmt: skip


FORMS = {
    "model.safetensors": lambda state, path: save_file(state, path),
    "half.safetensors": lambda s, p: save_file({n: t.half() for n, t in s.items()}, p),
    "brain.safetensors": lambda s, p: save_file({n: t.bfloat16() for n, t in s.items()}, p),
    "whole.pt": torch.save,
    "old.bin": partial(torch.save, _use_new_zipfile_serialization=False),
    "epoch_3.pt": nested,
    "compiled.pt": lambda s, p: torch.save(
        {"model": {f"_orig_mod.{n}": t for n, t in s.items()}}, p
    ),
    "parameters.pt": lambda s, p: torch.save({n: torch.nn.Parameter(t) for n, t in s.items()}, p),
    "masks.pt": lambda s, p: torch.save(masks(s), p),
    "doubles.pth": lambda s, p: torch.save({n: t.double() for n, t in s.items()}, p),
}


@pytest.mark.parametrize("name", FORMS)
def test_weights_in_every_form_make_the_same_run(source, state, name):
    assert bring(source, "--run", "whole") == 0
    FORMS[name](state, source / name)
    assert bring(source / name, "--run", "other") == 0
    want, have = tree_of("whole"), tree_of("other")
    assert want.keys() == have.keys()
    rough = {"half.safetensors": 2**-10, "brain.safetensors": 2**-7}.get(name, 0)
    for leaf, value in have.items():
        np.testing.assert_allclose(value, want[leaf], rtol=rough, atol=rough, err_msg=leaf)


def test_every_command_takes_it(source, tmp_path, capsys):
    """... and it stands alone: what it came from is gone."""
    from shutil import rmtree

    assert bring(source) == 0
    out = capsys.readouterr().out
    assert "minicoca caption PICTURES --run runs/CoCa-small" in out
    rmtree(source)
    Image.new("RGB", (50, 40), (200, 30, 10)).save("red.png")
    for words in (
        ["caption", "red.png"], ["caption", "red.png", "--prompt", "a !"],
        ["classify", "red.png", "--labels", "a cat!", "a star"], ["search", ".", "a star"],
        ["embed", "red.png", "--out", "v.npz"], ["info"],
    ):  # fmt: skip
        run = ["--run", "runs/CoCa-small"]
        assert cli.main([*words, *run]) == 0, words
    steps = ["--steps", "2", "--warmup", "0", "--batch-size", "4"]
    assert cli.main(["train", "--init", "runs/CoCa-small", *steps, "--run", "tuned"]) == 0
    assert read_config("tuned").legacy_cls_mask and read_config("tuned").pixel_mean == (
        0.4,
        0.5,
        0.6,
    )
    assert cli.main(["caption", "red.png", "--run", "tuned"]) == 0


def test_there_and_back_bit_for_bit(source, state, tmp_path):
    assert bring(source, "--run", "run") == 0
    model, tokenizer = load_model("run", "numpy")
    kept = params.said_in("run/model.safetensors")["open_clip_cls"]
    assert cli.main(["export", "open_clip", "run", "--out", "again"]) == 0
    back = load_file(tmp_path / "again" / WEIGHTS[0])
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor.numpy(), err_msg=name)
    assert cli.main(["export", "open_clip", "run", "--out", "again"]) == 2  # it is there
    assert bring(tmp_path / "again", "--run", "second") == 0
    for name, leaf in tree_of("run").items():
        np.testing.assert_array_equal(leaf, tree_of("second")[name], err_msg=name)
    assert read_config("second") == read_config("run")
    for name in ("config.json", "tokenizer.model"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    model.params["text"]["cls"] = model.params["text"]["cls"] + 1  # trained since
    write_folder(tmp_path / "trained", model.params, model.config, tokenizer, kept)
    back = load_file(tmp_path / "trained" / WEIGHTS[0])
    both = back["text.cls_emb"] + back["text.positional_embedding"][-1]
    np.testing.assert_array_equal(both, model.params["text"]["cls"])


# --- what is none of theirs is told so, and nothing is left behind --------------------------------


def test_a_run_that_open_clip_cannot_have_is_told_why(source, capsys):
    for name, said in (("shapes", "CLIP's tokenizer only"), ("no such", "is not a run folder")):
        assert cli.main(["export", "open_clip", name, "--out", "there"]) == 1
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1 and not Path("there").exists()


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


def refused(capsys, *words):
    assert bring(*words, "--run", "run") == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and not Path("run").exists()
    return err.strip().split("\n")[-1]


REFUSED = {
    "code": (lambda s, p: torch.save({"a": Evil()}, p), "holds more than weights"),
    "no file of torch's": (lambda s, p: p.write_bytes(b"abc" * 99), "neither safetensors nor"),
    "cut": (lambda s, p: (torch.save(s, p), p.write_bytes(p.read_bytes()[:999])), "neither"),
    "cut safetensors": (
        lambda s, p: (save_file(s, p), p.write_bytes(p.read_bytes()[:-9])), "not a readable"
    ),
    "empty": (lambda s, p: p.write_bytes(b""), "neither safetensors nor"),
    "a pointer": (
        lambda s, p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"
    ),
    "a tensor": (lambda s, p: torch.save(torch.zeros(3), p), "holds a Tensor, no state dict"),
    "a list": (lambda s, p: torch.save([1, 2], p), "holds a list, no state dict"),
    "nothing": (lambda s, p: torch.save({}, p), "holds a dict, no state dict"),
    "other names": (
        lambda s, p: torch.save({n.replace("visual", "v"): t for n, t in s.items()}, p),
        "missing visual.attn_pool.attn.in_proj_bias",
    ),
    "all at once": (
        lambda s, p: torch.save(
            {n: t[:-1] if n == "text.cls_emb" else t for n, t in s.items() if n != "logit_scale"}
            | {"logit_bias": torch.zeros(1)}, p
        ),
        "missing logit_scale; not expected logit_bias; text.cls_emb has shape (11,), expected (12",
    ),
    "NaN": (
        lambda s, p: torch.save(s | {"logit_scale": torch.tensor(np.nan)}, p), "not finite"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_weights_of_theirs_is_one_line(source, state, capsys, what):
    make, said = REFUSED[what]
    make(state, source / "given.pt")
    assert said in refused(capsys, source / "given.pt")
    assert not Path("ran").exists()


def changed(section, **more):
    return MODEL | {section: MODEL[section] | more}


OTHERS = {
    "a CLIP": ({n: v for n, v in MODEL.items() if n != "multimodal_cfg"}, "no multimodal_cfg"),
    "another pooler": (changed("vision_cfg", attentional_pool="cascade"), "attentional_pool="),
    "a timm tower": (changed("vision_cfg", timm_model_name="vit"), "timm_model_name='vit'"),
    "QuickGELU": (MODEL | {"quick_gelu": True}, "quick_gelu=True"),
    "RoBERTa": (changed("text_cfg", hf_model_name="roberta-base"), "hf_model_name="),
    "what is new": (changed("text_cfg", rope=True), "rope=True"),
    "two widths": (changed("multimodal_cfg", width=24), "of one width"),
    "two counts of heads": (changed("multimodal_cfg", heads=2), "of the same heads"),
    "no squares": (changed("vision_cfg", image_size=[32, 48]), "not square"),
    "heads that do not divide": (changed("vision_cfg", head_width=3), "image_width=10"),
    "no number": (changed("vision_cfg", width="wide"), "width='wide' is no number"),
    "no object": ([1], "describes no model"),
    "no CLS": (changed("text_cfg", embed_cls=False), "embed_cls=False"),
    "no head width": (changed("vision_cfg", head_width=0), "head_width=0 is no number over 0"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_model_that_is_none_of_ours_is_named(source, capsys, what):
    model, said = OTHERS[what]
    described(source, model_cfg=model)
    assert said in refused(capsys, source)


def test_shapes_alone_tell_two_models_apart(source, state, capsys):
    (source / JSON).unlink()
    said = refused(capsys, source.name)
    assert "neither B/32 nor L/14" in said and "image_size 32 (not 224)" in said
    for name in ("open_clip_b32", "open_clip_l14"):
        shapes = their_shapes(preset(name))
        empty = {n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes.items()}
        found = config_of_shapes(empty, source)
        assert found.image_heads == preset(name).image_heads and found.legacy_cls_mask
        assert their_shapes(found) == shapes
    with pytest.raises(ValueError, match="no weights of a CoCa"):
        config_of_shapes({"visual.conv1.weight": torch.zeros(3, 3, 2, 2)}, source)


def test_merges_are_found_or_asked_for(source, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    whole = (source / "merges.txt").read_text()
    (source / "merges.txt").unlink()
    assert "give --merges PATH" in refused(capsys, source)
    Path("short.txt").write_text("\n".join(whole.split("\n")[:20]))
    assert f"the model's words need {len(LEARNED)}" in refused(
        capsys, source, "--merges", "short.txt"
    )
    Path("mine.txt").write_text(whole)
    assert bring(source, "--merges", "mine.txt", "--run", "run") == 0
    assert "there is no such file" in refused_elsewhere(capsys, source, "--merges", "none.txt")


def refused_elsewhere(capsys, *words):
    assert bring(*words, "--run", "elsewhere") == 1 and not Path("elsewhere").exists()
    return capsys.readouterr().err


def test_a_folder_that_holds_anything_is_left_as_it_is(source, capsys):
    Path("run").mkdir()
    Path("run/mine.txt").write_text("keep")
    assert bring(source, "--run", "run") == 1
    assert "run is not empty (mine.txt)" in capsys.readouterr().err
    assert [p.name for p in Path("run").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.model", "metrics.jsonl", "config"]
)
def test_a_write_that_fails_leaves_nothing(source, capsys, monkeypatch, name):
    from test_saves import fails

    fails(monkeypatch, name, "replace")
    assert bring(source, "--run", "run") == 1
    assert "was not written" in capsys.readouterr().err and not Path("run").exists()


@given(
    layers=st.integers(1, 3), queries=st.integers(2, 9), legacy=st.booleans(),
    mean=st.tuples(*[st.floats(0, 1)] * 3), length=st.integers(3, 90),
    patch=st.sampled_from([4, 8]),
)  # fmt: skip
def test_descriptions_there_and_back(
    tmp_path_factory, layers, queries, legacy, mean, length, patch
):
    path = tmp_path_factory.mktemp("json") / JSON
    config = replace(
        config_of_json(described(path.parent)), image_layers=layers, caption_queries=queries,
        legacy_cls_mask=legacy, pixel_mean=mean, text_length=length, patch_size=patch,
    )  # fmt: skip
    path.write_text(json.dumps(to_json(replace(config, vocabulary=config.vocabulary + 2))))
    assert config_of_json(path) == config
    assert from_dict(config.to_dict()) == config
    assert theirs(config.vocabulary + 2).max() == config.vocabulary - 1


def test_a_state_dict_is_found_in_whatever_stands_around_it(tmp_path):
    said = []
    torch.save({"model": {"state_dict": {"module.a": torch.ones(2)}}, "step": 3}, tmp_path / "x.pt")
    found = read_state(tmp_path / "x.pt", said.append)
    assert list(found) == ["a"] and len(said) == 1 and "not step" in said[0]
