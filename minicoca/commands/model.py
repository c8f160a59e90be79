"""What the commands share that use a trained model: which one, and on what."""

import sys
from pathlib import Path

from ..bounds import MAX_PIXELS
from ..squares import FITS
from ..training.checkpoint import (
    CHECKPOINT,
    RUNS,
    SHIPPED,
    WEIGHTS,
    find_run,
    load_model,
    to_run,
)
from .flags import Usage

MOST_PIXELS = 178_956_970  # of which Pillow opens no more
MOST_NAMED = 20  # of each kind of file that is left alone


def add_flags(parser):
    """Which model, computed how, shown how."""
    parser.add_argument(
        "--run",
        type=Path,
        help=f"a trained run, {' or '.join(SHIPPED)} (default: the newest in {RUNS}/)",
    )
    add_computing(parser)


def add_computing(parser):
    """What computes, and how it is told."""
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "triton", "numpy"))
    parser.add_argument("--device", default="auto", help="torch device (default auto)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_index(parser, instead_of):
    """An index in place of pictures, which are the first words else."""
    parser.index_is_first = True
    text = f"folder that embed --index made, instead of {instead_of}"
    parser.add_argument("--index", type=Path, help=text)


def add_fit(parser):
    """How pictures become squares."""
    text = "keep the middle of a wide picture, or all of it: beside black, or squashed"
    parser.add_argument("--fit", choices=FITS, help=f"{text} (default crop, or the index's)")
    text = "the most that are decoded; a JPEG of more is decoded smaller, others are refused"
    parser.add_argument("--max-pixels", type=int, help=f"{text} (default {MAX_PIXELS:,})")


def fitting_of(arguments):
    """The Fitting that the flags ask for. Raises Usage."""
    from ..tasks.files import Fitting

    most = arguments.max_pixels
    if most is not None and not 1 <= most <= MOST_PIXELS:
        raise Usage(f"--max-pixels {most} is not from 1 to {MOST_PIXELS:,}")
    return Fitting(arguments.fit or FITS[0], most, note)


def add_video(parser):
    """Whether pictures are videos."""
    text = "GIFs, folders of frames and .npz: each by the mean of 16 frames' vectors"
    parser.add_argument("--video", action="store_true", help=text)


def add_images(parser):
    """Which pictures."""
    parser.add_argument("images", nargs="+", help="image files or folders of them")


def open_model(arguments):
    """(CoCa, Tokenizer) of --run, of the newest trained run, or of a model that comes with us; the
    folder is `arguments.run` from then on."""
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
    arguments.run = folder
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
    from ..tasks.files import find_images

    return found_by(find_images, paths)


def videos_of(paths):
    """The videos among `paths`: files, and folders of frames; what is left alone is said."""
    from ..data.video import find_videos

    return found_by(find_videos, paths)


def found_by(find, paths):
    from ..data.files import Report

    report = Report()
    found = find(paths, report)
    if report.named:
        print(report.whole(MOST_NAMED), file=sys.stderr)
    return found
