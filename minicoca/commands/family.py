"""`minicoca family`: CoCa's relatives, their files, how each is trained, what its runs reached."""

import json
from pathlib import Path

from ..family import FAMILY, LATER
from ..training.checkpoint import CONFIG, RESULTS, RUNS, read_config, read_results

HELP = "CoCa's relatives: papers, files, commands, and figures of your runs"
SIDES = ("reference", "engine")
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


def run(arguments):
    found = newest(arguments.runs)
    members = [described(name, member, found.get(name)) for name, member in FAMILY.items()]
    later = [{"name": name} | vars(member) for name, member in LATER.items()]
    if arguments.json:
        print(json.dumps({"built": members, "later": later}, indent=1))
        return
    for own in members:
        print(f"{own['name']} ({own['year']}, {paper(own['paper'])}): {own['changes']}")
        print(f"  {' '.join(own['files'])}\n  {own['command']}")
        if own["run"]:
            print(f"  {own['run']}: {', '.join(own['figures']) or 'no figures'}")
    print("\nnot built yet:")
    for own in later:
        print(f"  {own['name']} ({own['year']}, {paper(own['paper'])}): {own['changes']}")


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
    """{objective: (folder, results)} of the finished runs of captions in a folder; of several
    the newest. What is no run, or damaged, counts as none."""
    found = {}
    paths = [path for path in runs.glob(f"*/{RESULTS}") if (path.parent / CONFIG).is_file()]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        try:
            config, results = read_config(path.parent), read_results(path.parent)
        except (ValueError, OSError):
            continue
        if config.task == "captions":
            found[config.objective] = path.parent, results
    return found
