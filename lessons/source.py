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


def _calls(kernel, name, *parameters):
    """[{parameter: value}] of every tl.NAME(...), or NAME(...) where it was imported."""
    return [
        dict(zip(parameters, node.args, strict=False))
        | {word.arg: word.value for word in node.keywords}
        for node in _found(kernel, ast.Call)
        if ast.unparse(node.func) in (f"tl.{name}", f"triton.language.{name}", name)
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
    """Every tl.load has mask= and other=; or, of a block, boundary_check= and padding_option=."""
    for words in _calls(kernel, "load", "pointer", "mask", "other"):
        if "boundary_check" in words:  # deprecated, as block pointers are, but right
            if "padding_option" not in words:
                raise Told(
                    "tl.load has boundary_check= but no padding_option=: on a card what is outside "
                    "would be undefined."
                )
            continue
        if "mask" not in words:
            raise Told("tl.load has no mask=: memory that is not yours is read, whatever follows.")
        if "other" not in words:
            raise Told("tl.load has no other=: on a card the masked lanes would be undefined.")


def keeps_digits(kernel):
    """Every tl.dot asks for plain float32."""
    for words in _calls(kernel, "dot", "input", "other", "acc", "input_precision", "allow_tf32"):
        given = words.get("input_precision")
        if given is None and getattr(words.get("allow_tf32"), "value", None) is False:
            continue  # deprecated, but right
        if given is None or getattr(given, "value", "ieee") != "ieee":
            raise Told(
                'A card rounds the factors of tl.dot unless input_precision="ieee" is given.'
            )
