"""What a folder of shards is to hold, by the file that was written with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from minicoca.data.files import Report, digest
from minicoca.files import read_json, write_json
from minicoca.images import patiently

CHECKSUMS = "checksums.json"


class Written(NamedTuple):
    """A shard as it was written."""

    sha256: str  # of its bytes, in hexadecimal
    size: int  # in bytes
    samples: int


class Checksums(NamedTuple):
    """of: what the shards are made of, as a digest. planned: how many there are to be."""

    of: str
    planned: int
    shards: dict[str, Written]

    def write(self, folder: Path) -> None:
        shards = {name: list(one) for name, one in sorted(self.shards.items())}
        write_json(folder / CHECKSUMS, {"of": self.of, "planned": self.planned, "shards": shards})


def read_checksums(folder: Path) -> Checksums | None:
    """None where there is no such file. Raises ValueError for one that is damaged, or none of
    ours."""
    path = folder / CHECKSUMS
    if not os.path.lexists(path):
        return None
    fields, sealed = read_json(path)
    try:
        shards = {name: Written(*one) for name, one in fields["shards"].items()}
        if sealed:
            return Checksums(fields["of"], fields["planned"], shards)
    except (KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path} was not written by minicoca shards; remove or rename it")


def compare(folder: Path, report: Report, whole: bool = False) -> int:
    """How many of a folder's shards are what its checksums say: by their sizes or, `whole`, by
    their bytes. What is not goes to `report`. 0 where there are no checksums."""
    written, good = read_checksums(folder), 0
    for name, one in written.shards.items() if written else ():
        path = folder / name
        if not path.is_file():
            report.add(f"shards missing that {CHECKSUMS} names", str(path))
        elif (there := path.stat().st_size) != one.size:
            said = f"{path}: {there:,} bytes, not {one.size:,}"
            report.add(f"shards of another size than {CHECKSUMS} says", said)
        elif whole and patiently(lambda path=path: digest(path)).hex() != one.sha256:
            report.add("shards that do not hold what was written into them (sha256)", str(path))
        else:
            good += 1
    if written and len(written.shards) < written.planned:
        said = f"{folder}: {len(written.shards):,} of {written.planned:,}"
        report.add("folders of shards that were not finished (minicoca shards goes on)", said)
    return good
