"""What stands between logits and the next token, as reference/decoding.py, and the few largest of a
vocabulary without sorting it."""

import torch

from ..config import END, PAD, START, UNKNOWN

ROUNDING = 1e-6  # a set that lacks no more than this has probability top_p


def restrict_logits(
    logits_BV, tokens_BT, written, min_length=0, repetition_penalty=1.0, no_repeat_ngram=0
):
    """Logits of what may follow each text (ids [B, T], the last `written` of them not the
    prompt's), and -inf for what may not: padding, start and unknown never. In place.

    The logit of a token that stands in the text is divided by the penalty where it is positive,
    else multiplied (Keskar et al. 2019). No token completes an n-gram that stands there (Paulus et
    al. 2018). The end is the min_length-th token written or a later one, but where nothing else
    may follow.
    """
    for token in (PAD, START, UNKNOWN):
        logits_BV[:, token] = -torch.inf
    if repetition_penalty != 1:
        seen_BT = logits_BV.gather(1, tokens_BT)
        less_BT = seen_BT / repetition_penalty
        logits_BV.scatter_(1, tokens_BT, less_BT.where(seen_BT > 0, seen_BT * repetition_penalty))
    if not no_repeat_ngram and written + 1 >= min_length:
        return logits_BV
    end_B = logits_BV[:, END].clone()
    logits_BV[:, END] = -torch.inf
    rows, tokens = repeats(tokens_BT, no_repeat_ngram)
    logits_BV[rows, tokens] = -torch.inf
    kept_B = torch.tensor(written + 1 >= min_length, device=end_B.device)
    kept_B = kept_B | (logits_BV.amax(1) == -torch.inf)
    logits_BV[:, END] = end_B.where(kept_B, -torch.inf)
    return logits_BV


def repeats(tokens_BT, n):
    """(rows, tokens) that would complete an n-gram which the row holds already; none for n = 0."""
    length = tokens_BT.shape[1]
    if not n or n > length:
        none = tokens_BT.new_zeros(0)
        return none, none
    windows_BSN = tokens_BT.unfold(1, n, 1)
    last_B1N = tokens_BT[:, None, length - n + 1 :]
    rows, places = (windows_BSN[..., :-1] == last_B1N).all(-1).nonzero(as_tuple=True)
    return rows, windows_BSN[rows, places, -1]


def filter_logits(logits_BV, temperature=1.0, top_k=0, top_p=1.0):
    """Divide by the temperature, then keep the k likeliest tokens (Fan et al. 2018) and the
    smallest set with probability top_p (Holtzman et al. 2020). The likeliest always stays; with
    top_k 0 and top_p 1 all do."""
    logits_BV = logits_BV / temperature
    sorted_BV, order_BV = torch.sort(logits_BV, dim=-1, descending=True, stable=True)
    p_BV = torch.softmax(sorted_BV.double(), -1)
    before_BV = torch.cumsum(p_BV, -1) - p_BV  # probability of the likelier tokens
    drop_BV = (before_BV >= top_p - ROUNDING) & (top_p < 1)
    drop_BV[:, top_k or logits_BV.shape[-1] :] = True
    drop_BV[:, 0] = False
    kept_BV = sorted_BV.masked_fill(drop_BV, -torch.inf)
    return torch.empty_like(kept_BV).scatter_(-1, order_BV, kept_BV)


def draw(logits_BV, streams, temperature=0.0, top_k=0, top_p=1.0):
    """A token for each row [B]: the likeliest at temperature 0, else one drawn by its stream."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    p_BV = torch.softmax(filter_logits(logits_BV, temperature, top_k, top_p), -1)
    total_BV = torch.cumsum(p_BV.double(), -1)  # a float32 draw could be a whole 1
    uniform_B1 = total_BV.new_tensor([[own.random()] for own in streams])
    return (total_BV <= uniform_B1 * total_BV[:, -1:]).sum(-1)


def largest(x_RV, count):
    """The `count` largest of each row and their places, both [R, count], as a stable sort gives
    them: of equals the first. What is -inf may stand anywhere behind the rest."""
    count = min(count, x_RV.shape[1])
    more = min(count + 1, x_RV.shape[1])
    values, places = x_RV.topk(more)
    last = values[:, count - 1]
    if bool(((values[:, -1] == last) & (last > -torch.inf)).any()) and more > count:
        # topk takes any of those that are equal to the last: here the first are wanted.
        values, places = x_RV.sort(descending=True, stable=True)
        return values[:, :count], places[:, :count]
    places = places[:, :count].sort().values
    values, order = x_RV.gather(1, places).sort(descending=True, stable=True)
    return values, places.gather(1, order)
