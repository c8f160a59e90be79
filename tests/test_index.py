"""An index holds what its pictures are, however it grew and whatever stopped it."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import untrained
from test_kept import Killed
from test_results import at_image, call

import minicoca
from minicoca import index as index_module
from minicoca.files import Damaged
from minicoca.index import INDEX, PARTS, Growing, Index
from minicoca.tasks import files
from minicoca.tasks.indexed import weights_of
from minicoca.training.checkpoint import load_model
from minicoca.training.owner import owned

WIDTH = 3


def contents(index):
    """{name: (stamp, vector)} of what counts."""
    return {
        name: (tuple(index.stamps[row].tolist()), tuple(index.vectors[row].tolist()))
        for name, row in index.rows().items()
    }


STEPS = st.lists(
    st.tuples(st.lists(st.integers(0, 5), unique=True, max_size=4), st.integers(0, 30)), max_size=8
)


@given(STEPS)
def test_an_index_holds_what_was_last_said_of_each_name(tmp_path, steps):
    """Rows that are dropped, changed and written anew, beside a plain dictionary; each step may be
    killed at any write, after which the index is as before or as after it."""
    shutil.rmtree(tmp_path / "i", ignore_errors=True)
    Growing.begin(tmp_path / "i", WIDTH, "w", "crop", "run")
    told, counted = {}, 0
    for names, kill in steps:
        index = Growing(tmp_path / "i")
        rows = index.rows()
        before, after = dict(told), dict(told)
        vectors = np.arange(len(names) * WIDTH, dtype=np.float32).reshape(-1, WIDTH) + counted
        texts = [f"{name}\udcff{'ä' * name}.png" for name in names]
        stamps = [(counted, name) for name in names]
        counted += 1
        for text, stamp, vector in zip(texts, stamps, vectors, strict=True):
            after[text] = (stamp, tuple(vector.tolist()))
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            die_at(patch, kill)
            index.add(texts, stamps, vectors, [rows[text] for text in texts if text in rows])
            index.finish()
        found = contents(Index(tmp_path / "i"))
        assert found in (before, after)
        assert found == after or kill < 15
        told = found
    grown = Growing(tmp_path / "i")
    grown.finish()
    assert contents(Index(tmp_path / "i")) == told and len(grown) == len(told)
    assert len(grown.dead) * 4 <= grown.count
    assert len(list((tmp_path / "i").iterdir())) == len(PARTS) + 1
    (batch,) = list(Index(tmp_path / "i").batches(100)) or [([], np.zeros((0, WIDTH)))]
    assert sorted(batch[0]) == sorted(told)


def die_at(patch, number):
    """Before the write, or the cut, of a number: nothing of ours runs after a kill."""
    counted = iter(range(1000))

    def dying(function):
        def wrapped(*given, **named):
            if next(counted) >= number:
                raise Killed
            return function(*given, **named)

        return wrapped

    for name in ("append", "sync", "write_json"):
        patch.setattr(index_module, name, dying(getattr(index_module, name)))
    patch.setattr(index_module.os, "truncate", dying(os.truncate))


def test_a_write_that_fails_is_taken_back(tmp_path, monkeypatch):
    index = Growing.begin(tmp_path / "i", WIDTH, "w", "crop", "run")
    index.add(["a"], [(1, 2)], np.ones((1, WIDTH)))
    with monkeypatch.context() as patch:
        full = iter([True, False])
        append = index_module.append

        def fail(path, data):
            if not next(full):
                raise OSError("no space")
            append(path, data)

        patch.setattr(index_module, "append", fail)
        with pytest.raises(OSError, match="no space"):
            index.add(["b"], [(3, 4)], np.ones((1, WIDTH)))
    index.add(["c"], [(5, 6)], np.zeros((1, WIDTH)))
    assert contents(Growing(tmp_path / "i")) == {
        "a": ((1, 2), (1, 1, 1)),
        "c": ((5, 6), (0, 0, 0)),
    }


@given(st.sampled_from(PARTS), st.integers(0, 200), st.integers(0, 7))
def test_a_turned_bit_is_seen_before_it_is_built_upon(tmp_path, part, place, bit):
    shutil.rmtree(tmp_path / "i", ignore_errors=True)
    index = Growing.begin(tmp_path / "i", WIDTH, "w", "crop", "run")
    index.add([f"{i}.png" for i in range(9)], [(i, i) for i in range(9)], np.ones((9, WIDTH)))
    index.drop([3])
    path = index.path(part)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(Damaged, match=path.name):
        Growing(tmp_path / "i")
    path.write_bytes(content[:-1])
    with pytest.raises(Damaged, match="cut off"):
        Index(tmp_path / "i")
    path.unlink()
    with pytest.raises(Damaged, match="No such file"):
        Index(tmp_path / "i")


def test_an_index_that_is_written_anew_meanwhile_is_opened(tmp_path, monkeypatch):
    index = Growing.begin(tmp_path / "i", WIDTH, "w", "crop", "run")
    index.add(["a", "b"], [(1, 2), (3, 4)], np.ones((2, WIDTH)))
    index.drop([0])
    opening, waiting = Index._open, [index]

    def finish(self):
        if waiting and self is not index:
            waiting.pop().finish()
        opening(self)

    monkeypatch.setattr(Index, "_open", finish)
    assert contents(Index(tmp_path / "i")) == {"b": ((3, 4), (1, 1, 1))}
    assert index.generation == 1 and not waiting


def test_what_is_no_index_is_said(tmp_path):
    with pytest.raises(ValueError, match="is no index: it has no index.json"):
        Index(tmp_path)
    (tmp_path / "photo.png").touch()
    with pytest.raises(ValueError, match="is no index, and not empty .it has photo.png"):
        Growing.begin(tmp_path, WIDTH, "w", "crop", "run")
    Growing.begin(tmp_path / "i", WIDTH, "w", "crop", "run")
    for text in ("{", "{}", json.dumps({"bytes": 3})):
        (tmp_path / "i" / INDEX).write_text(text)
        with pytest.raises(ValueError, match=INDEX):
            Index(tmp_path / "i")


COUNT = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, the second of them broken, and two runs."""
    folder = tmp_path_factory.mktemp("index")
    for name in ("one", "two"):
        untrained(folder / name)
    weights = minicoca.params.load(folder / "two" / "model.safetensors")[0]
    weights["text"]["token"][0] += 1
    config = load_model(folder / "one", "numpy")[0].config
    minicoca.params.save(folder / "two" / "model.safetensors", weights, config)
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        draw(folder / "whole" / f"{i}.png", rng)
    (folder / "whole" / "1.png").write_bytes(b"no picture")
    return folder


def draw(path, rng):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(path)


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(files, "BATCH", 2)
    fresh()


def fresh():
    for name in ("p", "i"):
        shutil.rmtree(name, ignore_errors=True)
    shutil.copytree("whole", "p")


def update(capsys, *given, run="one"):
    code, out, err = call(capsys, "embed", *given, "--index", "i", "--run", run, "--json")
    return (json.loads(out)["results"][0] if code == 0 else code), err


def now(name, **run):
    """What an index of the pictures below a folder is to hold."""
    model = minicoca.load("one", backend="numpy")
    paths = [path for path in sorted(Path(name).rglob("*.png")) if path.name != "1.png"]
    return {os.path.abspath(path): model.embed_images(path) for path in paths}


def is_as(found, want):
    assert found.keys() == want.keys()
    for name, (_, vector) in found.items():
        np.testing.assert_allclose(vector, want[name], atol=1e-5)


def test_only_what_is_new_or_changed_is_read(here, capsys, monkeypatch):
    row, err = update(capsys, "p")
    assert row == {
        "index": "i", "vectors": COUNT - 1, "width": 64, "added": COUNT - 1, "changed": 0,
        "removed": 0, "same": 0, "not_reached": 0,
    } and "1.png" in err  # fmt: skip
    is_as(contents(Index("i")), now("p"))
    read, load = [], files.load_image
    monkeypatch.setattr(
        files, "load_image", lambda p, *a, **b: read.append(str(p)) or load(p, *a, **b)
    )
    rng = np.random.default_rng(1)
    draw(Path("p/2.png"), rng)
    draw(Path("p/9.png"), rng)
    Path("p/0.png").unlink()
    row, _ = update(capsys, "p")
    assert [row[n] for n in ("added", "changed", "removed", "same")] == [1, 1, 1, COUNT - 3]
    assert sorted(read) == ["p/1.png", "p/2.png", "p/9.png"]
    is_as(contents(Index("i")), now("p"))
    shutil.copytree("p", "more")
    row, _ = update(capsys, "more")
    assert row["added"] == COUNT - 1 and row["vectors"] == 2 * COUNT - 2 and not row["removed"]
    shutil.rmtree("more")
    row, _ = update(capsys, "p")  # what lies elsewhere is no business of this call's
    assert row["vectors"] == 2 * COUNT - 2


@given(st.lists(st.integers(0, 2 * COUNT), max_size=4))
def test_killed_at_any_picture_it_goes_on(here, capsys, kills):
    fresh()
    for number, at in enumerate(kills):
        draw(Path(f"p/{number % COUNT}.png"), np.random.default_rng(number + 5))
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            at_image(patch, at, lambda: (_ for _ in ()).throw(Killed()))
            update(capsys, "p")
        capsys.readouterr()
    Path("p/1.png").write_bytes(b"no picture")
    row, err = update(capsys, "p")
    found = contents(Index("i"))
    found.pop(os.path.abspath("p/1.png"), None)  # as it was before it was broken
    is_as(found, now("p"))


def test_an_index_of_other_weights_is_refused_by_everyone(here, capsys):
    update(capsys, "p")
    code, err = update(capsys, "p", run="two")
    assert code == 1 and f"i is of other weights, those of {os.path.abspath('one')}" in err
    commands = (["search", "a star"], ["classify", "--labels", "a", "b"])
    for command in commands:
        code, out, err = call(capsys, *command, "--index", "i", "--run", "two")
        assert code == 1 and not out and "is of other weights" in err
    with pytest.raises(ValueError, match="is of other weights"):
        minicoca.load("two").search("a star", index="i")


def test_an_index_remembers_its_fit(here, capsys):
    """Later pictures, and a query that is one, are made square as the first were."""
    wide = Image.linear_gradient("L").resize((90, 30)).convert("RGB")
    wide.paste("red", (0, 0, 30, 30))
    wide.save("p/wide.png")
    update(capsys, "p", "--fit", "pad")
    wide.rotate(180).save("p/other.png")
    assert update(capsys, "p")[0]["added"] == 1
    model, found = minicoca.load("one", backend="numpy"), contents(Index("i"))
    for name in ("wide", "other"):
        vector = model.embed_images(f"p/{name}.png", fit="pad")
        np.testing.assert_allclose(found[os.path.abspath(f"p/{name}.png")][1], vector, atol=1e-5)
        assert np.abs(vector - model.embed_images(f"p/{name}.png")).max() > 1e-3
        (nearest,) = model.search(Path(f"p/{name}.png"), index="i", k=1)
        assert nearest.image.endswith(f"{name}.png") and nearest.cosine > 1 - 1e-5
        command = ["search", f"p/{name}.png", "--index", "i", "--run", "one", "-k", 1]
        for fit in ([], ["--fit", "pad"]):
            assert call(capsys, *command, *fit)[1].startswith("1.000  ")
        code, _, err = call(capsys, *command, "--fit", "squash")
        assert code == 1 and "i is of pictures with --fit pad, not squash" in err
    code, err = update(capsys, "p", "--fit", "crop")
    assert code == 1 and "with --fit pad, not crop: leave --fit out" in err
    with pytest.raises(ValueError, match="with --fit pad, not crop"):
        model.search("a star", index="i", fit="crop")


def test_weights_are_one_for_both_backends(here):
    one, same, two = (load_model(*how)[0] for how in (("one", "numpy"), ("one",), ("two",)))
    assert weights_of(one) == weights_of(same) != weights_of(two)


@pytest.mark.parametrize("query", ["a star", "whole/3.png"])
def test_search_and_classify_need_no_pictures(here, capsys, query):
    update(capsys, "p")
    flags = ("--run", "one", "--json")
    commands = [["search", "p", query, "-k", 4], ["classify", "p", "--labels", "a star", "a ring"]]
    wanted = [json.loads(call(capsys, *c, *flags)[1])["results"] for c in commands]
    for row in (row for rows in wanted for row in rows):
        row["file"] = os.path.abspath(row["file"])
    asked = query if " " in query else Path(query)
    with pytest.warns(UserWarning, match="1.png"):
        by_python = minicoca.load("one").search(asked, "p", k=4)
    shutil.rmtree("p")
    commands = [["search", "-k", 4, query], ["classify", "--labels", "a star", "a ring"]]
    got = [call(capsys, *c, "--index", "i", *flags) for c in commands]
    found = [json.loads(out)["results"] for _, out, _ in got]
    for rows, want in zip(found, wanted, strict=True):
        assert [row["file"] for row in rows] == [row["file"] for row in want]
    got = minicoca.load("one").search(asked, index="i", k=4)
    assert [f.image for f in got] == [os.path.abspath(f.image) for f in by_python]
    Path("sheet.png").unlink(missing_ok=True)
    code, out, _ = call(
        capsys, "search", query, "--index", "i", "--run", "one", "--sheet", "sheet.png"
    )
    assert code == 0 and Path("sheet.png").stat().st_size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["embed", "p", "--index", "i", "--text"], "--index is of images"),
        (["embed", "p", "--index", "i", "--out", "a.npz"], "not allowed with"),
        (["embed", "p"], "one of the arguments --out --index is required"),
        (["search", "p", "a star", "--index", "i"], "unrecognized arguments: a star"),
        (["search", "--index", "i"], "required: query"),
        (["search", "a star"], "required: query"),
        (["search", "a star", "--index", "none"], "none is no index"),
        (["classify", "p", "--labels", "a", "--index", "i"], "is instead of images: leave out p"),
        (["classify", "--labels", "a"], "required: images"),
    ],
)
def test_what_cannot_be_is_said(here, capsys, words, said):
    with suppress(SystemExit):
        code = call(capsys, *words, "--run", "one")[0]
        assert code
    error = capsys.readouterr().err
    assert said in error if error else True
    Path("i").mkdir(exist_ok=True)


def test_one_index_has_one_writer(here, capsys):
    update(capsys, "p")
    with owned(Path("i")):
        code, err = update(capsys, "p")
    assert code == 1 and "i is being written by another process" in err
    assert update(capsys, "p")[0]["same"] == COUNT - 1
