"""`minicoca family`: CoCa's relatives, their files, how each is trained, what its runs reached."""

import json
from pathlib import Path

from ..config import BUILT_IN
from ..family.members import FAMILY, LATER, SETTINGS, name_of
from ..family.rows import ROWS
from ..files import write_atomically
from ..training.checkpoint import CONFIG, RESULTS, RUNS, read_config, read_results
from .flags import Usage
from .results import check_output, tell

HELP = "CoCa's relatives: papers, files, commands, and figures of your runs; or a table of all"
SIDES = ("reference", "engine")
LISTS = (
    ("--seconds", "30,120", "training time of each row, on this machine"),
    ("--seeds", "0,1,2", "seeds of weights, data and order"),
)
OF_TABLE = ("seconds", "seeds", "data", "folder", "out")
FIGURES = {
    "caption_exact": "captions exactly right {:.1%}",
    "image_to_text_r1": "image to text R@1 {:.1%}",
    "zero_shot_top1": "zero-shot {:.1%}",
    "perplexity": "perplexity {:.2f}",
    "loss": "loss {:.3f}",
}


def add_flags(parser):
    parser.add_argument("--runs", type=Path, default=Path(RUNS), help=f"folder of runs ({RUNS})")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    table = parser.add_argument_group("a table of them, trained in the same time")
    table.add_argument(
        "--run", nargs="+", metavar="ROW", help=f"all, or some of {', '.join(ROWS)}; what is done "
        "already is not done again"
    )  # fmt: skip
    for flag, default, what in LISTS:
        text = f"{what}, with commas between (default {default})"
        table.add_argument(flag, metavar="N,N", help=text)
    table.add_argument("--data", choices=BUILT_IN, help="(default shapes)")
    table.add_argument("--folder", type=Path, help=f"where (default {RUNS}/family-DATA)")
    table.add_argument("--out", type=Path, help="a new file to write the table to")


def run(arguments):
    if arguments.run:
        return make_table(arguments)
    for name in OF_TABLE:
        if getattr(arguments, name) is not None:
            raise Usage(f"--{name} is of a table: --run all --{name} ...")
    found = newest(arguments.runs)
    members = [described(name, member, found.get(name)) for name, member in FAMILY.items()]
    settings = [
        described(of, member, found.get(name))
        | {"name": name, "command": f"minicoca train {flags}"}
        for name, (member, of, flags, _) in SETTINGS.items()
    ]
    later = [{"name": name} | vars(member) for name, member in LATER.items()]
    if arguments.json:
        print(json.dumps({"built": members, "settings": settings, "later": later}, indent=1))
        return
    for own in members + settings:
        print(f"{own['name']} ({own['year']}, {paper(own['paper'])}): {own['changes']}")
        print(f"  {' '.join(own['files'])}\n  {own['command']}")
        if own["run"]:
            print(f"  {own['run']}: {', '.join(own['figures']) or 'no figures'}")
    print("\nnot built yet:")
    for own in later:
        print(f"  {own['name']} ({own['year']}, {paper(own['paper'])}): {own['changes']}")


def make_table(arguments):
    """Train and measure the rows, and print what they reached."""
    from ..family.markdown import tables
    from ..family.table import Table

    rows = [*ROWS] if arguments.run == ["all"] else arguments.run
    if unknown := [name for name in rows if name not in ROWS]:
        raise Usage(f"--run {unknown[0]}: all, or some of {', '.join(ROWS)}")
    seconds, seeds = (
        numbers(flag, getattr(arguments, flag[2:]) or default) for flag, default, _ in LISTS
    )
    if min(seconds) < 1:
        raise Usage(f"--seconds {min(seconds)}: at least 1")
    of = arguments.data or "shapes"
    if arguments.out:
        check_output("--out", arguments.out)
    made = Table(arguments.folder or Path(RUNS) / f"family-{of}", of, rows, seconds, seeds, tell)
    found = made.run()
    text = "\n".join(tables(found, of, made.pace))
    if arguments.out:
        write_atomically(arguments.out, text.encode())
    raw = {"pace": made.pace, "rates": made.rates, "figures": found}
    print(json.dumps(raw) if arguments.json else text)


def numbers(flag, text):
    """The whole numbers of a list with commas. Raises Usage."""
    parts = text.split(",")
    if wrong := [part for part in parts if not part.strip().isdecimal()]:
        raise Usage(f"{flag} {text}: {wrong[0]!r} is no whole number")
    return [*dict.fromkeys(map(int, parts))]


def paper(text):
    """An arXiv number said to be one; or words."""
    return f"arXiv {text}" if text[0].isdigit() else text


def described(name, member, run):
    """A member as a dict; with its run, {split: figures} and their words, where one is given."""
    files = [f"minicoca/{side}/relatives/{name}.py" for side in SIDES]
    flags = "" if name == "coca" else f" --objective {name}"
    own = {"name": name, **vars(member), "files": files, "command": f"minicoca train{flags}"}
    folder, results = run or (None, {})
    splits = {split: value for split, value in results.items() if isinstance(value, dict)}
    first = next(iter(splits.values()), {})
    words = [form.format(first[key]) for key, form in FIGURES.items() if key in first]
    return own | {"run": folder and str(folder), "results": splits, "figures": words}


def newest(runs):
    """{member: (folder, results)} of the finished runs of captions in a folder; of several the
    newest. What is no run, or damaged, counts as none."""
    found = {}
    paths = [path for path in runs.glob(f"*/{RESULTS}") if (path.parent / CONFIG).is_file()]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        try:
            config, results = read_config(path.parent), read_results(path.parent)
        except (ValueError, OSError):
            continue
        if config.task == "captions":
            found[name_of(config)] = path.parent, results
    return found
