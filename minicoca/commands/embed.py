"""`minicoca embed`: unit vectors of images, or of sentences, in a file; of images in an index."""

import io
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..files import make_folder, saving, write_output
from ..training.owner import TakenError, owned
from .flags import Usage, check_text
from .model import add_fit, add_video, fitting_of, images_of, open_model, tell_unread, videos_of
from .model import add_flags as add_model_flags
from .results import Results, check_output

HELP = "write unit vectors of images, or of sentences"


def add_flags(parser):
    parser.add_argument("inputs", nargs="+", help="image files or folders; with --text, sentences")
    add_model_flags(parser)
    add_fit(parser)
    add_video(parser)
    parser.add_argument("--text", action="store_true", help="the inputs are sentences")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--out",
        type=Path,
        help=".npz to write: vectors, names, and how many inputs were not_reached (else 0)",
    )
    where.add_argument(
        "--index",
        type=Path,
        help="folder to make, or bring up to date: only new and changed files are read",
    )


def run(arguments):
    from ..tasks import embed_texts
    from ..tasks.files import embed
    from ..tasks.videos import embed_videos

    fitting = fitting_of(arguments)
    if arguments.video and (arguments.index or arguments.text):
        raise Usage("--video: neither sentences nor an index, which is of images; give --out")
    if arguments.index:
        update(arguments, fitting)
        return
    if arguments.out.suffix != ".npz":
        raise Usage(f"--out {arguments.out}: the name must end in .npz")
    check_output("--out", arguments.out)
    if arguments.text:
        check_text("a sentence", *arguments.inputs)
    find = videos_of if arguments.video else images_of
    inputs = arguments.inputs if arguments.text else find(arguments.inputs)
    model, tokenizer = open_model(arguments)
    with Results(arguments, len(inputs), line) as results:
        if arguments.text:
            tell_unread(model, tokenizer, inputs)
            batches = [(inputs, embed_texts(model, tokenizer, inputs))]
        else:
            vectors = embed_videos if arguments.video else embed
            batches = vectors(model, inputs, results.skipped, fitting)
        keep(arguments.out, batches, results)


def update(arguments, fitting):
    """An index brought up to date."""
    from ..tasks.indexed import compare, grow, grown

    if arguments.text:
        raise Usage("--index is of images: leave out --text, or give --out FILE.npz")
    paths = images_of(arguments.inputs)
    model, _ = open_model(arguments)
    with alone(arguments.index):
        index = grown(model, arguments.index, arguments.fit, os.path.abspath(arguments.run))
        changes = compare(index, paths, filter(os.path.isdir, arguments.inputs))
        before = len(index)

        def line(row):
            words = [f"{row[name]:,} {name}" for name in ("added", "changed", "removed", "same")]
            words += [f"{row['not_reached']:,} not reached"] if row["not_reached"] else []
            return f"{row['vectors']:,} x {row['width']} -> {row['index']}  ({', '.join(words)})"

        counts = {"added": 0, "changed": 0}

        def done(count, changed):
            counts["added"] += count - changed
            counts["changed"] += changed
            results.reached += count

        with Results(arguments, changes.same + len(changes.new), line) as results:
            results.reached, finished = changes.same, False
            try:
                grow(model, index, changes, results.skipped, done, fitting)
                finished = True
            finally:
                if finished or results.reached:
                    removed = before + counts["added"] - len(index)
                    row = {"index": str(arguments.index), "vectors": len(index)}
                    row |= {"width": index.width, **counts, "removed": removed}
                    results.show([row | {"same": changes.same, "not_reached": results.not_reached}])


@contextmanager
def alone(folder):
    """For a `with`: an index for this process alone. Raises ValueError."""
    with saving(folder):
        make_folder(folder)
    try:
        with owned(folder):
            yield
    except TakenError as error:
        raise ValueError(
            f"{folder} is being written by another process; wait for its end"
        ) from error


def keep(path, batches, results):
    """Write (names, vectors) of all batches; of those there are where they end early."""
    parts = []
    try:
        for part in batches:
            parts.append(part)
            if len(parts).bit_count() == 1:  # 1, 2, 4, ...: a process that is killed keeps half
                write(path, parts, results)
    finally:
        if parts:
            results.show([write(path, parts, results)])


def write(path, parts, results):
    """The row that says what was written."""
    names = [str(name) for own, _ in parts for name in own]
    vectors = np.concatenate([own for _, own in parts])
    results.reached, file = len(names), io.BytesIO()
    left = {"not_reached": results.not_reached}
    np.savez(file, vectors=vectors.astype(np.float32), names=np.array(names), **left)
    write_output(path, file.getvalue())
    return {"file": str(path), "vectors": len(vectors), "width": vectors.shape[1]} | left


def line(row):
    part = f" (partial: {row['not_reached']:,} were not reached)" if row["not_reached"] else ""
    return f"{row['vectors']} x {row['width']} -> {row['file']}{part}"
