"""What towers know: the experiments do what they say, in little."""

import numpy as np
import probed
import pytest
from runs import few_shapes  # noqa: F401 - a fixture

from minicoca.family.measure import settings, trained
from minicoca.family.rows import Row


@pytest.mark.parametrize(
    ("experiment", "vectors"),
    [("colours", ["colours 0, h", "colours 0, z"]), ("masks", ["16 patches, without, h"])],
)
def test_a_line_a_change_and_vector(monkeypatch, experiment, vectors):
    first = dict([*probed.EXPERIMENTS[experiment].items()][:1])
    monkeypatch.setitem(probed.EXPERIMENTS, experiment, first)
    monkeypatch.setattr(probed, "STEPS", 2)
    lines = [line.split("|") for line in probed.lines(experiment, [0])]
    assert [cells[1].strip() for cells in lines] == vectors
    assert all(0 <= float(cell.split()[0]) <= 100 for cells in lines for cell in cells[2:-1])


def test_each_vector_is_asked_about_itself(monkeypatch, tmp_path):
    """h is as wide as the tower, z of length 1 and no copy of it."""
    row, asked = Row("", {"objective": "simclr"}), []
    trained(settings(row, "shapes", 0, 2), tmp_path / "run", lambda text: None)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    monkeypatch.setattr(probed.probes, "by_labels", lambda of, *_: asked.append(of(images)))
    assert [*probed.probed(tmp_path / "run", 0)] == ["h", "z"]
    h, z = asked
    assert h.shape[:2] == z.shape[:2] == (3, 1)
    np.testing.assert_allclose(np.linalg.norm(z, axis=2), 1, atol=1e-6)
    assert not np.allclose(np.linalg.norm(h, axis=2), 1)
