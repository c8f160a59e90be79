"""An image is a file, whatever it is called: found once, in one split, or named and counted."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from minicoca import images
from minicoca.__main__ import main
from minicoca.config import preset
from minicoca.data import folder
from minicoca.data import load as load_data
from minicoca.data.files import Report, files_below
from minicoca.images import CLAIMED_SUFFIXES, FORMATS, IMAGE_SUFFIXES, ImageError, load_image
from minicoca.tasks.files import find_images


def make_image(path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(path)
    path.with_suffix(".txt").write_text(f"number {number}")
    return path


def splits(dataset) -> dict:
    found = {"train": dataset.train, "validation": dataset.validation, **dataset.evaluations}
    return {name: split for name, split in found.items() if split is not None}


def places(dataset) -> dict:
    """The split of every caption. A caption in two is a mistake."""
    found = {}
    for name, split in splits(dataset).items():
        for texts in split.captions:
            for text in texts:
                assert found.setdefault(text, name) == name, f"{text} is in two splits"
    return found


FOLDERS = [".", "a", "a/b", "c", "../store", "../store/deep"]


@given(st.lists(st.tuples(st.sampled_from(FOLDERS), st.sampled_from([*FOLDERS, ".."])), max_size=6))
def test_links_are_followed_and_each_real_folder_searched_once(tmp_path_factory, links):
    """Loops included. What is there is found in another way: from link to link, by real paths."""
    home = tmp_path_factory.mktemp("linked") / "data"
    for number, name in enumerate(FOLDERS):
        make_image(home / name / f"{number}.png", number)
    for number, (place, target) in enumerate(links):
        (home / place / f"link{number}").symlink_to((home / target).resolve())

    def reached(here, seen):
        real = os.path.realpath(here)
        if real in seen or home.resolve().is_relative_to(real) and real != str(home.resolve()):
            return seen
        seen.add(real)
        for entry in os.scandir(real):
            if os.path.isdir(entry.path):
                reached(entry.path, seen)
        return seen

    real = {os.path.join(path, name) for path in reached(home, set()) for name in os.listdir(path)}
    expected = sorted(path for path in real if path.endswith(".png"))
    report = Report()
    found = [path for path in files_below(home, report) if path.suffix == ".png"]
    assert sorted(map(os.path.realpath, found)) == expected and found == sorted(found)
    assert sorted(find_images([home])) == found
    # where it is itself, not where a link to it is
    assert {home / "0.png", home / "a/1.png", home / "a/b/2.png", home / "c/3.png"} <= set(found)
    assert sum(map(len, splits(folder.load(home, 4)).values())) == len(expected)


def test_links_that_are_not_followed_are_said(tmp_path):
    make_image(tmp_path / "data/a.png")
    for name, target in {"up": "..", "self": ".", "gone": "nowhere", "me.png": "me.png"}.items():
        (tmp_path / "data" / name).symlink_to(target)
    report = Report()
    assert files_below(tmp_path / "data", report) == [
        tmp_path / "data/a.png",
        tmp_path / "data/a.txt",
    ]
    said = {Path(line.split()[0]).name: line for names in report.named.values() for line in names}
    assert said.keys() == {"up", "self", "gone", "me.png"}
    assert len(report.named["left out, a link that leads nowhere"]) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of formats that nobody has
def test_every_kind_that_pillow_decodes_is_found_in_either_case(tmp_path):
    """By folder and by list, in upper and lower case; two lists of suffixes would soon differ."""
    saved = 0
    for suffix, kind in sorted(Image.EXTENSION.items()):
        if suffix not in IMAGE_SUFFIXES or kind not in Image.SAVE:
            continue
        for name in (f"x{saved}{suffix}", f"X{saved}{suffix.upper()}"):
            mode = {"MSP": "1", "XBM": "1", "PALM": "1"}.get(kind, "RGB")
            try:
                Image.new(mode, (16, 16)).save(tmp_path / name, kind)
            except (OSError, ValueError, KeyError):  # this Pillow was built without it
                (tmp_path / name).unlink(missing_ok=True)
                continue
            (tmp_path / name).with_suffix(".txt").write_text(name)
            assert load_image(tmp_path / name, 4).shape == (4, 4, 3)
            saved += 1
    found = find_images([tmp_path])
    assert saved > 40 and len(found) == saved
    names = [path.name for path in found]
    listed = tmp_path / "list.csv"
    listed.write_text("image,caption\n" + "".join(f"{name},{name}\n" for name in names))
    for source in (tmp_path, listed):
        dataset = folder.load(source, 4, held_out=0, keep_copies=True)
        assert sorted(texts[0] for texts in dataset.train.captions) == sorted(names)


@pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".svg", ".eps", ".wmf", ".jxl", ".CR2"])
def test_what_cannot_be_opened_here_is_named_by_every_command(tmp_path, suffix):
    if suffix.lower() in IMAGE_SUFFIXES:
        pytest.skip("its plugin is installed")
    make_image(tmp_path / "a.png")
    (tmp_path / f"photo{suffix}").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / f"photo{suffix}").with_suffix(".txt").write_text("a photo")
    report = Report()
    assert find_images([tmp_path], report) == [tmp_path / "a.png"]
    (names,) = report.named.values()
    assert names == [str(tmp_path / f"photo{suffix}")]
    notes = folder.load(tmp_path, 4).notes
    assert "1 left out, of a kind that cannot be opened here" in notes and f"photo{suffix}" in notes
    listed = tmp_path / "list.csv"
    listed.write_text(f"image,caption\na.png,a\nphoto{suffix},b\n")
    assert (
        f"photo{suffix}: this kind cannot be opened here; convert" in folder.load(listed, 4).notes
    )
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=f"no images in(.*\n)*.*photo{suffix}"):
        find_images([tmp_path])


@pytest.mark.parametrize("command", ["caption", "classify", "search", "embed", "data"])
def test_commands_say_what_they_leave_alone(tmp_path, capsys, monkeypatch, command):
    """And search linked folders, all of them alike."""
    make_image(tmp_path / "pictures/a.png")
    make_image(tmp_path / "store/b.png", 1)
    (tmp_path / "pictures/linked").symlink_to(tmp_path / "store")
    (tmp_path / "pictures/._a.png").write_bytes(b"\0")
    for number in range(3):
        (tmp_path / f"store/{number}.svg").write_text("<svg/>")
    monkeypatch.chdir(tmp_path)
    after = {"classify": ["--labels", "x"], "search": ["a cat"], "embed": ["--out", "v.npz"]}
    code = main([command, "pictures", *after.get(command, [])])
    out = "".join(capsys.readouterr())
    assert "3 left out, of a kind that cannot be opened here" in out and "2.svg" in out
    assert "1 left alone as hidden" in out
    if command == "data":
        assert "train 2" in out
    else:
        assert code == 0 and "the model 'emoji' that comes with minicoca" in out
    seen = [path.name for path in find_images(["pictures"])]
    assert seen == ["a.png", "b.png"]


def test_no_other_program_is_run_for_an_image(tmp_path, monkeypatch):
    """Ghostscript above all, whatever the file is called."""

    def run(*given, **named):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    image = tmp_path / "a.eps"
    Image.new("RGB", (8, 8)).save(image)
    with pytest.raises(AssertionError), Image.open(image) as opened:
        opened.load()  # as Pillow by itself would
    for name in ("a.eps", "a.png", "a.jpg"):
        (tmp_path / name).write_bytes(image.read_bytes())
        for read in (images.check, lambda path: load_image(path, 4), images.decode):
            with pytest.raises(ImageError, match=name):
                read(tmp_path / name)
    assert not {"EPS", "WMF", "IPTC"} & set(FORMATS) and ".eps" in CLAIMED_SUFFIXES


def test_hidden_files_are_left_alone_and_counted(tmp_path):
    make_image(tmp_path / "a.png")
    make_image(tmp_path / ".cache/b.png")
    for number in range(8):
        make_image(tmp_path / f"._{number}.png")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    report = Report()
    assert find_images([tmp_path], report) == [tmp_path / "a.png"]
    assert "17 left alone as hidden" in str(report)
    assert "17 left alone as hidden" in folder.load(tmp_path, 4).notes  # eight texts, a folder
    assert find_images([tmp_path / "._1.png"]) == [tmp_path / "._1.png"]  # who names it means it


# Placements that runs of earlier versions have, of names that need no further look.
PLACED = {
    0: dict.fromkeys(["img08.png", "img40.png"], "held_out")
    | dict.fromkeys(["img21.png", "img45.png", "img52.png", "img57.png"], "validation"),
    1: dict.fromkeys(["img26.png", "img35.png", "img57.png"], "held_out")
    | {"img18.png": "validation"},
}


@pytest.mark.parametrize("seed", PLACED)
def test_names_stay_where_they_were_ever_since(tmp_path, seed):
    names = [f"img{number:02}.png" for number in range(60)]
    for number, name in enumerate(names):
        make_image(tmp_path / name, number)
        (tmp_path / name).with_suffix(".txt").write_text(name)
    found = places(folder.load(tmp_path, 4, seed=seed))
    assert found == {name: PLACED[seed].get(name, "train") for name in names}
    assert folder.part_of("deep/caf\u00e9.jpg", 0, 0.2) == "validation"
    assert folder.part_of("deep/caf\u00e9.jpg", 1, 0.2) == "held_out"


SPELLINGS = ["{name}", "./{name}", "sub/../{name}", "{root}/{name}", "link-{name}", "again/{name}"]


@given(
    number=st.sampled_from([8, 21, 40, 45, 0, 1]),
    spelled=st.lists(st.sampled_from(SPELLINGS), min_size=1, unique=True),
)
def test_an_image_is_a_file_not_a_spelling(tmp_path_factory, number, spelled):
    """Other spellings and links are one image with all captions, in the split of the plain name."""
    root, name = tmp_path_factory.mktemp("spelled"), f"img{number:02}.png"
    for other in range(8):
        make_image(root / f"img{60 + other}.png", other)
    make_image(root / name, 99)
    (root / "sub").mkdir()
    (root / f"link-{name}").symlink_to(name)
    (root / "again").symlink_to(".")
    written = [text.format(name=name, root=root) for text in spelled]
    rows = [f"{text},caption {place}\n" for place, text in enumerate(written)]
    rows += [f"img{60 + other}.png,other {other}\n" for other in range(8)]
    (root / "list.csv").write_text("image,caption\n" + "".join(rows))
    dataset = folder.load(root / "list.csv", 4)
    whole = [texts for split in splits(dataset).values() for texts in split.captions]
    captions = tuple(f"caption {place}" for place in range(len(spelled)))
    assert sorted(whole) == sorted([captions, *((f"other {other}",) for other in range(8))])
    assert set(places(dataset)[text] for text in captions) == {PLACED[0].get(name, "train")}
    said = f"{len(spelled) - 1} other names of an image, one with the first"
    assert (said in dataset.notes) == (len(spelled) > 1)


def copied(root, groups):
    """Files of one size, of equal bytes within a group; others differ in the last byte alone."""
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "noise.bmp")
    content = bytearray((root / "noise.bmp").read_bytes())
    (root / "noise.bmp").unlink()
    rows = []
    for number, group in enumerate(groups):
        content[-1] = number
        for name in group:
            (root / name).write_bytes(content)
            rows.append(f"{name},{name}\n")
    (root / "list.csv").write_text("image,caption\n" + "".join(sorted(rows)))
    return root / "list.csv"


@given(st.lists(st.integers(1, 4), min_size=6, max_size=12), st.booleans())
def test_byte_equal_copies_are_named_and_in_one_split(tmp_path_factory, sizes, keep):
    root = tmp_path_factory.mktemp("copies")
    names = iter(np.random.default_rng(len(sizes)).permutation(60))
    groups = [[f"img{next(names):02}.bmp" for _ in range(size)] for size in sizes]
    how = dict(held_out=0.3, validation=0.3, keep_copies=keep)
    dataset = folder.load(copied(root, groups), 4, **how)
    found, extra = places(dataset), sum(sizes) - len(sizes)
    assert found.keys() == {name for group in groups for name in group}  # nothing is lost
    alone = {name: folder.part_of(name, 0, 0.3) for name in found}
    if "train" not in {alone[min(group)] for group in groups}:
        return  # then one is moved to training
    for group in groups:
        for name in group:
            assert found[name] == alone[name if keep else min(group)]
    said = f"{extra} byte-equal copies, in the split of the first" in dataset.notes
    assert said == (extra > 0 and not keep)
    if not keep:
        for split in splits(dataset).values():
            first = {texts[0]: row for row, texts in enumerate(split.captions)}
            for group in groups:
                rows = [first[name] for name in sorted(group) if name in first]
                assert all(split.same[row] == rows[0] for row in rows)


@given(
    count=st.integers(1, 12),
    held_out=st.sampled_from([0.0, 0.05, 0.5, 0.9]),
    validation=st.sampled_from([0.0, 0.05, 0.09]),
    seed=st.integers(0, 5),
)
@example(count=1, held_out=0.9, validation=0.09, seed=0)
@example(count=2, held_out=0.9, validation=0.09, seed=1)
@example(count=5, held_out=0.9, validation=0.05, seed=2)
def test_training_is_never_left_empty(tmp_path_factory, count, held_out, validation, seed):
    root = tmp_path_factory.mktemp("few")
    for number in range(count):
        make_image(root / f"img{number:02}.png", number)
        (root / f"img{number:02}.txt").write_text(f"img{number:02}.png")
    flags = dict(held_out_part=held_out, validation_part=validation, seed=seed, image_size=8)
    dataset = load_data(preset("tiny", data=str(root), **flags))
    found = places(dataset)
    own = {name: folder.part_of(name, seed, held_out, validation) for name in found}
    moved = [name for name in found if found[name] != own[name]]
    assert len(found) == count and "train" in found.values()
    if "train" in own.values():
        assert not moved
    else:
        nearest = max(found, key=lambda name: folder.place_of(name, seed))
        assert moved == [nearest]
        assert (
            f"1 images trained on, since the split left none for it:\n  {nearest}" in dataset.notes
        )


def test_parts_are_as_large_as_asked():
    parts = [folder.part_of(f"{number}.jpg", 0, 0.1, 0.3) for number in range(20_000)]
    assert abs(parts.count("held_out") - 2000) < 150 and abs(parts.count("validation") - 6000) < 250
    for name in ("validation_part", "held_out_part"):
        for wrong in (-0.1, 1.0):
            with pytest.raises(
                ValueError, match=f"{name}={wrong}; it must be at least 0 and under"
            ):
                preset("tiny", **{name: wrong})
    with pytest.raises(ValueError, match="are 1.0 together; keep them under 1"):
        preset("tiny", validation_part=0.5, held_out_part=0.5)


def test_why_nothing_is_left_is_said(tmp_path):
    for number in range(3):
        make_image(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image with a caption can be used. 3 images left out"):
        folder.load(tmp_path, 8)
    (tmp_path / "list.csv").write_text("image,caption\n0.png,\n")
    with pytest.raises(ValueError, match="can be used. 1 rows without a caption left out"):
        folder.load(tmp_path / "list.csv", 8)
