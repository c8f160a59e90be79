"""Exercises of page 07."""

import numpy as np

from minicoca.config import PAD

from ..exercise import Exercise, distinct


def _mask_inputs(rng):
    tokens = int(rng.integers(5, 9))
    lengths = rng.permutation(np.arange(1, tokens + 1))[:3]  # at most one caption is full,
    return lengths if lengths[0] < tokens else lengths[::-1], tokens  # and never the first


def _causal(S):
    return np.tri(S, dtype=bool)


def _same(mask, key, lengths):
    return mask


def _mask(change=_same, triangle=_causal):
    """text_mask with the row of CLS, or more, put wrong: change(mask, key, lengths)."""

    def wrong(lengths, tokens, legacy=False):
        mask = np.tile(triangle(tokens + 1), (len(lengths), 1, 1))
        key, lengths = np.arange(tokens + 1), lengths[:, None]
        mask[:, -1] = (key < lengths) | (key == tokens)
        return change(mask, key, lengths)

    return wrong


def _with_cls_row(row):
    def change(mask, key, lengths):
        mask[:, -1] = row(key, lengths)
        return mask

    return _mask(change)


def _also_hidden(seen):
    """A mask in which every row, not that of CLS alone, sees only what seen(key, lengths) says."""
    return _mask(lambda mask, key, lengths: mask & seen(key, lengths)[:, None])


def _pads_see_themselves(mask, key, lengths):
    return mask & ((key < lengths)[:, None] | np.eye(len(key), dtype=bool))


def _both_ways(mask, key, lengths):
    rows = (key < lengths)[:, None] | np.eye(len(key), dtype=bool)
    rows[:, -1] = mask[:, -1]
    return rows


def _seen_by_all(mask, key, lengths):
    mask[:, :, -1] = True
    return mask


def _embedding_inputs(rng):
    B, T, D, V, most = distinct(rng, 5)
    T, most = sorted((T, most))
    ids = rng.integers(0, V, (B, T))
    ids[0, -1] = PAD
    ids[1, 0] = ids[0, 0]  # a token that is used twice, at least
    return rng.standard_normal((B, T + 1, D)), ((ids, (V, D)), (most, D))


def _embedding(change):
    """text_embedding_backward with some of its gradients put wrong."""

    def wrong(dx, cache):
        (ids, (V, D)), (most, _) = cache
        return _gradients(dx, ids, V, most, D) | change(dx, ids, (V, D), most)

    return wrong


def _gradients(dx, ids, V, most, D):
    token, position = np.zeros((V, D)), np.zeros((most, D))
    np.add.at(token, ids, dx[:, :-1])
    position[: ids.shape[1]] = dx[:, :-1].sum(0)
    return {"token": token, "position": position, "cls": dx[:, -1].sum(0)}


def _last_write(dx, ids, shape, most):
    token = np.zeros(shape)
    token[ids] += dx[:, :-1]
    return {"token": token}


def _cls_first(dx, ids, shape, most):
    moved = np.concatenate([dx[:, 1:], dx[:, :1]], 1)
    return _gradients(moved, ids, shape[0], most, shape[1])


def _mean_position(dx, ids, shape, most):
    position = np.zeros((most, shape[1]))
    position[: ids.shape[1]] = dx[:, :-1].mean(0)
    return {"position": position}


def _cls_has_a_position(dx, ids, shape, most):
    position = np.zeros((most, shape[1]))
    position[: dx.shape[1]] = dx.sum(0)
    return {"position": position}


def _no_pad_in_the_table(dx, ids, shape, most):
    token = _gradients(dx, ids, shape[0], most, shape[1])["token"]
    token[PAD] = 0
    return {"token": token}


def _no_pad_anywhere(dx, ids, shape, most):
    kept = np.concatenate([dx[:, :-1] * (ids != PAD)[..., None], dx[:, -1:]], 1)
    return _gradients(kept, ids, shape[0], most, shape[1])


EXERCISES = (
    Exercise(
        "7a", 2, 20, "who may see whom: tokens, pads and CLS",
        "minicoca.reference.attention:text_mask", ("mask_BSS",), _mask_inputs,
        "# legacy is always False here: leave it aside\n"
        "S = tokens + 1  # the tokens and CLS, which stands last\n"
        "# -> bool [B, S, S], True where row may see column",
        (
            "Begin with the causal mask of S rows, once for each caption; only the last row of "
            "each, which is what CLS sees, differs from it.",
            "CLS sees key s where s < length, and where s == tokens: itself. np.arange(S) compared "
            "with lengths_B[:, None] gives all captions' rows at once.",
        ),
        {
            "CLS's row is shifted by one: it sees a pad, and not itself.":
                _with_cls_row(lambda key, lengths: key <= lengths),
            "CLS does not see itself; it may look at the valid tokens and at itself.":
                _with_cls_row(lambda key, lengths: key < lengths),
            "CLS sees the pads; the causal mask alone does not hide them from it.":
                _with_cls_row(lambda key, lengths: key >= 0),
            "The tokens see CLS; it stands last, so only CLS itself may see it.":
                _mask(_seen_by_all),
            "The triangle looks forwards: a token should see itself and what came before.":
                _mask(triangle=lambda S: _causal(S).T),
            "The mask is transposed: a row is who looks, a column who is looked at.":
                _mask(lambda mask, key, lengths: mask.transpose(0, 2, 1)),
            "A token does not see itself; it may: what it must not see is the next one.":
                _mask(triangle=lambda S: np.tri(S, k=-1, dtype=bool)),
            "Tokens see all of the caption, what comes after them too: begin with the causal mask.":
                _mask(triangle=lambda S: np.ones((S, S), bool)),
            "Tokens see every valid token, also later ones: begin with the causal mask.":
                _mask(_both_ways),
            "The mask is turned around: True is where a row may see.":
                _mask(lambda mask, key, lengths: ~mask),
            "Each row sees itself alone: a token sees what came before, too.":
                _mask(triangle=lambda S: np.eye(S, dtype=bool)),
            "A token sees the next one; it should see itself and what came before.":
                _mask(triangle=lambda S: np.tri(S, k=1, dtype=bool)),
            "CLS misses the last valid token: s < length, without - 1.":
                _with_cls_row(lambda key, lengths: (key < lengths - 1) | (key == len(key) - 1)),
            "CLS sees itself alone; the valid tokens are what it sums up.":
                _with_cls_row(lambda key, lengths: (key == len(key) - 1) & (lengths > 0)),
            "The first caption's length was used for all: compare with lengths_B[:, None].":
                _with_cls_row(lambda key, lengths: (key < lengths[:1]) | (key == len(key) - 1)),
            "Pads are hidden from the pads' own rows too. Only CLS's row differs from the causal "
            "mask.": _also_hidden(lambda key, lengths: (key < lengths) | (key == len(key) - 1)),
            "Pads are hidden from every row, and CLS from itself. Only CLS's row differs from the "
            "causal mask.": _also_hidden(lambda key, lengths: key < lengths),
            "Pads see no pad but themselves; their rows are left causal, only CLS's differs.":
                _mask(_pads_see_themselves),
            "The pads' rows are emptied too; only the row of CLS differs from the triangle.":
                _mask(lambda mask, key, lengths: mask & (
                    (key < lengths) | (key == len(key) - 1))[:, :, None]),
        },
    ),
    Exercise(
        "7b", 2, 15, "the gradient of token table, positions and CLS",
        "minicoca.reference.text:text_embedding_backward", ("dparams",), _embedding_inputs,
        "(ids_BT, token_shape), position_shape = cache\n"
        "dx_BTD = dx_BSD[:, :-1]  # the tokens; dx_BSD[:, -1] is CLS",
        (
            "Whatever was used many times gathers a gradient from each of its uses. A position is "
            "used once by each caption, CLS too; a row of the token table wherever its id stands.",
            "np.add.at(dtoken, ids_BT, dx_BTD) on zeros of token_shape; sums over the batch for "
            "the other two; dposition has position_shape, and is 0 beyond T.",
        ),
        {
            "A token that stands in many places keeps one place's gradient only: use np.add.at.":
                _embedding(_last_write),
            "The first place was taken for CLS; it stands last.": _embedding(_cls_first),
            "dposition is the mean over the batch; it should be the sum.":
                _embedding(_mean_position),
            "CLS was given a position; it has none, so its gradient belongs to cls alone.":
                _embedding(_cls_has_a_position),
            "cls has the gradient of one caption only; it should be the sum over the batch.":
                _embedding(lambda dx, ids, shape, most: {"cls": dx[0, -1]}),
            "Row 0 of the token table (the pad) was left out; it gathers like any other row.":
                _embedding(_no_pad_in_the_table),
            "The dx of pads was left out of token and position; here every dx counts.":
                _embedding(_no_pad_anywhere),
        },
    ),
)  # fmt: skip
