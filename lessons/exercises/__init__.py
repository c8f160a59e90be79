"""Every exercise, by name; one module for each page. A module is read when it is asked for, since
many import torch or Triton, which take seconds and are not there on every machine."""

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Listed:
    """What the source of an exercise says, without running it."""

    name: str
    level: int
    minutes: int
    task: str
    module: str


def _listed():
    """{name: Listed}, from the first words of every Exercise(...) in a module's EXERCISES."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("page_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (made,) = (x.value for x in tree.body if _assigns(x, "EXERCISES"))
        for call in made.elts:
            words = [ast.literal_eval(word) for word in call.args[:4]]
            found[words[0]] = Listed(*words, path.stem)
    return found


def _assigns(node, name):
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name


class _Exercises(Mapping):
    """{name: Exercise}; looking one up imports its module. Raises ModuleNotFoundError where that
    needs what is not installed."""

    def __init__(self):
        self.listed = _listed()

    def __getitem__(self, name):
        module = importlib.import_module(f"{__name__}.{self.listed[name].module}")
        return next(it for it in module.EXERCISES if it.name == name)

    def __iter__(self):
        return iter(self.listed)

    def __len__(self):
        return len(self.listed)


EXERCISES = _Exercises()
