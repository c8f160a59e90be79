"""All logits near -120 or +120, and all but certain predictions: no digit is lost that softmax
does not lose. (Bugs that are planted for it: test_kernel_bugs.py.)"""

import pytest
import torch
from kernel_cases import DEVICE
from kernel_shifts import (
    SHIFTED,
    SHIFTED_POOLS,
    check_confident_captions,
    check_shifted_attention,
    check_shifted_pool,
    check_unshifted_attention,
    check_unshifted_pool,
    draw_shifted,
    draw_shifted_pool,
)

from minicoca.kernels import attention, attention_pool, caption_loss

# A masked score is not bounded by the row's log-sum-exp; the kernels choose 0 in its place after.
pytestmark = pytest.mark.filterwarnings("ignore:.*overflow encountered in exp2")
ON_A_CARD = DEVICE == "cuda"
IN_THE_FIRST_STAGE = {"64", "lengths 0, 1, 2", "shared queries, lengths"}


def some_now(cases):
    """The interpreter is slow: the second stage takes the others."""
    return [
        pytest.param(
            name, marks=[] if ON_A_CARD or name in IN_THE_FIRST_STAGE else pytest.mark.slow
        )
        for name in cases
    ]


@pytest.mark.parametrize("name", some_now(SHIFTED))
def test_a_common_part_of_the_keys_costs_attention_no_digits(name):
    check_shifted_attention(attention, **SHIFTED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["64", "general, causal, lengths", "shared queries, 192"])
def test_nor_in_float16(name):
    check_shifted_attention(attention, **SHIFTED[name], dtype=torch.float16)


@pytest.mark.parametrize(
    "name", some_now(["64", "192", "256", "general, 257", "shared queries, 192"])
)
def test_where_there_is_none_attention_is_no_worse_for_it(name):
    check_unshifted_attention(attention, **SHIFTED[name])


@pytest.mark.parametrize("name", some_now(SHIFTED_POOLS))
def test_a_common_part_of_the_tokens_costs_pooling_no_digits(name):
    check_shifted_pool(attention_pool, **SHIFTED_POOLS[name])


@pytest.mark.parametrize("name", some_now([n for n in SHIFTED_POOLS if "lengths" not in n]))
def test_where_there_is_none_pooling_is_no_worse_for_it(name):
    check_unshifted_pool(attention_pool, **SHIFTED_POOLS[name])


@pytest.mark.parametrize("margin", [8, 16, 30])
def test_a_confident_prediction_keeps_its_digits(margin):
    check_confident_captions(caption_loss, margin)


@pytest.mark.parametrize("shift", [-120, 120])
def test_the_cases_are_what_they_say(shift):
    q, k, *_, scale = draw_shifted(0, shift, **SHIFTED["64"])
    scores = scale * torch.einsum("bthk,bshk->bhts", q.double(), k.double())
    assert 0.5 < (scores - shift).std() < 2 and abs(scores.mean() - shift) < 1
    x, g, *_ = draw_shifted_pool(0, shift, **SHIFTED_POOLS["64"])
    xhat = torch.nn.functional.layer_norm(x.double(), x.shape[-1:])
    assert (torch.einsum("hm,bnm->bhn", g.double(), xhat) - shift).abs().max() < 5
