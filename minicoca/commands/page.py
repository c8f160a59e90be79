"""`minicoca page`: a page with the trained model inside."""

from pathlib import Path

from ..files import write_output
from ..params import specs
from ..training.checkpoint import RUNS, TRAINED, find_run, read_config, read_weights
from .model import note
from .results import check_output

HELP = "write a page with the model inside, which opens without a server or network"


def add_flags(parser):
    parser.add_argument("run", type=Path, help=f"a trained run: its folder, or a name in {RUNS}/")
    parser.add_argument("--out", type=Path, help="file to write (default: page.html in the run)")


def run(arguments):
    from ..pages.page import page

    folder = find_run(arguments.run)
    shipped = folder.parent == TRAINED
    out = arguments.out or (Path(f"{folder.name}.html") if shipped else folder / "page.html")
    check_output("--out", out)
    config = read_config(folder)
    weights, tokenizer = read_weights(folder, config, note)
    if more := weights.keys() - specs(config).keys():
        note(f"left out: {', '.join(sorted(more))}, for a page is of CoCa's own parts")
    made = page(weights, config, tokenizer, folder.resolve().name)
    write_output(out, made)
    print(f"{out}: {len(made) / 1e6:.2f} MB; open it in a browser")
