"""What a kernel's source says and the interpreter does not notice, for whoever wrote it.

Each function reads a learner's kernel and raises Told where a card would do something else.
"""

import ast
import inspect
import textwrap

from .exercise import Told


def tree(kernel):
    """The syntax tree of a kernel, or of a piece of one."""
    function = inspect.unwrap(getattr(kernel, "fn", kernel))
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _found(kernel, kind):
    return [node for node in ast.walk(tree(kernel)) if isinstance(node, kind)]


def _calls(kernel, name):
    """[(number of arguments, {keyword: value})] of every tl.NAME(...)."""
    return [
        (len(node.args), {word.arg: word.value for word in node.keywords})
        for node in _found(kernel, ast.Call)
        if isinstance(node.func, ast.Attribute) and node.func.attr == name
    ]


def compares_tiles(kernel):
    """Comparisons of tiles are joined by &, each in brackets of its own."""
    for node in _found(kernel, ast.BoolOp):
        if any(isinstance(part, ast.Compare) for part in ast.walk(node)):
            word, sign = ("and", "&") if isinstance(node.op, ast.And) else ("or", "|")
            raise Told(f"`{word}` does not work on tiles: use `{sign}`.")
    if any(len(node.ops) > 1 for node in _found(kernel, ast.Compare)):
        raise Told("Put each comparison in brackets, `(a < b) & (c < d)`: & binds tighter than <.")


def masks_loads(kernel):
    """Every tl.load has mask= and other=."""
    for count, words in _calls(kernel, "load"):
        if count < 2 and "mask" not in words:
            raise Told("tl.load has no mask=: memory that is not yours is read, whatever follows.")
        if count < 3 and "other" not in words:
            raise Told("tl.load has no other=: on a card the masked lanes would be undefined.")


def keeps_digits(kernel):
    """Every tl.dot asks for plain float32."""
    for _, words in _calls(kernel, "dot"):
        given = words.get("input_precision")
        if given is None or getattr(given, "value", "ieee") != "ieee":
            raise Told(
                'A card rounds the factors of tl.dot unless input_precision="ieee" is given.'
            )
