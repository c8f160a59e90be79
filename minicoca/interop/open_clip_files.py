"""What people have of open_clip's CoCa: files of weights in all their forms, and the merges of its
tokenizer."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.numpy import save as safetensors_bytes

from ..clip_tokenizer import PIECES, ClipTokenizer, read_merges
from ..config import Config
from ..files import folder_atomically
from ..tokenizer import AnyTokenizer
from .open_clip import to_open_clip, to_their_ids
from .open_clip_config import JSON, Say, to_json

WEIGHTS = (  # in the order in which they are looked for
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
MERGES = ("merges.txt", "tokenizer.json", "bpe_simple_vocab_16e6.txt.gz")
NESTED = ("state_dict", "model_state_dict", "model")  # where a training checkpoint has its weights
PREFIXES = ("module.", "_orig_mod.")  # of torch's data-parallel and compiled models
MASK = re.compile(r"(text\.|text_decoder\.)?attn_mask")  # a buffer of early versions


def find_weights(source: Path) -> tuple[Path, Path | None]:
    """(file of weights, the JSON beside it or None) of a file, or of a downloaded folder.

    Raises ValueError where there is none.
    """
    if not source.is_dir():
        if not source.exists():
            raise ValueError(f"{source}: there is no such file or folder")
        beside = source.parent / JSON
        return source, beside if beside.is_file() else None
    there = [source / name for name in WEIGHTS if (source / name).is_file()]
    if not there:
        raise ValueError(f"{source} holds no weights of open_clip: none of {', '.join(WEIGHTS)}")
    return there[0], source / JSON if (source / JSON).is_file() else None


def read_state(path: Path, say: Say = lambda line: None) -> dict:
    """{open_clip's name: tensor} of a file of safetensors or torch's, whatever stands around it.

    Nothing in it is run. Raises ValueError where it is no such file.
    """
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, no weights: fetch with git lfs pull")
    if start[8:9] == b"{":
        found = _read_safetensors(path)
    else:
        found = _read_torch(path, start)
    return _plain(found, path, say)


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({_brief(error)})") from error


def _read_torch(path, start):
    import torch

    try:
        zipped = start[:2] == b"PK" and zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights, and what it holds is not run ({_brief(error)}); save "
            "model.state_dict() alone"
        ) from error
    # torch raises almost anything of bytes that are no file of its own.
    except Exception as error:
        raise ValueError(
            f"{path}: neither safetensors nor a torch file of weights ({_brief(error)})"
        ) from error


def _brief(error):
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:120]


def _plain(found, path, say):
    """The state dict alone, by open_clip's names."""
    while isinstance(found, Mapping):
        inner = next((n for n in NESTED if isinstance(found.get(n), Mapping)), None)
        if inner is None:
            break
        if rest := sorted(str(name) for name in found if name != inner):
            say(f"{path}: taken is {inner!r}, not {', '.join(rest)[:100]}")
        found = found[inner]
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path} holds a {type(found).__name__}, no state dict")
    state = {str(name): value for name, value in found.items()}
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in state)), None):
        state = {name[len(prefix) :]: value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not MASK.fullmatch(name)}
    scale = state.get("logit_scale")
    if getattr(scale, "shape", None) == (1,):
        state["logit_scale"] = scale.reshape(())
    return state


def tokenizer_for(vocabulary: int, folder: Path, merges: Path | None = None) -> ClipTokenizer:
    """CLIP's tokenizer of so many ids of theirs: of the file `merges`, else of the first that there
    is in `folder` or in an installed open_clip. Raises ValueError."""
    count = vocabulary - PIECES - 2  # theirs are the bytes, the merges, start and end
    path = merges or next((p for p in _candidates(folder) if p.is_file()), None)
    if path is None:
        raise ValueError(
            f"{folder} holds no merges of CLIP's tokenizer ({', '.join(MERGES)}), and open_clip is "
            "not installed, which has them: give --merges PATH, or pip install open_clip_torch"
        )
    found = read_merges(path)
    if not 0 <= count <= len(found):
        raise ValueError(f"{path} has {len(found):,} merges; the model's words need {count:,}")
    try:
        return ClipTokenizer(found[:count])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _candidates(folder):
    yield from (folder / name for name in MERGES)
    try:
        spec = importlib.util.find_spec("open_clip")
    except (ImportError, ValueError):
        spec = None
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(place) / MERGES[-1]


def write_folder(
    folder: Path, weights: dict, config: Config, tokenizer: AnyTokenizer, apart: str = ""
) -> None:
    """A folder as open_clip reads it, and find_weights here: weights, JSON and merges. Undoes an
    import bit for bit. apart: as to_open_clip takes it.

    Raises ValueError for a model that is none of theirs, and OSError.
    """
    if not isinstance(tokenizer, ClipTokenizer):
        raise ValueError("open_clip knows the words of CLIP's tokenizer only; this run has its own")
    described = json.dumps(to_json(config), indent=1)
    theirs = replace(config, vocabulary=config.vocabulary - 2)
    state = to_open_clip(to_their_ids(weights), theirs, apart=apart)
    contents = {
        WEIGHTS[0]: safetensors_bytes(state, metadata={"format": "pt"}),
        JSON: described.encode(),
        MERGES[0]: "\n".join(["#version: 0.2", *tokenizer.merges, ""]).encode(),
    }
    with folder_atomically(folder) as inside:
        for name, content in contents.items():
            (inside / name).write_bytes(content)
