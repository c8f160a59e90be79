"""`minicoca info`: what is installed, and what a run or a preset is."""

import json
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from .. import __version__, config, params, scale
from ..relatives import specs_of
from ..training.checkpoint import RESULTS, find_run, read_config, read_results
from ..training.log import machine
from .flags import Usage

HELP = "what is installed, and what a run or a preset is"


def add_flags(parser):
    parser.add_argument("--run", type=Path, help="a run to describe")
    parser.add_argument("--preset", choices=config.PRESETS, help="a preset to describe")
    text = "of the run or preset: what a step of so many pairs sends, keeps and takes on 1, 8 and "
    text += f"512 GPUs, by a model (default {scale.PAIRS:,})"
    parser.add_argument(
        "--scale", nargs="?", type=pairs, const=scale.PAIRS, metavar="PAIRS", help=text
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def pairs(text):
    """How many pairs a flag asks for."""
    least, most = max(scale.WORLDS), 10**9
    if not text.isdecimal() or len(text) > 10 or not least <= int(text) <= most:
        raise ArgumentTypeError(f"{text[:20]!r} is not a number of pairs from {least} to {most:,}")
    return int(text)


def run(arguments):
    import torch

    from ..engine.ops import complaint, implementations

    facts = {"versions": versions(), "machine": machine(), "cuda": torch.cuda.is_available()}
    facts["operations"] = implementations()
    if complaint():
        facts["warning"] = complaint()
    chosen = None
    if arguments.scale and not (arguments.run or arguments.preset):
        raise Usage("--scale is of a model: give --preset or --run")
    if arguments.run:
        folder = find_run(arguments.run)
        chosen = read_config(folder)
        there = (folder / RESULTS).exists()
        facts["run"] = read_results(folder) if there else "not finished"
    elif arguments.preset:
        chosen = config.preset(arguments.preset)
    if arguments.scale and chosen.objective != "coca":
        raise Usage(f"--scale is of CoCa, and {arguments.run} has objective {chosen.objective}")
    if chosen:
        tree = specs_of(chosen)
        facts["parameters"] = {name: params.count(part) for name, part in tree.items()}
        facts["parameters"]["in all"] = params.count(tree)
        facts["settings"] = chosen.to_dict()
        if arguments.scale and arguments.json:
            facts["scale"] = scale.report(chosen, arguments.scale)
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, inner in value.items():
                print(f"  {key:20} {inner:,}" if type(inner) is int else f"  {key:20} {inner}")
        else:
            print(f"{name + ':':22} {value}")
    if arguments.scale:
        print("\n".join(scale.lines(chosen, arguments.scale)))


def versions():
    """{what: version} of Python, this package and what it stands on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"minicoca": __version__, "python": sys.version.split()[0]}
    for name in ("numpy", "torch", "triton", "pillow", "sentencepiece", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
