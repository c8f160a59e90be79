"""What the commands share that use a trained model: which one, and on what."""

import sys
from pathlib import Path

from ..training.checkpoint import (
    CHECKPOINT,
    RUNS,
    SHIPPED,
    WEIGHTS,
    find_run,
    load_model,
    to_run,
)

MOST_NAMED = 20  # of each kind of file that is left alone


def add_flags(parser):
    """Which model, computed how, shown how."""
    parser.add_argument(
        "--run",
        type=Path,
        help=f"a trained run, {' or '.join(SHIPPED)} (default: the newest in {RUNS}/)",
    )
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "triton", "numpy"))
    parser.add_argument("--device", default="auto", help="torch device (default auto)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_images(parser):
    """Which pictures."""
    parser.add_argument("images", nargs="+", help="image files or folders of them")


def open_model(arguments):
    """(CoCa, Tokenizer) of --run, of the newest trained run, or of a model that comes with us."""
    if arguments.run is not None:
        folder = find_run(arguments.run)
    elif folder := newest(Path(RUNS)):
        note(f"the newest run, {folder} (--run names another)")
    else:
        folder = find_run(SHIPPED[0])
        note(
            f"the model {folder.name!r} that comes with minicoca, as {RUNS}/ holds no run of yours "
            f"(--run names another, as --run {SHIPPED[1]}; minicoca train makes one)"
        )
    return load_model(folder, arguments.backend, arguments.device, note)


def newest(runs):
    """The folder of the run that was finished last; None where none was ever begun. Raises
    ValueError where all were stopped."""
    trained = [(path.stat().st_mtime, path) for path in runs.glob(f"*/{WEIGHTS}")]
    if trained:
        return max(trained)[1].parent
    if stopped := sorted(path.parent for path in runs.glob(f"*/{CHECKPOINT}")):
        raise ValueError(
            f"no trained run in {runs}/, but one that was stopped: use it with --run "
            f"{stopped[-1]}, or go on with: {to_run('train', '--resume', stopped[-1])}"
        )
    return None


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
