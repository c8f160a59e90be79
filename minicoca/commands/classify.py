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
    videos_of,
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
    labels.add_argument("--probe", type=Path, help="... those of a probe: a file of probe --save")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--template", action="append", help='a prompt with {} for the label (default "{}")'
    )
    prompts.add_argument("--templates-file", type=Path, help="... one a line of this file")
    parser.add_argument(
        "--by",
        choices=BY,
        help="what judges: vectors (cosine, the default), log p(text | image) per token, less "
        "log p(text), or both heads",
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

    if arguments.probe:
        by_probe(arguments)
        return
    arguments.by = arguments.by or "cosine"
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

    def every(skipped):
        if index is None:
            return classified(model, classify, paths, arguments.by, skipped, fitting)
        return ((names, classify(vectors)) for names, vectors in index.batches(ROWS))

    show(arguments, paths, index, every)


def by_probe(arguments):
    """By a probe of `minicoca probe`, of pictures or, where it learned from them, of videos."""
    from ..tasks.files import decoded
    from ..tasks.indexed import open_index
    from ..tasks.probe import features, load_probe
    from ..tasks.videos import watched

    words = {"--template": arguments.template, "--templates-file": arguments.templates_file}
    words |= {"--by": arguments.by, "--rule": arguments.rule}
    if given := [flag for flag, value in words.items() if value]:
        raise Usage(f"{given[0]} is of classes in words: leave it out with --probe")
    fitting = fitting_of(arguments)
    model, _ = open_model(arguments)
    probe = load_probe(arguments.probe, model)
    if arguments.index and (probe.reads_tokens or probe.frames > 1):
        kind = "videos" if probe.frames > 1 else "image tokens"
        raise Usage(f"{arguments.probe} reads {kind}, and an index holds vectors of pictures alone")
    index = open_index(model, arguments.index, arguments.fit) if arguments.index else None
    find = videos_of if probe.frames > 1 else images_of
    paths = [] if index is not None else find(arguments.images)
    side, device = model.config.image_size, model.config.device

    def every(skipped):
        if index is not None:
            for names, vectors in index.batches(ROWS):
                yield names, probe.classify(vectors, None, device)
            return
        if probe.frames > 1:
            batches = watched(paths, side, probe.frames, skipped, fitting)
        else:
            batches = decoded(paths, side, skipped, fitting)
        for kept, images in batches:
            yield kept, probe.classify(*features(model, images, probe.reads_tokens), device)

    show(arguments, paths, index, every)


def show(arguments, paths, index, every):
    """Rows as they come. every: gives (files, their Classifications), and takes a list for what is
    skipped."""
    width = index.longest if index is not None else max(len(str(path)) for path in paths)

    def line(row):
        said = f"{row['file']:{width}}  {row['label']}  ({how_sure(row, arguments.by)})"
        return "\n".join([said, *(f"  {x:7.3f}  {t}" for t, x in row.get("evidence", {}).items())])

    with Results(arguments, len(paths) if index is None else len(index), line) as results:
        for kept, found in every(results.skipped):
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
