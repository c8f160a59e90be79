"""What SimCLR's vectors keep: the experiment does what it says, in little."""

import numpy as np
import tinted
from runs import few_shapes  # noqa: F401 - a fixture

from minicoca.family.measure import settings, trained
from minicoca.family.rows import Row


def test_a_line_a_strength_and_vector(monkeypatch):
    monkeypatch.setattr(tinted, "STRENGTHS", (0.0, 1.9))
    monkeypatch.setattr(tinted, "STEPS", 2)
    found = [line.split("|")[1].strip() for line in tinted.lines([0])]
    assert found == ["0, h", "0, z", "1.9, h", "1.9, z"]


def test_each_vector_is_asked_about_itself(monkeypatch, tmp_path):
    """h is as wide as the tower, z of length 1 and no copy of it."""
    row, asked = Row("", {"objective": "simclr"}), []
    trained(settings(row, "shapes", 0, 2), tmp_path / "run", lambda text: None)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    monkeypatch.setattr(tinted.probes, "by_labels", lambda of, *_: asked.append(of(images)))
    assert [*tinted.probed(tmp_path / "run", 0)] == ["h", "z"]
    h, z = asked
    assert h.shape[:2] == z.shape[:2] == (3, 1)
    np.testing.assert_allclose(np.linalg.norm(z, axis=2), 1, atol=1e-6)
    assert not np.allclose(np.linalg.norm(h, axis=2), 1)
