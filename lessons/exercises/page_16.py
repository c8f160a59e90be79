"""The first exercise of page 16: a row of logits to loss and gradient, in torch."""

import numpy as np
import torch

from ..exercise import Exercise, Told, distinct

ROWS_BODY = '''
"""Sum of the rows' losses; with `gradient`, softmax - onehot over the logits' own memory.

logits_RV: [R, V], which you may overwrite, and some are large; targets_R: [R], ids; torch.
"""'''


def _rows_inputs(rng):
    R, V = (int(n) for n in distinct(rng, 2, 4, 12))
    logits = rng.standard_normal((R, V)) * 3
    targets = rng.integers(0, V, R)
    logits[0] += 800  # exp overflows, even in float64
    logits[1, targets[1]] -= 900  # and softmax is 0 there
    return torch.tensor(logits), torch.tensor(targets)


def _rows_launch(function, logits, targets):
    work = logits.clone()
    total = function(work, targets, True)
    if total is None or total is Ellipsis:
        return None
    without = function(logits.clone(), targets, False)
    if without is None or not np.allclose(float(without), float(total), equal_nan=True):
        raise Told(f"With gradient=False the total should be the same; it is {without}.")
    return total, work


def parts(logits, targets, shift=True):
    """(losses [R], softmax [R, V], onehot [R, V])."""
    peak = logits.max(None if shift == "all" else 1, keepdims=True) * bool(shift)
    with np.errstate(all="ignore"):
        e = np.exp(logits - peak)
        total = e.sum(1, keepdims=True)
        rows = np.arange(len(logits))
        losses = (np.log(total) + peak)[:, 0] - logits[rows, targets]
        return losses, e / total, np.eye(logits.shape[1])[targets]


def _wrong_rows(of, shift=True):
    def wrong(logits, targets):
        logits, targets = logits.numpy(), targets.numpy()
        return of(logits, *parts(logits, targets, shift))

    return wrong


def _minus_log(p, onehot):
    with np.errstate(divide="ignore"):
        return -np.log((p * onehot).sum(1)).sum()


def _down(logits):
    """Softmax along the wrong axis."""
    return parts(logits.T, np.zeros(logits.shape[1], int))[1].T


EXERCISES = (
    Exercise(
        "16a", 2, 20, "rows of logits to loss and gradient, in place",
        "minicoca.kernels.caption_loss:torch_rows", ("total", "logits_RV"), _rows_inputs, ROWS_BODY,
        (
            "Take each row's largest logit off first, in place; both loss and softmax are the "
            "same for it.",
            "Read the targets' logits before you overwrite them: gather(1, targets_R[:, None]). "
            "The loss is log of the sum of exp, minus that.",
            "In place: exp_(), div_() by the row's sum, then -1 at the target by scatter_add_ or "
            "by an index.",
        ),
        {
            "exp overflows: take the row's largest logit off first.":
                _wrong_rows(lambda s, loss, p, one: (loss.sum(), p - one), shift=False),
            "The largest logit of all was taken off: each row needs its own.":
                _wrong_rows(lambda s, loss, p, one: (loss.sum(), p - one), shift="all"),
            "1 is not taken off at the target: the gradient is softmax minus one-hot.":
                _wrong_rows(lambda s, loss, p, one: (loss.sum(), p)),
            "The gradient has the wrong sign: it is softmax minus one-hot.":
                _wrong_rows(lambda s, loss, p, one: (loss.sum(), one - p)),
            "The logits are as they were: the gradient must be written into them.":
                _wrong_rows(lambda s, loss, p, one: (loss.sum(), s)),
            "The mean was taken; this is the sum, a chunk does not know how many rows there are.":
                _wrong_rows(lambda s, loss, p, one: (loss.mean(), p - one)),
            "The gradient is divided by the rows: dividing is left to backward.":
                _wrong_rows(lambda s, loss, p, one: (loss.sum(), (p - one) / len(s))),
            "-log of softmax is infinite where softmax is 0: take LSE minus the target's logit.":
                _wrong_rows(lambda s, loss, p, one: (_minus_log(p, one), p - one)),
            "The softmax runs over the rows; it should run over the vocabulary, the last axis.":
                _wrong_rows(lambda s, loss, p, one: (loss.sum(), _down(s) - one)),
        },
        launch=_rows_launch, imports="import torch  # noqa: F401",
    ),
)  # fmt: skip
