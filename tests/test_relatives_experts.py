"""What is VLMo's and Switch's own: which MLP a token has, and who sees whom."""

import numpy as np
import pytest
import relatives
import torch
from oracles import planted
from relatives import SIDES, on
from strategies import small_config, tree_of
from test_relatives import check_gradient, check_sides

from minicoca.engine.relatives import experts as engine_experts
from minicoca.engine.relatives import modalities as engine_modalities
from minicoca.engine.relatives import vlmo as engine_vlmo
from minicoca.params import tree_map
from minicoca.reference import ops
from minicoca.reference.attention import mlp, mlp_layer
from minicoca.reference.relatives import experts, layers, modalities, vlmo
from minicoca.tuning import factors

BOTH = pytest.mark.parametrize("which", SIDES)
CONFIG = small_config(image_width=12)


def switch(count=3, seed=0):
    """(a routed layer's parameters, tokens [2, 5, D], all real)."""
    settings, rng = relatives.RELATIVES["vlmo"](experts=count), np.random.default_rng(seed)
    tree = tree_of(rng, settings.specs(CONFIG)["blocks"]["0"]["routed"])
    tree["router"]["weight"] *= 5
    return tree, rng.standard_normal((2, 5, 12)), np.ones((2, 5), bool)


def routed(which, x, tree, real, capacity=0.0):
    """(y, balance)."""
    if which == "reference":
        return experts.routed(x, tree, real, capacity, "tanh")[:2]
    given = torch.tensor(x), tree_map(torch.tensor, tree), torch.tensor(real)
    y, balance = engine_experts.routed(*given, capacity, "tanh")
    return y.numpy(), balance.item()


def check_routed_spelled_out(which):
    """Token by token: the likeliest expert's answer times its probability; a share of an expert is
    of those that want it, full or not."""
    for capacity in (0.0, 0.7):
        tree, x, real = switch()
        real[1, 3:] = False
        y, balance = routed(which, x, tree, real, capacity)
        n, used, wants, mean = ops.layer_norm(x, tree["norm"])[0], [0] * 3, [0] * 3, np.zeros(3)
        most = np.ceil(capacity * 8 / 3) if capacity else 8
        for b, s in np.ndindex(2, 5):
            if not real[b, s]:
                np.testing.assert_array_equal(y[b, s], x[b, s])
                continue
            p = np.exp(n[b, s] @ tree["router"]["weight"])
            p, g = p / p.sum(), int(np.argmax(p))
            mean, wants[g], want = mean + p / 8, wants[g] + 1 / 8, x[b, s]
            if used[g] < most:
                used[g] += 1
                want = x[b, s] + p[g] * mlp(n[b, s][None, None], tree["experts"][str(g)], "tanh")[0]
            np.testing.assert_allclose(y[b, s], np.reshape(want, 12), rtol=1e-9, atol=1e-12)
        assert capacity == 0 or sum(used) < 8  # some token found no place
        np.testing.assert_allclose(balance, 3 * (np.array(wants) * mean).sum(), rtol=1e-10)


def check_balance(which):
    """1 where all are as probable, or wanted alike; the number of experts where one has all; and
    no bound: it can be under 1 where most tokens are undecided and the rest want another."""
    tree, x, real = switch()
    tree["router"]["weight"][:] = 0
    np.testing.assert_allclose(routed(which, x, tree, real)[1], 1, rtol=1e-12)
    tree["norm"] = {"scale": np.zeros(12), "bias": np.ones(12)}
    tree["router"]["weight"][:, 1] = 10
    np.testing.assert_allclose(routed(which, x, tree, real)[1], 3, rtol=1e-12)
    p = np.array([[0.5 + 1e-9, 0.5 - 1e-9]] * 3 + [[0.0, 1.0]])
    args = (p, np.ones(4, bool)) if which == "reference" else (torch.tensor(p), torch.ones(4) > 0)
    module = relatives.side(which, "experts")
    share = np.asarray(module.dispatched(*args, 0.0)[2])
    np.testing.assert_allclose(2 * share @ p.mean(0), 0.875, atol=1e-6)


def check_one_expert(which):
    """Alone it has all tokens with certainty: a plain layer."""
    tree, x, real = switch(1)
    y, balance = routed(which, x, tree, real)
    want, _ = mlp_layer(x, tree["norm"], tree["experts"]["0"], "tanh")
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)
    assert balance == pytest.approx(1)


def check_order(which):
    """Without a limit a token's place does not matter; with one, who comes first is served, and
    padding takes no place from anybody."""
    tree, x, real = switch()
    order = np.random.default_rng(1).permutation(5)
    y, _ = routed(which, x, tree, real)
    np.testing.assert_allclose(routed(which, x[:, order], tree, real)[0], y[:, order], rtol=1e-10)
    y, _ = routed(which, x, tree, real, 0.5)
    padded = np.concatenate([np.ones((2, 2, 12)), x], 1)
    there = np.concatenate([np.zeros((2, 2), bool), real], 1)
    np.testing.assert_allclose(routed(which, padded, tree, there, 0.5)[0][:, 2:], y, rtol=1e-10)


def check_router_is_wide():
    """Where all else is bfloat16, whose numbers about 30 lie an eighth apart, the router still
    tells 30 from 30 and a sixty-fourth."""
    tree, x, real = switch(2)
    tree["norm"] = {"scale": np.zeros(12), "bias": np.ones(12)}
    tree["router"]["weight"][:] = 2.5
    tree["router"]["weight"][0, 1] += 2**-6
    for name, expert in tree["experts"].items():
        expert["down"] = {"weight": np.zeros((len(expert["down"]["weight"]), 12)),
                          "bias": np.full(12, float(name))}  # fmt: skip
    narrow, x = tree_map(lambda a: torch.tensor(a).bfloat16(), tree), torch.tensor(x).bfloat16()
    y, _ = engine_experts.routed(x, narrow, torch.tensor(real), 0.0, "tanh")
    assert ((y - x) > 0.4).all()


def test_a_router_is_wide():
    check_router_is_wide()


SWITCH = [check_routed_spelled_out, check_balance, check_one_expert, check_order]


@BOTH
@pytest.mark.parametrize("check", SWITCH)
def test_a_router_chooses(check, which):
    check(which)


def given(which, weights=(1.0, 1.0, 1.0), seed=0, **own):
    """(outputs, gradients, settings, params, batch); weights: of contrastive, matching, words."""
    config = small_config(image_width=12, contrastive_weight=weights[0])
    own = {"matching_weight": weights[1], "words_weight": weights[2], "masked": 0.4} | own
    settings, params, batch = relatives.given("vlmo", config, seed, **own)
    return *SIDES[which]("vlmo", params, config, settings, batch), settings, params, batch


def check_experts_of_others(which):
    """A text by itself asks nothing of the image's MLPs, nor an image of the text's; both ask
    nothing of those for pairs; a pair nothing of either in the upper layers."""
    outputs, gradients, settings, params, batch = given(which, (1.0, 0.0, 0.0))
    both = [name for name in gradients if ".both." in name]
    assert len(both) == 2 * 6 and not any(np.any(gradients[name]) for name in both)
    for kind, other in (("image", "text"), ("text", "image")):
        changed = tree_map(np.copy, params)
        for layer in changed["blocks"].values():
            layer["experts"][other]["mlp"]["up"]["bias"] += 1
        after = SIDES[which]("vlmo", changed, CONFIG, settings, batch)[0]
        np.testing.assert_array_equal(after[kind], outputs[kind])
        assert np.abs(after[other] - outputs[other]).max() > 1e-6
    _, gradients, *_ = given(which, (0.0, 1.0, 1.0))
    for name, gradient in gradients.items():
        if ".experts." in name:
            _, layer, _, kind, *_ = name.split(".")
            assert np.any(gradient) == (kind == "both" or layer in "01"), name


def check_equal_experts(which):
    """All MLPs the same: an ordinary transformer, of an image and of a pair."""
    _, _, settings, params, batch = given("reference")
    plain = {}
    for i, layer in params["blocks"].items():
        own = layer["experts"]["text"]
        layer["experts"] = dict.fromkeys(layer["experts"], own)
        kept = {name: layer[name] for name in ("norm_attention", "attention")}
        plain[i] = kept | {"norm_mlp": own["norm"], "mlp": own["mlp"]}
    x, _ = modalities.seen(batch["images"], params, CONFIG)
    words, real, _ = modalities.read(batch["tokens"], params)
    y, _ = layers.transformer(x, plain, 4, "tanh")
    whole = ops.l2_normalise(ops.layer_norm(y[:, -1], params["norm"])[0])[0]
    there = np.concatenate([real, np.ones(x.shape[:2], bool)], 1)
    pair, _ = layers.transformer(np.concatenate([words, x], 1), plain, 4, "tanh", there[:, None])
    pair, _ = ops.layer_norm(pair, params["norm"])
    module, modality = relatives.side(which, "vlmo"), relatives.side(which, "modalities")
    if which == "engine":
        params, words, x, there = (tree_map(torch.tensor, t) for t in (params, words, x, there))
    own = params, CONFIG, settings
    found = modality.alone(x, *own, there[:, -x.shape[1] :], "image")[0]
    np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-12)
    found = module.together(words, x, *own, there)[0]
    np.testing.assert_allclose(found, pair, rtol=1e-9, atol=1e-12)


def check_padding(which):
    """A longer row of padding changes nothing, by a router neither."""
    for own in ({}, {"experts": 3, "capacity": 0.8}):
        outputs, _, settings, params, batch = given(which, **own)
        longer = {key: np.pad(batch[key], ((0, 0), (0, 1))) for key in ("tokens", "masked")}
        after = SIDES[which]("vlmo", params, CONFIG, settings, batch | longer)[0]
        for name, one in outputs.items():
            np.testing.assert_allclose(after[name], one, rtol=1e-9, atol=1e-12, err_msg=name)


def check_masked_words(which):
    """They are not read: no word of the table has a gradient where all are masked. The loss is of
    them alone: 0 for none, ln V where nothing is known."""
    _, _, settings, params, batch = given(which, (0.0, 0.0, 1.0))
    config = small_config(image_width=12, contrastive_weight=0.0)
    everything = batch | {"masked": batch["tokens"] > 2}
    outputs, gradients = SIDES[which]("vlmo", params, config, settings, everything)
    assert not np.any(gradients["text.token"][3:]) and np.any(gradients["word_mask"])
    assert np.any(gradients["image.class"])  # the picture is
    known = params | {"words": {"weight": np.zeros((12, 17))}}
    outputs, _ = SIDES[which]("vlmo", known, config, settings, batch)
    np.testing.assert_allclose(outputs["words"], np.log(17), rtol=1e-12)
    none = batch | {"masked": np.zeros_like(batch["masked"])}
    outputs, _ = SIDES[which]("vlmo", params, config, settings, none)
    assert outputs["words"] == 0


VLMO = [check_experts_of_others, check_equal_experts, check_padding, check_masked_words]


@BOTH
@pytest.mark.parametrize("check", VLMO)
def test_one_transformer_for_images_texts_and_pairs(check, which):
    check(which)


def test_two_widths_are_refused():
    with pytest.raises(ValueError, match="image_width=10 and text_width=12: vlmo has one width"):
        relatives.RELATIVES["vlmo"]().specs(small_config())


def test_a_stage_can_leave_parts_as_they_are():
    """Of its second, on texts, the paper leaves attention and the images' MLPs: names do it."""
    names = "blocks.0-3.attention,blocks.0-3.experts.image"
    tree = relatives.RELATIVES["vlmo"]().specs(CONFIG)
    learns = factors(tree, small_config(image_width=12, freeze=names))
    left = {name for name, factor in learns.items() if not factor}
    assert left == {name for name in learns if ".attention." in name or ".experts.image." in name}


def test_words_are_masked_and_no_signs():
    tokens = np.array([[1, 5, 9, 3, 2, 0]] * 500)
    batch = relatives.RELATIVES["vlmo"]().draw(np.random.default_rng(0), None, {"tokens": tokens})
    assert not batch["masked"][:, [0, 4, 5]].any() and batch["noise"].shape == (2, 500)
    np.testing.assert_allclose(batch["masked"][:, 1:4].mean(0), 0.15, atol=0.05)


plain = on(check_gradient, "vlmo", CONFIG, 0, masked=0.4)
routing = on(check_gradient, "vlmo", CONFIG, 0, masked=0.4, experts=3, capacity=0.8,
             balance_weight=0.3)  # fmt: skip
sides = on(check_sides, "vlmo", CONFIG, 0, masked=0.4)
ours = on(check_routed_spelled_out, "reference")
theirs = on(check_routed_spelled_out, "engine")
BUGS = [
    (experts, "& real_R[:, None]\n", "\n", on(check_order, "reference")),
    (experts, "place_R <= most", "place_R < most", ours),
    (experts, "p_RG.real.argmax(1)", "p_RG.real.argmin(1)", ours),
    (experts, "(p_RG[rows_L, g, None] * o_1LD[0])", "(o_1LD[0])", ours),
    (experts, "even * share_G", "share_G", on(check_balance, "reference")),
    (experts, "dbalance * weight_RG", "0 * weight_RG", routing),
    (experts, "(dy_RD[rows_L] * o_LD).sum(-1)", "0", routing),
    (experts, "dn_RD + dthrough_RD", "dn_RD", routing),
    (experts, "padding_mask(real_BS))\n", "None)\n", on(check_padding, "reference")),
    (experts, "joined = fused and", "joined = not fused and",
     on(check_experts_of_others, "reference")),
    (experts, "zip(parts, np.split(x_BSD, ends, 1)", "zip([*parts][::-1], np.split(x_BSD, ends, 1)",
     sides),
    (modalities, "layer_norm(x_BSD[:, -1], params[\"norm\"])",
     "layer_norm(x_BSD[:, 0], params[\"norm\"])", on(check_equal_experts, "reference")),
    (modalities, "\"word_mask\": table[-1]", "\"word_mask\": table[0]", plain),
    (vlmo, "np.where(masked, config.vocabulary, tokens)", "np.where(masked, 4, tokens)",
     on(check_masked_words, "reference")),
    (vlmo, "np.where(masked, tokens, PAD)", "tokens", on(check_masked_words, "reference")),
    (vlmo, "np.add.at(dimages, image_X, dimages_read)", "dimages[image_X] += dimages_read", plain),
    (vlmo, "np.zeros_like(dtexts)", "dtexts", plain),
    (vlmo, "linear(n[:asked, T], params[\"matching\"])",
     "linear(n[:asked, 0], params[\"matching\"])", sides),
    (layers, "return one | other | both", "return one | other", plain),
    (engine_experts, "p_RG[rows, g, None] *", "", theirs),
    (engine_experts, "linear(widened(n_RD), router)", "linear(n_RD, params[\"router\"])",
     check_router_is_wide),
    (engine_experts, "place_R <= most", "place_R <= most + 1", theirs),
    (engine_experts, "mask=padding_mask(real_BS)", "mask=None", on(check_padding, "engine")),
    (engine_modalities, "(0, 1), value=True", "(0, 1), value=False", sides),
    (engine_vlmo, "torch.where(masked, tokens, PAD)", "torch.where(masked, PAD, tokens)",
     on(check_masked_words, "engine")),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()
