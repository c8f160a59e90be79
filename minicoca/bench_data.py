"""How fast pictures are decoded: as training does it, in threads, beside Pillow alone."""

import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from .data.folder import FolderPairs
from .files import write_output
from .squares import fitted
from .training.log import machine

SIDES = {"12 MP": (4000, 3000), "0.25 MP": (576, 432)}  # of JPEGs, of quality 90
SIDE = 224  # pixels that are asked for


def photograph(size, seed=0):
    """The bytes of a JPEG as large as a photograph's: smooth colours under a little noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(size)
    noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    file = io.BytesIO()
    Image.blend(small, noise, 0.05).save(file, "JPEG", quality=90)
    return file.getvalue()


def by_pillow(paths):
    """As briefly as one would write it."""
    for path in paths:
        with Image.open(path) as image:
            fitted(image.convert("RGB"), SIDE)


def data(images=16, repeats=3, workers=(1, 2), json_path=None):
    """Print images a second, and a second of the CPU's time, of each way in turn: medians, lowest
    to highest. Nothing is kept decoded meanwhile."""
    rows = []
    for name, size in SIDES.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.jpg" for number in range(images)]
            for number, path in enumerate(paths):
                path.write_bytes(photograph(size, number))
            ways = {"Pillow alone": lambda paths=paths: by_pillow(paths)}
            for count in workers:
                captions = [("a picture",)] * images
                pairs = FolderPairs(paths, captions, SIDE, workers=count, cache_bytes=0)
                ways[f"minicoca, {count} threads"] = lambda pairs=pairs: pairs.batch(range(images))
            rows += [{"pictures": name, **row} for row in timed(ways, images, repeats)]
    print(f"{machine()}: to {SIDE} x {SIDE} pixels, {images} of each, {repeats} times")
    for row in rows:
        wall, cpu = row["images_per_second"], row["images_per_cpu_second"]
        print(
            f"{row['pictures']:8} {row['way']:20} {wall[1]:8.1f} images/s ({wall[0]:.1f} to "
            f"{wall[2]:.1f}), {cpu[1]:8.1f} a CPU second"
        )
    if json_path:
        write_output(json_path, json.dumps({"machine": machine(), "rows": rows}, indent=1).encode())
    return rows


def timed(ways, images, repeats):
    """[lowest, median, highest] of images a second of each way, which take turns."""
    found = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            found[name].append([images / max(one, 1e-9) for one in spent])
    for name, rates in found.items():
        of_wall, of_cpu = ([min(x), statistics.median(x), max(x)] for x in zip(*rates, strict=True))
        yield {"way": name, "images_per_second": of_wall, "images_per_cpu_second": of_cpu}
