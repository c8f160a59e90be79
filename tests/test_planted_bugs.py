"""Do the tests have teeth? Each row plants one bug in the source and names the check that sees it.

A check is the body of a test of the same name. A row whose bug goes unseen fails here.
"""

from unittest import mock

import pytest
import test_coca as coca_tests
import test_engine as engine_tests
import test_generation as generation_tests
import test_likelihood as likelihood_tests
import test_muon as muon_tests
import test_reference_gradients as reference_tests
from backends import Engine, Reference
from oracles import name_of, planted
from strategies import small_config

from minicoca.engine import attention as engine_attention
from minicoca.engine import cache as engine_cache
from minicoca.engine import generate as engine_generate
from minicoca.engine import ops as engine_ops
from minicoca.engine import optim as engine_optim
from minicoca.engine import pooling as engine_pooling
from minicoca.engine import text as engine_text
from minicoca.reference import (
    attention,
    decoding,
    generate,
    losses,
    model,
    ops,
    optim,
    pooling,
    text,
    vision,
)

SIZE = dict(B=3, T=5, S=7, K=9, F=11, V=13, E=15, P=17, D=8, H=2)


def op(name):
    """The gradient check of one op."""

    def check():
        reference_tests.check_op(name, SIZE, 0)

    check.__name__ = f"test_op_gradient[{name}]"
    return check


def prop(check, backend, **options):
    """A property of test_coca.py, on one backend."""

    def run():
        for seed in range(3):
            check(backend, small_config(**options), seed)

    run.__name__ = f"{check.__name__}[{backend.name}]"
    return run


def unpacked(check):
    """The same check, with the rows of padding computed."""

    def run():
        with mock.patch.object(engine_text, "PACK_BELOW", 0.0):
            check()

    run.__name__ = check.__name__
    return run


def whole(**options):
    def test_model_gradient():
        reference_tests.check_model(small_config(**options), 0)

    return test_model_gradient


def same(**options):
    def test_engine_equals_reference():
        for seed in range(3):
            engine_tests.check_engine_equals_reference(small_config(**options), seed)

    return test_engine_equals_reference


def optimizer(**more):
    settings = dict(weight_decay=0.3, warmup=2, steps=5, learning_rate=0.1, clip_norm=1.0)
    settings |= dict(image_rate=0.3, text_rate=2.0, freeze="pooler.contrast")
    engine_tests.check_optimizer(0, small_config(**settings, **more))


def muon():
    optimizer(optimizer="muon", momentum=0.8, muon_rate=0.7)


def cached():
    for seed in range(3):
        generation_tests.check_cached(small_config(), seed)


def is_the_loss(ours):
    def test_the_sum_is_minus_the_loss_times_the_tokens():
        likelihood_tests.check_is_the_loss(ours, small_config(), 0)

    return test_the_sum_is_minus_the_loss_times_the_tokens


def promises(backend):
    def test_generation_keeps_its_promises():
        generation_tests.test_generation_keeps_its_promises(backend, {})
        generation_tests.test_generation_keeps_its_promises(
            backend, {"temperature": 1.5, "seed": 1}
        )

    return test_generation_keeps_its_promises


def exhaustive(backend):
    def test_a_beam_wide_enough_finds_the_best_caption_of_all():
        generation_tests.check_best_caption(backend, 0, 1, [1])

    return test_a_beam_wide_enough_finds_the_best_caption_of_all


def filters(backend):
    def test_filters_keep_what_they_say():
        generation_tests.test_filters_keep_what_they_say(backend)

    return test_filters_keep_what_they_say


C = coca_tests
BUGS = [
    # --- a gradient that is wrong -------------------------------------------------------------
    (ops, '{"weight": x_RD.T @ dy_RF}', '{"weight": x_RD.T @ dy_RF / 2}', op("linear")),
    (ops, 'dparams["bias"] = dy_RF.sum(0)', 'dparams["bias"] = dy_RF.mean(0)', op("linear")),
    (ops, "np.add.at(dtable_VD, ids.reshape(-1), dy.reshape(-1, shape[1]))",
     "dtable_VD[ids.reshape(-1)] = dy.reshape(-1, shape[1])", op("embedding")),
    (ops, "return rstd * (dxhat - through_mean - through_spread), dparams",
     "return rstd * (dxhat - through_spread), dparams", op("layer_norm")),
    (ops, "return rstd * (dxhat - through_mean - through_spread), dparams",
     "return rstd * (dxhat - through_mean), dparams", op("layer_norm")),
    (ops, "return p * (dp - (p * dp).sum(-1, keepdims=True))", "return p * dp", op("softmax")),
    (ops, "return dy - np.exp(y) * dy.sum(-1, keepdims=True)",
     "return dy - np.exp(y)", op("log_softmax")),
    (ops, "return rnorm * (dy - y * (dy * y).sum(-1, keepdims=True))",
     "return rnorm * dy", op("l2_normalise")),
    (ops, "(1 + 3 * 0.044715 * square)", "(1 + 0.044715 * square)", op("gelu tanh")),
    (ops, "phi + x * density", "phi + density", op("gelu exact")),
    (attention, "ds_BHTS = softmax_backward(dp_BHTS, softmax_cache) * scale",
     "ds_BHTS = softmax_backward(dp_BHTS, softmax_cache)", op("attention")),
    (attention, "return dx_BTD, dmemory_by_key_BSM + dmemory_by_value_BSM, dparams",
     "return dx_BTD, dmemory_by_value_BSM, dparams", op("multi_head_attention")),
    (attention, "return dy_BTD + dx_BTD, dmemory_BSM, dnorm, dnorm_memory, dparams",
     "return dx_BTD, dmemory_BSM, dnorm, dnorm_memory, dparams", op("multimodal_decoder")),
    (pooling, "dq_BQD.sum(0)", "dq_BQD.mean(0)", op("pool cascade")),
    (pooling, 'dmemory = dmemory + dread if mode == "cascade" else dmemory', "dmemory = dmemory",
     op("pool cascade")),
    (text, "dmemory_BSM = dmemory_BSM + dread_BSM", "dmemory_BSM = dread_BSM",
     op("multimodal_decoder")),
    (text, "dposition[: dx_BTD.shape[1]] = dx_BTD.sum(0)", "pass", op("unimodal_decoder")),
    (vision, 'dparams["position"] = dx_BSD.sum(0)', 'dparams["position"] = dx_BSD[0]',
     op("image_encoder plain")),
    (losses, "dlog_temperature = -(dlogits_BB", "dlog_temperature = (dlogits_BB",
     op("contrastive_loss")),
    (losses, "dlogits_BB + log_softmax_backward(dlog_p_BB, text_cache).T",
     "dlogits_BB + log_softmax_backward(dlog_p_BB, text_cache)", op("contrastive_loss")),
    (model, "dx_BTD[:, :-1] = dinputs", "dx_BTD[:, 1:] = dinputs", whole()),
    # --- a forward that is wrong, though its gradient may agree with it -----------------------
    (attention, "scale = q_BTHK.shape[-1] ** -0.5", "scale = 1.0", same()),
    (attention, "return np.tri(length, dtype=bool)", "return np.tri(length, k=1, dtype=bool)",
     prop(C.check_causality, Reference)),
    (attention, "(key_S < lengths_B[:, None]) | (key_S == tokens)",
     "(key_S <= lengths_B[:, None]) | (key_S == tokens)", prop(C.check_padding, Reference)),
    (attention, "(key_S < lengths_B[:, None]) | (key_S == tokens)",
     "(key_S < lengths_B[:, None] - 1) | (key_S == tokens)",
     prop(C.check_cls_sees_every_valid_token, Reference)),
    (model, "caption_loss(logits, tokens_BT[:, 1:])", "caption_loss(logits, tokens_BT[:, :-1])",
     prop(C.check_caption_loss_by_hand, Reference)),
    (losses, "valid_BT = targets_BT != PAD", "valid_BT = targets_BT != 1",
     prop(C.check_caption_loss_by_hand, Reference)),
    (losses, "valid_BT = targets_BT != PAD", "valid_BT = targets_BT >= 0",
     prop(C.check_padding, Reference)),
    (losses, "scale = np.exp(-log_temperature)", "scale = np.exp(log_temperature)",
     prop(C.check_contrastive_loss_by_hand, Reference)),
    (losses, "loss = -0.5 * (np.diagonal(log_p_BB).mean() + np.diagonal(log_r_BB).mean())",
     "loss = -np.diagonal(log_p_BB).mean()", prop(C.check_contrastive_loss_by_hand, Reference)),
    (text, "return x_BSD[:, :-1], cls_BD, (embedding_cache", "return x_BSD[:, 1:], cls_BD, "
     "(embedding_cache", prop(C.check_causality, Reference)),
    (pooling, 'read = memory if mode == "cascade" else tokens_BSM',
     "read = memory[::-1]", prop(C.check_batch_independence, Reference)),
    (vision, "x_BSD = x_BSD + params[\"position\"]", "pass", same()),
    # --- optimiser and schedule ---------------------------------------------------------------
    (optim, "mhat, shat = m / (1 - b1**step), s / (1 - b2**step)", "mhat, shat = m, s",
     engine_tests.check_adamw_by_hand),
    (optim, "decay = config.weight_decay if p.ndim >= 2 else 0.0", "decay = config.weight_decay",
     engine_tests.check_adamw_by_hand),
    (optim, "+ config.epsilon) + decay * p)", "+ config.epsilon))",
     engine_tests.check_adamw_by_hand),
    (optim, "factor = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0",
     "factor = limit / (norm + 1e-6) if limit > 0 else 1.0", engine_tests.check_clipping),
    (optim, "0.5 * (1 + math.cos(math.pi * part))", "math.cos(math.pi * part)",
     engine_tests.check_schedules),
    (optim, "return peak * (step + 1) / config.warmup", "return peak * step / config.warmup",
     engine_tests.check_schedules),
    (engine_optim, '"weight_decay": 0.0', '"weight_decay": decay', optimizer),
    (engine_optim, "torch.clamp(limit / (norm + 1e-6), max=1.0)", "limit / (norm + 1e-6) * 1.001",
     optimizer),
    (engine_optim, '"weight_decay": 0.0, "factor": factor', '"weight_decay": 0.0, "factor": 1',
     optimizer),
    (optim, "before, rate * factor, decaying", "before, rate, decaying", optimizer),
    (optim, "(b * s + c * (s @ s))", "(b * s - c * (s @ s))", muon_tests.check_orthogonalised),
    (optim, "x / np.maximum(np.sqrt((x * x)", "x / np.maximum(np.sqrt(abs(x)",
     muon_tests.check_orthogonalised),
    (optim, "ahead = b * mean + (1 - b) * gradients", "ahead = mean",
     muon_tests.check_muon_by_hand),
    (optim, "0.2 * max(params.shape[1:])", "0.2 * min(params.shape[1:])",
     muon_tests.check_muon_by_hand),
    (optim, "(move + config.weight_decay * params)", "move", muon_tests.check_muon_by_hand),
    (optim, "rate * factor * config.muon_rate, d", "rate * config.muon_rate, d", muon),
    (engine_optim, '1 - group["momentum"])', 'group["momentum"])', muon),
    (engine_optim, 'torch._foreach_lerp(gradients, means, group["momentum"])', "means", muon),
    (engine_optim, '"factor": factor * config.muon_rate', '"factor": factor', muon),
    (engine_optim, '1 - group["lr"] * group["weight_decay"]', "1", muon),
    # --- the engine ---------------------------------------------------------------------------
    (engine_text, 'masking = {"causal": True, "packing": rows.packing}',
     'masking = {"causal": False, "packing": rows.packing}', prop(C.check_causality, Engine)),
    (engine_text, "torch.cumsum(self.lengths_B + 1, 0) - 1",
     "torch.cumsum(self.lengths_B + 1, 0) - 2", same()),
    (engine_text, "[self.packing.slots_R].nonzero()[:, 0]",
     "[self.packing.slots_R].nonzero()[:, 0].flip(0)", same()),
    (engine_text, "torch.full_like(self.lengths_B, T) if self.legacy else self.lengths_B",
     "torch.full_like(self.lengths_B, T)", prop(C.check_padding, Engine)),
    (engine_ops, "targets, pad_id=PAD, fused", "targets, pad_id=-1, fused",
     unpacked(prop(C.check_caption_loss_by_hand, Engine))),
    (engine_ops, "scale = torch.exp(-log_temperature.to(wide))",
     "scale = torch.exp(-log_temperature.detach().to(wide))", same()),
    (engine_pooling, 'read = memory if mode == "cascade" else tokens_BSM', "read = memory",
     same(pooler="parallel", image_width=12, image_heads=3)),
    (engine_attention, "return padded.index_copy(0, self.slots_R, x_RD)",
     "return padded.index_copy(0, self.slots_R.flip(0), x_RD)", same()),
    # --- generation ---------------------------------------------------------------------------
    (engine_cache, "x_BTD = x_BTD + params[\"text\"][\"position\"][start : self.position]",
     "x_BTD = x_BTD + params[\"text\"][\"position\"][: self.position - start]", cached),
    (engine_cache, "causal = not self.used and x_BTD.shape[1] > 1", "causal = False", cached),
    (engine_cache, "all_[:, self.used :] = now", "all_[:, self.used :] = now.flip(1)", cached),
    (engine_generate, "seen_BTS = seen_BTS.gather(1, parents_BT1.expand",
     "seen_BTS = seen_BTS.gather(1, parents_BT1.sort(1).values.expand", cached),
    (decoding, "logits_BV[:, [PAD, START, UNKNOWN]] = -np.inf", "pass", promises(Reference)),
    (generate, "np.where(done_B, PAD, next_B)", "next_B", promises(Reference)),
    (generate, "[..., 0] * (targets != PAD))", "[..., 0])",
     is_the_loss(likelihood_tests.by_reference)),
    (engine_generate, "targets = tokens_RT[text, 1:]", "targets = tokens_RT[text, :-1]",
     is_the_loss(likelihood_tests.by_engine)),
    (engine_generate, "multimodal_decoder(x_RTD[text], memory[image]",
     "multimodal_decoder(x_RTD[text], memory[text]", is_the_loss(likelihood_tests.by_engine)),
    (decoding, "(before_BV >= top_p - ROUNDING)", "(before_BV + p_BV >= top_p - ROUNDING)",
     filters(Reference)),
    (generate, "[(total / written**length_penalty, ids) for total, ids in beams]",
     "[(total, ids) for total, ids in beams]", exhaustive(Reference)),
    (engine_generate, "columns = totals.tolist(),", "columns = totals.flip(1).tolist(),", cached),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=map(name_of, BUGS))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()  # without the bug it passes
    with planted(module, old, new), pytest.raises(AssertionError):
        check()
    check()  # and again, once the bug is out


def test_there_are_enough():
    assert len(BUGS) >= 25
