"""Questions as captions: the experiment does what it says, in little."""

import answering
import pytest
from runs import few_shapes  # noqa: F401 - a fixture

from minicoca.data import asked_shapes


def test_captions_are_the_questions_of_their_pictures():
    dataset = asked_shapes.of_shapes("questions", 0, 32)
    made, asked = answering.as_captions(dataset), dataset.train
    assert not made.evaluations and len(made.validation)
    seen = {
        image.tobytes(): own
        for image, own in zip(made.train.images, made.train.captions, strict=True)
    }
    for row in range(0, len(asked), 7):
        assert asked.captions[row][0] in seen[asked.batch([row])[0].tobytes()]


@pytest.mark.parametrize("label", answering.ROWS)
def test_a_line_a_split(monkeypatch, label):
    monkeypatch.setattr(answering, "ROWS", {label: answering.ROWS[label]})
    monkeypatch.setattr(answering, "STEPS", 2)
    found = [line.split(" | ") for line in answering.lines([0])]
    assert [cells[0] for cells in found] == [
        f"| {label}, {x}" for x in ("held_out", "compositional")
    ]
    for cells in found:
        kinds = [cell.split()[0] for cell in cells[1:]]
        assert kinds == ["all", "colour", "count", "exists", "shape", "size", "where"]
        assert all(0 <= float(cell.split()[1]) <= 100 for cell in cells[1:])
