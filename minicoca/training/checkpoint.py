"""The files of a run folder: written, and read back with what is wrong with them in words.

They know each other: `run` is what the run began with, and stands in each; the tokenizer's digest
stands beside the config and the weights, the weights' seal in the results.
"""

import hashlib
import json
import math
import shlex
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from .. import memory, params
from ..clip_tokenizer import tokenizer_of
from ..config import from_dict
from ..data.records import PLACEHOLDER
from ..files import MARK, Damaged, digest, make_folder, read_bytes, read_json, write_json
from ..relatives import specs_of

RUNS = "runs"
CONFIG, TOKENIZER, LOG = "config.json", "tokenizer.model", "metrics.jsonl"
CHECKPOINT, WEIGHTS, RESULTS = "resume.safetensors", "model.safetensors", "results.json"
LEFT_OUT, CARD = "left_out.txt", "README.md"
FILES = (CONFIG, TOKENIZER, LOG, CHECKPOINT, WEIGHTS, RESULTS, LEFT_OUT)
TRAINED = Path(__file__).parents[1] / "trained"  # models that come with the package
SHIPPED = ("emoji", "shapes")  # of them the first is used where a person has none
MOST_SECONDS = 1e10
UNREACHED = {"pooler.contrast.attention.key.bias"}  # one query: its softmax cancels it
# What may change when a run is taken up; all else is what its weights are.
CHANGEABLE = ("learning_rate", "clip_norm", "device", "precision", "compile", "recompute")
CHANGEABLE += ("parallel", "steps", "data")
FREE = (*CHANGEABLE, "image_root", "warmup", "backend", "evaluate_every", "checkpoint_every")


@dataclass(frozen=True)
class Identity:
    """What the files of one run have in common. Empty where they are of an earlier version."""

    run: str = ""
    tokenizer: str = ""

    def as_dict(self):
        return {name: value for name, value in vars(self).items() if value}


def to_run(*words):
    """Our command of these words, as a shell takes it. It ends a message: then it can be copied."""
    named = [f"./{w}" if isinstance(w, Path) and str(w)[0] == "-" else str(w) for w in words]
    return shlex.join(["minicoca", *named])


def new_folder(parent, name):
    """A folder for a run that nothing stands in yet: name, name-2, name-3, ..."""
    for n in range(1, 100_000):
        folder = Path(parent) / (name if n == 1 else f"{name}-{n}")
        try:
            make_folder(folder, there=False)
            return folder
        except FileExistsError:
            continue
    raise ValueError(f"{parent}: too many runs named {name}")


def find_run(name):
    """The folder that a person means: one of this name, one in runs/, or a model that comes with
    minicoca. Raises ValueError where the last is not there any more."""
    named = Path(name)
    for folder in (named, RUNS / named):
        if (folder / CONFIG).is_file():
            return folder
    if str(name) not in SHIPPED:
        return named
    if not (TRAINED / named / CONFIG).is_file():
        raise ValueError(
            f"the model {str(name)!r}, which comes with minicoca, is not in {TRAINED}: install "
            "minicoca again"
        )
    return TRAINED / named


def identity(config, tokenizer, dataset):
    """The Identity of a run that begins with these: the same for the same run begun again."""
    model = digest(tokenizer.serialised())
    begun = json.dumps(config.to_dict(), sort_keys=True).encode()
    return Identity(digest(begun, model.encode(), fingerprint(dataset).encode())[:32], model)


def save_config(config, folder, of=Identity()):
    """Write config.json."""
    write_json(folder / CONFIG, config.to_dict() | {"of": of.as_dict()})


def read_config(folder):
    """The config of a run. Raises ValueError if the folder holds none."""
    return read_own(folder)[0]


def read_own(folder):
    """(Config, Identity) of a run. Raises ValueError if the folder holds none."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no {CONFIG}")
    try:
        settings, _ = read_json(path)
        of = _identity(settings.pop("of", {}), path)
        return from_dict(settings), of
    except Damaged as error:
        advice = 'edited on purpose? then remove "minicoca", "of" and "sha256" from it'
        raise ValueError(f"{error}; {advice}") from error
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(str(path)) else f"{path}: {said}") from error


def _identity(found, path):
    known = {field.name for field in fields(Identity)}
    given = {n: found[n] for n in known & found.keys()} if isinstance(found, dict) else None
    if given is None or not all(isinstance(value, str) for value in given.values()):
        raise ValueError(f"{path} does not say which run it is of")
    return Identity(**given)


def belongs(found, of, path, folder):
    """Raise ValueError where a file of another run stands in the folder. Earlier versions wrote no
    such thing: then there is nothing to compare."""
    for name in ("run", "tokenizer"):
        own, other = getattr(of, name), found.get(name, "")
        if own and other and own != other:
            what = {"run": "run", "tokenizer": "tokenizer"}[name]
            raise ValueError(
                f"{path} is of another {what} than {folder / CONFIG}: copy its own back"
            )
    if of.run and not found.get("run") and found.get(MARK):
        raise ValueError(f"{path} does not say which run it is of, but {folder / CONFIG} does")


def read_weights(folder, config, say=None):
    """(weights, Tokenizer) of a run: of a finished one, or of the last checkpoint of one that was
    stopped. Raises ValueError where they do not fit `config`, or each other."""
    folder = Path(folder)
    path = folder / WEIGHTS
    own, of = read_own(folder)
    if path.is_file():
        want = params.shapes(specs_of(config))
        weights, metadata = params.load(path, lambda found, _: params.compare(found, want, path))
        check_copy(metadata, own, path, folder)
    elif (folder / CHECKPOINT).is_file():
        tree, metadata = read_checkpoint(folder, own)
        weights = tree["ema"] if "ema" in tree else tree["params"]
        params.compare(params.shapes(weights), params.shapes(specs_of(config)), path)
        if say:
            done = f"stopped at step {metadata['step']} of {own.steps}"
            go_on = to_run("train", "--resume", folder)
            say(f"{folder} was {done}: its weights are of then; go on with: {go_on}")
    else:
        raise ValueError(
            f"{folder} has no {WEIGHTS}: its training has not come to a first checkpoint; "
            f"begin with: {to_run('train', '--resume', folder)}"
        )
    belongs(metadata, of, path, folder)
    if say and MARK not in metadata:
        say(f"{path} was not checked for damage: it holds no sha256 of ours")
    return weights, read_tokenizer(folder, config, of)


def check_copy(metadata, config, path, folder):
    """Raise ValueError where the config inside a file of weights is not the folder's."""
    if "config" not in metadata:
        return
    try:
        inside = from_dict(json.loads(metadata["config"]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the config inside it: {str(error)[:200]}") from error
    own = config.to_dict()
    for name, value in inside.to_dict().items():
        here = own.get(name)
        if name not in FREE and value != here:
            raise ValueError(
                f"{path} was made with {name}={value!r}, but {folder / CONFIG} says {here!r}: they "
                "are of two runs"
            )


def read_tokenizer(folder, config, of=Identity()):
    """The Tokenizer of a run. Raises ValueError if it is not the one that the run began with."""
    path = Path(folder) / TOKENIZER
    model = read_bytes(path)
    try:
        tokenizer = tokenizer_of(model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if of.tokenizer and digest(model) != of.tokenizer:
        raise ValueError(
            f"{path} is not the tokenizer that the run began with: it is damaged or another run's; "
            "copy this run's own back"
        )
    if tokenizer.vocab_size != config.vocabulary:
        raise ValueError(
            f"{path} has {tokenizer.vocab_size} pieces, but the run was trained with "
            f"{config.vocabulary}: it is another run's; copy this run's own back"
        )
    return tokenizer


def trainer_of(config):
    """The module of the config's backend that trains."""
    if config.backend == "numpy":
        from ..reference import train
    else:
        from ..engine import train
    return train


def read_checkpoint(folder, config):
    """(what Trainer.load takes, {"step": int, "seconds": float, "data": str, ...}).

    All of it is checked before any is used. Raises ValueError.
    """
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"{folder} has no checkpoint to go on from ({CHECKPOINT})")
    whole, counted, idle = trainer_of(config).shapes(config), {}, set()

    def check(shapes, metadata):
        if not any(n.startswith("params.") for n in shapes) or not {"step", "seconds"} <= {
            *metadata
        }:
            raise ValueError(f"{path} is not a checkpoint of an unfinished run")
        counted["step"] = _number(metadata, "step", int, config.steps, path)
        counted["seconds"] = _number(metadata, "seconds", float, MOST_SECONDS, path)
        if MARK not in metadata:
            idle.update(_idle(shapes, whole, counted["step"], config))
        params.compare(shapes, {n: s for n, s in whole.items() if n not in idle}, path)

    tree, metadata = params.load(path, check)
    found = params.flatten(tree) | {name: np.zeros(whole[name], np.float32) for name in idle}
    step = counted["step"]
    for name, leaf in found.items():
        kind = name.split(".")[0] if config.backend != "numpy" else ".".join(name.split(".")[:2])
        if kind in ("step", "adam.step"):
            good = 0 <= leaf <= step and leaf == int(leaf)
        else:
            good = kind not in ("exp_avg_sq", "adam.square") or (leaf >= 0).all()
        if not good:
            raise ValueError(f"{path}: {name} holds numbers that no training makes")
    check_copy(metadata, config, path, Path(folder))
    return params.unflatten(found), metadata | counted


def _number(metadata, name, kind, most, path):
    text = metadata[name]
    try:
        number = kind(text) if len(text) < 50 else math.nan
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise ValueError(f"{path}: {name} is {text[:50]!r}, not a number from 0 to {most:,}")
    return number


def _idle(shapes, whole, step, config):
    """The moments that an earlier version left out while they were nothing: those of a run that had
    not begun, and of what its losses do not reach."""
    names = {name.partition(".")[2] for name in whole if name.startswith("step.")}
    if step and config.contrastive_weight and config.caption_weight:
        names &= UNREACHED
    own = ([f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq", "step")] for name in names)
    return [key for keys in own if not any(key in shapes for key in keys) for key in keys]


def read_results(folder):
    """results.json of a finished run. Raises ValueError if it is damaged, or of other weights."""
    folder = Path(folder)
    path = folder / RESULTS
    found, sealed = read_json(path)
    of = read_own(folder)[1]
    belongs(found | ({MARK: ""} if sealed else {}), of, path, folder)
    weights = folder / WEIGHTS
    if found.get("weights") and weights.is_file():
        seal = params.seal_of(weights)
        if seal and seal != found["weights"]:
            raise ValueError(f"{path} is of other weights than {weights}: they are of two runs")
    return found


def load_model(folder, backend="auto", device="auto", say=None):
    """(CoCa, Tokenizer) of a trained run, or of a stopped one. Raises ValueError if the folder
    holds none. say: hears what cannot be checked, and where training stopped."""
    config = replace(read_config(folder), backend=backend, device=device)
    if backend == "numpy" and device not in ("auto", "cpu"):
        raise ValueError(f"device needs --backend torch; here it is cpu, not {device}")
    memory.check(config)
    weights, tokenizer = read_weights(folder, config, say)
    if backend == "numpy":
        from ..reference.generate import CoCa
    else:
        from ..engine.generate import CoCa
    return CoCa(weights, config), tokenizer


def all_captions(dataset):
    """Every caption of the training pairs."""
    return [text for own in dataset.train.captions for text in own]


def known(dataset):
    """What evaluation is to know of training: its captions and how often each is there, or what its
    questions' answers are."""
    train = dataset.train
    return train.guesses() if hasattr(train, "guesses") else Counter(all_captions(dataset))


def fingerprint(dataset):
    """Of the training captions and the sizes of image files: to notice that data have changed."""
    paths, texts = getattr(dataset.train, "paths", ()), all_captions(dataset)
    sizes = [str(path.stat().st_size) if path.is_file() else "-" for path in paths]
    if paths and {*texts} == {PLACEHOLDER}:  # then how the files begin tells them apart
        sizes += [dataset.train.beginning(row).hex() for row in range(len(paths))]
    return hashlib.sha256("\n".join(texts + sizes).encode()).hexdigest()[:16]
