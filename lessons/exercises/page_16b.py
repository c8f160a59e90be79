"""The second exercise of page 16: the same as a kernel."""

import numpy as np
import torch

from minicoca.kernels.caption_loss import torch_rows

from ..exercise import KERNEL_IMPORTS, Exercise
from ..launch import empty, launch, stored, tensor
from .page_16 import parts

BLOCK_V = 16

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


def _kernel_inputs(rng):
    R, V = int(rng.integers(3, 6)), int(rng.integers(2 * BLOCK_V + 1, 3 * BLOCK_V))
    logits = (rng.standard_normal((R, V)) * 3).astype(np.float32)
    logits[:, -1] += 12  # the peak is in the last block
    logits[:, 0] += 9
    logits[0] += 110  # exp of each of them overflows
    logits[1] -= 30  # beside which a logit of 0, read beyond V, is large
    targets = rng.integers(1, V - 1, R)
    targets[:2] = rng.integers(1, BLOCK_V), rng.integers(BLOCK_V, V - 1)
    return logits, targets


def _kernel_launch(kernel, logits, targets):
    work, loss = tensor(logits), empty(len(logits))
    targets = torch.tensor(targets)
    launch(
        kernel, (len(logits),), work, targets, loss, logits.shape[1], BLOCK_V=BLOCK_V,
        writes=("logits_ptr",),
    )  # fmt: skip
    if np.array_equal(work.numpy(), logits):
        return stored(loss) and (loss.numpy(), work.numpy())
    return loss.numpy(), work.numpy()


def _kernel_expected(logits, targets):
    gradient = torch.tensor(logits).double()
    losses = parts(logits.astype(float), targets)[0]
    torch_rows(gradient, torch.tensor(targets), True)
    return losses, gradient.numpy()


def _wrong_kernel(of):
    def wrong(logits, targets):
        return of(logits.astype(float), targets, *parts(logits.astype(float), targets))

    return wrong


def _outside(logits, targets, losses, p, onehot):
    """What stands beyond V counted as logits of 0."""
    missing = -logits.shape[1] % BLOCK_V
    lse = losses + _own(logits, targets)
    wide = np.logaddexp(lse, np.log(missing))
    return losses + wide - lse, p * np.exp(lse - wide)[:, None] - onehot


def _unscaled(logits, targets, losses, p, onehot):
    """The total not multiplied by the factor when the peak grows."""
    peak, total = np.full(len(logits), -np.inf), np.zeros(len(logits))
    for first in range(0, logits.shape[1], BLOCK_V):
        block = logits[:, first : first + BLOCK_V]
        peak = np.maximum(peak, block.max(1))
        total += np.exp(block - peak[:, None]).sum(1)
    chosen = _own(logits, targets)
    return (
        np.log(total) + peak - chosen,
        np.exp(logits - peak[:, None]) / total[:, None] - onehot,
    )


def _base_two(logits, targets, losses, p, onehot):
    """2^s in place of e^s, the loss still in natural units."""
    wrong, p, onehot = parts(logits * np.log(2), targets)
    chosen = _own(logits, targets)
    return wrong + chosen * (np.log(2) - 1), p - onehot


def _own(logits, targets):
    """The targets' logits."""
    return logits[np.arange(len(logits)), targets]


def _no_loop(logits, targets, losses, p, onehot):
    """Nothing but the first block was read and written."""
    block = logits[:, :BLOCK_V]
    inside, p, _ = parts(block, np.zeros(len(logits), int))
    g = logits.copy()
    g[:, :BLOCK_V] = p - onehot[:, :BLOCK_V]
    return inside + block[:, 0] - _own(logits, targets), g


def _blocks(logits):
    return range(0, logits.shape[1], BLOCK_V)


def _restarted(logits, targets, losses, p, onehot):
    """Peak and total of the last block alone."""
    block = logits[:, _blocks(logits)[-1] :]
    lse = parts(block, np.zeros(len(logits), int))[0] + block[:, 0]
    return lse - _own(logits, targets), np.exp(logits - lse[:, None]) - onehot


def _not_rescaled(logits, targets, losses, p, onehot):
    """The weights of the first pass, each relative to the peak so far."""
    g = p.copy()
    for first in _blocks(logits):
        so_far = logits[:, : first + BLOCK_V].max(1) - logits.max(1)
        g[:, first : first + BLOCK_V] *= np.exp(-so_far)[:, None]
    return losses, g - onehot


def _one_each_block(logits, targets, losses, p, onehot):
    place = np.arange(logits.shape[1]) % BLOCK_V
    return losses, p - (place == targets[:, None])


def _second(of):
    """The second pass: of(logits, peak) over the total."""

    def wrong(logits, targets, losses, p, onehot):
        peak = logits.max(1, keepdims=True)
        total = np.exp(logits - peak).sum(1, keepdims=True)
        return losses, of(logits, peak) / total - onehot

    return wrong


def _always_row_0(logits, targets, losses, p, onehot):
    """Each program reads, and overwrites, the row that the one before has left."""
    state, losses = logits.copy(), losses.copy()
    for r in range(len(logits)):
        own, p, one = parts(state[:1], targets[r : r + 1])
        losses[r], state[:1] = own[0], p - one
    return losses, state


def _into_the_next_row(logits, targets, losses, p, onehot):
    """Loads without a mask: the last block ends in the next row, the last row's in NaN."""
    V = logits.shape[1]
    more = -V % BLOCK_V
    memory = np.append(logits.flatten(), np.full(more, np.nan))
    wide = np.stack([memory[r * V : (r + 1) * V + more] for r in range(len(logits))])
    losses, p, _ = parts(wide, targets)
    return losses, p[:, :V] - onehot


def _overflowed(logits, targets, losses, p, onehot):
    """Row 0 without a peak."""
    g, losses = p - onehot, losses.copy()
    g[0], losses[0] = np.nan, np.inf
    return losses, g


def _row_by_row(logits, targets):
    """The kernel's two passes, without its blocks; scores in base 2."""
    losses, gradient = np.empty(len(logits)), logits.astype(float)
    for r in range(len(logits)):
        row, target = logits[r].astype(float), targets[r]
        v = np.arange(len(row))
        scores = row * np.log2(np.e)
        peak = scores.max()
        total = (2 ** (scores - peak)).sum()
        chosen = row[target]
        lse = (peak + np.log2(total)) * np.log(2)
        losses[r] = lse - chosen
        g = 2 ** (scores - peak) / total
        gradient[r] = np.where(v == target, g - 1, g)
    return losses, gradient


def _first_block(logits, targets, losses, p, onehot):
    """The second pass stops after a block."""
    return losses, np.where(np.arange(logits.shape[1]) < BLOCK_V, p - onehot, logits)


EXERCISES = (
    Exercise(
        "16b", 3, 45, "the same as a kernel, a row for each program",
        "minicoca.kernels.caption_loss_rows:caption_rows_kernel", ("loss", "logits"),
        _kernel_inputs, "",
        (
            "Two loops over first = 0, BLOCK_V, ... below V, the same masked load in both. Read "
            "`chosen`, the target's own logit, before the second loop overwrites it.",
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
                _wrong_kernel(lambda s, t, loss, p, one: (loss + _own(s, t), p - one)),
            "Only the first block of a row was written: the second pass is a loop too.":
                _wrong_kernel(_first_block),
            "Loads need mask=v < V, other=-inf: without, a row goes on into the next one.":
                _wrong_kernel(_into_the_next_row),
            "Every program took row 0: row r begins at logits_ptr + r * V.":
                _wrong_kernel(_always_row_0),
            "Only the first BLOCK_V logits were seen: loop over first = 0, BLOCK_V, ... below V.":
                _wrong_kernel(_no_loop),
            "peak and total begin anew in every block: set them once, before the loop.":
                _wrong_kernel(_restarted),
            "The target's logit was read after it was overwritten: read it before.":
                _wrong_kernel(lambda s, t, loss, p, one: (
                    loss + _own(s, t) - _own(p - one, t), p - one)),
            "The target's logit was multiplied by LOG2E; the loss is in base e: take it as it is.":
                _wrong_kernel(lambda s, t, loss, p, one: (
                    loss + _own(s, t) * (1 - np.log2(np.e)), p - one)),
            "The first pass's weights belong to the peak of that moment: compute 2^(score - peak) "
            "again.": _wrong_kernel(_not_rescaled),
            "1 was taken off in every block: compare the target with v, not with arange.":
                _wrong_kernel(_one_each_block),
            "The second pass takes exp of scores in base 2: exp2(scores - peak).":
                _wrong_kernel(_second(lambda s, peak: np.exp((s - peak) * np.log2(np.e)))),
            "In the second pass peak is in base 2, the scores are not: times LOG2E, then exp2.":
                _wrong_kernel(_second(lambda s, peak: np.exp(s - peak * np.log2(np.e)))),
            "In the second pass too the scores are to be multiplied by LOG2E before exp2.":
                _wrong_kernel(_second(lambda s, peak: np.exp2(s - peak * np.log2(np.e)))),
            "Nothing is taken off before exp2, which overflows above 128: take the peak.":
                _wrong_kernel(_overflowed),
            "The loss is right but the logits were not overwritten.":
                _wrong_kernel(lambda s, t, loss, p, one: (loss, s)),
        },
        launch=_kernel_launch, expected=_kernel_expected, file=KERNEL_FILE, imports=KERNEL_HEAD,
        constants={"BLOCK_V": BLOCK_V}, close=1e-4, model=(_row_by_row,),
    ),
)  # fmt: skip
