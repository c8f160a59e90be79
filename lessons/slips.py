"""One slip in the project's own lines: which one gives the numbers of a learner?

Nobody can list every mistake. Most are one change of one place: a sign, an axis, a factor left out,
one name for another. So each such change of the answer is made in turn, and run on the same inputs.
"""

import ast
import inspect
import itertools
import os
import textwrap
import warnings

import numpy as np

SHOWN = 48  # characters of an expression that are quoted
MOST = 1000  # slips that are tried
REDUCTIONS = ("sum", "mean", "max", "min")
OPERATORS = {
    ast.Add: (ast.Sub, ast.Mult),
    ast.Sub: (ast.Add, ast.Mult),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.RShift: (ast.LShift,),
}
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt, ast.GtE, ast.Eq),
    ast.LtE: (ast.Lt, ast.Gt, ast.GtE, ast.Eq),
    ast.Gt: (ast.GtE, ast.Lt, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
LEFT_OUT = {ast.Mult: "factor", ast.Div: "divisor", ast.MatMult: "factor", ast.Pow: "power"}
WRAPPED = ("-{}", "1 / {}", "{} ** 2", "{} ** 0.5", "np.exp({})", "np.log({})", "{}.T", "{}[:1]")


def named_slip(functions, gives):
    """In words the slip in `functions` after which gives(the first of them) is true; or None."""
    tree = _tree(functions)
    for words, undo in itertools.islice(_slips(tree), MOST):
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if gives(_compiled(tree, functions)):
                    return words
        except Exception:  # what does not run gives no numbers
            continue
        finally:
            undo()
    return None


def _tree(functions):
    """The sources of the functions as one module, without decorators and docstrings."""
    found = []
    for function in functions:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        (node,) = ast.parse(source).body
        node.decorator_list = []
        if ast.get_docstring(node):
            node.body = node.body[1:]
        found.append(node)
    return ast.Module(found, [])


def _compiled(tree, functions):
    """The first function, as the tree has it now."""
    namespace = dict(inspect.unwrap(functions[0]).__globals__)
    namespace |= {"np": np, "_exp": _exp}
    code = compile(ast.fix_missing_locations(tree), "<slip>", "exec")
    exec(code, namespace)
    return namespace[tree.body[0].name]


def _exp(x):
    """exp, but not of a size: an array of that many numbers would fill the memory."""
    if isinstance(x, (int, tuple)):
        raise TypeError
    return np.exp(x)


def _slips(tree):
    """(words, what undoes it) of each slip, made in the tree; the likeliest come first."""
    names, strings = _names(tree), _strings(tree)
    for finder in (_of_operators, _of_calls, _of_constants, _of_parts):
        for parent, field, index, node in list(_places(tree)):
            for words, other in finder(node):
                yield words + _where(parent, node), _put(parent, field, index, other)
    yield from _of_statements(tree)
    for finder in (_of_names, _of_wrappings):
        for parent, field, index, node in list(_places(tree)):
            for words, other in finder(node, names, strings):
                yield words + _where(parent, node), _put(parent, field, index, other)
    yield from _of_extras(tree, names)


def _places(tree):
    """(parent, field, index, node) of every expression that is read."""
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if field in ("func", "args") and isinstance(parent, (ast.FunctionDef, ast.arguments)):
                continue
            if field in ("decorator_list", "annotation", "returns", "defaults", "kw_defaults"):
                continue
            for index, node in enumerate(value if isinstance(value, list) else [value]):
                stored = isinstance(getattr(node, "ctx", None), ast.Store)
                if isinstance(node, ast.expr) and not stored:
                    yield parent, field, index if isinstance(value, list) else None, node


def _put(parent, field, index, other):
    """Put another node in a place; returns what puts the old one back."""
    if index is None:
        old = getattr(parent, field)
        setattr(parent, field, other)
        return lambda: setattr(parent, field, old)
    values = getattr(parent, field)
    old = values[index]
    values[index] = other
    return lambda: values.__setitem__(index, old)


def _text(node):
    words = ast.unparse(node)
    return words if len(words) <= SHOWN else words[: SHOWN - 4] + " ..."


def _operand(node):
    return f"({_text(node)})" if isinstance(node, ast.BinOp) else _text(node)


def _where(parent, node):
    """In which expression, where the words alone would not say it."""
    small = isinstance(node, (ast.Constant, ast.Name, ast.UnaryOp, ast.Attribute))
    fits = isinstance(parent, ast.expr) and len(ast.unparse(parent)) <= SHOWN
    return f", in `{_text(parent)}`." if small and fits else "."


def _instead(node, other):
    new, old = ast.unparse(other), ast.unparse(node)
    if max(len(new), len(old)) > SHOWN:  # begin a little before they differ
        start = max(len(os.path.commonprefix([new, old])) - SHOWN // 3, 0)
        new, old = (("... " if start else "") + text[start:] for text in (new, old))
        new, old = (text if len(text) <= SHOWN else text[:SHOWN] + " ..." for text in (new, old))
    return f"`{new}` stands where `{old}` should", other


def _of_operators(node):
    """Another operator, an operand left out, both exchanged."""
    if isinstance(node, ast.BinOp):
        yield from _of_operands(node)
        left, right = _operand(node.left), _operand(node.right)
        for other in OPERATORS.get(type(node.op), ()):
            words = f"`{_sign(other())}` stands where `{_sign(node.op)}` should, before `{right}`"
            yield words, ast.BinOp(node.left, other(), node.right)
        if not isinstance(node.op, (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)):
            words = f"`{left}` and `{right}` are exchanged around `{_sign(node.op)}`"
            yield words, ast.BinOp(node.right, node.op, node.left)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert, ast.Not)):
        yield _instead(node, node.operand)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in COMPARISONS.get(type(node.ops[0]), ()):
            yield _instead(node, ast.Compare(node.left, [other()], node.comparators))


def _sign(operator):
    x = ast.Name("x", ast.Load())
    return ast.unparse(ast.BinOp(x, operator, x)).strip("x ")


def _of_operands(node):
    what = LEFT_OUT.get(type(node.op), "term")
    left, right = _operand(node.left), _operand(node.right)
    yield f"The {what} `{right}` is missing, after `{left} {_sign(node.op)}`", node.left
    if not isinstance(node.op, (ast.Div, ast.Pow)):
        minus = isinstance(node.op, ast.Sub)
        kept = ast.UnaryOp(ast.USub(), node.right) if minus else node.right
        yield f"The {what} `{left}` is missing, before `{_sign(node.op)} {right}`", kept


def _of_calls(node):
    """A function left out, another reduction, arguments exchanged."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call):  # softmax(x)[0]
        if node.value.args and isinstance(node.slice, ast.Constant):
            called = _text(node.value.func)
            yield f"`{called}` is missing: `{_text(node)}`", node.value.args[0]
    if not isinstance(node, ast.Call):
        return
    method = isinstance(node.func, ast.Attribute)
    if method and node.func.attr in REDUCTIONS:
        for other in REDUCTIONS:
            if other != node.func.attr:
                func = ast.Attribute(node.func.value, other, ast.Load())
                of = _text(node.func.value)
                words = f"`{other}` stands where `{node.func.attr}` should, of `{of}`"
                yield words, ast.Call(func, node.args, node.keywords)
    if len(node.args) >= 1:
        yield f"`{_text(node.func)}` is missing: `{_text(node)}`", node.args[0]
    if method:
        yield f"`{node.func.attr}` is missing: `{_text(node)}`", node.func.value
    for i in range(len(node.args) - 1):
        args = [*node.args]
        args[i], args[i + 1] = args[i + 1], args[i]
        yield _instead(node, ast.Call(node.func, args, node.keywords))


def _of_constants(node):
    """Another number, among them another axis."""
    n = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
    if type(n) not in (int, float):
        return
    others = [0, 1, -1, n + 1, n - 1, 2 * n, n / 2, -n, 10 * n, n / 10, None]
    others = [int(x) if isinstance(x, float) and x == int(x) and n == int(n) else x for x in others]
    for other in dict.fromkeys(others):
        if other != n:
            yield _instead(node, ast.Constant(other))


def _of_parts(node):
    """.T, slices and choices left out; a slice from the other end."""
    if isinstance(node, ast.Attribute) and node.attr == "T":
        yield _instead(node, node.value)
    if isinstance(node, ast.Subscript):
        yield _instead(node, node.value)
    if isinstance(node, ast.IfExp):
        yield _instead(node, node.body)
        yield _instead(node, node.orelse)
    if isinstance(node, ast.BoolOp):
        for part in node.values:
            yield _instead(node, part)
    if isinstance(node, ast.Slice):
        yield from _of_slice(node)
    if isinstance(node, ast.Tuple):
        for i in range(len(node.elts) - 1):
            elements = [*node.elts]
            elements[i], elements[i + 1] = elements[i + 1], elements[i]
            yield _instead(node, ast.Tuple(elements, ast.Load()))


def _of_slice(node):
    texts = {"1:": "[1:]", ":-1": "[:-1]", ":": "[:]", "::-1": "[::-1]", ":1": "[:1]"}
    for text, code in texts.items():
        if text != ast.unparse(node):
            yield _instead(node, ast.parse(f"x{code}", mode="eval").body.slice)


def _of_statements(tree):
    """A whole step left out; a step made in every case, or in none."""
    for parent in list(ast.walk(tree)):
        for field in ("body", "orelse"):
            steps = getattr(parent, field, None)
            for index, node in enumerate(steps if isinstance(steps, list) else ()):
                if isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr)):
                    words = f"This step is missing: `{_text(node)}`."
                    yield words, _put(parent, field, index, ast.Pass())
                if isinstance(node, ast.If):
                    test = _text(node.test)
                    for value, words in ((True, "in every case"), (False, "in no case")):
                        undo = _put(node, "test", None, ast.Constant(value))
                        yield f"`if {test}` was taken {words}.", undo
                    other = ast.UnaryOp(ast.Not(), node.test)
                    yield f"`if {test}` is turned around.", _put(node, "test", None, other)


def _names(tree):
    """Every name that a function is given or makes, in order, and every attribute of one."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found[node.arg] = ast.Name(node.arg, ast.Load())
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = ast.Name(node.id, ast.Load())
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):  # of a config, say; a method is no number
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in found and id(node) not in called:
                found[ast.unparse(node)] = node
    return found


def _strings(tree):
    keys = (node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript))
    return {k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}


def _of_names(node, names, strings):
    """One name, or one key, for another."""
    if isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node) in names:
        for name, other in names.items():
            if name != ast.unparse(node):
                yield _instead(node, other)
    if isinstance(node, ast.Constant) and node.value in strings:
        for other in sorted(strings - {node.value}):
            yield _instead(node, ast.Constant(other))


def _of_wrappings(node, names, strings):
    """A name with a sign, a power, a function or a transpose that it should not have."""
    if isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node) in names:
        for form in WRAPPED:
            text = form.format(ast.unparse(node))
            words, _ = _instead(node, ast.parse(text, mode="eval").body)
            yield words, ast.parse(text.replace("np.exp", "_exp"), mode="eval").body


def _of_extras(tree, names):
    """A factor, a divisor or a term too many, in what a step makes or what is returned."""
    signs = {ast.Mult: "factor", ast.Div: "divisor", ast.Add: "term"}
    for parent, field, index, node in list(_places(tree)):
        made = isinstance(parent, (ast.Assign, ast.Return)) or isinstance(parent, ast.Tuple)
        if not made or isinstance(node, ast.Tuple):
            continue
        for name, extra in names.items():
            for sign, what in signs.items():
                words = f"There is a {what} `{name}` too many, in `{_text(node)}`."
                yield words, _put(parent, field, index, ast.BinOp(node, sign(), extra))
