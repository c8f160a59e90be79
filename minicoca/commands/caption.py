"""`minicoca caption`: a caption for each image."""

from .flags import Usage, check_text
from .model import add_flags as add_model_flags
from .model import add_images, images_of, open_model
from .results import Results

HELP = "write a caption for each image"


def add_flags(parser):
    add_images(parser)
    add_model_flags(parser)
    parser.add_argument("--prompt", default="", help="how every caption begins")
    parser.add_argument("--beams", type=int, default=0, help="beam search with so many beams")
    parser.add_argument("--temperature", type=float, help="sample; without it the likeliest token")
    parser.add_argument("--top-k", type=int, help="... from the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="... from this much probability")
    parser.add_argument("--seed", type=int, help="... with this seed")


def run(arguments):
    from ..tasks.captioning import captions
    from ..tasks.files import decoded

    how = decoding_of(arguments)
    check_text("--prompt", arguments.prompt)
    paths = images_of(arguments.images)
    model, tokenizer = open_model(arguments)
    width = max(len(str(path)) for path in paths)

    def line(row):
        return f"{row['file']:{width}}  {row['caption']}"

    with Results(arguments, len(paths), line) as results:
        batches = decoded(paths, model.config.image_size, results.skipped)
        for kept, texts in captions(model, tokenizer, batches, arguments.prompt, **how):
            pairs = zip(kept, texts, strict=True)
            results.add([{"file": str(path), "caption": text} for path, text in pairs])


def decoding_of(arguments):
    """How to write captions, from the flags. Raises Usage."""
    from ..tasks.captioning import decoding

    names = ("beams", "temperature", "top_k", "top_p", "seed")
    given = {name: getattr(arguments, name) for name in names}
    try:
        return decoding(**given, spelt=lambda name: "--" + name.replace("_", "-"))
    except ValueError as error:
        raise Usage(error) from error
