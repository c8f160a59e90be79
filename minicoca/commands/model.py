"""What the commands share that use a trained model: which one, and on what."""

import sys
from pathlib import Path

from ..training.checkpoint import RUNS, load_model

MOST_NAMED = 20  # of each kind of file that is left alone


def add_flags(parser):
    """Which model, computed how, shown how."""
    parser.add_argument("--run", type=Path, help=f"a trained run (default: the newest in {RUNS}/)")
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "triton", "numpy"))
    parser.add_argument("--device", default="auto", help="torch device (default auto)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_images(parser):
    """Which pictures."""
    parser.add_argument("images", nargs="+", help="image files or folders of them")


def open_model(arguments):
    """(CoCa, Tokenizer) of --run, or of the newest trained run."""
    folder = arguments.run
    if folder is None:
        trained = sorted(Path(RUNS).glob("*/model.safetensors"), key=lambda p: p.stat().st_mtime)
        if not trained:
            raise ValueError(f"no trained run in {RUNS}/; start with: minicoca train")
        folder = trained[-1].parent
    return load_model(folder, arguments.backend, arguments.device)


def tell_unread(model, tokenizer, texts):
    """Say what the model does not read of the texts: words that it never saw, ends that are cut."""
    from ..tasks import unread

    for line in unread(model, tokenizer, texts):
        print(f"minicoca: {line}", file=sys.stderr)


def images_of(paths):
    """The image files among `paths`; what is left alone in folders is said."""
    from ..data.files import Report
    from ..tasks.files import find_images

    report = Report()
    found = find_images(paths, report)
    if report.named:
        print(report.whole(MOST_NAMED), file=sys.stderr)
    return found
