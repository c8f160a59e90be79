"""`minicoca import`: a run folder of weights that another project trained."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from .. import memory, params
from ..files import digest, make_folder
from ..training.card import write_card
from ..training.checkpoint import (
    CARD,
    CONFIG,
    LOG,
    RUNS,
    TOKENIZER,
    WEIGHTS,
    Identity,
    new_folder,
    save_config,
    to_run,
)
from ..training.log import Log
from ..training.owner import LOCK, owned
from .model import note

HELP = "take weights that open_clip trained, to use or to train on"


def add_flags(parser):
    parser.add_argument("format", choices=("open_clip",), help="who wrote them")
    parser.add_argument("source", type=Path, help="a file of weights, or a downloaded folder")
    parser.add_argument("--run", type=Path, help=f"new folder to write (default {RUNS}/SOURCE)")
    parser.add_argument("--merges", type=Path, help="of CLIP's tokenizer, where none are found")


def run(arguments):
    from ..interop.open_clip import cls_apart, from_open_clip, to_our_ids
    from ..interop.open_clip_config import config_of_json, config_of_shapes
    from ..interop.open_clip_files import find_weights, read_state, tokenizer_for

    path, about = find_weights(arguments.source)
    state = read_state(path, note)
    config = config_of_json(about, note) if about else config_of_shapes(state, path)
    tokenizer = tokenizer_for(config.vocabulary, path.parent, arguments.merges)
    memory.check(config)
    weights = to_our_ids(from_open_clip(state, config))
    config = replace(config, vocabulary=tokenizer.vocab_size)
    folder = arguments.run or new_folder(RUNS, path.parent.name if about else path.stem)
    source = path.parent.name if about else path.name
    write(folder, weights, config, tokenizer, open_clip_cls=cls_apart(state), source=source)
    print(f"{params.count(weights):,} parameters of {path} are in {folder}; use them with:")
    print(to_run("caption", "PICTURES", "--run", folder))


def write(folder, weights, config, tokenizer, **kept):
    """A run folder that was not trained here. The config comes last: without one it is none.
    kept: what else the file of weights is to say; `source` stands in the card too.

    Raises ValueError where the folder holds anything.
    """
    make_folder(folder)
    try:
        with owned(folder) as still_ours:
            if found := sorted({path.name for path in folder.iterdir()} - {LOCK}):
                raise ValueError(f"{folder} is not empty ({found[0]}); choose another --run")
            try:
                _write(folder, weights, config, tokenizer, still_ours, kept)
            except BaseException:
                for name in (CARD, CONFIG, LOG, TOKENIZER, WEIGHTS):
                    (folder / name).unlink(missing_ok=True)
                raise
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _write(folder, weights, config, tokenizer, still_ours, kept):
    model = tokenizer.serialised()
    leaves = params.flatten(weights).values()
    numbers = (memoryview(leaf).cast("B") for leaf in leaves if leaf.ndim)
    of = Identity(digest(str(config).encode(), model, *numbers)[:32], digest(model))
    params.save(folder / WEIGHTS, weights, config, **kept, **of.as_dict())
    tokenizer.save(folder / TOKENIZER)
    Log(folder / LOG, 0).write({"step": 0, "command": shlex.join(["minicoca", *sys.argv[1:]])})
    still_ours()
    save_config(config, folder, of)
    write_card(folder, source=kept.get("source", "elsewhere"), say=note)
