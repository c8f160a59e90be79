"""Videos as people have them: an animated picture (GIF, WebP, APNG), a folder of frames, or a
`.npz`; frames of them, uniformly sampled (paper section 3.3)."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from minicoca import bounds
from minicoca.data.files import Report, files_below, is_image
from minicoca.images import (
    ImageError,
    failure,
    from_picture,
    load_image,
    name_of,
    open_file,
    open_image,
    patiently,
    read,
    refuse,
    status,
)
from minicoca.words import clip

FRAMES = 16  # that are looked at, as in the paper
MOST_FRAMES = 10_000  # that a video may have
MOST_PIXELS = 10 * bounds.MAX_PIXELS  # of all frames of an animated picture together
ANIMATED, ARRAY = {".gif", ".apng"}, ".npz"  # of others a folder may hold frames


def sampled(count: int, frames: int) -> np.ndarray:
    """Places of `frames` of `count` frames: the middle one of each of so many equal parts. Where
    there are fewer, some come more than once."""
    return ((np.arange(frames) + 0.5) * count / frames).astype(np.int64)


def load_video(
    path: str | os.PathLike, side: int, frames: int = FRAMES, fit: str = "crop"
) -> np.ndarray:
    """uint8 [frames, side, side, 3] of a video, in its order: see `sampled`. fit: as `load_image`.

    Raises ImageError for what is no video or cannot be decoded, for an animation of one frame, and
    for one of more than MOST_FRAMES or MOST_PIXELS; ReadError for what cannot be read.
    """
    path = Path(path)
    if stat.S_ISDIR(status(path).st_mode):
        names = frames_in(path)
        wanted = places(len(names), frames, path)
        made = {i: load_image(names[i], side, fit=fit) for i in {*wanted}}
        return np.stack([made[i] for i in wanted])
    with open_file(path) as file:
        content = read(file, path)
    pictures = of_array if path.suffix.lower() == ARRAY else of_animation
    return np.stack(pictures(content, frames, path, lambda one: from_picture(one, side, fit)))


def places(count: int, frames: int, path: Path) -> list[int]:
    """`sampled`. Raises ImageError where there are no frames, or too many."""
    if not 0 < count <= MOST_FRAMES:
        said = f"{count:,} frames, over the limit of {MOST_FRAMES:,}" if count else "no frames"
        raise ImageError(f"{name_of(path)}: {said}")
    return sampled(count, frames).tolist()


def frames_in(folder: Path) -> list[Path]:
    """The pictures right inside a folder, numbers in their names by their value."""
    own = [path for path in folder.iterdir() if is_image(path) and not is_video_file(path)]
    own = [path for path in own if not path.name.startswith(".")]
    return sorted(own, key=lambda path: natural(path.name))


def natural(name: str) -> list:
    """A key to sort by: frame 9 comes before frame 10."""
    parts = re.split("([0-9]+)", name)
    return [(int(part[:18]), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def of_animation(content: bytes, frames: int, path: Path, make: Callable) -> list[np.ndarray]:
    """What is made of the sampled frames of an animated picture, each whole, as viewers show it."""
    name = name_of(path)
    with open_image(io.BytesIO(content), name) as image:
        try:
            count = getattr(image, "n_frames", 1)
            if count == 1:
                raise ImageError(f"{name}: one frame is no video; leave out --video")
            wanted, made = places(count, frames, path), {}
            if count * image.width * image.height > MOST_PIXELS:
                what = f"{count:,} frames of {image.width} x {image.height} pixels"
                raise ImageError(f"{name}: {what}, over the limit of {MOST_PIXELS:,} together")
            for i in sorted({*wanted}):
                image.seek(i)
                made[i] = make(image.copy())
            return [made[i] for i in wanted]
        except ImageError:
            raise
        except Exception as error:  # as in images.py: decoders raise almost anything
            raise failure(name, error) from error


def of_array(content: bytes, frames: int, path: Path, make: Callable) -> list[np.ndarray]:
    """... of a `.npz`: its array `frames`, or its only one, uint8 [n, height, width, 3], or
    [n, height, width] of grey."""
    name = name_of(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(info.file_size for info in archive.infolist())
        refuse(bounds.too_much("its arrays", size) if size > bounds.MAX_MEMORY else "", name)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names = arrays.files
            if "frames" not in names and len(names) != 1:
                said = ", ".join(names[:5]) or "nothing"
                raise ImageError(f"{name}: holds {clip(said, 60)}; one array must be called frames")
            video = arrays["frames" if "frames" in names else names[0]]
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: no .npz of frames ({clip(str(error), 80)})") from error
    grey_or_colour = video.ndim == 3 or video.ndim == 4 and video.shape[3] == 3
    if video.dtype != np.uint8 or not grey_or_colour or 0 in video.shape[1:]:
        what = f"{video.dtype} {list(video.shape)}"
        raise ImageError(f"{name}: frames are uint8 [n, height, width, 3], not {what}")
    return [make(Image.fromarray(video[i])) for i in places(len(video), frames, path)]


def is_video_file(path: Path) -> bool:
    """By its name alone."""
    return path.suffix.lower() in {*ANIMATED, ARRAY}


def find_videos(paths: Iterable[str | os.PathLike], report: Report) -> list[Path]:
    """Every video among `paths` and in folders of them: files that are named as videos, and folders
    whose own pictures, of other kinds, are frames.

    What is left alone there goes to the `report`. Raises ImageError where a path is not there, and
    ValueError where nothing is found.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not stat.S_ISDIR(patiently(lambda path=path: status(path)).st_mode):
            found[path] = None
            continue
        for file in files_below(path, report):
            if is_video_file(file):
                found[file] = None
            elif is_image(file):
                found[file.parent] = None
    if not found:
        raise ValueError(f"no videos in {', '.join(map(str, paths))}")
    return sorted(found)
