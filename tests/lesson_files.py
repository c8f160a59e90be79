"""Right answers to the exercises, and what the check says of a file."""

from lessons.checker import numbers
from lessons.exercises import EXERCISES

KERNELS = [name for name, it in EXERCISES.items() if it.constants]


def answer(name):
    """A right answer to an exercise, as a file's text."""
    it = EXERCISES[name]
    if it.own_answer:
        return it.own_answer.read_text()
    module, _, function = it.answer.partition(":")
    return f"from {module} import {function}\n"


def words_of(name, text, tmp_path):
    """What the check says of a file of this text, before a card's compiler looks at it."""
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    return numbers(EXERCISES[name], path).words
