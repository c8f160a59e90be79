"""`minicoca caption`: a caption for each image."""

import inspect
import json
from itertools import groupby

from .flags import Usage, check_text
from .kept import Kept
from .kept import add_flags as add_kept_flags
from .model import add_fit, add_images, fitting_of, images_of, open_model
from .model import add_flags as add_model_flags
from .results import Results, tell

HELP = "write a caption for each image"


def add_flags(parser):
    add_images(parser)
    add_model_flags(parser)
    add_kept_flags(parser)
    add_fit(parser)
    add_decoding(parser)
    parser.add_argument(
        "--rerank", action="store_true", help="of --best the nearest to the image first, by vectors"
    )


def add_decoding(parser):
    """How captions are written."""
    parser.add_argument("--prompt", default="", help="how every caption begins")
    parser.add_argument("--beams", type=int, default=0, help="beam search with so many beams")
    parser.add_argument("--temperature", type=float, help="sample; without it the likeliest token")
    parser.add_argument("--top-k", type=int, help="... from the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="... from this much probability")
    parser.add_argument("--seed", type=int, help="... with this seed")
    parser.add_argument("--min-length", type=int, default=0, help="tokens written at least")
    parser.add_argument("--max-length", type=int, default=0, help="... and at most")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="over 1: a token again is less likely"
    )
    parser.add_argument(
        "--no-repeat-ngram", type=int, default=0, help="no so many tokens in a row stand twice"
    )
    parser.add_argument("--best", type=int, help="show so many captions, with scores (by beams)")
    parser.add_argument(
        "--length-penalty", type=float, help="beams: power of the length in a score (default 1)"
    )
    parser.add_argument("--beam-groups", type=int, help="beams: in so many groups that differ")
    parser.add_argument("--diversity", type=float, help="... and how much (default 0.5)")


def run(arguments):
    from ..tasks.captioning import captions
    from ..tasks.files import decoded

    how, fitting = decoding_of(arguments), fitting_of(arguments)
    check_text("--prompt", arguments.prompt)
    outputs = Kept(arguments)
    paths = outputs.left(images_of(arguments.images))
    if paths:
        model, tokenizer = open_model(arguments)
    elif outputs.blocked:
        tell("none of these is to be captioned:", *outputs.blocked)
        raise ValueError("no caption could be kept")
    width = max((len(str(path)) for path in paths), default=0)

    def line(row):
        if outputs.printed:
            return json.dumps(row)

        def one(found):
            scores = [f"{found[key]:7.3f}" for key in ("score", "cosine") if key in found]
            return "  ".join([f"{row['file']:{width}}", *scores, found["caption"]])

        return "\n".join(map(one, row.get("best", [row])))

    with outputs, Results(arguments, len(paths) + len(outputs.blocked), line) as results:
        results.skipped += outputs.blocked
        for done, some in groupby(paths, outputs.before.get if "seed" in how else lambda path: 0):
            batches = decoded(list(some), model.config.image_size, results.skipped, fitting)
            how |= {"first": done + results.reached} if "seed" in how else {}
            for kept, texts in captions(model, tokenizer, batches, arguments.prompt, **how):
                pairs = zip(kept, texts, strict=True)
                rows = [{"file": str(path)} | row_of(text, "best" in how) for path, text in pairs]
                outputs.keep(rows)
                results.add(rows)


def row_of(found, several=False):
    """What is told of one image: its caption, or its candidates, with what they score."""
    if isinstance(found, str):
        return {"caption": found}
    rows = [{k: v for k, v in one._asdict().items() if v is not None} for one in found]
    return rows[0] | ({"best": rows} if several else {})


def decoding_of(arguments):
    """How to write captions, from the flags. Raises Usage."""
    from ..tasks.captioning import decoding

    names = inspect.signature(decoding).parameters.keys() - {"spelt"}
    given = {name: getattr(arguments, name) for name in names if name in arguments}
    try:
        return decoding(**given, spelt=lambda name: "--" + name.replace("_", "-"))
    except ValueError as error:
        raise Usage(error) from error
