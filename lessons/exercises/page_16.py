"""Exercises of page 16: a row of logits to loss and gradient, in torch and as a kernel."""

import numpy as np
import torch

from minicoca.kernels.caption_loss import torch_rows

from ..exercise import KERNEL_IMPORTS, Exercise, distinct
from ..launch import empty, launch, stored, tensor

BLOCK_V = 16

ROWS_BODY = '''
"""Sum of the rows' losses; with `gradient`, softmax - onehot over the logits' own memory.

logits_RV: [R, V], which you may overwrite, and some are large; targets_R: [R], ids; torch.
"""'''

KERNEL_FILE = '''@triton.jit
def caption_rows_kernel(logits_ptr, target_ptr, loss_ptr, V, BLOCK_V: tl.constexpr):
    """Program r: loss[r] = LSE of row r - logit of its target; logits[r] <- softmax - onehot.

    logits [R, V], float32, contiguous rows of V; target [R], int64; loss [R]. V is any number,
    BLOCK_V a power of two that may be smaller. online_softmax(scores [T, S], peak [T], total [T])
    and log_sum_exp(peak, total) are page 12's: scores in base 2, here with T = 1.
    """
    raise NotImplementedError
'''

KERNEL_HEAD = (
    f"{KERNEL_IMPORTS}\n\n"
    "from minicoca.kernels.softmax import LOG2E, log_sum_exp, online_softmax  # noqa: F401"
)


def _rows_inputs(rng):
    R, V = (int(n) for n in distinct(rng, 2, 4, 12))
    logits = rng.standard_normal((R, V)) * 3
    logits[0] += 800  # exp overflows, even in float64
    return torch.tensor(logits), torch.tensor(rng.integers(0, V, R))


def _rows_launch(function, logits, targets):
    work = logits.clone()
    total = function(work, targets, True)
    return None if total is None or total is Ellipsis else (total, work)


def _parts(logits, targets, shift=True):
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
        return of(logits, *_parts(logits, targets, shift))

    return wrong


def _down(logits):
    """Softmax along the wrong axis."""
    return _parts(logits.T, np.zeros(logits.shape[1], int))[1].T


def _kernel_inputs(rng):
    R, V = int(rng.integers(3, 6)), int(rng.integers(2 * BLOCK_V + 1, 3 * BLOCK_V))
    logits = (rng.standard_normal((R, V)) * 3).astype(np.float32)
    logits[:, -1] += 12  # the peak is in the last block
    logits[:, 0] += 9
    return logits, rng.integers(1, V - 1, R)


def _kernel_launch(kernel, logits, targets):
    work, loss = tensor(logits), empty(len(logits))
    targets = torch.tensor(targets)
    launch(kernel, (len(logits),), work, targets, loss, logits.shape[1], BLOCK_V=BLOCK_V)
    if np.array_equal(work.numpy(), logits):
        return stored(loss) and (loss.numpy(), work.numpy())
    return loss.numpy(), work.numpy()


def _kernel_expected(logits, targets):
    gradient = torch.tensor(logits).double()
    losses = _parts(logits.astype(float), targets)[0]
    torch_rows(gradient, torch.tensor(targets), True)
    return losses, gradient.numpy()


def _wrong_kernel(of):
    def wrong(logits, targets):
        return of(logits.astype(float), targets, *_parts(logits.astype(float), targets))

    return wrong


def _outside(logits, targets, losses, p, onehot):
    """What stands beyond V counted as logits of 0."""
    missing = -logits.shape[1] % BLOCK_V
    lse = losses + logits[np.arange(len(logits)), targets]
    wide = np.logaddexp(lse, np.log(missing))
    return losses + wide - lse, p * np.exp(lse - wide)[:, None] - onehot


def _unscaled(logits, targets, losses, p, onehot):
    """The total not multiplied by the factor when the peak grows."""
    peak, total = np.full(len(logits), -np.inf), np.zeros(len(logits))
    for first in range(0, logits.shape[1], BLOCK_V):
        block = logits[:, first : first + BLOCK_V]
        peak = np.maximum(peak, block.max(1))
        total += np.exp(block - peak[:, None]).sum(1)
    chosen = logits[np.arange(len(logits)), targets]
    return (
        np.log(total) + peak - chosen,
        np.exp(logits - peak[:, None]) / total[:, None] - onehot,
    )


def _base_two(logits, targets, losses, p, onehot):
    """2^s in place of e^s, the loss still in natural units."""
    wrong, p, onehot = _parts(logits * np.log(2), targets)
    chosen = logits[np.arange(len(logits)), targets]
    return wrong + chosen * (np.log(2) - 1), p - onehot


def _first_block(logits, targets, losses, p, onehot):
    """The second pass stops after a block."""
    return losses, np.where(np.arange(logits.shape[1]) < BLOCK_V, p - onehot, logits)


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
            "The softmax runs over the rows; it should run over the vocabulary, the last axis.":
                _wrong_rows(lambda s, loss, p, one: (loss.sum(), _down(s) - one)),
        },
        launch=_rows_launch, imports="import torch  # noqa: F401",
    ),
    Exercise(
        "16b", 3, 45, "the same as a kernel, a row for each program",
        "minicoca.kernels.caption_loss_rows:caption_rows_kernel", ("loss", "logits"),
        _kernel_inputs, "",
        (
            "Two loops over first = 0, BLOCK_V, ... below V, the same masked load in both. Read "
            "the target's own logit before the second loop overwrites it.",
            "peak and total begin as tl.full([1], float('-inf'), tl.float32) and tl.zeros([1], "
            "tl.float32); a block is scores[None, :], times LOG2E; outside V: other=-inf.",
            "Second loop: g = tl.exp2(scores - peak) / total; tl.where(v == target, g - 1, g); "
            "store with the mask. loss: tl.sum(log_sum_exp(peak, total), 0) - chosen.",
        ),
        {
            "Beyond V stand zeros, and exp(0) is 1: load with other=-inf.":
                _wrong_kernel(_outside),
            "The total is not multiplied by the factor when the peak grows.":
                _wrong_kernel(_unscaled),
            "exp2 of natural scores: multiply them by LOG2E as they are loaded.":
                _wrong_kernel(_base_two),
            "1 is not taken off at the target: the gradient is softmax minus one-hot.":
                _wrong_kernel(lambda s, t, loss, p, one: (loss, p)),
            "The target's logit is not taken off: that is the LSE, not the loss.":
                _wrong_kernel(lambda s, t, loss, p, one: (loss + s[np.arange(len(s)), t], p - one)),
            "Only the first block of a row was written: the second pass is a loop too.":
                _wrong_kernel(_first_block),
            "The loss is right but the logits were not overwritten.":
                _wrong_kernel(lambda s, t, loss, p, one: (loss, s)),
        },
        launch=_kernel_launch, expected=_kernel_expected, file=KERNEL_FILE, imports=KERNEL_HEAD,
        close=1e-5,
    ),
)  # fmt: skip
