"""Every exercise, by name; one module for each page."""

import importlib
import pkgutil

EXERCISES = {
    exercise.name: exercise
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__))
    for exercise in importlib.import_module(f"{__name__}.{module}").EXERCISES
}
