"""Whatever stands in a downloaded model, it becomes a run that can be used, or one line."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from downloads import MODEL, bring, described, downloaded
from hostile_words import VALUES
from hypothesis import given, settings
from hypothesis import strategies as st
from trials import trial

from minicoca.interop.open_clip_config import JSON
from minicoca.interop.open_clip_files import WEIGHTS
from minicoca.training.checkpoint import load_model

pytestmark = pytest.mark.slow
FUZZED = (WEIGHTS[0], "weights.pt", "merges.txt", JSON)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = downloaded(tmp_path_factory.mktemp("good") / "coca")
    from safetensors.torch import load_file

    torch.save({"state_dict": load_file(folder / WEIGHTS[0]), "epoch": 3}, folder / FUZZED[1])
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ends_well(source, capsys, kind):
    """It was taken, and can be used; or a line says why not, and nothing is left."""
    trial(kind)
    shutil.rmtree("run", ignore_errors=True)
    code = bring(source, "--run", "run")
    said = capsys.readouterr().err.strip().split("\n")
    if code == 0:
        assert load_model("run", "numpy")
        return True
    assert code == 1 and said[-1].startswith("minicoca: ") and "Traceback" not in "".join(said)
    assert len(said[-1]) < 320 and not Path("run").exists()
    return False


@settings(max_examples=300)
@given(data=st.data())
def test_any_bytes_in_any_file_end_in_a_line(good, tmp_path_factory, capsys, data):
    folder = tmp_path_factory.mktemp("any") / "coca"
    shutil.copytree(good, folder)
    name = data.draw(st.sampled_from(FUZZED))
    content = (folder / name).read_bytes()
    cut = data.draw(st.lists(st.integers(0, len(content)), min_size=2, max_size=4))
    filling = data.draw(st.binary(max_size=24))
    parts = [content[a:b] for a, b in zip(sorted(cut), sorted(cut)[1:], strict=False)]
    (folder / name).write_bytes(filling.join(parts))
    source = folder / name if name == "weights.pt" else folder
    ends_well(source, capsys, "fuzzed inputs")
    shutil.rmtree(folder)


def test_any_description_ends_in_a_line(good, tmp_path, capsys):
    """Any value, of any type, anywhere in the JSON."""
    folder, draw, taken = tmp_path / "coca", random.Random(0), 0
    shutil.copytree(good, folder)
    for _ in range(300):
        model = json.loads(json.dumps(MODEL))
        section = draw.choice(("", "vision_cfg", "text_cfg", "multimodal_cfg"))
        place = model[section] if section else model
        place[draw.choice((*place, "new"))] = draw.choice(VALUES)
        pixels = {"mean": draw.choice(VALUES)} if draw.random() < 0.2 else {}
        described(folder, model_cfg=model, preprocess_cfg=pixels)
        taken += ends_well(folder, capsys, "hostile settings, configs and tokenizers")
    assert taken
