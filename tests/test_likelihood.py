"""log p(text | image): the same in both forms, and minus the captioning loss."""

from unittest import mock

import numpy as np
import pytest
import torch
from backends import Engine, Reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import configs, model_and_batch, seeds, small_config

from minicoca.config import PAD
from minicoca.engine import generate as engine_generate
from minicoca.engine import text as engine_text
from minicoca.params import tree_map
from minicoca.reference import generate as reference_generate


def by_reference(params, config, images, tokens):
    return reference_generate.log_likelihoods(params, config, images, tokens)


def by_engine(params, config, images, tokens):
    given = tree_map(torch.tensor, params), config, torch.tensor(images), torch.tensor(tokens)
    return engine_generate.log_likelihoods(*given).numpy()


BOTH = {by_reference: Reference, by_engine: Engine}
both = pytest.mark.parametrize("ours", BOTH)


def check_same(config, seed):
    """To 1e-10 in float64 and to 1e-5 in float32."""
    params, images, tokens = model_and_batch(config, seed)
    a, b = (ours(params, config, images, tokens) for ours in BOTH)
    assert a.shape == (3, 3, tokens.shape[1] - 1)
    np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10)
    single = tree_map(lambda x: x.astype(np.float32), params), config, images.astype(np.float32)
    for found in (ours(*single, tokens) for ours in BOTH):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())


@given(config=configs(), seed=seeds)
def test_reference_and_engine_agree(config, seed):
    check_same(config, seed)


def check_is_the_loss(ours, config, seed):
    """Of each image with each text alone: the sum is minus the captioning loss times the tokens."""
    params, images, tokens = model_and_batch(config, seed)
    found = ours(params, config, images, tokens)
    for i, image in enumerate(images):
        for r, row in enumerate(tokens):
            loss = BOTH[ours].outputs(params, config, image[None], row[None])["caption"]
            count = (row[1:] != PAD).sum()
            assert found[i, r].sum() == pytest.approx(-loss * count, rel=1e-9)
            assert (found[i, r][row[1:] == PAD] == 0).all() and (found[i, r][:count] < 0).all()


@both
@given(config=configs(), seed=seeds)
def test_the_sum_is_minus_the_loss_times_the_tokens(ours, config, seed):
    check_is_the_loss(ours, config, seed)


def check_invariant(ours, config, seed, more):
    """Whatever else is asked, and however a text is padded."""
    params, images, tokens = model_and_batch(config, seed)
    want = ours(params, config, images, tokens)
    wider = np.pad(tokens, ((0, 0), (0, more)))
    padded = ours(params, config, images, wider)
    np.testing.assert_allclose(padded[..., : want.shape[2]], want, rtol=1e-9)
    assert not padded[..., want.shape[2] :].any()
    order = np.random.default_rng(seed).permutation(len(tokens))
    turned = ours(params, config, images[order], tokens[order[1:]])
    np.testing.assert_allclose(turned, want[order][:, order[1:]], rtol=1e-9)
    name = "minicoca.reference.generate" if ours is by_reference else "minicoca.engine.generate"
    with mock.patch(f"{name}.PAIRS", 2):
        np.testing.assert_allclose(ours(params, config, images, tokens), want, rtol=1e-9)
    if ours is by_engine:
        with mock.patch(f"{name}.ROWS", 2):
            np.testing.assert_allclose(ours(params, config, images, tokens), want, rtol=1e-9)


@both
@given(config=configs(text_length=10), seed=seeds, more=st.integers(1, 3))
def test_neither_padding_nor_company_matters(ours, config, seed, more):
    check_invariant(ours, config, seed, more)


@pytest.mark.parametrize("below", [0.0, 2.0])
def test_packed_or_not(below, monkeypatch):
    monkeypatch.setattr(engine_text, "PACK_BELOW", below)
    for seed in range(3):
        check_same(small_config(), seed)


@both
def test_the_tokens_of_a_place_share_all_probability(ours):
    """Texts that differ in their last token alone, one for each token there is."""
    config = small_config()
    params, images, _ = model_and_batch(config, 0)
    ids = np.arange(1, config.vocabulary)  # padding is no target
    tokens = np.stack([np.full_like(ids, 1), np.full_like(ids, 5), ids], 1)
    p = np.exp(ours(params, config, images, tokens)[..., -1]).sum(1)
    logits = Reference.outputs(params, config, images, np.tile([1, 5, 6], (3, 1)))["logits"][:, 1]
    of_padding = np.exp(logits[:, PAD]) / np.exp(logits).sum(-1)
    np.testing.assert_allclose(p, 1 - of_padding, rtol=1e-9)


@both
def test_numbers_that_are_none_are_refused(ours):
    config = small_config()
    params, images, tokens = model_and_batch(config, 0)
    params["decoder"]["head"]["weight"][0, 0] = np.nan
    with pytest.raises(ValueError, match="probabilities are not finite"):
        ours(params, config, images, tokens)
