"""`minicoca classify`: which of the labels fits each image."""

from pathlib import Path

from .flags import Usage
from .model import add_flags as add_model_flags
from .model import add_images, open_model, show, tell_unread

HELP = "say which of your labels fits each image"


def add_flags(parser):
    add_images(parser)
    add_model_flags(parser)
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", nargs="+", help="the classes, in words")
    labels.add_argument("--labels-file", type=Path, help="... one a line of this file")
    parser.add_argument(
        "--template", action="append", help='a prompt with {} for the label (default "{}")'
    )


def run(arguments):
    from ..tasks.files import embed, find_images
    from ..tasks.zero_shot import check_labels, class_scores, fill_templates, probabilities

    labels = arguments.labels or read_labels(arguments.labels_file)
    try:
        prompts = fill_templates(labels, arguments.template or ["{}"])
    except ValueError as error:
        raise Usage(error) from error
    paths = find_images(arguments.images)
    model, tokenizer = open_model(arguments)
    try:
        check_labels(model, tokenizer, labels, prompts)
    except ValueError as error:
        raise Usage(error) from error
    tell_unread(model, tokenizer, [text for group in prompts for text in group])
    skipped = []
    kept, vectors = embed(model, paths, skipped)
    scores = class_scores(model, tokenizer, vectors, prompts)
    p = probabilities(scores, float(model.params["log_temperature"]))
    rows = []
    for path, cosines, chances in zip(kept, scores, p, strict=True):
        best = int(cosines.argmax())
        rows.append(
            {
                "file": str(path),
                "label": labels[best],
                # Of one label alone it would be 1 whatever the image shows.
                "probability": round(float(chances[best]), 4) if len(labels) > 1 else None,
                "scores": dict(zip(labels, map(float, cosines.round(4)), strict=True)),
            }
        )
    width = max(len(row["file"]) for row in rows)
    show(
        arguments,
        rows,
        lambda row: f"{row['file']:{width}}  {row['label']}  ({how_sure(row)})",
        skipped,
    )


def how_sure(row):
    """The probability, or of one label alone its cosine."""
    if row["probability"] is None:
        return f"cosine {row['scores'][row['label']]:.3f}"
    return f"{row['probability']:.0%}"


def read_labels(path):
    """The lines of a file. Raises ValueError, naming it, where it cannot be read as text."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it") from error
    return lines[:-1] if len(lines) > 1 and not lines[-1] else lines
