"""The gradient tables of the lessons, run as they are written: each must end in the true gradients.

A table's last column has formulas such as `dk = scale ds' q`. Two names side by side are a product:
number by number where the shapes are alike or broadcast, otherwise of matrices; all sizes differ,
so that the shapes decide. A prime transposes. A cell that is left to the learner (`?`) is answered
below its table.
"""

import re

import numpy as np
import pytest

from lessons import pages
from minicoca.reference.ops import gelu, log_softmax, softmax

TOKEN = re.compile(r"\d+\.?\d*|[A-Za-z_]+|[-+*/^(),']")
SUM = re.compile(r"sum of ([^()]+?) over (?:the )?(rows|row)")
DOT = re.compile(r"\((\w+) \. (\w+)\)")
TABLE = re.compile(r"^\| \w+ \|.* (?:we want|derivative) \|\n\|[-| ]+\n((?:\|.*\n)+)", re.M)
LEFT_OUT = re.compile(r"<summary>the cell left out</summary>(.*?)</details>", re.S)
FORMULA = re.compile(r"(d[\w/]+|pull|g) (\+?=) (.+)")


class Value(np.lib.mixins.NDArrayOperatorsMixin):
    """An array whose @ is the product that the shapes allow."""

    def __init__(self, array):
        self.array = np.asarray(array)

    def __array_ufunc__(self, function, method, *inputs):
        inputs = [x.array if isinstance(x, Value) else np.asarray(x) for x in inputs]
        if function is np.matmul:
            a, b = inputs
            matrices = a.ndim == b.ndim == 2 and a.shape != b.shape and a.shape[1] == b.shape[0]
            function = np.matmul if matrices else np.multiply
        return Value(function(*inputs))

    T = property(lambda self: Value(self.array.T))


FUNCTIONS = {
    "sum_rows": lambda x: Value(x.array.sum(0)),
    "sum_row": lambda x: Value(x.array.sum(-1, keepdims=True)),
    "mean": lambda x: Value(x.array.mean(-1, keepdims=True)),
    "sum": lambda x: Value(x.array.sum()),
    "dot": lambda x, y: Value((x.array * y.array).sum(-1, keepdims=True)),
    "sigmoid": lambda x: Value(1 / (1 + np.exp(-x.array))),
    "sqrt": lambda x: Value(np.sqrt(x.array if isinstance(x, Value) else x)),
}


def as_python(formula):
    """A table's formula as an expression of Values: `dy W'` is `dy@W.T`."""
    text = DOT.sub(r"dot(\1, \2)", SUM.sub(r"sum_\2(\1)", formula))
    text, previous = re.sub(r"d(\w)/d(\w)", r"d\1_d\2", text), " "
    words = []
    for token in TOKEN.findall(text):
        after_value = previous[-1].isalnum() or previous in (")", "'")
        if after_value and previous not in FUNCTIONS and (token[0].isalnum() or token == "("):
            words.append("@")
        words.append({"'": ".T", "^": "**"}.get(token, token))
        previous = token
    return "".join(words)


def tables(page):
    """[[(name, "=" or "+=", formula)] of each gradient table of the page]."""
    text = pages.find(page).read_text()
    answers = iter(LEFT_OUT.findall(text.replace("<code>", "`").replace("</code>", "`")))
    found = []
    for rows in TABLE.findall(text):
        cells = [cell for row in rows.splitlines() for cell in row.strip("|").split("|")[1:]]
        cells = [next(answers) if cell.strip() == "?" else cell for cell in cells]
        codes = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
        found.append([match.groups() for match in map(FORMULA.fullmatch, codes) if match])
    more = re.findall(r"`(d\w+)` has a second term, `([^`]+)`", text)
    found[-1] += [(name, "+=", formula) for name, formula in more]
    return found


def follow(table, known):
    """Every value that the formulas give, in their order."""
    names = {name: Value(value) for name, value in known.items()}
    for name, sign, formula in table:
        *more, formula = formula.split(" = ")
        value = eval(as_python(formula), FUNCTIONS | names)
        for own in (name.replace("/", "_"), *more):
            names[own] = names[own] + value if sign == "+=" else value
    return {name: value.array for name, value in names.items()}


def slope(f, x, upstream):
    """The gradient of the sum of upstream * f(x), by the complex step, a number at a time."""
    found = np.zeros(np.shape(x))
    for place in np.ndindex(found.shape):
        moved = np.array(x, complex)
        moved[place] += 1e-30j
        found[place] = (f(moved).imag / 1e-30 * upstream).sum()
    return found


def slopes(f, inputs, upstream):
    """{"d" + name: the gradient by each of f's named inputs}."""
    return {
        f"d{name}": slope(lambda x, n=name: f(**inputs | {n: x}), value, upstream)
        for name, value in inputs.items()
    }


def draws(seed=0):
    generator = np.random.default_rng(seed)
    return lambda *shape: generator.standard_normal(shape)


def linear_map():
    draw = draws()
    inputs = {"x": draw(5, 3), "W": draw(3, 4), "b": draw(4)}
    dy = draw(5, 4)
    return inputs | {"dy": dy}, slopes(lambda x, W, b: x @ W + b, inputs, dy)


def layer_norm():
    draw, eps = draws(), 0.1

    def parts(x):
        c = x - x.mean(-1, keepdims=True)
        return c, ((c * c).mean(-1, keepdims=True) + eps) ** -0.5

    def norm(x, scale, bias):
        return np.multiply(*parts(x)) * scale + bias

    inputs = {"x": draw(5, 3), "scale": draw(3), "bias": draw(3)}
    dy, (c, r) = draw(5, 3), parts(inputs["x"])
    return inputs | {"dy": dy, "c": c, "r": r, "xhat": c * r, "D": 3}, slopes(norm, inputs, dy)


def gelu_slope():
    x = draws()(7)
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    t = np.tanh(u)
    known = {"x": x, "t": t, "h": (1 + t) / 2, "pi": np.pi}
    return known, {"dy_dx": gelu(x, "tanh")[1][0]}


def attend(q, k, v):
    return softmax(q @ k.T * 3**-0.5)[0] @ v


def attention():
    draw = draws()
    inputs = {"q": draw(5, 3), "k": draw(7, 3), "v": draw(7, 3)}
    do, p = draw(5, 3), softmax(inputs["q"] @ inputs["k"].T * 3**-0.5)[0]
    delta = (do * (p @ inputs["v"])).sum(-1, keepdims=True)
    known = inputs | {"do": do, "p": p, "scale": 3**-0.5, "delta": delta}
    return known, slopes(attend, inputs, do)


def captioning():
    logits, targets = draws()(5, 8), np.array([3, 1, 0, 7, 0])
    onehot, valid, dL = np.eye(8)[targets], (targets != 0)[:, None], np.array(1.7)

    def loss(logits):
        return -(log_softmax(logits)[0] * onehot * valid).sum() / valid.sum()

    known = {"dL": dL, "valid": valid, "n": valid.sum(), "onehot": onehot}
    known["p"] = softmax(logits)[0]
    return known, {"dl": slope(loss, logits, dL)}


def contrast():
    draw, dL = draws(), 1.3
    y = draw(6, 4)
    inputs = {"z": draw(6, 4), "y": y / np.linalg.norm(y, axis=1)[:, None]}
    inputs["log_temperature"] = np.array(-0.7)

    def log_loss(log_p, log_r):
        return -((log_p + log_r) * np.eye(6)).sum() / 12

    def logits(z, y, log_temperature):
        x = z / np.sqrt((z * z).sum(-1, keepdims=True))
        return x @ y.T * np.exp(-log_temperature)

    def loss(**given):
        s = logits(**given)
        return log_loss(log_softmax(s)[0], log_softmax(s.T)[0])

    s, r = logits(**inputs), np.linalg.norm(inputs["z"], axis=1)[:, None]
    log_p, log_r = log_softmax(s)[0], log_softmax(s.T)[0]
    known = {"dL": dL, "I": np.eye(6), "B": 6, "P": np.exp(log_p), "R": np.exp(log_r), "s": s}
    known |= {"x": inputs["z"] / r, "y": inputs["y"], "scale": np.exp(0.7), "r": r}
    true = slopes(loss, inputs, dL)
    return known, true | slopes(log_loss, {"log_p": log_p, "log_r": log_r}, dL)


def absorbed():
    draw = draws()
    inputs = {"xhat": draw(7, 5), "q": draw(3, 1), "W_k": draw(5, 3), "W_v": draw(5, 3)}
    inputs |= {"gamma": draw(5, 1), "beta": draw(5, 1), "b_v": draw(3, 1)}
    do = draw(3, 1)

    def steps(xhat, q, W_k, W_v, gamma, beta, b_v):
        a = W_k @ q / np.sqrt(3)
        g = a * gamma
        p = softmax((xhat @ g).T)[0].T
        m = xhat.T @ p
        u = m * gamma + beta
        return {"a": a, "g": g, "p": p, "m": m, "u": u, "o": W_v.T @ u + b_v}

    known = inputs | steps(**inputs) | {"do": do, "K": 3.0}
    true = slopes(lambda **given: steps(**given)["o"], inputs, do)
    dm = inputs["W_v"] @ do * inputs["gamma"]
    return known | {"delta": (dm * known["m"]).sum()}, true


def info_nce():
    draw = draws()
    inputs = {"X": draw(6, 4), "Y": draw(6, 4), "scale": np.array(1.4)}
    off = 1 - np.eye(6)

    def parts(X, Y, scale):
        s = scale * (X @ Y.T)
        r, c = (np.log((np.exp(z) * off).sum(-1, keepdims=True)) for z in (s, s.T))
        return s, r, c, (s * np.eye(6)).sum(-1, keepdims=True)

    def loss(X, Y, scale):
        _, r, c, d = parts(X, Y, scale)
        return (np.log1p(np.exp(r - d)) + np.log1p(np.exp(c - d))).sum()

    s, r, c, d = parts(**inputs)
    G = (np.exp(s - np.logaddexp(r, d)) + np.exp(s - np.logaddexp(c, d).T)) * off
    known = inputs | {"s": s, "r": r, "c": c, "d": d, "G": G}
    return known, slopes(loss, inputs, 1.0)


def large_vocabulary():
    draw = draws()
    inputs, onehot = {"x": draw(5, 3), "W": draw(3, 8)}, np.eye(8)[[3, 1, 0, 7, 2]]

    def loss(x, W):
        return -(log_softmax(x @ W)[0] * onehot).sum()

    known = inputs | {"softmax": softmax(inputs["x"] @ inputs["W"])[0], "onehot": onehot}
    return known | {"dW": np.zeros((3, 8))}, slopes(loss, inputs, 1.0)


CASES = {  # page: what is known and what is true, for each of its tables
    "2": (linear_map,),
    "3": (layer_norm, gelu_slope),
    "4": (attention,),
    "8": (captioning,),
    "9": (contrast,),
    "13": (attention,),
    "14": (absorbed,),
    "15": (info_nce,),
    "16": (large_vocabulary,),
}
IN_WORDS = {"5", "6", "7"}  # their tables name layers and sums: the code beside them runs those
EACH = [(page, place) for page, makers in CASES.items() for place in range(len(makers))]


def wrong(page, place, table):
    """The names of which the table gives something else than the truth."""
    known, true = CASES[page][place]()
    try:
        found = follow(table, known)
    except ValueError:  # shapes that do not fit
        return set(true)
    alike = {name: np.shape(found[name]) == np.shape(true[name]) for name in true}
    return {
        name for name in true if not alike[name] or not np.allclose(found[name], true[name], 1e-9)
    }


def in_order(page, place):
    """A table's formulas so that each has what it needs: the slope of GELU is read from below."""
    table = tables(page)[place]
    return table[::-1] if CASES[page][place] is gelu_slope else table


@pytest.mark.parametrize(("page", "place"), EACH)
def test_a_table_gives_the_true_gradients(page, place):
    assert not wrong(page, place, in_order(page, place))


def slips(formula):
    """The formula doubled, and with each of its signs, primes and factors changed or left out."""
    head, equals, last = formula.rpartition(" = ")
    yield head + equals + f"2 * ({last})"
    for match in re.finditer(r" - |(?<!\w)-(?=\w)|'", last):
        other = {" - ": " + ", "-": "", "'": ""}[match[0]]
        yield head + equals + last[: match.start()] + other + last[match.end() :]


@pytest.mark.parametrize(("page", "place"), EACH)
def test_no_formula_of_a_table_may_be_wrong_unseen(page, place):
    table = in_order(page, place)
    for row, (name, sign, formula) in enumerate(table):
        for slip in slips(formula):
            changed = [*table[:row], (name, sign, slip), *table[row + 1 :]]
            assert wrong(page, place, changed), f"page {page}: {name} {sign} {slip} is not noticed"


def test_every_gradient_table_is_run_and_leaves_one_cell_to_the_learner():
    for path in pages.all_pages():
        page, text = pages.label(path).lstrip("0"), path.read_text()
        found = TABLE.findall(text)
        assert bool(found) == (page in CASES or page in IN_WORDS), path.name
        assert len(CASES.get(page, found)) == len(found)
        blanks = re.findall(r"\| \? \|$", text, re.M)
        assert len(blanks) == len(LEFT_OUT.findall(text)) == bool(found), path.name


def test_the_temperatures_gradient_is_what_stands_out_of_what_is_expected():
    """Page 09's last formula for it: the right logit less the one that softmax expects."""
    known, true = contrast()
    s, P, R = known["s"], known["P"], known["R"]
    stands_out = (np.diagonal(s) - (P * s).sum(1) + np.diagonal(s) - (R * s.T).sum(1)).sum()
    assert np.isclose(known["dL"] / 12 * stands_out, true["dlog_temperature"])
