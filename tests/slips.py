"""Small slips in a source, as patches: an operator, an edge, a constant off by one, a lost keyword,
two arguments exchanged, a condition turned round, a statement left out.

Only the bodies of functions are spoilt: what runs when a module is imported is run by no test in
particular. Left alone are f-strings, which are messages, and `strict` of zip, which is a check.
"""

import ast
import difflib
from collections import defaultdict
from pathlib import Path

SWAPS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "//"), ast.Pow: ("**", "*"), ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
    ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip
DROPPED = (ast.Raise, ast.AugAssign, ast.Continue, ast.Break, ast.Return, ast.Delete)


def inside_functions(tree):
    """(node, first line of its statement) of what functions do."""
    for part in ast.walk(tree):
        if isinstance(part, ast.FunctionDef):
            for statement in part.body:
                yield from _nodes(statement, statement.lineno)


def _nodes(node, line):
    yield node, line
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if getattr(child, "arg", "") == "strict":
                continue
            if name not in ("annotation", "returns", "decorator_list"):
                yield from _nodes(child, child.lineno if isinstance(child, ast.stmt) else line)


class Source:
    """A file's text and the slips that can be made in it: {line: {(start, end, new bytes)}}."""

    def __init__(self, path):
        self.bytes = Path(path).read_bytes()
        self.starts = [0, *(i + 1 for i, byte in enumerate(self.bytes) if byte == 10)]
        self.slips, self.lines = defaultdict(dict), defaultdict(set)
        for node, line in inside_functions(ast.parse(self.bytes)):
            for start, end, new in self.of(node):
                self.slips[getattr(node, "lineno", line)][start, end, new.encode()] = line

    def span(self, node):
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, node):
        start, end = self.span(node)
        return self.bytes[start:end].decode()

    def between(self, left, right, operator):
        start, end = self.span(left)[1], self.span(right)[0]
        old, new = SWAPS.get(type(operator), ("", ""))
        return [(start, end, self.bytes[start:end].decode().replace(old, new, 1))] if old else []

    def of(self, node):
        """(start, end, new text) of each slip in this node itself."""
        found = []
        if isinstance(node, ast.BinOp):
            found += self.between(node.left, node.right, node.op)
        if isinstance(node, ast.AugAssign):
            found += self.between(node.target, node.value, node.op)
        if isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                found += self.between(left, right, node.op)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for left, right, operator in zip(sides, sides[1:], node.ops, strict=False):
                found += self.between(left, right, operator)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            found.append((*self.span(node), f"({self.text(node.operand)})"))
        if isinstance(node, ast.Constant) and type(node.value) is bool:
            found.append((*self.span(node), str(not node.value)))
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            found += [(*self.span(node), str(node.value + by)) for by in (1, -1)]
        if isinstance(node, ast.Call):
            found += self.of_call(node)
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            found.append((*self.span(node.test), f"(not ({self.text(node.test)}))"))
        if isinstance(node, ast.comprehension):
            found += [(*self.span(test), f"(not ({self.text(test)}))") for test in node.ifs]
        if isinstance(node, DROPPED) or self.only_acts(node):
            found.append((*self.span(node), "pass"))
        return found

    def of_call(self, node):
        """A keyword lost, two arguments exchanged."""
        given = [*node.args, *node.keywords]
        for i, one in enumerate(given):
            if isinstance(one, ast.keyword) and one.arg not in (None, "strict"):
                kept = ", ".join(self.text(other) for other in given if other is not one)
                yield self.span(node.func)[1], self.span(node)[1], f"({kept})"
            elif i + 1 < len(node.args) and self.text(one) != self.text(given[i + 1]):
                other = given[i + 1]
                gap = self.bytes[self.span(one)[1] : self.span(other)[0]].decode()
                turned = self.text(other) + gap + self.text(one)
                yield self.span(one)[0], self.span(other)[1], turned

    @staticmethod
    def only_acts(node):
        """Whether a statement can be left out without leaving a name undefined."""
        if isinstance(node, ast.Assign):
            return all(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets)
        return isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)

    def diff(self, path, slip):
        """The slip as a patch; "" where it leaves no Python, or the same."""
        start, end, new = slip
        spoilt = self.bytes[:start] + new + self.bytes[end:]
        try:
            if ast.dump(ast.parse(spoilt)) == ast.dump(ast.parse(self.bytes)):
                return ""
        except SyntaxError:
            return ""
        sides = (side.decode().splitlines(True) for side in (self.bytes, spoilt))
        return "".join(difflib.unified_diff(*sides, f"a/{path}", f"b/{path}"))
