"""Every exercise, by name; one module for each page."""

import importlib
import pkgutil

WITHOUT_TRITON = set()  # modules that cannot be had, where Triton is not made for the machine


def _exercises(module):
    try:
        return importlib.import_module(f"{__name__}.{module}").EXERCISES
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] != "triton":
            raise
        WITHOUT_TRITON.add(module)
        return ()


EXERCISES = {
    exercise.name: exercise
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__))
    for exercise in _exercises(module)
}
