"""`minicoca explain`: why a caption says what it says, word by word, and where each word looked."""

import json
import warnings
from pathlib import Path

import numpy as np

from .flags import Usage, check_text
from .model import add_fit, fitting_of, open_model, tell_unread
from .model import add_flags as add_model_flags
from .results import check_picture, save_figure

HELP = "show for each word of a caption its probability, its rivals, and where it looked"
COLUMNS = 6
LEAST = 1e-3  # of a rival's probability, to be shown
FAINT = 0.1  # of log P: what falls by less is not shown in full colour
HEAT, COOL = (0.85, 0.1, 0.1), (0.1, 0.3, 0.85)  # more likely for having seen it, and less


def add_flags(parser):
    parser.add_argument("image", help="an image file")
    parser.add_argument("--caption", help="a caption of yours; the model's own if not given")
    parser.add_argument(
        "--out", type=Path, help="a new picture to write, of where each word looked"
    )
    parser.add_argument("--layer", type=int, help="whose attention, from 0 (default: mean of all)")
    parser.add_argument("--head", type=int, help="... and of which head (default: mean of all)")
    add_model_flags(parser)
    add_fit(parser)


def run(arguments):
    from ..tasks.captioning import caption
    from ..tasks.explain import explain
    from ..tasks.files import decoded

    if arguments.out:
        check_picture("--out", arguments.out)
    check_text("--caption", *([arguments.caption] if arguments.caption is not None else []))
    fitting = fitting_of(arguments)
    model, tokenizer = open_model(arguments)
    _, (image,) = next(decoded([arguments.image], model.config.image_size, None, fitting))
    text = arguments.caption
    if text is None:
        text = caption(model, tokenizer, image[None])[0]
    else:
        tell_unread(model, tokenizer, [text])
    try:
        found = explain(model, tokenizer, image, text, arguments.layer, arguments.head)
    except ValueError as error:
        raise Usage(error) from error
    if arguments.out:
        save(arguments.out, image, found)
    print(json.dumps(document(arguments.image, found)) if arguments.json else table(found))


def document(file, found):
    """What is told, for programs."""

    def grid(values):
        return None if values is None else np.round(values, 5).tolist()

    words = [
        word._asdict()
        | {"attention": grid(word.attention), "occlusion": grid(word.occlusion)}
        | {"rivals": [{"text": text, "probability": p} for text, p in word.rivals]}
        for word in found.words
    ]
    return {
        "file": file, "caption": found.caption, "words": words, "contrast": grid(found.contrast)
    }  # fmt: skip


def table(found):
    """A line a word: its probability, its rivals, the patch that it read most, and the one that it
    would miss most."""
    names = [word.text or "(end)" for word in found.words]
    width = max(map(len, [*names, "word"]))
    lines = [f"{'word':{width}}  probability  {'read most':21}  {'would miss most':22}  rivals"]
    for name, word in zip(names, found.words, strict=True):
        read, missed = word.attention, word.occlusion
        most = f"{place(read)} {read.max():7.1%}"
        least = f"{place(missed)} {missed.max():8.3f}"
        likely = [(text or "(end)", p) for text, p in word.rivals if p >= LEAST]
        others = ", ".join(f"{text} {p:.2%}" for text, p in likely) or "-"
        lines.append(f"{name:{width}}  {word.probability:>11.2%}  {most:21}  {least:22}  {others}")
    rows, columns = found.words[0].attention.shape
    lines.append(f"(of {rows} x {columns} patches; missed: by how much log P falls without it)")
    return "\n".join(lines)


def place(grid):
    row, column = np.unravel_index(grid.argmax(), grid.shape)
    return f"row {row + 1}, col {column + 1}"


def save(path, image, found):
    """Two pictures a word: what it read, and what it would miss."""
    from matplotlib.figure import Figure

    cells = [(word.text or "(end)", word) for word in found.words]
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(2.1 * columns + 2.4, 4.6 * rows + 0.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2.4, 2.1 * columns])
    own, axes = left.subplots(2 * rows), right.subplots(2 * rows, columns, squeeze=False)
    for axis in [*own, *axes.flat]:
        axis.set_axis_off()
    show(own[0], image, None, "the picture")
    if found.contrast is not None:
        show(own[1], image, found.contrast, "read for its vector")
    for i, (name, word) in enumerate(cells):
        row, column = divmod(i, columns)
        others = [f"{text or '(end)'} {p:.1%}" for text, p in word.rivals[:1] if p >= LEAST]
        title = "\n".join([f"{name}  {word.probability:.1%}", *others, "read"])
        show(axes[2 * row, column], image, word.attention, title)
        title = f"would miss (at most {word.occlusion.max():.2f})"
        show(axes[2 * row + 1, column], image, word.occlusion, title, FAINT)
    with warnings.catch_warnings():  # matplotlib warns of every letter that its font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        save_figure(path, figure)


def show(axis, image, grid, title, full=1e-9):
    """The image, grey where there is a grid, whose largest value, or `full`, is full colour."""
    axis.set_title(title, fontsize=8, parse_math=False)
    side = len(image)
    if grid is None:
        axis.imshow(image, interpolation="nearest")
        return
    grey = np.repeat(image.mean(-1, keepdims=True) / 255, 3, -1)
    axis.imshow(0.35 + 0.65 * grey, interpolation="nearest", extent=(0, side, side, 0))
    strength = np.abs(grid) / max(np.abs(grid).max(), full)
    colours = np.where(grid[..., None] >= 0, HEAT, COOL)
    over = np.concatenate([colours, 0.75 * strength[..., None]], -1)
    axis.imshow(over, interpolation="nearest", extent=(0, side, side, 0))
