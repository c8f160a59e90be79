"""`minicoca search`: images found by a sentence, or by an image."""

import os
from pathlib import Path

from .flags import Usage
from .model import add_flags as add_model_flags
from .model import open_model, show, tell_unread

HELP = "find images by a sentence, or by an image"


def add_flags(parser):
    parser.add_argument("folder", help="where to look")
    parser.add_argument("query", help="a sentence, or an image file")
    add_model_flags(parser)
    parser.add_argument("-k", type=int, default=6, help="how many to show (default 6)")
    parser.add_argument("--sheet", type=Path, help="write what was found as one picture")


def run(arguments):
    from ..images import IMAGE_SUFFIXES, decode
    from ..tasks import embed_texts
    from ..tasks.files import embed, find_images
    from ..tasks.retrieval import contact_sheet, nearest

    if arguments.k < 1:
        raise Usage(f"-k {arguments.k}: at least 1")
    is_image = os.path.isfile(arguments.query)
    if not is_image and Path(arguments.query).suffix.lower() in IMAGE_SUFFIXES:
        raise Usage(f"{arguments.query}: there is no such image")
    paths = find_images([arguments.folder])
    model, tokenizer = open_model(arguments)
    skipped = []
    kept, vectors = embed(model, paths, skipped)
    if is_image:
        query = embed(model, [Path(arguments.query)], [])[1]
    else:
        tell_unread(model, tokenizer, [arguments.query])
        query = embed_texts(model, tokenizer, [arguments.query])
    found, cosines = nearest(query, vectors, min(arguments.k, len(kept)))
    rows = [
        {"file": str(kept[i]), "cosine": round(float(c), 4)}
        for i, c in zip(found[0], cosines[0], strict=True)
    ]
    if arguments.sheet:
        labels = [f"{row['cosine']:.3f} {Path(row['file']).name}" for row in rows]
        sheet = contact_sheet([decode(row["file"]) for row in rows], labels)
        sheet.save(arguments.sheet)
    show(arguments, rows, lambda row: f"{row['cosine']:.3f}  {row['file']}", skipped)
