"""What the lessons set as mathematics is computed as it is written, and must be true."""

import re

import numpy as np
import pytest
from latex import Parser, differences, read, statements

from lessons import pages
from minicoca.config import preset
from minicoca.reference import losses
from minicoca.reference.ops import (
    gelu,
    layer_norm,
    linear,
    log_softmax,
    softmax,
    softmax_backward,
)
from minicoca.reference.optim import adamw, learning_rate, start

MATHS = re.compile(r"^```math\n(.*?)^```", re.M | re.S)
SIGN = re.compile(r" [-+] |(?<=[{(])[-+](?=[\w\\])")
INDICES = re.compile(r"(?<!sum)_\{(\w)(?!\1)(\w)\}")


def blocks(page):
    return MATHS.findall(pages.find(page).read_text())


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def linear_map():
    x, W, b = draw(5, 3), draw(3, 4), draw(4)
    return {"x": x, "W": W, "b": b, "y": linear(x, {"weight": W, "bias": b})[0]}, {}


def softmax_row():
    x, dp = draw(5), draw(5, seed=1)
    p, cache = softmax(x[None])
    slopes = np.stack([softmax_backward(row[None], cache)[0] for row in np.eye(5)])
    names = {"x": x, "p": p[0], "dp": dp, "Z": np.exp(x).sum(), "dp_dx": slopes, "e": np.e}
    return names | {"dx": softmax_backward(dp[None], cache)[0]}, {"i": 5, "j": 5}


def norm_rows():
    x, scale, bias = draw(5, 3), draw(3), draw(3, seed=1)
    y, (xhat, r, *_) = layer_norm(x, {"scale": scale, "bias": bias})
    c = x - x.mean(-1, keepdims=True)
    names = {"x": x, "c": c, "variance": (c * c).mean(-1, keepdims=True), "r": r, "xhat": xhat}
    return names | {"y": y, "scale": scale, "bias": bias, "varepsilon": 1e-5}, {}


def norm_backward():
    x, dxhat, D = draw(6), draw(6, seed=1), 6
    c = x - x.mean()
    r = (c * c).mean() ** -0.5

    def xhat(x):
        return (x - x.mean()) * ((x - x.mean()) ** 2).mean() ** -0.5

    steps = [xhat(x + 1e-30j * row).imag / 1e-30 for row in np.eye(D)]
    names = {"c": c, "r": r, "xhat": c * r, "dxhat": dxhat, "D": D}
    return names | {"dx": np.array([step @ dxhat for step in steps])}, {"j": D}


def gelu_curve():
    x = draw(7)
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return {"x": x, "t": t, "y": gelu(x, "tanh")[0], "pi": np.pi}, {}


def attention():
    q, k, v, do = draw(4, 3), draw(5, 3), draw(5, 3, seed=1), draw(4, 3, seed=1)
    s = np.einsum("tc,jc->tj", q, k) / np.sqrt(3)
    p, cache = softmax(s)
    names = {"q": q, "k": k, "v": v, "do": do, "s": s, "p": p, "K": 3, "o": p @ v}
    names |= {"dv": p.T @ do, "dp": do @ v.T, "delta": (do * (p @ v)).sum(1)}
    return names, {"t": 4, "j": 5, "s": 5, "c": 3}


def delta():
    names, indices = attention()
    return {k: x for k, x in names.items() if k != "s"}, indices  # here s counts keys


def centred():
    p, dp, c, n, r = softmax(draw(3, 5))[0], draw(3, 5, seed=1), draw(4), draw(5, 4), draw(3, 5)
    delta = (p * dp).sum(1)
    ds, k = p * (dp - delta[:, None]), c + n
    names = {"p": p, "dp": dp, "c": c, "n": n, "r": r, "delta": delta, "ds": ds, "k": k}
    return names | {"m": k.mean(0), "dq": ds @ k}, {"t": 3, "s": 5}


def captioning():
    logits, target = draw(2, 3, 5), np.array([[1, 4, 0], [2, 0, 0]])
    loss, cache = losses.caption_loss(logits, target)
    log_p = log_softmax(logits)[0]
    g = np.take_along_axis(log_p, target[..., None], 2)[..., 0]
    names = {"l": logits, "p": np.exp(log_p), "target": target, "pad": 0, "g": g, "L": loss}
    names |= {"n": 3, "e": np.e, "dL": 1.7, "valid": target != 0, "onehot": np.eye(5)[target]}
    names["dl"] = losses.caption_loss_backward(1.7, cache)
    return names, {"b": 2, "t": 3, "v": 5, "w": 5}


def contrast():
    x, y = (z / np.linalg.norm(z, axis=1)[:, None] for z in (draw(4, 3), draw(4, 3, seed=1)))
    sigma, dL = 0.4, 1.7
    loss, cache = losses.contrastive_loss(x, y, np.log(sigma))
    s = x @ y.T / sigma
    P, R = softmax(s)[0], softmax(s.T)[0]
    ds = ((P - np.eye(4)) + (R - np.eye(4)).T) * dL / 8
    names = {"x": x, "y": y, "sigma": sigma, "scale": 1 / sigma, "s": s, "P": P, "R": R, "B": 4}
    assert np.isclose(-(ds * s).sum(), losses.contrastive_loss_backward(dL, cache)[2])
    names |= {"L": loss, "L_Con": 2 * loss, "ds": ds, "dL": dL, "e": np.e}
    return names, {"i": 4, "j": 4, "k": 4}


def simplex():
    corners = np.eye(5) - 0.2  # as far from each other as five can be
    corners /= np.linalg.norm(corners, axis=1)[:, None]
    loss = losses.contrastive_loss(corners, corners, np.log(0.4))[0]
    return {"L": loss, "B": 5, "sigma": 0.4, "e": np.e}, {}


def joined():
    s, v = draw(7), draw(7, 3)
    parts = {"A": slice(0, 4), "B": slice(4, 7), "": slice(0, 7)}
    names = {"s": s, "e": np.e}
    for name, at in parts.items():
        end = f"_{name}" if name else ""
        names |= {f"m{end}": s[at].max(), f"l{end}": np.exp(s[at] - s[at].max()).sum()}
        names[f"a{end}"] = np.exp(s[at] - s[at].max()) @ v[at]
    names |= {"o": softmax(s[None])[0][0] @ v, "LSE": np.log(np.exp(s).sum())}
    return names | {"p": softmax(s[None])[0][0]}, {"j": 7}


def absorbed():
    xhat, q, W_k, W_v = draw(6, 4), draw(3), draw(4, 3), draw(4, 3, seed=1)
    gamma, beta, b_k, b_v = draw(4), draw(4, seed=1), draw(3, seed=1), draw(3, seed=2)
    u = gamma * xhat + beta
    s = (u @ W_k + b_k) @ q / np.sqrt(3)
    p = softmax(s[None])[0][0]
    names = {"xhat": xhat, "q": q, "W_k": W_k, "W_v": W_v, "gamma": gamma, "beta": beta, "s": s}
    names |= {"b_k": b_k, "b_v": b_v, "p": p, "o": p @ (u @ W_v + b_v), "m": p @ xhat, "K": 3}
    return names | {"u_": u, "u": p @ u, "a": W_k @ q / np.sqrt(3)}, {"n": 6}


def info_nce():
    return {"r": draw(4), "d": draw(4, seed=1), "e": np.e}, {"i": 4}


def one_target():
    s, t = draw(5), 3
    logits = s[None, None]
    loss, cache = losses.caption_loss(logits, np.array([[t]]))
    slope = losses.caption_loss_backward(1.0, cache)[0, 0]
    return {"s": s, "t": t, "ell": loss, "dell_ds": slope, "e": np.e}, {"v": 5, "u": 5}


def schedule():
    config, n = preset("tiny", schedule="cosine"), 700
    names = {"n": n, "warmup": config.warmup, "steps": config.steps, "pi": np.pi}
    names |= {"peak": config.learning_rate, "f": 0.0, "rate": learning_rate(n, config)}
    end = learning_rate(config.steps - 1, config)
    names["f"] = end / config.learning_rate
    return names | {"a": (n - config.warmup) / (config.steps - 1 - config.warmup)}, {}


BESIDE_CODE = {  # definitions and bounds: the page's code, or a test of the layer, computes them
    ("1", 0), ("2", 0), ("5", 0), ("5", 1), ("6", 0), ("7", 0), ("8", 0), ("8", 1), ("11", 0),
    ("11b", 0), ("12", 0), ("15", 0),
}  # fmt: skip
CASES = {  # (page, the block's place on it): its names and how many each index has
    ("2", 1): linear_map,
    ("2", 2): softmax_row,
    ("2", 3): softmax_row,
    ("2", 4): softmax_row,
    ("3", 0): norm_rows,
    ("3", 1): norm_backward,
    ("3", 2): norm_backward,
    ("3", 3): gelu_curve,
    ("4", 0): attention,
    ("4", 1): attention,
    ("8", 2): captioning,
    ("8", 3): captioning,
    ("9", 0): contrast,
    ("9", 1): contrast,
    ("9", 2): contrast,
    ("9", 3): contrast,
    ("9", 4): simplex,
    ("12", 1): joined,
    ("12", 2): joined,
    ("12", 3): joined,
    ("13", 0): delta,
    ("13", 1): centred,
    ("13", 2): centred,
    ("14", 0): absorbed,
    ("14", 1): absorbed,
    ("15", 1): info_nce,
    ("16", 0): one_target,
    ("18", 0): schedule,
}


@pytest.mark.parametrize(("page", "place"), CASES)
def test_what_is_set_as_mathematics_is_true(page, place):
    assert differences(blocks(page)[place], *CASES[page, place]()) == []


def test_every_formula_is_computed_or_stands_beside_the_code_that_does():
    every = {
        (pages.label(path).lstrip("0"), place)
        for path in pages.all_pages()
        for place in range(len(MATHS.findall(path.read_text())))
    }
    assert every == {*CASES, *BESIDE_CODE, ("10", 0)}


def slips(text):
    """The statement with one sign turned, or two indices exchanged."""
    for match in SIGN.finditer(text):
        other = match[0].translate(str.maketrans("+-", "-+"))
        yield text[: match.start()] + other + text[match.end() :]
    for match in INDICES.finditer(text):
        yield f"{text[: match.start()]}_{{{match[2]}{match[1]}}}{text[match.end() :]}"


@pytest.mark.parametrize(("page", "place"), CASES)
def test_a_slip_in_a_formula_is_noticed(page, place):
    known = CASES[page, place]()
    for text in read(blocks(page)[place]):
        for slip in slips(text):
            try:
                assert differences(slip, *known), slip
            except IndexError:  # no such row: noticed
                pass


def test_adamw_as_page_10_has_it():
    (block,) = blocks("10")
    config, rng = preset("tiny", weight_decay=0.1), np.random.default_rng(0)
    p, state = {"w": rng.standard_normal((2, 3))}, None
    state = start(p, config)
    names = {"p": p["w"], "m": np.zeros((2, 3)), "s": np.zeros((2, 3)), "rate": 0.01}
    names |= {"beta_1": config.beta1, "beta_2": config.beta2, "epsilon": config.epsilon}
    names["decay"] = config.weight_decay
    for n in (1, 2, 3):
        g = rng.standard_normal((2, 3))
        p, state = adamw(p, {"w": g}, state, 0.01, config)
        names |= {"g": g, "n": n}
        for name, formula in statements(block):
            names[_plain(name)] = Parser(names, {}).parse(formula)({})
        np.testing.assert_allclose(names["p"], p["w"], rtol=1e-6)


def _plain(name):
    return re.sub(r"\\hat (\w)", r"\1hat", name)


def test_the_reader_of_mathematics_is_right_itself():
    names = {"a": np.array([1.0, 2.0]), "b": 3.0, "M": np.arange(6.0).reshape(2, 3)}
    values = {
        r"\sum_i a_i \, b - a_j": 7.0,
        r"- \frac{a_j}{b} + \sqrt{b^2}": 3 - 2 / 3,
        r"\ln \sum_i e^{a_i - b} + b": np.log(np.exp(1) + np.exp(2)),
        r"[i = j] \, b + [i \ne j]": 1.0,
        r"a \cdot a + a_i a_j": 7.0,
        r"M^\top a": [6.0, 9.0, 12.0],
        r"\mathrm{mean}(2 a)": [3.0],
    }
    for text, value in values.items():
        (sides,) = statements(text)
        found = Parser(names | {"e": np.e}, {"i": 2, "j": 2}).parse(sides[0])({"i": 0, "j": 1})
        np.testing.assert_allclose(found, value, err_msg=text)
