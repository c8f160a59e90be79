"""Does a card's compiler take a learner's kernel? `python -m lessons.compiled 12b FILE`.

Compiled for an H100, without one. In a process of its own: the checker's Triton only interprets.
"""

import sys


def main(name, path):
    """Compile the kernel in the file, or print why it is refused."""
    import triton
    from triton.compiler import ASTSource
    from triton.compiler.errors import CompilationError

    from minicoca.kernels.compile_report import TARGETS

    from .exercises import EXERCISES
    from .learner import load_learners

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
