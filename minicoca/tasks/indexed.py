"""Pictures whose vectors are kept in an index: brought up to date, and searched without them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config import DATA_FIELDS
from ..files import digest
from ..index import INDEX, Growing, Index
from ..params import flatten
from . import demand_vectors, no_vectors
from .files import WHOLE, Fitting, embed
from .retrieval import Found, nearest


def weights_of(model) -> str:
    """What the vectors of a model (the CoCa of either backend) are a function of, beside pictures
    and texts: SHA-256 of its weights and of the settings that say how they are used."""
    config = model.config
    names = [f.name for f in fields(config) if f.metadata["group"] == "model"] + [*DATA_FIELDS]
    said = [[name, getattr(config, name)] for name in names]
    if config.objective != "coca":
        said.append(["objective", config.objective, config.settings])
    leaves = flatten(model.params)
    arrays = (np.asarray(leaf.cpu() if hasattr(leaf, "cpu") else leaf) for leaf in leaves.values())
    parts = (array.astype(np.float32, copy=False).tobytes() for array in arrays)
    return digest(json.dumps([said, list(leaves)]).encode(), *parts)


def open_index(model, folder: str | os.PathLike, fit: str | None = None) -> Index:
    """The index in a folder. Raises ValueError where there is none, or it is of other weights or of
    another fit (None: of any)."""
    demand_vectors(model)
    index = Index(folder)
    index.check(weights_of(model), fit)
    return index


def grown(model, folder: str | os.PathLike, fit: str | None, made_by: str) -> Growing:
    """The index in a folder, to add to; a new one where there is none. Raises ValueError where it
    is of other weights or of another fit (None: of any; of a new one "crop")."""
    demand_vectors(model)
    weights = weights_of(model)
    if not (Path(folder) / INDEX).is_file():
        width = no_vectors(model).shape[1]
        return Growing.begin(folder, width, weights, fit or "crop", made_by)
    index = Growing(folder)
    index.check(weights, fit)
    return index


def search(index: Index, queries: np.ndarray, k: int) -> list[list[Found]]:
    """Per query [queries, E], the k Found of highest cosine: row, name of the file, cosine."""
    order, cosines = nearest(queries, index.vectors, k, index.dead)
    return [
        [Found(row, index.name(row), cosine) for row, cosine in zip(*own, strict=True)]
        for own in zip(order.tolist(), cosines.tolist(), strict=True)
    ]


class Changes(NamedTuple):
    """What an index lacks: files it never had, and files that were changed since, with the stamps
    to note of both; the rows of files that are not there any more; how many are as they were."""

    new: list[Path]
    changed: dict[str, int]  # and their rows
    stamps: dict[str, tuple[int, int]]
    gone: list[int]
    same: int


def compare(index: Index, paths: Sequence[Path], folders: Iterable[Path]) -> Changes:
    """An index with the files that there are now: `paths`, all that `folders` hold among them.
    What lies elsewhere is left as it is."""
    rows, below = index.rows(), tuple(os.path.join(os.path.abspath(f), "") for f in folders)
    new, changed, stamps, same = [], {}, {}, 0
    for path in paths:
        name = os.path.abspath(path)
        if name in stamps:
            continue
        stamps[name] = stamp_of(path)
        row = rows.get(name)
        if row is None:
            new.append(path)
        elif tuple(index.stamps[row].tolist()) == stamps[name]:
            same += 1
        else:
            new.append(path)
            changed[name] = row
    gone = [row for name, row in rows.items() if name.startswith(below) and name not in stamps]
    return Changes(new, changed, stamps, gone, same)


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; of one that is not there, none that any has."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def grow(
    model,
    index: Growing,
    changes: Changes,
    skipped: list[str],
    done: Callable[[int, int], None],
    how: Fitting = WHOLE,
) -> None:
    """Bring an index up to date, batch by batch: each counts once it is written.

    skipped, how: as in `tasks.files.decoded`, but for the fit, which is the index's own.
    done: hears how many files each batch had, and how many of them were in the index before.
    """
    if changes.gone:
        index.drop(changes.gone)
    for kept, vectors in embed(model, changes.new, skipped, how._replace(fit=index.fit)):
        names = [os.path.abspath(path) for path in kept]
        stamps = [changes.stamps[name] for name in names]
        before = [changes.changed[name] for name in names if name in changes.changed]
        index.add(names, stamps, vectors, before)
        done(len(kept), len(before))
    index.finish()
