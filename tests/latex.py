"""Enough of LaTeX to compute what the lessons' formulas say, for one value of each index.

A statement is a chain `a = b = c`; its sides must have one value. What a subscript means depends on
the letters that are indices: `p_{tj}` is a number of p, `W_k` (k no index) a name. Two things side
by side are a product, of matrices where the shapes say so; a dot between two vectors is their sum
of products.
"""

import re

import numpy as np

REMOVED = r"\\(?:,|;|!|:| |Big|big|textstyle|begin\{aligned\}|end\{aligned\}|boldsymbol)"
TAGS = r"&&?\s*(?:\(\d\)|\\text\{[^}]*\}.*?)\s*(?=\\\\|$)"
FUNCTIONS = {
    "ln": np.log,
    "log": np.log,
    "cos": np.cos,
    "tanh": np.tanh,
    "mean": lambda x: np.mean(x, -1, keepdims=np.ndim(x) > 0),
    "softplus": lambda x: np.log1p(np.exp(x)),
}
ENDS = ("", "\\ne", *"+-)}],=")  # of a product
BETWEEN = r"=|\\ge|\\leftarrow"
UNREAD = re.compile(
    r"\\max|\\in\b|\\infty|softmax|\]\[|\w\[|\}\[|\\ldots"
)  # said by code beside it


def statements(block):
    """[[side, side, ...]] of a block of mathematics."""
    text = re.sub(TAGS, "", block.replace("\\end{aligned}", ""), flags=re.M)
    text = re.sub(r"\\underbrace\{(.*?)\}_\{\\mathrm\{\w+\}\}", r"\1", text)
    text = re.sub(r"\\text\{.*?\}", "", text)
    text = re.sub(REMOVED, " ", text).replace("&", " ")
    found = []
    for part in _split(text, r"\\\\|\\qquad|\\quad|,(?=\s)"):
        sides = [side.strip() for side in _split(part, BETWEEN)]
        if sides[0] or len(sides) == 1:
            found.append(sides)
        else:  # goes on where the line before ended
            found[-1] += sides[1:]
    return [[side for side in sides if side] for sides in found if any(sides)]


def _split(text, at):
    """The parts between what matches `at` outside of all brackets."""
    parts, depth, start, place = [], 0, 0, 0
    while place < len(text):
        match = re.compile(at).match(text, place)
        if match and not depth:
            parts.append(text[start:place])
            start = place = match.end()
            continue
        depth += (text[place] in "({[") - (text[place] in ")}]")
        place += 1
    return [*parts, text[start:]]


def times(a, b):
    a, b = np.asarray(a), np.asarray(b)
    fits = a.ndim == 2 and b.ndim and a.shape != b.shape and a.shape[1] == b.shape[0]
    return a @ b if fits else a * b


def dot(a, b):
    return np.dot(a, b) if np.ndim(a) == np.ndim(b) == 1 else np.multiply(a, b)


class Parser:
    """parse(text)(indices) is its value; names: {name: array}, indices: {letter: how many}."""

    def __init__(self, names, indices):
        self.names, self.indices = names, indices
        own = sorted((re.escape(n) for n in names if n[-1] != "_"), key=len, reverse=True)
        commands = r"\\[A-Za-z]+"
        self.token = re.compile("|".join([r"\d+\.?\d*", *own, commands, r"[A-Za-z]+", r"\S"]))

    def parse(self, text):
        text = re.sub(r"_\{\\mathrm\{(\w+)\}\}", r"_\1", text)
        text = re.sub(r"\\mathrm\{(\w+)\}", r" \1 ", text).replace("d\\hat{x}", " dxhat ")
        text = re.sub(r"\\hat\s*(?:\{(\w)\}|(\w))", r" \1\2hat ", text)
        text = re.sub(r"\\t?frac\{\\partial (\\?\w+?)(_\w)?\}\{\\partial (\w)_(\w)\}", _slope, text)
        greek = "sigma|delta|gamma|beta|epsilon|varepsilon|pi|ell|infty|top"
        self.left = self.token.findall(re.sub(rf"\\({greek})", r"\1", text))
        value = self._sum()
        assert not self.left, f"not understood: {self.left} of {text}"
        return value

    def _peek(self):
        return self.left[0] if self.left else ""

    def _take(self, expected=None):
        token = self.left.pop(0)
        assert expected in (None, token), f"{expected} wanted, not {token}"
        return token

    def _sum(self):
        sign = self._take() if self._peek() in ("+", "-") else "+"
        terms = [(sign, self._term())]
        while self._peek() in ("+", "-"):
            terms.append((self._take(), self._term()))
        return lambda at: sum(f(at) if sign == "+" else -f(at) for sign, f in terms)

    def _term(self):
        value = self._factor()
        while self._peek() not in ENDS:
            operation = {"*": np.multiply, "/": np.divide, "\\cdot": dot}.get(self._peek())
            if operation:
                self._take()
            value = self._both(operation or times, value, self._factor())
        return value

    @staticmethod
    def _both(operation, a, b):
        return lambda at: operation(a(at), b(at))

    def _factor(self):
        value = self._base()
        while self._peek() in ("^", "'"):
            if self._take() == "'":
                value = (lambda f: lambda at: f(at).T)(value)
                continue
            power = self._group()
            if power == "top":
                value = (lambda f: lambda at: f(at).T)(value)
            else:
                value = self._both(np.power, value, power)
        return value

    def _group(self):
        """What stands in braces, or the next thing."""
        if self._peek() == "top":
            return self._take()
        if self._peek() != "{":
            return self._base()
        self._take("{")
        value = self._sum()
        self._take("}")
        return value

    def _base(self):
        token = self._take()
        if token == "(":
            value = self._sum()
            self._take(")")
            return value
        if token == "[":
            return self._whether()
        if token == "{":
            self.left.insert(0, token)
            return self._group()
        if token in ("\\frac", "\\tfrac"):
            return self._both(np.divide, self._group(), self._group())
        if token == "\\sqrt":
            return (lambda f: lambda at: np.sqrt(f(at)))(self._group())
        if token == "\\sum":
            return self._over(self._subscript(), self._term())
        if token.strip("\\") in FUNCTIONS and token not in self.names:
            function, inner = FUNCTIONS[token.strip("\\")], self._term()
            return lambda at: function(inner(at))
        if token[0].isdigit():
            return lambda at: float(token)
        return self._named(token)

    def _whether(self):
        """[i = j], and [target = v]: 1 where it is so, else 0."""
        left = self._sum()
        equal = self._take()
        right = self._sum()
        self._take("]")
        return lambda at: float((left(at) == right(at)) == (equal == "="))

    def _over(self, letters, term):
        def value(at):
            places = np.ndindex(*(self.indices[letter] for letter in letters))
            return sum(term(at | dict(zip(letters, place, strict=True))) for place in places)

        return value

    def _subscript(self):
        self._take("_")
        if self._peek() != "{":
            return self._take()
        self._take("{")
        letters = ""
        while self._peek() != "}":
            letters += self._take().replace(",", "")
        self._take("}")
        return letters

    def _named(self, token):
        if token in self.indices and token not in self.names:
            return lambda at: at[token]
        assert token in self.names, f"{token} is not known"
        array = np.asarray(self.names[token])
        if self._peek() != "_":
            return lambda at: array
        letters, rows = self._subscript(), np.asarray(self.names.get(f"{token}_", array))
        return lambda at: rows[tuple(self._place(letter, at) for letter in letters)]

    def _place(self, letter, at):
        return at[letter] if letter in at else int(self.names[letter])


def _slope(match):
    return f" d{match[1].strip(chr(92))}_d{match[3]}_{{{(match[2] or '')[1:]}{match[4]}}} "


def read(block):
    """The statements of a block that can be computed here, as text."""
    chains = (sides for sides in statements(block) if len(sides) > 1)
    return [text for text in map(" = ".join, chains) if not UNREAD.search(text)]


def differences(block, names, indices, seed=0, draws=30):
    """The statements of a block whose sides differ for some value of the indices."""
    rng, wrong = np.random.default_rng(seed), []
    places = [{k: int(rng.integers(n)) for k, n in indices.items()} for _ in range(draws)]
    for text in read(block):
        sides = [Parser(names, indices).parse(side) for side in _split(text, BETWEEN)]
        if not all(_agree(sides, at) for at in places):
            wrong.append(text)
    return wrong


def _agree(sides, at):
    with np.errstate(all="ignore"):  # a slip may take the logarithm of a negative number
        first, *others = (np.asarray(side(at)) for side in sides)
    return all(np.allclose(first, other, rtol=1e-8, atol=1e-10) for other in others)
