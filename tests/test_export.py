"""What is exported computes what the model does, from files alone."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from downloads import bring, downloaded
from hypothesis import given
from PIL import Image
from runs import untrained
from strategies import configs, model_and_batch, seeds, small_config

import minicoca
from minicoca import __main__ as cli
from minicoca.engine.generate import CoCa
from minicoca.interop import export
from minicoca.interop.programs import programs
from minicoca.params import flatten, tree_map
from minicoca.tokenizer import Tokenizer

GUIDE = Path(__file__).parent.parent / "minicoca" / "README.md"
ONE_LAYER = dict(image_layers=1, unimodal_layers=1, multimodal_layers=1)
# Between them every option; nothing is as in the other.
IMPORTED = dict(
    stem="clip", pooler="shared", multimodal_mlps=2, gelu="exact", embed_width=22,
    legacy_cls_mask=True,
)  # fmt: skip


def coca_of(config, seed=0):
    params = model_and_batch(config, seed)[0]
    config = replace(config, device="cpu", backend="torch")
    return CoCa(tree_map(lambda leaf: leaf.astype(np.float32), params), config)


def eager(coca):
    """The programs as they are before they are traced."""

    def run(module, *inputs):
        return [output.numpy() for output in module(*map(torch.as_tensor, inputs))]

    made = programs(coca.params, coca.config)
    return {name: lambda *x, p=program: run(p.module, *x) for name, program in made.items()}


@given(config=configs(), seed=seeds)
def test_programs_of_any_model_compute_what_it_does(config, seed):
    coca = coca_of(config, seed)
    assert export.check(coca, eager(coca)) < 1e-5
    assert export.left_out(config) == []


@pytest.mark.parametrize("pooler", ["cascade", "parallel", "shared", "none"])
@pytest.mark.parametrize("missing", ["contrastive_weight", "caption_weight"])
def test_of_one_loss_there_is_what_it_trained(pooler, missing):
    coca = coca_of(small_config(pooler=pooler, **{missing: 0.0}))
    runs, said = eager(coca), " ".join(export.left_out(coca.config))
    want = {"image", "memory", "step"} if missing == "contrastive_weight" else {"image", "text"}
    assert runs.keys() == want and f"{missing} 0" in said
    assert export.check(coca, runs) < 1e-5


def test_every_weight_is_in_a_program():
    """And none that another has, but what both halves of the text decoder read."""
    coca = coca_of(small_config(**IMPORTED))
    found = {}
    for name, program in programs(coca.params, coca.config).items():
        for weight in flatten(program.module.weights.tree()).values():
            found.setdefault(weight.data_ptr(), []).append(name)
    unread = coca.params["log_temperature"].data_ptr()
    ours = {leaf.data_ptr(): name for name, leaf in flatten(coca.params).items()}
    assert found.keys() == ours.keys() - {unread}
    for pointer, where in found.items():
        assert len(where) == 1 or (where == ["text", "step"] and ours[pointer][:5] == "text.")


BUGS = [
    ("image", lambda outputs: [outputs[0], outputs[1] + 0.01]),
    ("text", lambda outputs: [-outputs[0]]),
    ("memory", lambda outputs: [outputs[0][:, ::-1].copy()]),
    ("step", lambda outputs: [np.full_like(outputs[0], np.nan), outputs[1]]),
    ("step", lambda outputs: [np.nan_to_num(outputs[0], neginf=0), outputs[1]]),  # may write pad
]


@pytest.mark.parametrize("name, bug", BUGS)
def test_what_computes_something_else_is_not_left_behind(name, bug, tmp_path, monkeypatch):
    coca = coca_of(small_config())
    runs = eager(coca)
    right = runs[name]
    runs[name] = lambda *inputs: bug(right(*inputs))

    def write(program, path):
        path.write_bytes(b"a program")
        return runs[path.stem]

    monkeypatch.setattr(export, "write_torch", write)
    with pytest.raises(ValueError, match="program was written, but its .* from the model's"):
        export.export(coca, tokenizer(), "torch", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    runs[name] = right
    export.export(coca, tokenizer(), "torch", tmp_path / "out", say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "image.pt2", "text.pt2", "memory.pt2", "step.pt2", "about.json", "tokenizer.model",
    }  # fmt: skip
    with pytest.raises(OSError, match="out was not written"):  # never over what is there
        export.export(coca, tokenizer(), "torch", tmp_path / "out")


def tokenizer():
    return Tokenizer.train(["a b c"], 40)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A run with first weights: what it says is nonsense, and other nonsense of every picture."""
    folder = tmp_path_factory.mktemp("drawn") / "run"
    untrained(folder)
    return folder


def test_without_the_packages_one_line_says_what_to_install(drawn, monkeypatch, capsys):
    monkeypatch.setitem(export.NEEDED, "onnx", ("onnx_that_is_not_there",))
    assert cli.main(["export", "onnx", str(drawn)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].endswith("pip install 'minicoca[export]'")
    assert not (drawn / "onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, dict(IMPORTED, caption_weight=0.0)], ids=["ours", "clip"])
def test_torch_runs_what_was_written_without_us(options, tmp_path):
    coca = coca_of(small_config(**ONE_LAYER, **options))
    export.export(coca, tokenizer(), "torch", tmp_path / "out", say=lambda line: None)
    pixels = torch.randint(256, (2, *[coca.config.image_size] * 2, 3), dtype=torch.uint8)
    torch.save(pixels, tmp_path / "pixels")
    script = (
        "import sys, torch, warnings; warnings.simplefilter('ignore');"
        "sys.modules['minicoca'] = None; folder = sys.argv[1];"
        "image = torch.export.load(folder + '/out/image.pt2').module();"
        "torch.save(image(torch.load(folder + '/pixels'))[0], folder + '/vectors')"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    have = torch.load(tmp_path / "vectors")
    want = eager(coca)["image"](pixels)[0]
    np.testing.assert_allclose(have.numpy(), want, atol=1e-5)


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in export.NEEDED["onnx"]),
    reason="needs onnx, onnxruntime and onnxscript",
)


def imported(folder):
    """A run of open_clip's weights, with CLIP's tokenizer."""
    assert bring(downloaded(folder / "CoCa-small"), "--run", folder / "run") == 0
    return folder / "run"


def pictures(folder):
    """Files of pictures in which little is alike, of every kind that the guide's script reads."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 61, 4)).astype(np.uint8)
    pixels[:, 20:] //= 3
    clear, turned = Image.fromarray(pixels), Image.Exif()
    turned[0x0112] = 6
    plain, folder = clear.convert("RGB"), folder / "pictures"
    folder.mkdir()
    clear.save(folder / "transparent.png")
    plain.save(folder / "wide.png")
    plain.crop((30, 0, 50, 40)).save(folder / "high.png")
    clear.getchannel("G").save(folder / "grey.png")
    plain.quantize(9).save(folder / "palette.png", transparency=3)
    plain.save(folder / "turned.jpg", exif=turned)
    return sorted(folder.iterdir())


@pytest.mark.extras
@needs_onnx
@pytest.mark.parametrize("beside", [False, True], ids=["emoji", "imported"])
def test_the_guides_script_captions_from_the_onnx_files_alone(
    beside, tmp_path, monkeypatch, capsys
):
    """Word for word what the definition says, also where weights are beside their programs, as of
    over 2 GB."""
    import onnx

    monkeypatch.setattr(export, "ONE_FILE", 0 if beside else export.ONE_FILE)
    run, out = imported(tmp_path) if beside else "emoji", tmp_path / "out"
    capsys.readouterr()
    assert cli.main(["export", "onnx", str(run), "--out", str(out)]) == 0
    about, printed = json.loads((out / "about.json").read_text()), capsys.readouterr().out
    assert "checked against" in printed and about["legacy_cls_mask"] == beside
    files = {f"{name}.onnx" for name in ("image", "text", "memory", "step")}
    files |= {f"{name}.data" for name in files if beside} | {"about.json", "tokenizer.model"}
    assert {path.name for path in out.iterdir()} == files
    assert printed.splitlines()[0] == f"{out}: {', '.join(sorted(files))}"
    for name, program in about["programs"].items():
        graph = onnx.load(out / program["file"], load_external_data=False).graph
        assert [value.name for value in graph.input] == program["inputs"], name
        assert [value.name for value in graph.output] == program["outputs"], name

    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    script = next(block for block in blocks if "onnxruntime" in block)
    assert len([line for line in script.splitlines() if line.strip()]) <= 20
    assert max(map(len, script.splitlines())) <= 100
    without = "import sys\nfor n in ('torch', 'minicoca', 'sentencepiece'): sys.modules[n] = None\n"
    model, said = minicoca.load(run, "cpu", "numpy"), []
    for picture in pictures(tmp_path):
        command = [sys.executable, "-c", without + script, str(out), str(picture)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert printed == model.caption(picture) + "\n", picture.name
        said.append(printed)
    assert len(set(said)) > 1
