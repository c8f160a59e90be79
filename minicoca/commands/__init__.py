"""The commands, in the order of --help: modules of HELP, add_flags(parser) and run(arguments)."""

from .. import __version__
from . import (
    ask,
    bench,
    caption,
    classify,
    data,
    embed,
    evaluate,
    explain,
    export,
    family,
    filters,
    imports,
    info,
    page,
    plot,
    probe,
    report,
    search,
    shards,
    train,
    write,
)
from .flags import Parser

COMMANDS = {
    "train": train,
    "caption": caption,
    "write": write,
    "ask": ask,
    "classify": classify,
    "search": search,
    "embed": embed,
    "explain": explain,
    "evaluate": evaluate,
    "probe": probe,
    "export": export,
    "page": page,
    "import": imports,
    "info": info,
    "family": family,
    "plot": plot,
    "report": report,
    "data": data,
    "filter": filters,
    "shards": shards,
    "bench": bench,
}


def build_parser():
    """The whole command line's parser."""
    parser = Parser(
        prog="minicoca",
        description="Train a CoCa on images and captions, then caption, classify and search.",
        epilog="Start with: minicoca train",
    )
    parser.add_argument("--version", action="version", version=__version__)
    found = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        sub = found.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        module.add_flags(sub)
    return parser
