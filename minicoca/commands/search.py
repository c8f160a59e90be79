"""`minicoca search`: images found by a sentence, or by an image."""

import stat
from pathlib import Path

from ..tasks.matching import RERANKED
from .flags import Usage, check_text
from .model import (
    add_fit,
    add_index,
    add_video,
    fitting_of,
    images_of,
    note,
    open_model,
    tell_unread,
    videos_of,
)
from .model import add_flags as add_model_flags
from .results import Results, check_picture, save_picture

HELP = "find images by a sentence, or by an image"
RANKED = ("likelihood", "log_odds")  # what images are ranked again by
MOST_DRAWN = 600  # more make a picture that few programs open


def add_flags(parser):
    parser.add_argument("folder", help="where to look; not with --index")
    parser.add_argument("query", help="an image file, if there is one of this name; or a sentence")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--text", action="store_true", help="the query is a sentence, file or not")
    kind.add_argument("--image", action="store_true", help="the query is an image file")
    add_model_flags(parser)
    add_index(parser, "a folder")
    add_fit(parser)
    add_video(parser)
    parser.add_argument("-k", type=int, default=6, help="how many to show (default 6)")
    parser.add_argument(
        "--rerank",
        type=int,
        nargs="?",
        const=RERANKED,
        metavar="N",
        help=f"of the N nearest to a sentence (default {RERANKED}) those first that belong to it, "
        "by a run's head that matches, or else those of which it is the likeliest caption",
    )
    parser.add_argument("--sheet", type=Path, help="a new picture to write, of what was found")


def run(arguments):
    from ..tasks.files import embed
    from ..tasks.indexed import open_index, search
    from ..tasks.retrieval import best
    from ..tasks.scoring import demand_ranking, reranked
    from ..tasks.videos import embed_videos

    if arguments.video and (arguments.index or arguments.rerank or arguments.sheet):
        raise Usage("--video: leave out --index, --rerank and --sheet, which are of pictures")
    if arguments.k < 1:
        raise Usage(f"-k {arguments.k}: at least 1")
    if arguments.rerank is not None and arguments.rerank < arguments.k:
        raise Usage(f"--rerank {arguments.rerank}: at least as many as -k {arguments.k} shows")
    if arguments.sheet:
        if arguments.k > MOST_DRAWN:
            raise Usage(f"-k {arguments.k}: --sheet has room for {MOST_DRAWN}")
        check_picture("--sheet", arguments.sheet)
    is_image, fitting = by_image(arguments), fitting_of(arguments)
    if is_image and arguments.rerank:
        raise Usage("--rerank is by the likelihood of a sentence: the query is an image")
    find, vectors = (videos_of, embed_videos) if arguments.video else (images_of, embed)
    paths = [] if arguments.index else find([arguments.folder])
    model, tokenizer = open_model(arguments)
    index = open_index(model, arguments.index, arguments.fit) if arguments.index else None
    fitting = fitting if index is None else fitting._replace(fit=index.fit)
    if arguments.rerank:
        demand_ranking(model)
    query = query_vector(model, tokenizer, arguments.query, is_image, fitting)
    parts = []

    def line(row):
        scores = [f"{row[name]:.3f}" for name in (*RANKED, "cosine") if name in row]
        return "  ".join([*scores, row["file"]])

    with Results(arguments, len(paths) if index is None else len(index), line) as results:
        try:
            for part in vectors(model, paths, results.skipped, fitting):
                parts.append(part)
        finally:  # the best of what was looked at
            results.reached = sum(len(kept) for kept, _ in parts)
            many = arguments.rerank or arguments.k
            if index is None:
                found = best(query, parts, many)[0]
            else:
                results.reached, found = len(index), search(index, query, many)[0]
            if arguments.rerank:
                lost, how = [], "whether it belongs" if model.config.matches else "likelihood"
                note(f"the {len(found)} nearest are ranked again, by {how}")
                found = reranked(model, tokenizer, arguments.query, found, lost, fitting)
                for error in lost:
                    note(f"not ranked again: {error}")
            rows = [row_of(one) for one in found[: arguments.k]]
            results.show(rows)
            if rows and arguments.sheet:
                draw(arguments.sheet, rows)


def row_of(found):
    """What is said of one image."""
    scores = {name: getattr(found, name) for name in ("cosine", *RANKED)}
    scores = {name: round(x, 4) for name, x in scores.items() if x is not None}
    return {"file": str(found.image)} | scores


def by_image(arguments):
    """Is the query an image? Raises Usage where it can only be a mistake."""
    from ..images import IMAGE_SUFFIXES, ImageError, status

    named = Path(arguments.query).suffix.lower() in IMAGE_SUFFIXES
    if arguments.text:
        there = False
    else:
        try:
            there = stat.S_ISREG(status(arguments.query).st_mode)
            why = f"{arguments.query}: no file, but a folder, pipe or device"
        except ImageError as error:
            there, why = False, error
        if not there and (arguments.image or named):
            raise Usage(f"{why}; a sentence needs --text")
    if not there:
        check_text("the query", arguments.query)
    return there


def query_vector(model, tokenizer, query, is_image, fitting):
    """Unit vector [1, E]. Raises ValueError for an image that cannot be read."""
    from ..images import ImageError
    from ..tasks import embed_texts
    from ..tasks.files import embed

    if not is_image:
        tell_unread(model, tokenizer, [query])
        return embed_texts(model, tokenizer, [query])
    try:
        return next(embed(model, [query], None, fitting))[1]
    except ImageError as error:
        raise ValueError(f"{error}; if it is a sentence, give --text") from error


def draw(path, rows):
    from ..tasks.retrieval import contact_sheet

    labels = [f"{row['cosine']:.3f} {Path(row['file']).name}" for row in rows]
    save_picture(path, contact_sheet([look(row["file"]) for row in rows], labels))


def look(path):
    """A thumbnail; grey where the picture of an index cannot be read any more."""
    from PIL import Image

    from ..images import ImageError, ReadError
    from ..tasks.retrieval import thumbnail

    try:
        return thumbnail(path)
    except (ImageError, ReadError):
        return Image.new("RGB", (1, 1), "lightgrey")
