"""`minicoca train`: a run begun, or gone on with."""

import json
import os
import re
import sys
from functools import partial
from pathlib import Path

from .. import config
from ..training import profiling, track
from ..training.checkpoint import (
    CHANGEABLE,
    CHECKPOINT,
    LOG,
    RUNS,
    find_run,
    new_folder,
    read_config,
)
from ..training.distributed import ALONE, may_restart, processes, restarted
from ..training.log import Log
from ..training.run import beginning, given_command, train
from .flags import ENCODERS, Usage, add_settings, from_flags, settings_by_group
from .results import unheard

HELP = "train a model; with no flags, on drawn shapes, in minutes"
FIRST = ("data", "image_root", "task", "objective", "init", "steps", "seed", "backend", "device")
RESUME_FLAGS = (*CHANGEABLE, "image_root")


def add_flags(parser):
    parser.usage = "%(prog)s [--data DATA] [--preset PRESET] [--run FOLDER] [--resume RUN] [flags]"
    parser.epilog = "Settings are saved with the run; those not given are the preset's."
    parser.has_objectives = True
    first = parser.add_argument_group("what one needs first")
    add_settings(first, FIRST)
    first.add_argument("--preset", choices=config.PRESETS, help="(default tiny)")
    first.add_argument("--run", type=Path, help=f"folder to write (default {RUNS}/DATA, numbered)")
    first.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run")
    first.add_argument(
        "--image-encoder",
        choices=ENCODERS,
        help="the image tower under CoCa's losses (default vit); resnet is --objective resnet",
    )
    first.add_argument("--json", action="store_true", help="print the results as JSON")
    first.add_argument(
        "--report-to", choices=track.NEEDS, help="tell a tracker too what metrics.jsonl holds"
    )
    text = f"write {profiling.TRACE} into the run's folder, and say what a step spends its time on"
    first.add_argument("--profile", action="store_true", help=text)
    for group, names in settings_by_group().items():
        add_settings(parser.add_argument_group(group), [n for n in names if n not in FIRST])


def run(arguments):
    say = tell if arguments.json else partial(print, flush=True)
    if arguments.report_to:
        try:
            track.check(arguments.report_to)
        except ValueError as error:
            raise Usage(error) from error
    with unheard(), processes() as ranks:
        results = (_resume if arguments.resume else _begin)(arguments, say, ranks)
    if arguments.json and ranks.first:
        print(json.dumps(results))


def tell(text):
    print(text, file=sys.stderr)


def _resume(arguments, say, ranks=ALONE):
    fields = ("run", *config.Config.__dataclass_fields__)
    given = {n: getattr(arguments, n) for n in fields if getattr(arguments, n, None) is not None}
    if wrong := [n for n in given if n not in RESUME_FLAGS]:
        flags = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise Usage(f"--resume goes on as the run began; leave out {flags}")
    try:
        given = _wherever(given)
    except ValueError as error:
        raise Usage(error) from error
    how = dict(say=say, report_to=arguments.report_to, profile=arguments.profile, ranks=ranks)
    return train(None, arguments.resume, taking_up=True, changes=given, **how)


def _begin(arguments, say, ranks=ALONE):
    settings, folder = _settings(arguments), arguments.run
    if arguments.profile:
        try:
            profiling.check(settings)
        except ValueError as error:
            raise Usage(error) from error
    how = dict(say=say, report_to=arguments.report_to, profile=arguments.profile, ranks=ranks)
    if folder is None:
        if may_restart():
            raise Usage("with --max-restarts give --run: there a restarted run goes on")
        folder = Path(ranks.text(str(_new_folder(settings)) if ranks.first else ""))
    elif ranks.any(restarted()) and ranks.any(ranks.first and ours(folder)):
        return train(None, folder, taking_up=True, **how)
    return train(settings, folder, **how)


def ours(folder):
    """Whether this start of torchrun began the run that is there, and came to a checkpoint: what a
    restart goes on with. It restarts a run that was refused, too."""
    return (folder / CHECKPOINT).is_file() and Log.beginning(folder / LOG) == beginning(
        given_command()
    )


def _new_folder(settings):
    name = Path(settings.data).resolve().stem  # of shards, a pattern
    return new_folder(RUNS, re.sub(r"[*?{}[\]]+", "", name).strip(".") or "run")


def _settings(arguments):
    """The Config that the flags ask for. Raises Usage."""
    try:
        if arguments.init and arguments.preset:
            raise ValueError("--init takes the settings of its run; leave out --preset")
        if arguments.init:
            arguments.init = str(find_run(arguments.init))
        earlier = read_config(arguments.init) if arguments.init else None
        if earlier:
            _check_size(arguments, earlier)
        settings = from_flags(arguments, earlier)
    except ValueError as error:
        raise Usage(error) from error
    return config.from_dict(_wherever(settings.to_dict()))


def _check_size(arguments, earlier):
    """Raise ValueError for an image size that the patches of an earlier run do not fill."""
    size, patch = arguments.image_size, earlier.patch_size
    if size and size % patch and arguments.patch_size in (None, patch):
        near = max(1, round(size / patch)) * patch
        raise ValueError(
            f"--image-size {size} is not a multiple of {patch}, the patches of {arguments.init}; "
            f"the nearest is {near}"
        )


def _wherever(settings):
    """The paths among settings, whole: to be found again from wherever the run is resumed."""
    whole = {name: settings.get(name) for name in ("init", "image_root", "data")}
    if whole["data"] in config.BUILT_IN:
        del whole["data"]
    whole = {name: os.path.abspath(path) for name, path in whole.items() if path}
    sources = settings.get("emoji_source", "")
    if sources and "," not in os.getcwd():  # which parts the sources
        parts = (part.partition("=") for part in filter(None, sources.split(",")))
        whole["emoji_source"] = ",".join(f"{v}={os.path.abspath(path)}" for v, _, path in parts)
    return settings | whole
