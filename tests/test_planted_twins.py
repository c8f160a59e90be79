"""Slips that reference and engine make alike, or that undo each other there and back: no comparison
of the two sees them. Each is planted on both sides at once, and an oracle of another kind must see
it on each: every caption of a small vocabulary, torch's own modules, a definition spelled out."""

import contextlib

import pytest
import test_coca as coca_tests
import test_edges
import test_engine as engine_tests
import test_generation as generation_tests
import test_interop as interop_tests
import test_randomness as randomness_tests
from backends import BACKENDS
from oracles import planted
from strategies import small_config

from minicoca.engine import attention as engine_attention
from minicoca.engine import decoding as engine_decoding
from minicoca.engine import generate as engine_generate
from minicoca.engine import optim as engine_optim
from minicoca.engine import pooling as engine_pooling
from minicoca.engine import text as engine_text
from minicoca.engine import vision as engine_vision
from minicoca.interop import open_clip
from minicoca.reference import attention, decoding, generate, optim, pooling, text, vision

G = generation_tests


def beams(backend):
    for seed in range(8):
        for penalty, prompt in ((1, [1, 4, 6]), (0.5, [1]), (2, [1, 5])):
            G.check_beam_search(backend, seed, 3, penalty, prompt)


def room(backend):
    G.test_beams_leave_room_beside_captions_that_end(backend)


def length_can_save(backend):
    G.test_a_beam_is_not_given_up_while_its_length_can_save_it(backend)


def all_captions(backend):
    for prompt in G.PROMPTS:
        G.check_best_caption(backend, 0, 1, prompt)


def edges(backend):
    G.check_filters(backend, [4, 2, 1, 1], 1)
    G.check_nothing_is_dropped(backend)


def frequencies(**how):
    def check(backend):
        G.check_frequencies(backend, how)

    check.__name__ = f"frequencies {how}"
    return check


def promises(backend):
    G.test_generation_keeps_its_promises(backend, {"temperature": 1.5, "seed": 1})


def ended(backend):
    G.test_a_prompt_that_leaves_no_room_or_has_ended_is_the_caption(backend)


def streams(backend):
    G.test_a_stream_belongs_to_its_row(backend)
    randomness_tests.test_rows_of_all_seeds_are_captions_of_their_own(backend)


def torchs(**options):
    def check(backend):
        coca_tests.check_torchs_own_layers(backend, small_config(**options), 0)

    check.__name__ = f"torch's own layers {options}"
    return check


def pixels(backend):
    test_edges.check_pixels(backend)


def schedule(backend):
    engine_tests.check_schedules()


def reading(config):
    def check(backend):
        interop_tests.check_reading(backend, config, 0)
        interop_tests.check_writing(backend, config, 0)

    check.__name__ = f"their weights, their outputs, {config.image_width}"
    return check


theirs, theirs_apart = reading(interop_tests.CONFIGS[0]), reading(interop_tests.CONFIGS[2])

# (what slips, [(module, old, new) of one or of both sides], the oracle that must see it)
SLIPS = [
    # --- beam search --------------------------------------------------------------------------
    ("the prompt's tokens count as written", [
        (generate, "scores(ended, written, length_penalty)",
         "scores(ended, written + start - 1, length_penalty)"),
        (engine_generate, "max(1, len(ids) - start)", "max(1, len(ids) - 1)")], beams),
    ("as many candidates as beams", [
        (generate, "less_V, 2 * size, start", "less_V, size, start"),
        (engine_generate, "order = order[:, : 2 * size]", "order = order[:, :size]")], room),
    ("an end counts whatever its rank", [
        (generate, "in found[:size] if ids[-1] == END", "in found if ids[-1] == END"),
        (engine_generate, "for f in found[: self.size] if", "for f in found if")], beams),
    ("one beam fewer stays open", [
        (generate, "if ids[-1] != END][:size]", "if ids[-1] != END][: max(1, size - 1)]"),
        (engine_generate, "if f[1][-1] != END][: self.size]",
         "if f[1][-1] != END][: max(1, self.size - 1)]")], beams),
    ("given up as if the longest were one token", [
        (generate, "most = max(1, limit - start) ** max(length_penalty, 0.0)", "most = 1"),
        (engine_generate, "most = self.longest ** max(self.length_penalty, 0.0)", "most = 1")],
     length_can_save),
    ("long captions are punished", [
        (generate, "total / written**length_penalty", "total * written**length_penalty"),
        (engine_generate, "total / max(1, len(ids) - start) ** power",
         "total * max(1, len(ids) - start) ** power")], all_captions),
    ("the score of the last token alone", [
        (generate, "np.array([total for total, _ in beams])[:, None] + log_p_BV",
         "log_p_BV + 0.0"),
        (engine_generate, "(totals_BT - logits_BTV.logsumexp(-1))",
         "(totals_BT.clamp(max=-torch.inf).nan_to_num(0, 0, 0) - logits_BTV.logsumexp(-1))")],
     beams),
    ("unknown may be written", [
        (decoding, "logits_BV[:, [PAD, START, UNKNOWN]]", "logits_BV[:, [PAD, START]]"),
        (engine_decoding, "for token in (PAD, START, UNKNOWN):", "for token in (PAD, START):")],
     all_captions),
    ("the least of what was found", [
        (generate, "sorted(sum(finished, []), key=lambda f: -f[0])",
         "sorted(sum(finished, []), key=lambda f: f[0])"),
        (engine_generate, "sorted(sum(finished, []), key=lambda f: -f[0])",
         "sorted(sum(finished, []), key=lambda f: f[0])")], all_captions),
    # --- sampling -----------------------------------------------------------------------------
    ("top-p drops what reaches it", [
        (decoding, "(before_BV >= top_p - ROUNDING)", "(before_BV + p_BV >= top_p - ROUNDING)"),
        (engine_decoding, "(before_BV >= top_p - ROUNDING)",
         "(before_BV + p_BV >= top_p - ROUNDING)")], edges),
    ("top-p keeps one more exactly at its edge", [
        (decoding, "(before_BV >= top_p - ROUNDING)", "(before_BV > top_p + ROUNDING)"),
        (engine_decoding, "(before_BV >= top_p - ROUNDING)", "(before_BV > top_p + ROUNDING)")],
     edges),
    ("top-p drops by default", [
        (decoding, "& (top_p < 1)", "& (top_p <= 1)"),
        (engine_decoding, "& (top_p < 1)", "& (top_p <= 1)")], edges),
    ("top-k keeps one more", [
        (decoding, "drop_BV[:, top_k or", "drop_BV[:, top_k + 1 if top_k else"),
        (engine_decoding, "drop_BV[:, top_k or", "drop_BV[:, top_k + 1 if top_k else")],
     frequencies(temperature=1.3, top_k=2)),
    ("the temperature multiplies", [
        (decoding, "logits_BV = logits_BV / temperature", "logits_BV = logits_BV * temperature"),
        (engine_decoding, "logits_BV = logits_BV / temperature",
         "logits_BV = logits_BV * temperature")], frequencies(temperature=2.0)),
    ("the temperature comes after the filters", [
        (decoding, "    logits_BV = logits_BV / temperature\n", ""),
        (decoding, "kept_BV = np.where(drop_BV, -np.inf, sorted_BV)",
         "kept_BV = np.where(drop_BV, -np.inf, sorted_BV / temperature)"),
        (engine_decoding, "    logits_BV = logits_BV / temperature\n", ""),
        (engine_decoding, "kept_BV = sorted_BV.masked_fill(drop_BV, -torch.inf)",
         "kept_BV = (sorted_BV / temperature).masked_fill(drop_BV, -torch.inf)")],
     frequencies(temperature=1.7, top_p=0.8, top_k=3)),
    ("what is dropped is drawn", [
        (decoding, "log_softmax(filter_logits(logits_BV, temperature, top_k, top_p))",
         "log_softmax(logits_BV / temperature)"),
        (engine_decoding, "torch.softmax(filter_logits(logits_BV, temperature, top_k, top_p), -1)",
         "torch.softmax(logits_BV / temperature, -1)")],
     frequencies(temperature=1.3, top_k=2)),
    ("filtered logits stay in the sorted order", [
        (decoding, "np.put_along_axis(filtered_BV, order_BV, kept_BV, -1)",
         "filtered_BV[:] = kept_BV"),
        (engine_decoding, "torch.empty_like(kept_BV).scatter_(-1, order_BV, kept_BV)", "kept_BV")],
     frequencies(temperature=1.0)),
    ("the streams of seed + row", [
        (generate, 'stream("sample", seed, first_stream + b)',
         'stream("sample", seed + first_stream + b, 0)'),
        (engine_generate, 'stream("sample", seed, first_stream + b)',
         'stream("sample", seed + first_stream + b, 0)')], streams),
    ("every row draws alike", [
        (generate, 'stream("sample", seed, first_stream + b)', 'stream("sample", seed, 0)'),
        (engine_generate, 'stream("sample", seed, first_stream + b)', 'stream("sample", seed, 0)')],
     streams),
    ("the seed has no say", [
        (generate, 'stream("sample", seed, first_stream + b)',
         'stream("sample", 0, first_stream + b)'),
        (engine_generate, 'stream("sample", seed, first_stream + b)',
         'stream("sample", 0, first_stream + b)')], streams),
    ("what has ended goes on", [
        (generate, "np.where(done_B, PAD, next_B)", "next_B"),
        (engine_generate, "next_R.masked_fill(~going_B[rows_R], PAD)", "next_R")], promises),
    ("an end in the prompt is not seen", [
        (generate, "done_B = (tokens_BT == END).any(1)",
         "done_B = (tokens_BT[:, np.shape(prompt)[1]:] == END).any(1)"),
        (engine_generate, "going_B = ~(prompt_BT == END).any(1)",
         "going_B = ~(prompt_BT == PAD).any(1)")], ended),
    # --- attention, blocks, poolers -------------------------------------------------------------
    ("query and key exchanged", [
        (attention, 'q_BTD, query_cache = linear(x_BTD, params["query"])\n'
         '    k_BSD, key_cache = linear(memory_BSM, params["key"])',
         'q_BTD, query_cache = linear(x_BTD, params["key"])\n'
         '    k_BSD, key_cache = linear(memory_BSM, params["query"])'),
        (engine_attention, 'joint(params, "query", "key", "value")',
         'joint(params, "key", "query", "value")'),
        (engine_attention, 'q_BTD = linear(x_BTD, params["query"])',
         'q_BTD = linear(x_BTD, params["key"])'),
        (engine_attention, 'joint(params, "key", "value")',
         'joint(params, "query", "value")')],
     torchs(image_width=12, image_heads=3)),
    ("scores divided by the width of all heads", [
        (attention, "scale = q_BTHK.shape[-1] ** -0.5",
         "scale = (q_BTHK.shape[-1] * q_BTHK.shape[-2]) ** -0.5"),
        (engine_attention, "o_BTD = attention(*split,",
         "o_BTD = attention(split[0] * heads**-0.5, *split[1:],")], torchs()),
    ("heads are every H-th number", [
        (attention, "split = [y.reshape(*y.shape[:2], heads, -1) for y in (q_BTD, k_BSD, v_BSD)]",
         "split = [y.reshape(*y.shape[:2], -1, heads).swapaxes(2, 3) for y in (q_BTD, k_BSD, "
         "v_BSD)]"),
        (engine_attention, "split = [y.unflatten(-1, (heads, -1)) for y in (q_BTD, k_BSD, v_BSD)]",
         "split = [y.unflatten(-1, (-1, heads)).transpose(2, 3) for y in (q_BTD, k_BSD, v_BSD)]")],
     torchs()),
    ("the memory is not normed", [
        (attention, "multi_head_attention(n_BTD, m_BSM, params, heads)",
         "multi_head_attention(n_BTD, memory_BSM, params, heads)"),
        (engine_attention, "multi_head_attention(n_BTD, m_BSM, params, heads, packing=packing)",
         "multi_head_attention(n_BTD, memory_BSM, params, heads, packing=packing)")], torchs()),
    ("the MLP reads what is not normed", [
        (attention, "y_BTD, mlp_cache = mlp(n_BTD, params, kind)",
         "y_BTD, mlp_cache = mlp(x_BTD, params, kind)"),
        (engine_attention, "x_BTD + mlp(layer_norm(x_BTD, norm), params, kind)",
         "x_BTD + mlp(x_BTD, params, kind)")], torchs()),
    ("pooled tokens are added to their queries", [
        (pooling, "y_BQD, output_cache = layer_norm(pooled_BQD,",
         "y_BQD, output_cache = layer_norm(pooled_BQD + q_BQD,"),
        (engine_pooling, "return layer_norm(pooled_BQD,",
         "return layer_norm(pooled_BQD + q_1QD,")], torchs(pooler="shared")),
    ("the last query is the contrastive one", [
        (pooling, "return y_BQD[:, 0], y_BQD[:, 1:], ", "return y_BQD[:, -1], y_BQD[:, :-1], "),
        (engine_pooling, "return y_BQD[:, 0], y_BQD[:, 1:]",
         "return y_BQD[:, -1], y_BQD[:, :-1]")], torchs(pooler="shared")),
    ("the contrastive query reads patches", [
        (pooling, 'read = memory if mode == "cascade" else tokens_BSM', "read = tokens_BSM"),
        (engine_pooling, 'read = memory if mode == "cascade" else tokens_BSM',
         "read = tokens_BSM")], torchs(image_width=12, image_heads=3)),
    ("the image is read after the last MLP", [
        (text, "y_BTD, mlp_cache = mlp_layer(x_BTD, params[\"norm_mlp\"]",
         "y_BTD, mlp_cache = mlp_layer(x_BTD, params[\"norm_cross\"]"),
        (engine_text, "return mlp_layer(x_BTD, params[\"norm_mlp\"]",
         "return mlp_layer(x_BTD, params[\"norm_cross\"]")], torchs()),
    ("CLS has the position of the next token", [
        (text, "np.concatenate([x_BTD, cls_B1D], 1), (token",
         'np.concatenate([x_BTD, cls_B1D + params["position"][0]], 1), (token'),
        (engine_text, 'cls_B1D = params["cls"].expand(B, 1, -1)',
         'cls_B1D = (params["cls"] + params["position"][0]).expand(B, 1, -1)')], torchs()),
    ("the first and the last position exchanged", [
        (text, 'x_BTD + params["position"][: tokens_BT.shape[1]]',
         'x_BTD + params["position"][: tokens_BT.shape[1]][::-1]'),
        (engine_text, 'x_BTD + params["position"][:T]',
         'x_BTD + params["position"][:T].flip(0)')], torchs()),
    ("patches column by column", [
        (vision, "grid = images_BII3.reshape(B, side, p, side, p, 3).transpose(0, 1, 3, 2, 4, 5)\n"
         "    return grid.reshape(B, side * side",
         "grid = images_BII3.reshape(B, side, p, side, p, 3).transpose(0, 3, 1, 2, 4, 5)\n"
         "    return grid.reshape(B, side * side"),
        (engine_vision, "grid = images_BII3.reshape(B, side, p, side, p, 3).transpose(2, 3)\n"
         "    return grid.reshape(B, side * side",
         "grid = images_BII3.reshape(B, side, p, side, p, 3).permute(0, 3, 1, 2, 4, 5)\n"
         "    return grid.reshape(B, side * side")], torchs()),
    ("the class token comes last", [
        (vision, "np.concatenate([class_B1D, x_BSD], 1)", "np.concatenate([x_BSD, class_B1D], 1)"),
        (engine_vision, "torch.cat([class_B1D, x_BSD], 1)", "torch.cat([x_BSD, class_B1D], 1)")],
     torchs(stem="clip")),
    ("pixels are not divided by their spread", [
        (vision, "(images.astype(np.float32) / 255 - mean) / std",
         "(images.astype(np.float32) / 255 - mean) + 0 * std"),
        (engine_vision, "return (images - mean) / std", "return (images - mean) + 0 * std")],
     pixels),
    ("the rate falls to nothing", [
        (optim, "peak * (last + (1 - last) * fall)", "peak * fall"),
        (engine_optim, "peak * (last + (1 - last) * fall)", "peak * fall")], schedule),
    # --- there and back -------------------------------------------------------------------------
    ("their query and key exchanged", [
        (open_clip, 'enumerate(("query", "key", "value"))',
         'enumerate(("key", "query", "value"))')], theirs),
    ("value and key exchanged, where all stand apart", [
        (open_clip, 'weight = (f"{theirs}.{part[0]}_proj_weight", None)',
         'weight = (f"{theirs}.{dict(q=\'q\', k=\'v\', v=\'k\')[part[0]]}_proj_weight", None)')],
     theirs_apart),
    ("CLS without its position", [
        (open_clip, "array(_CLS) + position[-1]", "array(_CLS) + 0")], theirs),
    ("the first position is that of CLS", [
        (open_clip, "array(_CLS) + position[-1]", "array(_CLS) + position[0]"),
        (open_clip, "position[:-1].copy()", "position[1:].copy()"),
        (open_clip, "[flat[\"text.position\"], last[None]]",
         "[last[None], flat[\"text.position\"]]")], theirs),
    ("square matrices are not turned", [
        (open_clip, "(*weight, f\"{ours}.{part}.weight\", _TURN)",
         "(*weight, f\"{ours}.{part}.weight\", _KEEP)")], theirs),
    ("rows and columns of a patch exchanged", [
        (open_clip, "array.transpose(2, 3, 1, 0)", "array.transpose(3, 2, 1, 0)"),
        (open_clip, "array.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)",
         "array.reshape(size, size, 3, -1).transpose(3, 2, 1, 0)")], theirs),
    ("sigma for its inverse", [
        (open_clip, '("logit_scale", None, "log_temperature", _NEGATE)',
         '("logit_scale", None, "log_temperature", _KEEP)')], theirs),
    ("the two norms of a block exchanged", [
        (open_clip, '*_norm(f"{theirs}.ln_1", f"{ours}.norm_{norms[0]}")',
         '*_norm(f"{theirs}.ln_1", f"{ours}.norm_{norms[1]}")'),
        (open_clip, '*_norm(f"{theirs}.ln_2", f"{ours}.norm_{norms[1]}")',
         '*_norm(f"{theirs}.ln_2", f"{ours}.norm_{norms[0]}")')], theirs),
    ("the two MLPs exchanged", [
        (open_clip, 'names += _block(f"text_decoder.resblocks.{i}", ours, norms=norms, '
         'mlp="inner_mlp")', 'names += _block(f"text_decoder.resblocks.{i}", ours, norms=norms)'),
        (open_clip, '_block(cross, ours, "cross", ("cross", "mlp"))',
         '_block(cross, ours, "cross", ("cross", "mlp"), "inner_mlp")')], theirs),
    ("the two projections exchanged", [
        (open_clip, '("visual.proj", None, "image_projection.weight", _KEEP)',
         '("visual.proj", None, "text_projection.weight", _KEEP)'),
        (open_clip, '("text.text_projection", None, "text_projection.weight", _KEEP)',
         '("text.text_projection", None, "image_projection.weight", _KEEP)')], theirs),
    ("the pooler's norms exchanged", [
        (open_clip, '("visual.attn_pool.ln_q", "pooler.shared.norm_query")',
         '("visual.attn_pool.ln_q", "pooler.shared.norm_key")'),
        (open_clip, '("visual.attn_pool.ln_k", "pooler.shared.norm_key")',
         '("visual.attn_pool.ln_k", "pooler.shared.norm_query")')], theirs),
]  # fmt: skip


@contextlib.contextmanager
def planted_everywhere(places):
    with contextlib.ExitStack() as stack:
        for module in {place[0]: None for place in places}:
            edits = [text for place in places if place[0] is module for text in place[1:]]
            stack.enter_context(planted(module, *edits))
        yield


passed = set()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize(("slip", "places", "check"), SLIPS, ids=[s[0] for s in SLIPS])
def test_a_slip_that_both_make_is_seen(slip, places, check, backend):
    if (check.__name__, backend) not in passed:  # without the slip
        check(backend)
        passed.add((check.__name__, backend))
    with planted_everywhere(places), pytest.raises((AssertionError, KeyError)):
        check(backend)


def test_there_are_enough():
    assert len(SLIPS) >= 40
