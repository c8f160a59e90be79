"""What stands between logits and the next token: what may be written, and what is drawn."""

import numpy as np

from ..config import END, PAD, START, UNKNOWN
from .ops import log_softmax

ROUNDING = 1e-6  # a set that lacks no more than this has probability top_p


def restrict_logits(
    logits_BV, tokens_BT, written, min_length=0, repetition_penalty=1.0, no_repeat_ngram=0
):
    """Logits of what may follow each text (ids [B, T], the last `written` of them not the
    prompt's), and -inf for what may not: padding, start and unknown never.

    The logit of a token that stands in the text is divided by the penalty where it is positive,
    else multiplied (Keskar et al. 2019). No token completes an n-gram that stands there (Paulus et
    al. 2018). The end is the min_length-th token written or a later one, but where nothing else
    may follow.
    """
    logits_BV = logits_BV.copy()
    logits_BV[:, [PAD, START, UNKNOWN]] = -np.inf
    for logits_V, tokens_T in zip(logits_BV, tokens_BT, strict=True):
        old = logits_V[tokens_T]
        logits_V[tokens_T] = np.where(old > 0, old / repetition_penalty, old * repetition_penalty)
        end, logits_V[END] = logits_V[END], -np.inf
        logits_V[repeats(tokens_T.tolist(), no_repeat_ngram)] = -np.inf
        if written + 1 >= min_length or not np.isfinite(logits_V).any():
            logits_V[END] = end
    return logits_BV


def repeats(tokens, n):
    """The tokens that would complete an n-gram which the tokens hold already; none for n = 0."""
    starts = range(len(tokens) - n + 1) if n else ()
    last = tokens[len(tokens) - n + 1 :]
    return [tokens[i + n - 1] for i in starts if tokens[i : i + n - 1] == last]


def filter_logits(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    """Divide by the temperature, then keep the k likeliest tokens (Fan et al. 2018) and the
    smallest set with probability top_p (Holtzman et al. 2020). The likeliest always stays; with
    top_k 0 and top_p 1 all do."""
    logits_BV = logits_BV / temperature
    order_BV = np.argsort(-logits_BV, axis=-1, kind="stable")
    sorted_BV = np.take_along_axis(logits_BV, order_BV, -1)
    p_BV = np.exp(log_softmax(sorted_BV.astype(np.float64))[0])
    before_BV = np.cumsum(p_BV, -1) - p_BV  # probability of the likelier tokens
    drop_BV = (before_BV >= top_p - ROUNDING) & (top_p < 1)
    drop_BV[:, top_k or logits_BV.shape[-1] :] = True
    drop_BV[:, 0] = False
    kept_BV = np.where(drop_BV, -np.inf, sorted_BV)
    filtered_BV = np.empty_like(kept_BV)
    np.put_along_axis(filtered_BV, order_BV, kept_BV, -1)
    return filtered_BV


def draw(logits_BV, streams, temperature=0.0, top_k=0, top_p=1.0):
    """A token for each row [B]: the likeliest at temperature 0, else one drawn by its stream."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    p_BV = np.exp(log_softmax(filter_logits(logits_BV, temperature, top_k, top_p))[0])
    total_BV = np.cumsum(p_BV, -1, dtype=np.float64)  # a float32 draw could be a whole 1
    uniform_B1 = np.array([[own.random()] for own in streams])
    return (total_BV <= uniform_B1 * total_BV[:, -1:]).sum(-1)
