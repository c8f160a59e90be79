"""Videos: frames sampled as the paper says, from every form, and which way a thing went."""

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import planted
from PIL import Image

import minicoca
from minicoca import __main__ as cli
from minicoca.data import labelled_videos, moving, video
from minicoca.data.files import Report
from minicoca.data.shapes import PLACES
from minicoca.images import ImageError
from minicoca.tasks.files import embed
from minicoca.tasks.probe import features, features_of, fitted, right
from minicoca.tasks.videos import embed_videos
from minicoca.training.checkpoint import find_run, load_model

SIDE = 8


def frames(count, side=SIDE):
    """Frame i is grey of value i."""
    return np.repeat(np.arange(count, dtype=np.uint8), side * side * 3).reshape(
        count, side, side, 3
    )


def as_gif(path, array):
    first, *rest = [Image.fromarray(one) for one in array]
    first.save(path, save_all=True, append_images=rest, duration=50, loop=0, disposal=1)


def as_folder(path, array):
    path.mkdir()
    for i, one in enumerate(array):
        Image.fromarray(one).save(path / f"frame{i}.png")  # frame10 before frame9 by its letters


def as_npz(path, array):
    np.savez(path, frames=array)


FORMS = {"a.gif": as_gif, "folder": as_folder, "a.npz": as_npz}


@given(count=st.integers(1, 300), wanted=st.integers(1, 40))
def test_samples_are_uniform_and_in_order(count, wanted):
    found = video.sampled(count, wanted)
    assert len(found) == wanted and (np.diff(found) >= 0).all()
    assert 0 <= found[0] and found[-1] < count
    ends = np.linspace(0, count, wanted + 1)  # of equal parts, of which each gives one
    assert (np.floor(ends[:-1]) <= found).all() and (found < ends[1:] + 1e-9).all()
    if count == wanted:
        np.testing.assert_array_equal(found, np.arange(count))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [3, 12, 40])
def test_every_form_holds_the_same_video(form, count, tmp_path):
    FORMS[form](tmp_path / form, frames(count))
    found = video.load_video(tmp_path / form, SIDE, 5)
    assert found.shape == (5, SIDE, SIDE, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, 3, 3, 0], video.sampled(count, 5))


def test_a_gif_of_parts_is_shown_whole(tmp_path):
    """Where a frame holds only what changed, what was there before stays."""
    array = np.full((4, 16, 16, 3), 255, np.uint8)
    for i in range(4):
        array[i, 4 * i : 4 * i + 4, :4] = (200, 0, 0)
    as_gif(tmp_path / "a.gif", array)
    found = video.load_video(tmp_path / "a.gif", 16, 4)
    np.testing.assert_array_equal(found, array)


def test_what_is_no_video_is_said(tmp_path):
    Image.fromarray(frames(1)[0]).save(tmp_path / "one.gif")
    np.savez(tmp_path / "two.npz", a=frames(2), b=frames(2))
    np.savez(tmp_path / "float.npz", frames(2) / 255)
    np.savez(tmp_path / "objects.npz", np.array([{}]))
    (tmp_path / "damaged.npz").write_bytes(b"PK no zip")
    (tmp_path / "damaged.gif").write_bytes(b"GIF89a no more")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "none.npz", frames(2)[:0])
    for name, said in {
        "one.gif": "one frame is no video; leave out --video",
        "two.npz": "holds a, b; one array must be called frames",
        "float.npz": r"frames are uint8 \[n, height, width, 3\], not float64 \[2, 8, 8, 3\]",
        "objects.npz": "no .npz of frames",
        "damaged.npz": "no .npz of frames",
        "damaged.gif": "damaged.gif",
        "empty": "no frames",
        "none.npz": "no frames",
        "nowhere.gif": "no such file",
    }.items():
        with pytest.raises(ImageError, match=said):
            video.load_video(tmp_path / name, SIDE)


def test_what_would_take_too_much_is_refused_before_it_is_made(tmp_path, monkeypatch):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (20_000, 200, 200, 3)}
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", file.getvalue() + bytes(310_000_000))
    with pytest.raises(ImageError, match="310 MB .*over the limit of 300 MB"):
        video.load_video(tmp_path / "bomb.npz", SIDE)
    as_gif(tmp_path / "a.gif", frames(30))
    monkeypatch.setattr(video, "MOST_FRAMES", 29)
    with pytest.raises(ImageError, match="30 frames, over the limit of 29"):
        video.load_video(tmp_path / "a.gif", SIDE)
    monkeypatch.setattr(video, "MOST_FRAMES", 30)
    monkeypatch.setattr(video, "MOST_PIXELS", 30 * 64 - 1)
    with pytest.raises(ImageError, match="30 frames of 8 x 8 pixels, over the limit of 1,919"):
        video.load_video(tmp_path / "a.gif", SIDE)


@pytest.mark.parametrize("form", ["a.gif", "a.npz"])
def test_damaged_bytes_are_an_image_error_or_a_video(form, tmp_path):
    """Of 150 files with bytes changed, cut off or doubled."""
    path, rng = tmp_path / form, np.random.default_rng(0)
    FORMS[form](path, frames(5))
    whole, said = path.read_bytes(), 0
    for trial in range(150):
        content = bytearray(whole)
        for _ in range(1 + trial % 4):
            content[rng.integers(len(content))] = rng.integers(256)
        content = [content, content[: rng.integers(len(content))], content * 2][trial % 3]
        path.write_bytes(content)
        try:
            assert video.load_video(path, SIDE, 4).shape == (4, SIDE, SIDE, 3)
        except ImageError as error:
            assert form in str(error) and len(str(error)) < 300
            said += 1
    assert said > 30


def collection(folder):
    """Six videos of two classes in three forms."""
    for label, start in (("dark", 0), ("light", 200)):
        (folder / label).mkdir(parents=True)
        for form, write in FORMS.items():
            write(folder / label / form, frames(6) + np.uint8(start))


def test_folders_of_videos_are_searched(tmp_path):
    collection(tmp_path)
    report = Report()
    found = video.find_videos([tmp_path], report)
    assert {str(path.relative_to(tmp_path)) for path in found} == {
        f"{label}/{form}" for label in ("dark", "light") for form in FORMS
    }
    assert video.find_videos([tmp_path / "dark" / "folder"], report) == [
        tmp_path / "dark" / "folder"
    ]
    with pytest.raises(ValueError, match="no videos"):
        (tmp_path / "none").mkdir()
        video.find_videos([tmp_path / "none"], report)


def test_videos_with_labels_from_folders_and_lists(tmp_path):
    for part in ("train", "test"):
        collection(tmp_path / "clips" / part)
    (tmp_path / "clips" / "train" / "dark" / "bad.npz").write_bytes(b"none")
    rows = [
        f"{part}/{label}/{form},{label},{part}"
        for part in ("train", "test")
        for label in ("dark", "light")
        for form in ("a.gif", "a.npz", "folder")
    ]
    (tmp_path / "clips.csv").write_text("\n".join(["video,label,split", *rows]))
    found = labelled_videos.load(tmp_path / "clips", SIDE)
    assert "1 videos left out" in found.notes and "bad.npz" in found.notes
    root, columns = str(tmp_path / "clips"), ("video", "", "")
    listed = labelled_videos.load(tmp_path / "clips.csv", SIDE, image_root=root, columns=columns)
    for data in (found, listed):
        assert data.classes == ("dark", "light")
        assert (len(data.train), len(data.test)) == (6, 6)
        images = data.test.pairs.batch(data.test.rows)
        assert images.shape == (6, video.FRAMES, SIDE, SIDE, 3)
        assert ((images[:, 0, 0, 0, 0] > 100) == (data.test.labels == 1)).all()


# --- moving shapes ---------------------------------------------------------------------------


@given(index=st.integers(0, 300))
def test_left_is_right_run_backwards(index):
    """The frames of a clip, taken in the other order, show the opposite way: its middle frame may
    be of either."""
    scenes, way = moving.clip("train", index)
    down, across = moving.WAYS[way]
    centres = np.array([(scene.things[0].row, scene.things[0].column) for scene in scenes])
    steps = np.diff(centres, axis=0)
    assert (steps * np.array([down, across]) >= 0).all()
    assert (steps @ np.abs([down, across]) != 0).all()
    assert (steps @ (1 - np.abs([down, across])) == 0).all()
    for scene in scenes:
        (thing,) = scene.things
        assert thing.radius <= min(thing.row, thing.column, 1 - thing.row, 1 - thing.column)


def test_where_a_thing_is_does_not_tell_its_way():
    """Over many clips, positions of all frames have the same mean and spread for both ways of an
    axis; and which way is as likely as another."""
    found = {way: [] for way in moving.WAYS}
    for index in range(1200):
        scenes, way = moving.clip("train", index)
        found[way] += [[(s.things[0].row, s.things[0].column) for s in scenes]]
    assert all(240 < len(own) < 360 for own in found.values())
    for one, other in (("left", "right"), ("up", "down")):
        a, b = (np.array(found[way]).reshape(-1, 2) for way in (one, other))
        assert np.abs(a.mean(0) - b.mean(0)).max() < 0.03
        assert np.abs(a.std(0) - b.std(0)).max() < 0.02


def test_clips_are_what_they_were_and_others_than_those_tested():
    one, other = moving.Clips("train", 4, 16, 0), moving.Clips("held_out", 4, 16, 0)
    np.testing.assert_array_equal(one.batch([3]), moving.Clips("train", 9, 16, 0).batch([3]))
    assert (one.batch([0, 1, 2, 3]) != other.batch([0, 1, 2, 3])).any((1, 2, 3, 4)).all()


def ways(kind, train=500, test=120):
    """The accuracy of a probe of the shipped model's tokens, of which way a thing went, and of
    which axis it moved along."""
    model = minicoca.load("shapes").coca
    data = moving.load(0, model.config.image_size, train, test)
    known, tested = (features_of(model, part, True) for part in (data.train, data.test))
    probe = fitted(kind, known, known.vectors, data.classes, model.config, 0)
    found = probe(tested.vectors, tested.tokens, "cpu").argmax(1)
    axis = float((found // 2 == tested.labels // 2).mean())
    return right(probe, tested, "cpu").mean(), axis


def test_which_way_it_went_needs_the_order_of_frames():
    """With a vector for each frame nearly always; without, the axis alone, and then a coin."""
    told, _ = ways("pooler")
    blind, axis = ways("unordered")
    assert told >= 0.95
    assert axis >= 0.9 and blind < 0.68


def found_first(frames, count=400):
    """How often the clip that is nearest to what is said of a thing shows that thing, and how many
    things there are. frames: those whose vectors' mean is the clip's."""
    model = minicoca.load("shapes")
    core = load_model(find_run("shapes"))[0]
    clips = moving.Clips("held_out", count, 32, 0).batch(range(count))
    vectors, _ = features(core, clips[:, frames], False)
    things = [moving.clip("held_out", i)[0][0].things[0] for i in range(count)]
    named = np.array([f"a {own.size} {own.colour} {own.shape}" for own in things])
    best = {
        name: (vectors @ model.embed_texts([f"{name} {place}" for place in PLACES]).T).max(1)
        for name in {*named}
    }
    return np.mean([named[scores.argmax()] == name for name, scores in best.items()]), len(best)


def test_what_moves_is_found_by_the_mean_of_its_frames():
    """Far above chance; and better by a frame than by the mean, since these vectors say where a
    thing is, and a mean of places is another place, or none."""
    (mean, things), (one, _) = found_first(slice(None)), found_first(slice(4, 5))
    assert things > 100 and 0.5 < mean < one < 0.8
    core, clips = load_model(find_run("shapes"))[0], moving.Clips("held_out", 4, 32, 0)
    whole, _ = features(core, clips.batch(range(4)), False)
    each, _ = features(core, clips.batch(range(4)).reshape(-1, 32, 32, 3), False)
    each = each.reshape(4, moving.FRAMES, -1).mean(1)
    np.testing.assert_allclose(whole, each / np.linalg.norm(each, axis=1)[:, None], atol=1e-6)


# --- commands --------------------------------------------------------------------------------


def call(capsys, *arguments):
    code = cli.main([*map(str, arguments), "--run", "shapes"])
    return code, *capsys.readouterr()


def shapes_videos(folder):
    """A video of a red star and one of a blue ring, as a GIF and as frames."""
    from minicoca.data.shapes import COLOURS, Scene, Thing, draw

    folder.mkdir()
    for colour, shape, write in (("red", "star", as_gif), ("blue", "ring", as_folder)):
        array = []
        for x in np.linspace(0.3, 0.7, 20):
            thing = Thing("large", colour, shape, 0.5, float(x), 0.2, COLOURS[colour])
            array.append(draw(Scene((thing,), (235, 235, 235)), 32))
        write(folder / f"{colour}{'.gif' if write is as_gif else ''}", np.stack(array))


def test_videos_are_embedded_and_found(tmp_path, capsys):
    shapes_videos(tmp_path / "v")
    out = tmp_path / "v.npz"
    code, printed, err = call(capsys, "embed", tmp_path / "v", "--video", "--out", out)
    assert code == 0, err
    kept = np.load(out)
    assert kept["vectors"].shape[0] == 2
    model = minicoca.load("shapes").coca
    paths = [*map(str, kept["names"])]
    single = {path: video.load_video(path, model.config.image_size, video.FRAMES) for path in paths}
    for path, vector in zip(paths, kept["vectors"], strict=True):
        own = np.concatenate([v for _, v in embed(model, list(single[path]))])
        mean = own.mean(0) / np.linalg.norm(own.mean(0))
        np.testing.assert_allclose(vector, mean, atol=1e-5)
    assert abs(np.linalg.norm(kept["vectors"], axis=1) - 1).max() < 1e-5
    for query, want in (("a large red star", "red.gif"), ("a large blue ring", "blue")):
        code, printed, err = call(
            capsys, "search", tmp_path / "v", query, "--video", "-k", "1", "--json"
        )
        assert code == 0, err
        (row,) = json.loads(printed)["results"]
        assert row["file"].endswith(want)


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "v", "a star", "--video", "--sheet", "s.png"],
        ["search", "v", "a star", "--video", "--rerank", "9"],
        ["embed", "v", "--video", "--index", "i"],
        ["embed", "v", "--video", "--text", "--out", "o.npz"],
    ],
)
def test_what_goes_not_with_videos_is_said(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shapes_videos(tmp_path / "v")
    code, _, err = call(capsys, *arguments)
    assert code == 2 and "--video: " in err


def test_a_damaged_video_is_skipped_and_said(tmp_path, capsys):
    shapes_videos(tmp_path / "v")
    (tmp_path / "v" / "bad.npz").write_bytes(b"no")
    code, printed, err = call(
        capsys, "embed", tmp_path / "v", "--video", "--out", tmp_path / "o.npz"
    )
    assert code == 0 and "skipped 1 of the files" in err and "bad.npz" in err
    with pytest.raises(ImageError):
        list(embed_videos(minicoca.load("shapes").coca, [tmp_path / "v" / "bad.npz"]))


def check_sampled():
    test_samples_are_uniform_and_in_order.hypothesis.inner_test(40, 5)


def check_natural():
    names = ["f10.png", "f9.png", "f1.png"]
    assert sorted(names, key=video.natural) == ["f1.png", "f9.png", "f10.png"]


BUGS = [
    (video, "(np.arange(frames) + 0.5) *", "(frames - 0.5 - np.arange(frames)) *", check_sampled),
    (video, "(int(part[:18]), part) if i % 2", "(0, part) if i % 2", check_natural),
]


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=["sampled", "natural"])
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()
