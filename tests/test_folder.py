"""Lists and folders of one's own: read right, split stably, and told apart from mistakes."""

import numpy as np
import pytest
from PIL import Image

from minicoca.data import folder
from minicoca.data.folder import FolderPairs, Report, load


def colour_of(number: int) -> tuple[int, int, int]:
    return (number * 7 % 256, number * 31 % 256, number * 97 % 256)


def make_image(path, number: int, size=(12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour_of(number)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Forty pictures, each of a colour of its own."""
    for number in range(40):
        make_image(tmp_path / f"{number}.png", number)
    return tmp_path


def write(path, text: str, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def splits(dataset) -> dict:
    found = {"train": dataset.train, "validation": dataset.validation, **dataset.evaluations}
    return {name: split for name, split in found.items() if split is not None}


def test_other_mistakes(tmp_path, pictures):
    with pytest.raises(ValueError, match="nowhere.csv: no such file"):
        load(tmp_path / "nowhere.csv", 8)
    with pytest.raises(ValueError, match=r"x.csv is not UTF-8"):
        load(write(tmp_path / "x.csv", "image,caption\na.png,caf\u00e9\n", "latin-1"), 8)
    listed = write(tmp_path / "y.csv", "image,caption\n0.png,a\n")
    with pytest.raises(ValueError, match="held_out=0.7"):
        load(listed, 8, held_out=0.7)
    with pytest.raises(
        ValueError, match=r"--image-root\). 1 images left out, as .*0.png: no such file$"
    ):
        load(listed, 8, image_root=tmp_path / "elsewhere")


def list_of(pictures, numbers, name="list.csv"):
    rows = "".join(f"{n}.png,number {n}\n{n}.png,it is {n}\n" for n in numbers)
    return write(pictures / name, "image,caption\n" + rows)


def test_images_keep_their_captions_in_every_split(pictures):
    data = load(list_of(pictures, range(40)), 8, held_out=0.2)
    assert set(splits(data)) == {"train", "validation", "held_out"}
    seen = []
    for split in splits(data).values():
        images = split.batch(range(len(split)))
        assert images.shape == (len(split), 8, 8, 3) and images.dtype == np.uint8
        for image, (first, second) in zip(images, split.captions, strict=True):
            number = int(first.split()[-1])
            assert second == f"it is {number}"
            assert (image == colour_of(number)).all()
            seen.append(number)
    assert sorted(seen) == list(range(40))


def test_more_images_do_not_move_the_others(pictures):
    def places(numbers, **options):
        found = splits(load(list_of(pictures, numbers), 8, held_out=0.2, **options))
        return {texts[0]: name for name, split in found.items() for texts in split.captions}

    few, all_of_them = places(range(10, 30)), places(range(40))
    assert all(all_of_them[text] == name for text, name in few.items())
    assert places(range(40), seed=1) != all_of_them


def test_share_held_out():
    parts = [folder.part_of(f"{number}.jpg", 0, 0.05) for number in range(20_000)]
    assert abs(parts.count("held_out") - 1000) < 120
    assert abs(parts.count("validation") - 1000) < 120
    assert {folder.part_of(str(number), 0, 0.0) for number in range(1000)} == {"train"}


def test_bad_images_are_left_out_and_counted(pictures):
    (pictures / "3.png").unlink()
    (pictures / "5.png").write_bytes(b"MZ not a picture")
    data = load(list_of(pictures, range(8)), 8, held_out=0)
    assert len(data.train) == 6 and data.validation is None and data.evaluations == {}
    assert "2 images left out" in data.notes
    assert "3.png" in data.notes and "5.png" in data.notes


@pytest.fixture
def damaged(pictures):
    """Pictures whose headers are right; the pixels of two of them are not."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for number in (5, 6):
        path = pictures / f"{number}.png"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    return pictures


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_damage_found_late_is_replaced_with_its_captions(damaged, cache_bytes):
    numbers = [4, 5, 6, 7]
    paths, captions = [damaged / f"{n}.png" for n in numbers], [(f"number {n}",) for n in numbers]
    split = FolderPairs(paths, captions, 8, cache_bytes=cache_bytes)
    for _ in range(2):
        images = split.batch(np.array([1, 0, 3, 1, -2]))
        expected = [colour_of(n) for n in (7, 4, 7, 7, 7)]
        np.testing.assert_array_equal(images[:, 0, 0], expected)
        assert split.captions == [("number 4",), ("number 7",), ("number 7",), ("number 7",)]
        assert sum(map(len, split.trouble.named.values())) == 2  # each is reported once
    assert "5.png" in split.report() and "6.png" in split.report()

    hopeless = FolderPairs(paths[1:3], captions[1:3], 8)
    with pytest.raises(ValueError, match="none of the 2 images"):
        hopeless.batch([0])


def test_a_small_split_is_decoded_once(pictures, monkeypatch):
    paths = [pictures / f"{number}.png" for number in range(4)]
    kept = FolderPairs(paths, [("a",)] * 4, 8)
    again = FolderPairs(paths, [("a",)] * 4, 8, cache_bytes=10)
    first = kept.batch([2, 1])
    first[:] = 0  # a batch is the caller's to change
    again.batch([2, 1])
    monkeypatch.setattr(folder, "load_image", None)
    np.testing.assert_array_equal(kept.batch([1, 2])[:, 0, 0], [colour_of(1), colour_of(2)])
    with pytest.raises(TypeError):
        again.batch([1])
    with pytest.raises(IndexError):
        kept.batch([4])


def test_statistics_and_background(tmp_path):
    for number, alpha in enumerate([255, 0]):
        Image.new("RGBA", (4, 4), (255, 0, 0, alpha)).save(tmp_path / f"{number}.png")
    rows = "image,caption\n0.png,red\n1.png,nothing\n"
    data = load(write(tmp_path / "x.csv", rows), 4, held_out=0, background=(0, 0, 0))
    np.testing.assert_allclose(data.mean, (0.5, 0, 0))
    np.testing.assert_allclose(data.std, (0.5, 1 / 255, 1 / 255))


def test_statistics_are_of_the_whole_of_a_sorted_list(tmp_path):
    """Night before day, as a camera numbers them: neither the first nor the last stand for all."""
    levels = np.sort(np.random.default_rng(0).integers(0, 256, 700))
    for number, level in enumerate(levels):
        Image.new("RGB", (4, 4), (int(level), 0, 255)).save(tmp_path / f"{number:03}.bmp")
    rows = "".join(f"{number:03}.bmp,level {level}\n" for number, level in enumerate(levels))
    listed = write(tmp_path / "x.csv", "image,caption\n" + rows)
    data = load(listed, 4, held_out=0, keep_copies=True)
    assert folder.SAMPLE < len(levels) // 2
    np.testing.assert_allclose(data.mean, (levels.mean() / 255, 0, 1), atol=0.01)
    np.testing.assert_allclose(data.std, (levels.std() / 255, 1 / 255, 1 / 255), atol=0.01)


def test_report_quotes_only_the_first():
    report = Report()
    for number in range(12):
        report.add("bad", f"file {number}")
    assert "12 bad" in str(report) and "file 4" in str(report) and "file 5" not in str(report)
    assert "7 more" in str(report)
