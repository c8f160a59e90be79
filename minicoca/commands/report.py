"""`minicoca report`: all that there is to see of a run, or of two, in one file for a browser."""

import json
from pathlib import Path

from ..files import read_bytes, write_output
from ..training import checkpoint
from ..training.checkpoint import LOG, RESULTS, RUNS, TRAINED, find_run
from .evaluate import NUMBERS, shares_of
from .flags import Usage
from .model import add_computing, note
from .plot import PANELS, flat
from .results import check_output

HELP = "write a run's report, or that of two side by side: one HTML file, for any browser"
LIMIT = 1000


def add_flags(parser):
    text = f"one run or two: folders, or names in {RUNS}/; unfinished ones too"
    parser.add_argument("runs", nargs="+", metavar="run", help=text)
    parser.add_argument(
        "--out", type=Path, help="file to write (default: report.html in the run; of two, here)"
    )
    parser.add_argument(
        "--limit", type=int, default=LIMIT,
        help=f"look at the first so many images, or questions, of a split only (default {LIMIT:,})",
    )  # fmt: skip
    add_computing(parser)


def run(arguments):
    from ..pages.report import report
    from ..pages.tables import Names

    if len(arguments.runs) > 2:
        raise Usage(f"{len(arguments.runs)} runs: one, or two to be compared")
    if arguments.limit < 1:
        raise Usage(f"--limit {arguments.limit}: at least 1")
    folders = [find_run(name) for name in arguments.runs]
    out = arguments.out or default(folders)
    check_output("--out", out)
    told = [told_of(folder, arguments) for folder in folders]
    splits = [own for one in told for own in one.results.values() if isinstance(own, dict)]
    names = dict.fromkeys(name for own in splits for name in own)
    made = report(told, PANELS, Names(shares_of(names), NUMBERS))
    write_output(out, made)
    left_out = [f"{one.name}: {line}" for one in told for line in one.notes]
    if arguments.json:
        print(json.dumps({"file": str(out), "bytes": len(made), "notes": left_out}))
    else:
        print("\n".join([*left_out, f"{out}: {len(made) / 1e6:.2f} MB; open it in a browser"]))


def default(folders):
    """Where the report of these runs goes if nobody says."""
    if len(folders) == 1 and folders[0].parent != TRAINED:
        return folders[0] / "report.html"
    return Path("-".join([*(folder.resolve().name for folder in folders), "report.html"]))


def told_of(folder, arguments):
    """What is to be told of a run; whatever is not there, or cannot be used, is a note."""
    from ..pages.report import Told
    from ..training.log import Log

    config, results, records, notes = checkpoint.read_config(folder), {}, [], []
    if (folder / RESULTS).is_file():
        results = checkpoint.read_results(folder)
    else:
        notes.append(f"no figures: there is no {RESULTS}, for the run has not come to its end")
    if (folder / LOG).is_file():
        lines = read_bytes(folder / LOG).splitlines()
        records = Log.records(lines)
        if lost := len(lines) - len(records):
            notes.append(f"{lost:,} damaged lines of {LOG} are left out")
    if not any("learning_rate" in record for record in records):
        notes.append(f"no curves: there is no {LOG} with steps")
    looks = looks_of(folder, config, arguments, notes)
    name = folder.name if folder.parent == TRAINED else str(folder)
    return Told(name, config.to_dict(), results, [*map(flat, records)], looks, notes)


def looks_of(folder, config, arguments, notes):
    """{split: Looks} of what the run holds out; says in `notes` what there is none of."""
    from .. import data
    from ..mistakes import look
    from ..training.run import GALLERY, brief

    try:
        dataset = data.load(config)
        splits = dataset.evaluations or {"validation": dataset.validation}
        splits = {name: pairs for name, pairs in splits.items() if pairs is not None and len(pairs)}
        model, tokenizer = checkpoint.load_model(
            folder, arguments.backend, arguments.device, notes.append
        )
    except (ValueError, OSError, ImportError) as error:
        notes.append(f"no pictures, mistakes and word maps: {brief(error)}")
        return {}
    if not splits:
        notes.append("no pictures, mistakes and word maps: nothing is held out of the data")
    found = {}
    for name, pairs in splits.items():
        what = "images" if config.task == "captions" else "questions"
        note(f"{folder}: {name}, {min(len(pairs), arguments.limit):,} of {len(pairs):,} {what}")
        try:
            found[name] = look(
                model, tokenizer, pairs, GALLERY.get(config.data, 0), arguments.limit
            )
        except (ValueError, OSError) as error:  # images that could be opened, but not decoded
            notes.append(f"{name} is left out: {brief(error)}")
    return found
