"""The inputs that an answer failed on, what is right for them and what came out, in one file."""

import dataclasses
import json

import numpy as np

from minicoca.config import Config


def keep(path, case):
    """Write a naming.Case; returns how to load it."""
    arrays, it = {}, case.exercise
    tree = [_pack(x, arrays) for x in (case.arguments, case.expected, case.got)]
    np.savez(path, tree=np.array(json.dumps(tree)), **arrays)
    nothing = "" if case.got else "  # got is {}: it did not come so far"
    names = ", ".join(it.given_names(case.arguments))
    call = f"{it.function}(*arguments)" if not it.launch else f"({names},) = arguments"
    return (
        f"kept: {path}\nfrom lessons.kept import load\n"
        f"arguments, expected, got = load({str(path)!r}){nothing}\n{call}"
    )


def load(path):
    """(arguments, {output: what is right}, {output: what came out})."""
    with np.load(path) as arrays:
        return tuple(_unpack(x, arrays) for x in json.loads(str(arrays["tree"])))


def _pack(value, arrays):
    """A value as JSON; its arrays go into `arrays`, and their names stand in their places."""
    if dataclasses.is_dataclass(value):
        fields = {x.name: getattr(value, x.name) for x in dataclasses.fields(value)}
        return {"config": _pack(fields, arrays)}
    if hasattr(value, "__array__"):
        name = f"array_{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"tensor" if hasattr(value, "detach") else "array": name}
    if isinstance(value, dict):
        return {"dict": {key: _pack(x, arrays) for key, x in value.items()}}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [_pack(x, arrays) for x in value]}
    return {"number": value}


def _unpack(packed, arrays):
    ((kind, value),) = packed.items()
    if kind == "config":
        return Config(**_unpack(value, arrays))
    if kind == "array":
        return arrays[value]
    if kind == "tensor":
        import torch

        return torch.from_numpy(arrays[value])
    if kind == "dict":
        return {key: _unpack(x, arrays) for key, x in value.items()}
    if kind in ("tuple", "list"):
        found = [_unpack(x, arrays) for x in value]
        return tuple(found) if kind == "tuple" else found
    return value
