"""A CoCa that was imported answers as open_clip's own: the same ids, vectors, logits, captions."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backends import BACKENDS
from downloads import IDS, LEARNED, MODEL, WEIGHTS, bring, described, drawn, weights
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from strategies import seeds
from torch_oracle import OpenClip

from minicoca import __main__ as cli
from minicoca import params
from minicoca.clip_tokenizer import ClipTokenizer
from minicoca.config import PAD, UNKNOWN
from minicoca.interop.open_clip import from_open_clip, to_our_ids, to_their_ids
from minicoca.interop.open_clip_config import JSON, config_of_json
from minicoca.training.checkpoint import load_model

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return weights(tmp_path_factory.mktemp("json"))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@given(seed=seeds)
def test_images_texts_and_logits_are_theirs(state, tmp_path_factory, backend, seed):
    config = config_of_json(described(tmp_path_factory.mktemp("json")))
    model = OpenClip(config).double()
    model.load_state_dict(state)
    tree = to_our_ids(from_open_clip(model.state_dict(), config, np.float64))
    config = replace(config, vocabulary=IDS + 2)
    images, ids = drawn(config, seed)
    with torch.no_grad():
        want = model(torch.tensor(images), torch.tensor(ids))
    ours = np.where(ids == 0, PAD, ids + 4)
    for special, id in zip((1, 2), (IDS - 2, IDS - 1), strict=True):
        ours[ids == id] = special
    have = backend.outputs(tree, config, images, ours)
    np.testing.assert_allclose(have["image"], want["image"], atol=1e-10)
    np.testing.assert_allclose(have["text"], want["text"], atol=1e-10)
    logits = np.delete(have["logits"], [PAD, UNKNOWN], -1)
    logits = np.concatenate([logits[..., 2:], logits[..., :2]], -1)  # start, end: theirs come last
    valid = (ours[:, 1:] != PAD)[..., None]
    np.testing.assert_allclose(logits, np.where(valid, want["logits"], 0), atol=1e-10)


@given(count=st.integers(514, 540), seed=seeds)
def test_ids_there_and_back(count, seed):
    """Every row of theirs stands where ClipTokenizer has it, and comes back bit for bit."""
    rng = np.random.default_rng(seed)
    tree = {"text": {"token": rng.standard_normal((count, 3))},
            "decoder": {"head": {"weight": rng.standard_normal((3, count))}}}  # fmt: skip
    ours = to_our_ids(tree)
    tokenizer = ClipTokenizer(LEARNED[: count - 514])
    ids = tokenizer.encode(["a !cat's ! 東"], 40)
    token = ours["text"]["token"]
    np.testing.assert_array_equal(token[ids], tree["text"]["token"][tokenizer.theirs(ids)])
    assert len(token) == tokenizer.vocab_size == ours["decoder"]["head"]["weight"].shape[1]
    back = params.flatten(to_their_ids(ours))
    for name, leaf in params.flatten(tree).items():
        np.testing.assert_array_equal(back[name], leaf)
    assert not ours["decoder"]["head"]["weight"][:, [PAD, UNKNOWN]].any()


def their_model(**changes):
    """open_clip's own model, of random weights, its head too, which it leaves as memory was."""
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    torch.manual_seed(1)
    own = {n: v for n, v in (MODEL | changes).items() if n != "custom_text"}
    model = open_clip.CoCa(**own).eval()
    torch.nn.init.normal_(model.text_decoder.text_projection, std=own["embed_dim"] ** -0.5)
    return model


def published(model_cfg, folder, model):
    """A folder of it as it is downloaded, with CLIP's own merges from the installed package."""
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / WEIGHTS[0])
    described(folder, model_cfg=model_cfg)


SMALL = {
    "image_size": 32, "patch_size": 8, "layers": 2, "width": 128, "attentional_pool": True,
    "attn_pooler_heads": 8, "output_tokens": True,
}  # fmt: skip
TEXT = {"context_length": 20, "vocab_size": 49_408, "width": 64, "heads": 4}
KINDS = {
    "as B/32": dict(SMALL),
    "as L/14": dict(SMALL, patch_size=4, layers=3, width=192),
}


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy mask", "right mask"])
def test_a_downloaded_model_answers_as_open_clips_does(tmp_path, monkeypatch, kind, legacy):
    monkeypatch.chdir(tmp_path)
    model_cfg = {
        "embed_dim": 64, "vision_cfg": KINDS[kind],
        "text_cfg": TEXT | {"layers": 3, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT | {"layers": 2},
    }  # fmt: skip
    model = their_model(**model_cfg)
    model.text.correct_cls_mask = not legacy
    text = model_cfg["text_cfg"] | ({} if legacy else {"correct_cls_mask": True})
    published(model_cfg | {"text_cfg": text}, tmp_path / "coca", model)
    assert bring("coca", "--run", "run") == 0
    beside_theirs(model, Path("run"), 1e-5)
    assert cli.main(["export", "open_clip", "run"]) == 0
    read_by_theirs(model, Path("run/open_clip"))
    exactly(model.double(), tmp_path / "coca")


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_who_follows_the_readme_has_b32s_own_captions(tmp_path, monkeypatch, capsys):
    """At full size, of random weights: the commands as they are printed, and what they print."""
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    section = README.read_text().partition("## A downloaded CoCa")[2]
    commands, printed = section.split("```")[1], section.split("```text\n")[1].split("```")[0]
    first, second, _ = (shlex.split(line) for line in commands.strip().splitlines())
    model_cfg = open_clip.get_model_config("coca_ViT-B-32")
    model = their_model(**{n: v for n, v in model_cfg.items() if n != "custom_text"})
    published(model_cfg, tmp_path / first[-1], model)
    (tmp_path / "photos").mkdir()
    for n in range(2):
        Image.new("RGB", (300, 260), (90 * n, 200, 30)).save(f"photos/{n}.jpg")
    assert cli.main(first[1:]) == 0
    assert capsys.readouterr().out == printed
    assert cli.main([*second[1:], "--max-length", "4"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "photos/0.jpg", "photos/1.jpg"
    ]  # fmt: skip
    beside_theirs(model, Path("runs") / first[-1], 1e-5)
    exactly(model.double(), tmp_path / first[-1])


CAPTIONS = ["a red star", "two cats! on a mat", "!!! wow != ok", "x " * 99, "a", "東京 😀"]


def beside_theirs(model, run, tolerance):
    """Vectors, logits and greedy captions of the same pictures and texts."""
    from open_clip.tokenizer import SimpleTokenizer

    coca, tokenizer = load_model(run, "torch")
    config, length = coca.config, coca.config.text_length
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, config.image_size, config.image_size, 3), np.uint8)
    mean, std = (np.array(v, np.float32) for v in (config.pixel_mean, config.pixel_std))
    pixels = torch.tensor(((pictures / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
    ids = SimpleTokenizer(context_length=length)(CAPTIONS)
    with torch.no_grad():
        images, texts = model.encode_image(pixels), model.encode_text(ids)
    unit = torch.nn.functional.normalize
    np.testing.assert_allclose(coca.embed_images(pictures), unit(images), atol=tolerance)
    own = tokenizer.encode(CAPTIONS, length)
    # Where the id of "!" stands inside a caption theirs takes it for padding.
    clear = [i for i, row in enumerate(ids.tolist()) if 0 not in row[: row.index(49407)]]
    assert len(clear) >= 4
    for i in clear:
        found = coca.embed_texts(own[i : i + 1])
        np.testing.assert_allclose(found, unit(texts[i : i + 1]), atol=tolerance)
    told = replace(config, backend="torch")
    tree = params.tree_map(lambda leaf: leaf.numpy(), coca.params)
    normal = ((pictures[:2] / np.float32(255) - mean) / std).astype(np.float32)
    with torch.no_grad():
        want = model(pixels[:2], ids[clear[:2]])["logits"].numpy()
    two = np.pad(own, ((0, 0), (0, length - own.shape[1])))[clear[:2]]
    have = BACKENDS[1].outputs(tree, told, normal, two)["logits"]
    valid = (two[:, 1:] != PAD)[..., None]
    have = np.concatenate([have[..., UNKNOWN + 1 :], have[..., 1:3]], -1)
    np.testing.assert_allclose(have, np.where(valid, want, 0), atol=tolerance * abs(want).max())
    greedy(model, coca, tokenizer, pictures, pixels)


def read_by_theirs(model, folder):
    """open_clip makes the same model of what is exported, weight for weight, by its own JSON."""
    import json

    import open_clip

    found = json.loads((folder / JSON).read_text())["model_cfg"]
    found.pop("custom_text")
    found["text_cfg"].pop("correct_cls_mask", None)  # 3.3.0 knows it, but not from a JSON
    again = open_clip.CoCa(**found)
    again.load_state_dict(load_file(folder / WEIGHTS[0]))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def exactly(model, folder):
    """The same in float64, where both can be told apart from rounding."""
    config = config_of_json(folder / JSON)
    tree = from_open_clip(model.state_dict(), config, np.float64)
    images, ids = drawn(replace(config, vocabulary=49_408 + 2), 0)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        want = model(pixels, torch.tensor(ids))
    have = BACKENDS[1].outputs(tree, config, images, ids)
    valid = (ids[:, 1:] != 0)[..., None]
    np.testing.assert_allclose(have["image"], want["image_features"], atol=1e-10)
    np.testing.assert_allclose(have["text"], want["text_features"], atol=1e-10)
    np.testing.assert_allclose(have["logits"], np.where(valid, want["logits"], 0), atol=1e-10)


def greedy(model, coca, tokenizer, pictures, pixels):
    """Captions token by token: theirs by its own logits, since its generate wants transformers."""
    rows = torch.full((len(pixels), 1), 49406)
    for _ in range(12):
        padded = torch.nn.functional.pad(rows, (0, 1))
        with torch.no_grad():
            logits = model(pixels, padded)["logits"][:, rows.shape[1] - 1]
        logits[:, 49406] = -torch.inf
        rows = torch.cat([rows, logits.argmax(-1, keepdim=True)], 1)
    have = coca.generate(pictures, max_length=12)
    for ours, wanted in zip(have, rows.tolist(), strict=True):
        end = wanted.index(49407) + 1 if 49407 in wanted else len(wanted)
        assert tokenizer.theirs(ours[:end]).tolist() == wanted[:end]
