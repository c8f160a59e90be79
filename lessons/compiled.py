"""Does a card's compiler take a learner's kernel? `python -m lessons.compiled 12b FILE`.

Compiled for an H100, without one. In a process of its own: the checker's Triton only interprets.
"""

import os
import subprocess
import sys
from pathlib import Path

from .exercise import Told


def try_compiler(exercise, path):
    """Raises Told, with the compiler's words, where it refuses the kernel in the file."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, exercise.name, str(Path(path).resolve())],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        words = (done.stdout or done.stderr).strip()
        raise Told(f"Right in the interpreter, but a card's compiler refuses it:\n{words}")


def main(name, path):
    """Compile the kernel in the file, or print why it is refused."""
    import triton
    from triton.compiler import ASTSource
    from triton.compiler.errors import CompilationError

    from minicoca.kernels.compile_report import TARGETS

    from .checker import load_learners
    from .exercises import EXERCISES

    exercise = EXERCISES[name]
    kernel = load_learners(exercise, path)
    kinds, signature, constants = {"scale": "fp32", "target_ptr": "*i64"}, {}, {}
    for place, parameter in enumerate(kernel.params):
        kind = "*fp32" if parameter.name.endswith("_ptr") else "i32"
        signature[parameter.name] = kinds.get(parameter.name, kind)
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(place,)] = exercise.constants[parameter.name]
    target, _ = TARGETS["sm_90"]
    try:
        triton.compile(ASTSource(kernel, signature, constants), target=target)
    except CompilationError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
