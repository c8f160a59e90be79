"""What an exercise is: what it asks, what it is given, its hints, and the mistakes it knows."""

import ast
import importlib
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .compare import leaves
from .learner import load_learners

IMPORTS = "import numpy as np  # noqa: F401"
KERNEL_IMPORTS = "import triton\nimport triton.language as tl"
ANSWERS = Path(__file__).parent / "answers"


class Told(Exception):
    """What is wrong with an answer, in words for whoever wrote it."""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    answer: "module:function", the project's own, which gives the right results and is what `peek`
    shows. inputs(rng): fresh arguments. mistakes: {what is wrong: a function of the same arguments
    that gives the outputs of that mistake}. Where the answer is a kernel, or a piece of one:
    launch(function, *arguments) -> outputs runs it (launch.py); `file` is the stub after its
    imports; expected(*arguments) gives what is right, where the learner's is simpler than ours, and
    answers/NAME.py is then an answer of the exercise's own. model: functions of NumPy, the first
    from arguments to outputs, that compute as a kernel should; slips are sought in them.
    """

    name: str
    level: int  # 1 to 3
    minutes: int
    task: str
    answer: str
    outputs: tuple[str, ...]
    inputs: Callable
    body: str  # the stub's first lines: what is given, unpacked
    hints: tuple[str, ...]
    mistakes: dict[str, Callable]
    launch: Callable | None = None
    expected: Callable | None = None
    file: str = ""  # the stub whole, where it is more than a function
    imports: str = IMPORTS
    constants: dict | None = None  # of a whole kernel: the constexprs to compile it with
    close: float = 1e-6  # relative to the largest number of an output
    in_place: bool = False  # whether the arguments may be written over
    model: tuple = ()

    @property
    def function(self):
        """What the learner's function is called: the answer's name, or the last one in `file`."""
        if self.file:
            return self.file.rsplit("\ndef ", 1)[1].split("(")[0]
        return self.answer.split(":")[1]

    @property
    def dots(self):
        return "●" * self.level + "○" * (3 - self.level)

    def load_answer(self):
        """The project's own function, or method ("module:Class.method")."""
        module, _, name = self.answer.partition(":")
        return operator.attrgetter(name)(importlib.import_module(module))

    def run(self, function, arguments):
        """What a function, or a kernel, gives for the arguments."""
        return self.launch(function, *arguments) if self.launch else function(*arguments)

    def right(self, arguments):
        """What is expected."""
        if self.expected:
            return self.expected(*arguments)
        return self.run(self.load_answer(), arguments)

    @property
    def own_answer(self):
        """The file of an answer of the exercise's own; None where the project's function is one."""
        path = ANSWERS / f"{self.name}.py"
        return path if path.exists() else None

    def shown_answer(self):
        """The source of an answer, and where it is from."""
        if self.own_answer:
            text = self.own_answer.read_text(encoding="utf-8")
            ours = self.answer.startswith("minicoca")
            return text + (f"\n# The project's own, which does more: {self.answer}" if ours else "")
        function = inspect.unwrap(getattr(self.load_answer(), "fn", self.load_answer()))
        return f"# {function.__module__}\n\n{inspect.getsource(function)}"

    def slipped(self):
        """[(functions to look for a slip in, the first being the answer; what runs it)]: the model,
        and the answer with what it calls in its own module, unless the learner is given that."""
        found = []
        if self.model:
            found.append((self.model, lambda function, arguments: function(*arguments)))
        if self.constants or (self.expected and (found or not self.own_answer)):
            return found
        answer = load_learners(self, self.own_answer) if self.own_answer else self.load_answer()
        answer = inspect.unwrap(answer)
        if inspect.isfunction(answer):
            found.append((_with_helpers(answer, self.imports), self.run))
        return found

    def parameters(self):
        """The names of the learner's arguments."""
        if self.file:
            return [x.arg for x in ast.parse(self.file).body[-1].args.args]
        return [*inspect.signature(inspect.unwrap(self.load_answer())).parameters]

    def given_names(self, arguments):
        """{name: value} of the arguments."""
        names = [*inspect.signature(self.launch).parameters][1:] if self.launch else []
        names = names if len(names) == len(arguments) else self.parameters()
        return dict(zip(names, arguments, strict=False))

    def given(self, arguments):
        """{name: value} of the arguments, and of what the stub's lines make of them."""
        names = self.given_names(arguments)
        found = dict(names)
        try:
            exec(f"{self.imports}\n{self.body}", found)
        except Exception:  # lines for arguments that are made otherwise
            return names
        return {name: x for name, x in found.items() if leaves(x) and not name.startswith("_")}

    def stub(self):
        """A file to fill in."""
        head = f'"""Exercise {self.name}: {self.task}"""\n\n{self.imports}\n\n\n'
        if self.file:
            return head + self.file
        signature = inspect.signature(inspect.unwrap(self.load_answer()))
        lines = "".join(f"    {line}\n" for line in self.body.split("\n") if line)
        return head + f"def {self.function}{signature}:\n{lines}    raise NotImplementedError\n"


def _with_helpers(function, given):
    """The function and those of its module that it calls, unless they stand in `given`."""
    found, module = [function], function.__globals__
    for one in found:
        for name in one.__code__.co_names:
            helper = inspect.unwrap(module[name]) if callable(module.get(name)) else None
            if inspect.isfunction(helper) and helper.__globals__ is module:
                if helper not in found and name not in given.replace(",", " ").split():
                    found.append(helper)
    return tuple(found)


def values(found, *names):
    """What was returned, as a tuple; Told where it is not as many values as there are names."""
    if found is None or found is Ellipsis:
        raise NotImplementedError
    found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    if len(found) != len(names):
        were = "1 was" if len(found) == 1 else f"{len(found)} were"
        raise Told(f"{len(names)} values are wanted ({', '.join(names)}); {were} returned")
    return found


def locals_of(error, name):
    """The variables of the function `name` that an error passed through; {} if of none."""
    trace, found = error.__traceback__, {}
    while trace:
        if trace.tb_frame.f_code.co_name == name:
            found = trace.tb_frame.f_locals
        trace = trace.tb_next
    return found


def distinct(rng, count, low=3, high=9):
    """Sizes of which no two are equal."""
    return rng.permutation(np.arange(low, high + count))[:count]
