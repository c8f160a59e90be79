"""Do the tests of decoding have teeth? Each row plants one slip in one side, and names the check
that must see it."""

import pytest
import test_decoding as D
from backends import Engine, Reference
from oracles import planted

from minicoca.engine import cache as engine_cache
from minicoca.engine import decoding as engine_decoding
from minicoca.engine import generate as engine_generate
from minicoca.reference import decoding, generate

pytestmark = pytest.mark.slow


def may_follow(backend):
    for seed in range(6):
        for n in (0, 1, 2, 3):
            controls = {"min_length": 3, "repetition_penalty": 1.3, "no_repeat_ngram": n}
            for written in (1, 2):
                D.check_may_follow(backend, seed, 8, written, controls)


def beams(backend):
    for seed in range(6):
        for shape, diversity in (((3, 1), 0.0), ((4, 2), 0.4), ((6, 3), 9.0)):
            for most in (0, 3):
                how = {"length_penalty": 1.0, "max_length": most, "diversity": diversity}
                D.check_beams(backend, seed, [1, 5], shape, {"min_length": 2}, how)


def ties(backend):
    for seed in range(40):
        D.check_largest(seed, 3, 9, 1 + seed % 6, 1 + seed % 4)


def together(backend):
    for seed in range(3):
        D.check_batches(seed)


SLIPS = [
    # --- what may follow ----------------------------------------------------------------------
    (Reference, decoding, "old * repetition_penalty)", "old / repetition_penalty)", may_follow),
    (Engine, engine_decoding, "seen_BT * repetition_penalty)", "less_BT)", may_follow),
    (Reference, decoding, "written + 1 >= min_length", "written >= min_length", may_follow),
    (Engine, engine_decoding, "torch.tensor(written + 1 >=", "torch.tensor(written >=", may_follow),
    (Reference, decoding, "[len(tokens) - n + 1 :]", "[len(tokens) - n :]", may_follow),
    (Engine, engine_decoding, ".unfold(1, n, 1)", ".unfold(1, n, n)", may_follow),
    (Engine, engine_decoding, "end_B.where(kept_B, -torch.inf)", "-torch.inf", may_follow),
    (Reference, decoding, "            logits_V[END] = end\n", "            pass\n", may_follow),
    # --- beams --------------------------------------------------------------------------------
    (Reference, generate, "opened[g]], diversity)", "opened[g]], 0)", beams),
    (Engine, engine_generate, "new_tensor(diversity)", "new_tensor(0.0)", beams),
    (Reference, generate, "(float(totals_BV[b, token])", "(float((totals_BV - less_V)[b, token])",
     beams),
    (Engine, engine_generate, "(own_BTV.gather(2, tokens)", "(ranked_BTV.gather(2, tokens)", beams),
    (Reference, generate, "start + (max_length or", "start + 1 + (max_length or", beams),
    (Engine, engine_generate, "start + (max_length or", "start + 1 + (max_length or", beams),
    (Reference, generate, "f[-1][0] if len(f) == size", "f[-1][0] if f", beams),
    (Engine, engine_generate, "f[self.best - 1][0] if len(f) >= self.best", "f[-1][0] if f", beams),
    (Reference, generate, "max(o)[0] / most <= low", "o[0][0] * most <= low", beams),
    (Engine, engine_generate, "accumulate=True", "accumulate=False", beams),
    # --- the few largest, and images that are done ----------------------------------------------
    (Engine, engine_decoding, "places[:, :count].sort().values", "places[:, :count]", ties),
    (Engine, engine_decoding, "values[:, -1] == last", "values[:, -1] != values[:, -1]", ties),
    (Engine, engine_generate, "cache.keep(left_R)", "cache.keep(left_R.flip(0))", together),
    (Engine, engine_generate, "cache.keep(kept)", "cache.keep(kept.flip(0))", together),
    (Engine, engine_generate, "[streams[b] for b in rows_R.tolist()]", "streams[: len(rows_R)]",
     together),
    (Engine, engine_cache, ".index_select(0, rows)", "[: len(rows)]", together),
]  # fmt: skip


@pytest.mark.parametrize(
    "backend, module, old, new, check", SLIPS, ids=[f"{row[0].name} {row[3]}" for row in SLIPS]
)
def test_a_slip_is_seen(backend, module, old, new, check):
    with planted(module, old, new), pytest.raises((AssertionError, ValueError)):
        check(backend)


@pytest.mark.parametrize("check", [may_follow, beams, ties, together], ids=lambda f: f.__name__)
def test_without_a_slip_nothing_is_seen(check):
    for backend in (Reference, Engine):
        check(backend)
