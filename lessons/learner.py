"""What a learner has written: a file in lessons/work."""

import importlib.util


def load_learners(exercise, path):
    """The function in a learner's file."""
    spec = importlib.util.spec_from_file_location(f"lesson_work_{exercise.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, exercise.function):
        raise AttributeError(f"the file has no function {exercise.function}")
    return getattr(module, exercise.function)
