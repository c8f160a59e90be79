"""`minicoca shards`: a data set as .tar files, which are read where they lie, by many at once."""

import re
from pathlib import Path

from ..config import BUILT_IN
from .flags import Usage, add_settings, from_flags
from .results import tell

HELP = "write a data set of your own as .tar shards"
SETTINGS = (
    *("image_root", "image_column", "caption_column", "split_column", "class_template"),
    *("validation_part", "held_out_part", "keep_copies", "seed"),
)
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_flags(parser):
    parser.add_argument("data", help="a list, a folder or .tar shards, as train takes them")
    parser.add_argument(
        "--out", type=Path, required=True, help="a folder to write; given again, it is gone on with"
    )
    parser.add_argument(
        "--shard-size", default="512MB", help="of each at most: 512MB, 1GB, or samples, as 10000"
    )
    parser.add_argument(
        "--size", type=int, help="make larger pictures JPEGs whose shorter side is so many pixels"
    )
    parser.add_argument("--workers", type=int, default=4, help="shards that are written at once")
    add_settings(parser, SETTINGS)


def run(arguments):
    from .. import data
    from ..data.files import Report
    from ..data.packing import plan, write_shards
    from ..training.checkpoint import to_run

    limits = limits_of(arguments.shard_size)
    for flag, value in (("--size", arguments.size), ("--workers", arguments.workers)):
        if value is not None and value < 1:
            raise Usage(f"{flag} {value}: at least 1")
    if arguments.data in BUILT_IN:
        raise Usage(f"{arguments.data} is made as it is needed, and not kept in shards")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise Usage(f"--out {arguments.out} is no folder; give another name")
    arguments.patch_size = 1  # nothing is trained here
    dataset = data.load(from_flags(arguments), untrained=True)
    tell(f"{dataset.name}: {dataset.notes}".strip())
    shards, report, kept, size = plan(dataset, *limits), Report(), 0, 0
    samples = dict.fromkeys((shard.name.partition("-")[0] for shard in shards), 0)
    for name, written, there in write_shards(
        shards, arguments.out, arguments.size, report, arguments.workers
    ):
        kept, size = kept + there, size + written.size
        samples[name.partition("-")[0]] += written.samples
        said = "there already" if there else f"{written.size / 1e6:,.1f} MB"
        print(f"{name}: {written.samples:,} samples, {said}", flush=True)
    if report.named:
        tell(str(report))
    parts = ", ".join(f"{split} {count:,}" for split, count in samples.items())
    follows = ("train", "--data") if "train" in samples else ("data",)
    print(
        f"{len(shards):,} shards of {size / 1e6:,.1f} MB in all ({kept:,} were there): "
        f"{parts} samples\n{to_run(*follows, arguments.out)}"
    )


def limits_of(text):
    """(bytes, samples) of a shard at most, one of them None. Raises Usage."""
    found = re.fullmatch(r"([0-9]{1,12})([KMG]B)?", text.strip().upper())
    if not found or not int(found[1]):
        raise Usage(f"--shard-size {text}: bytes, as 512MB, or samples, as 10000")
    if found[2]:
        return int(found[1]) * UNITS[found[2]], None
    return None, int(found[1])
