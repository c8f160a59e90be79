"""`minicoca plot` draws what the logs hold, of every run that it is given."""

import numpy as np
import pytest
from PIL import Image

from minicoca import __main__ as cli
from minicoca.commands.plot import PANELS, PARTS, drawn, flat, seconds_of
from minicoca.training.log import Log


def a_run(folder, steps, validation=True, seed=0):
    """A run folder with a log of so many records; returns them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    rng, log = np.random.default_rng(seed), Log(folder / "metrics.jsonl", 0)
    records = [{"step": 0, "command": "minicoca train"}]
    for step in range(10, 10 * steps + 1, 10):
        names = ("loss", "contrastive", "caption", "gradient_norm", "learning_rate", "temperature")
        record = {"step": step, "seconds": 0.5 * step}
        records.append(record | dict(zip(names, rng.random(len(names)).tolist(), strict=True)))
    if validation:
        seen = {"loss": 9.0, "caption_exact": 0.5, "zero_shot_top1": 0.75}
        records.append({"step": 20, "validation": seen})
    for record in records:
        log.write(record)
    return [*map(flat, records)]


def lines(figure):
    """{title: {label: [points, 2]}} of the lines that have a label of their own."""
    return {
        axis.get_title(): {
            line.get_label(): line.get_xydata()
            for line in axis.lines
            if not line.get_label().startswith("_")
        }
        for axis in figure.axes
        if axis.axison
    }


def test_short_curves_are_the_log_itself(tmp_path):
    logs = {name: a_run(tmp_path / name, 9, seed=i) for i, name in enumerate("ab")}
    panels, figure = drawn(logs, "step")
    found = lines(figure)
    own = {"loss", "contrastive loss", "captioning loss", "gradient norm", "learning rate"}
    seen = {"loss", "captions exactly right", "zero-shot accuracy"}
    own |= {"temperature"} | {f"validation: {name}" for name in seen}
    assert set(found) == set(panels) == own <= set(PANELS)
    assert found["validation: loss"]["a"].tolist() == [[20, 9]] and len(found["loss"]["a"]) == 9
    for title, (key, _) in panels.items():
        for name, records in logs.items():
            want = [(r["step"], r[key]) for r in records if key in r]
            np.testing.assert_array_equal(found[title][name], want)
    by_seconds = lines(drawn(logs, "seconds")[1])
    for title, curves in by_seconds.items():
        for name, points in curves.items():
            np.testing.assert_allclose(points[:, 0], found[title][name][:, 0] * 0.5)


def test_long_curves_keep_their_mean_and_their_ends_in_order(tmp_path):
    records = a_run(tmp_path / "a", 50 * PARTS, validation=False)
    found = lines(drawn({"a": records}, "step")[1])["contrastive loss"]["a"]
    values = [r["contrastive"] for r in records if "contrastive" in r]
    assert len(found) == PARTS and (np.diff(found[:, 0]) > 0).all()
    np.testing.assert_allclose(found[:, 1].mean(), np.mean(values))
    assert seconds_of(records)(15) == 7.5


def test_the_command_draws_unfinished_runs_and_says_what_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "runs" / "a", 3)
    a_run(tmp_path / "b", 200, validation=False)
    assert cli.main(["plot", "a", "b", "--out", "c.png"]) == 0
    assert capsys.readouterr().out == "2 runs, 9 panels: c.png\n"
    with Image.open("c.png") as picture:
        assert min(picture.size) > 600
    before = (tmp_path / "c.png").read_bytes()
    a_run(tmp_path / "new", 0, validation=False)
    for given, code, why in (
        (["a", "--out", "c.png"], 2, "is there already"),
        (["nothing", "--out", "d.png"], 1, "nothing: no run with steps in its metrics.jsonl"),
        (["new", "--out", "d.png"], 1, "new: no run with steps"),
        (["a"] * 21 + ["--out", "d.png"], 2, "21 runs: at most 20"),
        (["a", "--out", "d.txt"], 2, "must end as a picture's"),
    ):
        assert cli.main(["plot", *given]) == code
        assert why in capsys.readouterr().err
    assert (tmp_path / "c.png").read_bytes() == before
    assert not (tmp_path / "d.png").exists()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_panels_without_data_are_left_out(tmp_path, count):
    records = [{"step": 10 * i, "seconds": i, "learning_rate": 0.1} for i in range(1, 4)]
    keys = [key for key, _ in PANELS.values()][:count]
    records = [record | dict.fromkeys(keys, 0.5) for record in records]
    panels, figure = drawn({"a": records}, "step")
    assert len(panels) == count + 1
    assert sum(axis.axison for axis in figure.axes) == count + 1
