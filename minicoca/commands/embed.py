"""`minicoca embed`: unit vectors of images, or of sentences, in a file."""

import io
from pathlib import Path

import numpy as np

from ..files import write_output
from .flags import Usage, check_text
from .model import add_flags as add_model_flags
from .model import images_of, open_model, tell_unread
from .results import Results, check_output

HELP = "write unit vectors of images, or of sentences"


def add_flags(parser):
    parser.add_argument("inputs", nargs="+", help="image files or folders; with --text, sentences")
    add_model_flags(parser)
    parser.add_argument("--text", action="store_true", help="the inputs are sentences")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help=".npz to write: vectors, names, and how many inputs were not_reached (else 0)",
    )


def run(arguments):
    from ..tasks import embed_texts
    from ..tasks.files import embed

    if arguments.out.suffix != ".npz":
        raise Usage(f"--out {arguments.out}: the name must end in .npz")
    check_output("--out", arguments.out)
    if arguments.text:
        check_text("a sentence", *arguments.inputs)
    inputs = arguments.inputs if arguments.text else images_of(arguments.inputs)
    model, tokenizer = open_model(arguments)
    with Results(arguments, len(inputs), line) as results:
        if arguments.text:
            tell_unread(model, tokenizer, inputs)
            batches = [(inputs, embed_texts(model, tokenizer, inputs))]
        else:
            batches = embed(model, inputs, results.skipped)
        keep(arguments.out, batches, results)


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
