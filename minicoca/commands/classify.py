"""`minicoca classify`: which of the labels fits each image."""

import io
from pathlib import Path

from .flags import Usage, check_text
from .model import (
    add_fit,
    add_images,
    add_index,
    fitting_of,
    images_of,
    open_model,
    tell_unread,
)
from .model import add_flags as add_model_flags
from .results import Results

ROWS = 1024  # of an index, classified at once
HELP = "say which of your labels fits each image"


def add_flags(parser):
    add_images(parser)
    add_model_flags(parser)
    add_index(parser, "images")
    add_fit(parser)
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", nargs="+", help="the classes, in words")
    labels.add_argument("--labels-file", type=Path, help="... one a line of this file")
    parser.add_argument(
        "--template", action="append", help='a prompt with {} for the label (default "{}")'
    )


def run(arguments):
    from ..tasks.files import embed
    from ..tasks.indexed import open_index
    from ..tasks.zero_shot import check_labels, classifier, fill_templates

    labels = arguments.labels or read_labels(arguments.labels_file)
    check_text("--labels", *labels)
    check_text("--template", *(arguments.template or ()))
    try:
        prompts = fill_templates(labels, arguments.template or ["{}"])
    except ValueError as error:
        raise Usage(error) from error
    fitting = fitting_of(arguments)
    if arguments.index and arguments.images[1:]:
        raise Usage(f"--index is instead of images: leave out {arguments.images[1]}")
    paths = [] if arguments.index else images_of(arguments.images)
    model, tokenizer = open_model(arguments)
    index = open_index(model, arguments.index, arguments.fit) if arguments.index else None
    try:
        check_labels(model, tokenizer, labels, prompts)
    except ValueError as error:
        raise Usage(error) from error
    tell_unread(model, tokenizer, [text for group in prompts for text in group])
    classify = classifier(model, tokenizer, labels, prompts)
    width = index.longest if index is not None else max(len(str(path)) for path in paths)

    def line(row):
        return f"{row['file']:{width}}  {row['label']}  ({how_sure(row)})"

    with Results(arguments, len(paths) if index is None else len(index), line) as results:
        every = (
            embed(model, paths, results.skipped, fitting) if index is None else index.batches(ROWS)
        )
        for kept, vectors in every:
            found = zip(kept, classify(vectors), strict=True)
            results.add([row_of(path, *classified) for path, classified in found])


def row_of(path, label, probability, cosines):
    """What is said of one image."""
    return {
        "file": str(path),
        "label": label,
        "probability": None if probability is None else round(probability, 4),
        "scores": {name: round(cosine, 4) for name, cosine in cosines.items()},
    }


def how_sure(row):
    """The probability, or of one label alone its cosine."""
    if row["probability"] is None:
        return f"cosine {row['scores'][row['label']]:.3f}"
    return f"{row['probability']:.0%}"


def read_labels(path):
    """The lines of a file. Raises ValueError, naming it, where it cannot be read: Usage where what
    it holds is no text."""
    from ..images import open_file, read

    with open_file(path) as file:
        content = read(file, path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Usage(f"{path} is not UTF-8 (byte {error.start}); convert it") from error
    lines = io.StringIO(text, newline=None).read().split("\n")
    return lines[:-1] if len(lines) > 1 and not lines[-1] else lines
