"""`minicoca embed`: unit vectors of images, or of sentences, in a file."""

import io
from pathlib import Path

import numpy as np

from ..params import write_atomically
from .flags import Usage
from .model import add_flags as add_model_flags
from .model import open_model, show, tell_unread

HELP = "write unit vectors of images, or of sentences"


def add_flags(parser):
    parser.add_argument("inputs", nargs="+", help="image files or folders; with --text, sentences")
    add_model_flags(parser)
    parser.add_argument("--text", action="store_true", help="the inputs are sentences")
    parser.add_argument("--out", type=Path, required=True, help=".npz to write: vectors, names")


def run(arguments):
    from ..tasks import embed_texts
    from ..tasks.files import embed, find_images

    if arguments.out.suffix != ".npz":
        raise Usage(f"--out {arguments.out}: the name must end in .npz")
    skipped = []
    if arguments.text:
        model, tokenizer = open_model(arguments)
        tell_unread(model, tokenizer, arguments.inputs)
        names, vectors = arguments.inputs, embed_texts(model, tokenizer, arguments.inputs)
    else:
        paths = find_images(arguments.inputs)
        model, tokenizer = open_model(arguments)
        names, vectors = embed(model, paths, skipped)
    file = io.BytesIO()
    np.savez(file, vectors=vectors.astype(np.float32), names=np.array([str(n) for n in names]))
    write_atomically(arguments.out, file.getvalue())
    row = {"file": str(arguments.out), "vectors": len(vectors), "width": vectors.shape[1]}
    show(arguments, [row], lambda r: f"{r['vectors']} x {r['width']} -> {r['file']}", skipped)
