"""The captioning loss over a large vocabulary: logits exist for a chunk of tokens at a time.

With hidden x [R, D], head W [D, V] and targets t [R], the loss is the mean over rows whose target
is not padding of LSE_v(x W) - (x W)_t, and its gradient softmax(x W) - onehot(t). Padding is
dropped first. For each chunk: one library product gives the logits; loss and gradient come from
them where they stand; two more products give dX and, summed in float32, dW. Three products in all
and nothing of R x V: gradients are made in the forward pass, where they are wanted, and scaled in
the backward.
Exact: no gradient is left out for being small.
Wins: memory, always; time, where logits do not fit the cache. Does not win: a few rows.
Letters: R rows, D width, V vocabulary.
"""

import torch

from .checks import check_caption
from .products import add_product

CHUNK = 256  # rows of logits at a time on a CPU
FUSED_CHUNK = 4096  # on a GPU: enough to fill it


def torch_rows(logits_RV, targets_R, gradient):
    """Sum of the rows' losses; with `gradient`, softmax - onehot over the logits' own memory."""
    target_R1 = targets_R[:, None]
    wide = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    wide.sub_(wide.amax(1, keepdim=True))
    total = -wide.gather(1, target_R1).sum()
    sum_R1 = wide.exp_().sum(1, keepdim=True)
    total += sum_R1.log().sum()
    if gradient:
        wide.div_(sum_R1)
        wide.scatter_add_(1, target_R1, torch.full_like(target_R1, -1, dtype=wide.dtype))
        if wide is not logits_RV:
            logits_RV.copy_(wide)
    return total


def _rows(fused):
    """What turns logits into a loss and a gradient: a Triton kernel, or torch."""
    if fused:
        from .caption_loss_rows import caption_rows

        return caption_rows
    return torch_rows


@torch.library.custom_op("minicoca::caption_loss", mutates_args=())
def caption_loss_forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    pad: int,
    chunk: int,
    wanted: bool,
    fused: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, its gradients with respect to hidden and weight, or two empty tensors)."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    real = (targets != pad).nonzero()[:, 0]
    whole = len(real) == len(targets)  # then nothing is copied
    x_RD, t_R = (hidden, targets) if whole else (hidden[real], targets[real])
    if len(t_R) and not 0 <= int(t_R.min()) <= int(t_R.max()) < weight.shape[1]:
        raise ValueError(
            f"targets are {int(t_R.min())} to {int(t_R.max())}; the head has {weight.shape[1]}"
        )
    dx_RD = torch.empty_like(x_RD) if wanted else hidden.new_empty(0)
    dweight_DV = torch.zeros_like(weight, dtype=wide) if wanted else weight.new_empty(0)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    # One buffer for all chunks: memory fresh from the system costs a page fault every 4 kB.
    buffer_RV = x_RD.new_empty(min(len(t_R), chunk), weight.shape[1])
    for first in range(0, len(t_R), chunk):
        rows = slice(first, first + chunk)
        logits_RV = torch.mm(x_RD[rows], weight, out=buffer_RV[: len(t_R[rows])])
        total += _rows(fused)(logits_RV, t_R[rows], wanted)
        if wanted:
            torch.mm(logits_RV, weight.T, out=dx_RD[rows])
            add_product(dweight_DV, x_RD[rows].T, logits_RV)
    share = 1 / max(1, len(t_R))
    if wanted:
        dx_RD *= share
        dweight_DV *= share
        if not whole:
            dx_RD = torch.zeros_like(hidden).index_copy(0, real, dx_RD)
        dweight_DV = dweight_DV.to(weight.dtype)
    return total * share, dx_RD, dweight_DV


@caption_loss_forward.register_fake
def _(hidden, weight, targets, pad, chunk, wanted, fused):
    wide = torch.promote_types(hidden.dtype, torch.float32)
    gradients = (torch.empty_like(x) if wanted else x.new_empty(0) for x in (hidden, weight))
    return hidden.new_empty((), dtype=wide), *gradients


def _save(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])


def _backward(ctx, dloss, *_):
    return *(d * dloss.to(d.dtype) for d in ctx.saved_tensors), *[None] * 5


caption_loss_forward.register_autograd(_backward, setup_context=_save)


def caption_loss(hidden, head_weight, targets, *, pad_id=0, chunk=None, fused=True):
    """Mean over the targets that are not padding of -log softmax(hidden W)[target]; 0 for none.

    hidden: [..., D]; head_weight: [D, V]; targets: [...], ids from 0 to V - 1. chunk: rows of
    logits at a time. fused: by Triton's kernel, else by torch; the loss is float32 at least.
    Raises ValueError naming the argument, its value and the limit.
    """
    check_caption(hidden, head_weight, targets, chunk)
    chunk = chunk or (FUSED_CHUNK if fused else CHUNK)
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or head_weight.requires_grad)
    rows = hidden.reshape(-1, hidden.shape[-1])
    return caption_loss_forward(
        rows, head_weight, targets.reshape(-1), pad_id, chunk, wanted, fused
    )[0]
