"""`minicoca classify`: which of the labels fits each image."""

import io
import json
from pathlib import Path

from ..tasks.zero_shot import BY, RULES
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
    labels.add_argument(
        "--descriptions", type=Path, help='JSON: {"label": ["a sentence that holds of it", ...]}'
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--template", action="append", help='a prompt with {} for the label (default "{}")'
    )
    prompts.add_argument("--templates-file", type=Path, help="... one a line of this file")
    parser.add_argument(
        "--by",
        choices=BY,
        default="cosine",
        help="what judges: vectors, log p(text | image) per token, less log p(text), or both heads",
    )
    parser.add_argument(
        "--rule",
        choices=RULES,
        help="of several prompts the best counts, their mean (usual for descriptions), or CLIP's "
        "ensemble: the mean of their vectors",
    )


def run(arguments):
    from ..tasks.indexed import open_index
    from ..tasks.zero_shot import check_labels, classified, classifier

    labels, prompts = labels_of(arguments)
    if arguments.index and arguments.by != "cosine":
        raise Usage(f"--by {arguments.by}: an index holds no more than vectors; give the images")
    rule = arguments.rule or ("mean" if arguments.descriptions else "best")
    fitting = fitting_of(arguments)
    if arguments.index and arguments.images[1:]:
        raise Usage(f"--index is instead of images: leave out {arguments.images[1]}")
    paths = [] if arguments.index else images_of(arguments.images)
    model, tokenizer = open_model(arguments)
    index = open_index(model, arguments.index, arguments.fit) if arguments.index else None
    tell_unread(model, tokenizer, [text for group in prompts for text in group])
    try:
        check_labels(model, tokenizer, labels, prompts, shared=bool(arguments.descriptions))
        classify = classifier(model, tokenizer, labels, prompts, arguments.by, rule)
    except ValueError as error:
        raise Usage(error) from error
    width = index.longest if index is not None else max(len(str(path)) for path in paths)

    def line(row):
        said = f"{row['file']:{width}}  {row['label']}  ({how_sure(row, arguments.by)})"
        return "\n".join([said, *(f"  {x:7.3f}  {t}" for t, x in row.get("evidence", {}).items())])

    with Results(arguments, len(paths) if index is None else len(index), line) as results:
        if index is None:
            every = classified(model, classify, paths, arguments.by, results.skipped, fitting)
        else:
            every = ((names, classify(vectors)) for names, vectors in index.batches(ROWS))
        for kept, found in every:
            pairs = zip(kept, found, strict=True)
            results.add([row_of(path, one, arguments.descriptions) for path, one in pairs])


def labels_of(arguments):
    """(labels, the prompts of each). Raises Usage."""
    from ..tasks.zero_shot import fill_templates

    if arguments.descriptions:
        if arguments.template or arguments.templates_file:
            raise Usage("--descriptions are read as they stand: leave out templates")
        found = read_descriptions(arguments.descriptions)
        return list(found), [tuple(sentences) for sentences in found.values()]
    labels = arguments.labels or read_lines(arguments.labels_file)
    check_text("--labels", *labels)
    templates = arguments.template or ["{}"]
    if arguments.templates_file:
        templates = read_lines(arguments.templates_file)
    check_text("--template", *templates)
    try:
        return labels, fill_templates(labels, templates)
    except ValueError as error:
        raise Usage(error) from error


def row_of(path, found, with_evidence):
    """What is said of one image."""
    row = {
        "file": str(path),
        "label": found.label,
        "probability": None if found.probability is None else round(found.probability, 4),
        "scores": {name: round(score, 4) for name, score in found.scores.items()},
    }
    if with_evidence:
        row["evidence"] = {text: round(score, 4) for text, score in found.evidence.items()}
    return row


def how_sure(row, by):
    """The probability, or of one label alone its score."""
    if row["probability"] is None:
        return f"{by} {row['scores'][row['label']]:.3f}"
    return f"{row['probability']:.0%}"


def read_text(path):
    """Raises ValueError, naming the file, where it cannot be read: Usage where what it holds is no
    text."""
    from ..images import open_file, read

    with open_file(path) as file:
        content = read(file, path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Usage(f"{path} is not UTF-8 (byte {error.start}); convert it") from error


def read_lines(path):
    """The lines of a file. Raises as `read_text`."""
    lines = io.StringIO(read_text(path), newline=None).read().split("\n")
    return lines[:-1] if len(lines) > 1 and not lines[-1] else lines


def read_descriptions(path):
    """{label: [sentences]} of a JSON file. Raises as `read_text`, and Usage for what is none."""
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise Usage(f"{path} is no JSON: {error}") from error
    lists = isinstance(found, dict) and all(isinstance(own, list) for own in found.values())
    if not found or not lists or not all(isinstance(x, str) for own in found.values() for x in own):
        raise Usage(f'{path} is not of the form {{"label": ["a sentence", ...], ...}}')
    check_text(str(path), *found, *(text for own in found.values() for text in own))
    return found
