"""What the commands share that use a trained model: which one, and on what."""

import sys
from pathlib import Path

from ..training.checkpoint import CHECKPOINT, RUNS, WEIGHTS, load_model, to_run

MOST_NAMED = 20  # of each kind of file that is left alone


def add_flags(parser):
    """Which model, computed how, shown how."""
    parser.add_argument("--run", type=Path, help=f"a trained run (default: the newest in {RUNS}/)")
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "triton", "numpy"))
    parser.add_argument("--device", default="auto", help="torch device (default auto)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_index(parser, instead_of):
    """An index in place of pictures, which are the first words else."""
    parser.index_is_first = True
    text = f"folder that embed --index made, instead of {instead_of}"
    parser.add_argument("--index", type=Path, help=text)


def add_images(parser):
    """Which pictures."""
    parser.add_argument("images", nargs="+", help="image files or folders of them")


def open_model(arguments):
    """(CoCa, Tokenizer) of --run, or of the newest trained run."""
    folder = arguments.run
    if folder is None:
        folder = arguments.run = newest(Path(RUNS))
        note(f"the newest run, {folder} (--run names another)")
    return load_model(folder, arguments.backend, arguments.device, note)


def newest(runs):
    """The folder of the run that was finished last. Raises ValueError if there is none."""
    trained = [(path.stat().st_mtime, path) for path in runs.glob(f"*/{WEIGHTS}")]
    if trained:
        return max(trained)[1].parent
    if stopped := sorted(path.parent for path in runs.glob(f"*/{CHECKPOINT}")):
        raise ValueError(
            f"no trained run in {runs}/, but one that was stopped: use it with --run "
            f"{stopped[-1]}, or go on with: {to_run('train', '--resume', stopped[-1])}"
        )
    raise ValueError(f"no trained run in {runs}/; start with: minicoca train")


def note(line):
    print(f"minicoca: {line}", file=sys.stderr)


def tell_unread(model, tokenizer, texts):
    """Say what the model does not read of the texts: words that it never saw, ends that are cut."""
    from ..tasks import unread

    for line in unread(model, tokenizer, texts):
        note(line)


def images_of(paths):
    """The image files among `paths`; what is left alone in folders is said."""
    from ..data.files import Report
    from ..tasks.files import find_images

    report = Report()
    found = find_images(paths, report)
    if report.named:
        print(report.whole(MOST_NAMED), file=sys.stderr)
    return found
