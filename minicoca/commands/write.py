"""`minicoca write`: captions of no picture, by a language model of captions."""

from .caption import add_decoding, decoding_of, row_of
from .flags import Usage, check_text
from .model import add_flags as add_model_flags
from .model import open_model
from .results import Results

HELP = "write captions of no picture, by a run of --objective gpt"
MOST = 100_000


def add_flags(parser):
    parser.add_argument("--count", type=int, default=1, help="so many (default 1), sampled")
    add_model_flags(parser)
    add_decoding(parser)


def run(arguments):
    from ..tasks import BATCH
    from ..tasks.captioning import captions, no_images

    how, count = decoding_of(arguments), arguments.count
    check_text("--prompt", arguments.prompt)
    if not 1 <= count <= MOST:
        raise Usage(f"--count {count} is not from 1 to {MOST:,}")
    if count > 1 and "temperature" not in how:
        raise Usage(f"--count {count}: all would be the same; give --temperature, to sample")
    model, tokenizer = open_model(arguments)
    sizes = [min(BATCH, count - done) for done in range(0, count, BATCH)]
    batches = ((None, no_images(size)) for size in sizes)

    def line(row):
        scored = (f"{one['score']:7.3f}  {one['caption']}" for one in row.get("best", ()))
        return "\n".join(scored) or row["caption"]

    with Results(arguments, count, line) as results:
        for _, texts in captions(model, tokenizer, batches, arguments.prompt, **how):
            results.add([row_of(text, "best" in how) for text in texts])
