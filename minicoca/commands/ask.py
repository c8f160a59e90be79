"""`minicoca ask`: a question about pictures, answered."""

from .flags import Usage, check_text
from .model import add_fit, add_images, fitting_of, images_of, note, open_model
from .model import add_flags as add_model_flags
from .results import Results

HELP = "answer a question about each image, with a run of train --task questions"


def add_flags(parser):
    add_images(parser)
    parser.add_argument("question", help='such as "what colour is the star"')
    add_model_flags(parser)
    parser.add_argument(
        "--by",
        choices=("head", "generation"),
        help="choose among the answers of training, or write one (default: head, if there is one)",
    )
    parser.add_argument("--best", type=int, help="show so many answers with their probabilities")
    add_fit(parser)


def run(arguments):
    from ..tasks import unread
    from ..tasks.files import BATCH, decoded
    from ..tasks.questions import answer, for_each, settled

    check_text("the question", arguments.question)
    fitting, paths = fitting_of(arguments), images_of(arguments.images)
    model, tokenizer = open_model(arguments)
    size, several = model.config.image_size, model.config.pictures
    try:
        by = settled(model, arguments.by, arguments.best)
        (text,) = {*for_each(model.config, len(paths), [arguments.question])}
    except ValueError as error:
        raise Usage(error) from error
    for line in unread(model, tokenizer, [text]):
        note(line)
    width = max(len(name_of(paths[i : i + several])) for i in range(0, len(paths), several))

    def line(row):
        if "best" not in row:
            return f"{row['file']:{width}}  {row['answer']}"
        found = row["best"]
        return "\n".join(
            f"{row['file']:{width}}  {own['probability']:7.2%}  {own['answer']}" for own in found
        )

    with Results(arguments, len(paths), line) as results:
        skipped = results.skipped if several == 1 else None  # of a pair both are needed
        for i in range(0, len(paths), BATCH):
            for kept, images in decoded(paths[i : i + BATCH], size, skipped, fitting):
                texts = [text] * (len(kept) // several)
                found = answer(model, tokenizer, images, texts, by, arguments.best or 1)
                names = [name_of(kept[j : j + several]) for j in range(0, len(kept), several)]
                rows = [
                    {"file": name, "question": text, "by": by} | row_of(own, arguments.best)
                    for name, own in zip(names, found, strict=True)
                ]
                results.show(rows, len(kept))


def name_of(paths):
    return " ".join(map(str, paths))


def row_of(found, several):
    """What is told of one question: its answer, or its answers, with their probabilities."""
    rows = [one._asdict() for one in found]
    return rows[0] | ({"best": rows} if several else {})
