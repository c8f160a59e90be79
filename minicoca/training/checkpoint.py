"""The files of a run folder: written, and read back with what is wrong with them in words."""

import hashlib
import json
import shlex
from dataclasses import replace
from pathlib import Path

from .. import params
from ..config import from_dict
from ..tokenizer import Tokenizer

RUNS = "runs"


def to_run(*words):
    """Our command of these words, as a shell takes it. It ends a message: then it can be copied."""
    named = [f"./{w}" if isinstance(w, Path) and str(w)[0] == "-" else str(w) for w in words]
    return shlex.join(["minicoca", *named])


def new_folder(parent, name):
    """A folder for a run that nothing stands in yet: name, name-2, name-3, ..."""
    for n in range(1, 100_000):
        folder = Path(parent) / (name if n == 1 else f"{name}-{n}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise ValueError(f"{parent}: too many runs named {name}")


def save_config(config, folder):
    """Write config.json."""
    params.write_atomically(folder / "config.json", json.dumps(config.to_dict(), indent=1).encode())


def read_config(folder):
    """The config of a run. Raises ValueError if the folder holds none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.json")
    try:
        return from_dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_weights(folder, config):
    """(weights, Tokenizer) of a finished run. Raises ValueError where they do not fit `config`."""
    folder = Path(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no model.safetensors: its training has not ended; "
            f"go on with: {to_run('train', '--resume', folder)}"
        )
    weights, _ = params.load(path)
    params.check(weights, config, path)
    return weights, read_tokenizer(folder, config)


def read_tokenizer(folder, config):
    """The Tokenizer of a run. Raises ValueError if it is not the one that the run began with."""
    path = folder / "tokenizer.model"
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size != config.vocabulary:
        raise ValueError(
            f"{path} has {tokenizer.vocab_size} pieces, but the run was trained with "
            f"{config.vocabulary}: it is another run's; copy this run's own back"
        )
    return tokenizer


def load_model(folder, backend="auto", device="auto"):
    """(CoCa, Tokenizer) of a trained run. Raises ValueError if the folder holds none."""
    config = replace(read_config(folder), backend=backend, device=device)
    if backend == "numpy" and device not in ("auto", "cpu"):
        raise ValueError(f"device needs --backend torch; here it is cpu, not {device}")
    weights, tokenizer = read_weights(folder, config)
    if backend == "numpy":
        from ..reference.generate import CoCa
    else:
        from ..engine.generate import CoCa
    return CoCa(weights, config), tokenizer


def all_captions(dataset):
    """Every caption of the training pairs."""
    return [text for own in dataset.train.captions for text in own]


def fingerprint(dataset):
    """Of the training captions and the sizes of image files: to notice that data have changed."""
    paths = getattr(dataset.train, "paths", ())
    sizes = [str(path.stat().st_size) if path.is_file() else "-" for path in paths]
    return hashlib.sha256("\n".join(all_captions(dataset) + sizes).encode()).hexdigest()[:16]
