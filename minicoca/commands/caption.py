"""`minicoca caption`: a caption for each image."""

from .flags import Usage, check_text
from .model import add_flags as add_model_flags
from .model import add_images, images_of, open_model
from .results import Results

HELP = "write a caption for each image"
MOST_BEAMS, MOST_TOP_K, MOST_SEED = 64, 10**6, 2**64 - 1


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
    from ..tasks.captioning import caption
    from ..tasks.files import decoded

    how = decoding(arguments)
    check_text("--prompt", arguments.prompt)
    paths = images_of(arguments.images)
    model, tokenizer = open_model(arguments)
    width = max(len(str(path)) for path in paths)

    def line(row):
        return f"{row['file']:{width}}  {row['caption']}"

    with Results(arguments, len(paths), line) as results:
        for kept, images in decoded(paths, model.config.image_size, results.skipped):
            if "seed" in how:  # every file draws from a stream of its own, whatever batch it is in
                how["first_stream"] = results.reached
            texts = caption(model, tokenizer, images, arguments.prompt, **how)
            pairs = zip(kept, texts, strict=True)
            results.add([{"file": str(path), "caption": text} for path, text in pairs])


def decoding(arguments):
    """How to write captions, from the flags. Raises Usage."""
    a = arguments
    if not 0 <= a.beams <= MOST_BEAMS:
        raise Usage(f"--beams {a.beams} is not from 0 to {MOST_BEAMS}")
    if a.temperature is None:
        if a.top_k is not None or a.top_p is not None or a.seed is not None:
            raise Usage("--top-k, --top-p and --seed are for sampling: give --temperature too")
        return {"beams": a.beams} if a.beams else {}
    if a.beams:
        raise Usage("--beams and --temperature exclude each other")
    if not 1e-3 <= a.temperature <= 1e3:
        raise Usage(f"--temperature {a.temperature} is not from 0.001 to 1000")
    how = {"top_k": a.top_k or 0, "top_p": 1.0 if a.top_p is None else a.top_p, "seed": a.seed or 0}
    if not 0 < how["top_p"] <= 1:
        raise Usage(f"--top-p {a.top_p} is not over 0 and at most 1")
    for name, most in (("top_k", MOST_TOP_K), ("seed", MOST_SEED)):
        if not 0 <= how[name] <= most:
            raise Usage(f"--{name.replace('_', '-')} {how[name]} is not from 0 to {most:,}")
    return how | {"temperature": a.temperature}
