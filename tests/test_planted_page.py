"""Do the tests of the page have teeth? Each row plants one slip in a script, and names the check
that must see it."""

import pytest
import test_page as P
from javascript import needs_node, scripts

pytestmark = [needs_node, pytest.mark.slow]

SLIPS = [
    ("ops.js", "y_F.set(bias_F)", "y_F.set(bias_F.slice(1))", P.check_shapes),
    ("ops.js", "eps = 1e-5", "eps = 1e-3", P.check_forms),
    ("ops.js", "/ x_D.length + eps", "/ (x_D.length - 1) + eps", P.check_shapes),
    ("ops.js", "0.044715", "0.04715", P.check_shapes),
    ("ops.js", "(2 * n + 1)", "(2 * n - 1)", P.check_forms),
    ("ops.js", "x / Math.sqrt(dot(x_D, x_D) + eps)", "x / (dot(x_D, x_D) + eps)", P.check_forms),
    ("attention.js", "s <= t)", "s < t)", P.check_shapes),
    ("attention.js", "/ K ** 0.5", "/ K", P.check_shapes),
    ("attention.js", "o_TD[t][h * K + k]", "o_TD[t][k * heads + h]", P.check_shapes),
    ("attention.js", "legacy ? s <= length", "legacy ? s < length", P.check_forms),
    ("attention.js", "(s < length &&", "(s <= length &&", P.check_forms),
    ("attention.js", "off[h] ? s_S.map(() => 0) :", "", P.check_heads),
    ("attention.js", "!hidden.includes(s)", "true", P.check_heads),
    ("attention.js", "add(x_TD, mlp(", "add(layer_norm(x_TD, norm), mlp(", P.check_shapes),
    ("vision.js", "i % 3]) /", "(i + 1) % 3]) /", P.check_shapes),
    ("vision.js", "((top + row) * side + left)", "((left + row) * side + top)", P.check_shapes),
    ("vision.js", "x_SD.unshift(params.class)", "x_SD.push(params.class)", P.check_forms),
    ("vision.js", "y_QD.slice(1), mean_of(p_HQS).slice(1)", "y_QD.slice(1), mean_of(p_HQS)",
     P.check_forms),
    ("vision.js", 'mode === "cascade"', 'mode === "parallel"', P.check_forms),
    ("text.js", "x_SD.slice(-1), params.norm", "x_SD.slice(-2), params.norm", P.check_shapes),
    ("text.js", "token !== PAD", "token !== START", P.check_forms),
    ("text.js", "if (params.inner_mlp)", "if (false)", P.check_forms),
    ("generate.js", "params[projection] ?", "false ?", P.check_forms),
    ("generate.js", "[PAD, START, UNKNOWN]", "[PAD, UNKNOWN]", P.check_draws),
    ("generate.js", "logit / temperature", "logit * temperature", P.check_draws),
    ("generate.js", "(uniform -= p) < 0", "p > uniform", P.check_draws),
    ("generate.js", "tokens_T.at(-1) === tried_T[", "END !== tried_T[", P.check_shapes),
    ("generate.js", "tokens_T[t + 1]", "tokens_T[t]", P.check_shapes),
    ("generate.js", "looked_S.slice(-patches)", "looked_S.slice(0, patches)", P.check_forms),
    ("files.js", "words.length && !pieces.includes(word)", "!pieces.includes(word)",
     P.check_hard_sentences),
    ("files.js", '.normalize("NFC")', "", P.check_hard_sentences),
    ("files.js", "length - 2", "length - 1", P.check_hard_sentences),
    ("files.js", "(x >>> 1) | (x << 31)", "x >>> 1", P.check_shapes),
]  # fmt: skip


@pytest.mark.parametrize("name, old, new, check", SLIPS, ids=[f"{r[0]} {r[2]}" for r in SLIPS])
def test_a_slip_is_seen(name, old, new, check):
    parts = scripts()
    assert parts[name].count(old) == 1, f"{name}: {old!r} stands {parts[name].count(old)} times"
    parts[name] = parts[name].replace(old, new)
    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        check(parts)
