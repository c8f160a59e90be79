"""`minicoca classify`: which of the labels fits each image."""

from .flags import Usage
from .model import add_flags as add_model_flags
from .model import add_images, open_model, show, tell_unknown

HELP = "say which of your labels fits each image"


def add_flags(parser):
    add_images(parser)
    add_model_flags(parser)
    parser.add_argument("--labels", nargs="+", required=True, help="the classes, in words")
    parser.add_argument(
        "--template", action="append", help='a prompt with {} for the label (default "{}")'
    )


def run(arguments):
    from ..tasks.files import embed, find_images
    from ..tasks.zero_shot import class_scores, fill_templates, probabilities

    try:
        prompts = fill_templates(arguments.labels, arguments.template or ["{}"])
    except ValueError as error:
        raise Usage(error) from error
    paths = find_images(arguments.images)
    model, tokenizer = open_model(arguments)
    tell_unknown(tokenizer, [text for group in prompts for text in group])
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
                "label": arguments.labels[best],
                "probability": round(float(chances[best]), 4),
                "scores": dict(zip(arguments.labels, map(float, cosines.round(4)), strict=True)),
            }
        )
    width = max(len(row["file"]) for row in rows)
    show(
        arguments,
        rows,
        lambda row: f"{row['file']:{width}}  {row['label']}  ({row['probability']:.0%})",
        skipped,
    )
