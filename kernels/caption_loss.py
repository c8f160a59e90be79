"""The captioning loss over a large vocabulary: logits exist for a chunk of tokens at a time.

With hidden x [R, D], head W [D, V] and targets t [R], the loss is the mean over rows whose target
is not padding of LSE_v(x W) - (x W)_t, and its gradient softmax(x W) - onehot(t). Padding is
dropped first. For each chunk: one library product gives the logits; loss and gradient come from
them where they stand; two more products give dX and, summed in float32, dW. Three products in all
and nothing of R x V: gradients are made in the forward pass, where they are wanted, and scaled in
the backward.
Exact: no gradient is left out for being small (but float16 has none below 6e-8).
Wins: memory, always; time, where logits do not fit the cache. Does not win: a few rows.
Letters: R rows, D width, V vocabulary.
"""

import torch

from .checks import check_caption
from .products import add_product
from .wanted import chosen, stand_ins

CHUNK = 256  # rows of logits at a time on a CPU
CUDA_CHUNK = 4096  # enough to fill a GPU


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
    wanted: list[bool],
    fused: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, 1 / count, the sum's gradients with respect to hidden and weight, empty where they are
    not wanted).

    The gradients are not yet divided by the count, so that a float16 holds them; weight's is wide.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    real = (targets != pad).nonzero()[:, 0]
    whole = len(real) == len(targets)  # then nothing is copied
    x_RD, t_R = (hidden, targets) if whole else (hidden[real], targets[real])
    _check_range(t_R, weight.shape[1])
    dx_RD = torch.empty_like(x_RD) if wanted[0] else None
    dweight_DV = weight.new_zeros(weight.shape, dtype=wide) if wanted[1] else None
    total = torch.zeros((), dtype=wide, device=hidden.device)
    # One buffer for all chunks: memory fresh from the system costs a page fault every 4 kB.
    buffer_RV = x_RD.new_empty(min(len(t_R), chunk), weight.shape[1])
    for first in range(0, len(t_R), chunk):
        rows = slice(first, first + chunk)
        logits_RV = torch.mm(x_RD[rows], weight, out=buffer_RV[: len(t_R[rows])])
        total += _rows(fused)(logits_RV, t_R[rows], any(wanted))
        if wanted[0]:
            torch.mm(logits_RV, weight.T, out=dx_RD[rows])
        if wanted[1]:
            add_product(dweight_DV, x_RD[rows].T, logits_RV)
    if wanted[0] and not whole:
        dx_RD = torch.zeros_like(hidden).index_copy(0, real, dx_RD)
    share = torch.full_like(total, 1 / max(1, len(t_R)))
    return total * share, share, *stand_ins(total, (dx_RD, dweight_DV))


def _check_range(t_R, V):
    """Raise ValueError for a target that the head does not have; on a GPU, without waiting, an
    error of the device."""
    if t_R.is_cuda:
        torch._assert_async(((t_R >= 0) & (t_R < V)).all())
    elif len(t_R) and not 0 <= int(t_R.min()) <= int(t_R.max()) < V:
        raise ValueError(f"targets are {int(t_R.min())} to {int(t_R.max())}; the head has {V}")


@caption_loss_forward.register_fake
def _(hidden, weight, targets, pad, chunk, wanted, fused):
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss, share = (hidden.new_empty((), dtype=wide) for _ in range(2))
    dx = torch.empty_like(hidden) if wanted[0] else None
    dweight = weight.new_empty(weight.shape, dtype=wide) if wanted[1] else None
    return loss, share, *stand_ins(loss, (dx, dweight))


@torch.library.custom_op("minicoca::caption_loss_backward", mutates_args=())
def caption_loss_backward(
    dloss: torch.Tensor, share: torch.Tensor, gradients: list[torch.Tensor], dtype: torch.dtype
) -> list[torch.Tensor]:
    """The gradients, scaled. An op, since it has no derivative: asking for the second one raises,
    where plain torch would take the gradients for constants."""
    factor = dloss * share  # float32, as dweight: rounded once, at the end
    return [(d.to(share.dtype) * factor).to(dtype) for d in gradients]


@caption_loss_backward.register_fake
def _(dloss, share, gradients, dtype):
    return [d.new_empty(d.shape, dtype=dtype) for d in gradients]


def _save(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.dtype = inputs[0].dtype


def _backward(ctx, dloss, *_):
    share, *gradients = ctx.saved_tensors
    gradients = caption_loss_backward(dloss, share, gradients, ctx.dtype)
    return *chosen(ctx.needs_input_grad[:2], gradients), *[None] * 5


caption_loss_forward.register_autograd(_backward, setup_context=_save)


def caption_loss(hidden, head_weight, targets, *, pad_id=0, chunk=None, fused=True):
    """Mean over the targets that are not padding of -log softmax(hidden W)[target]; 0 for none.

    hidden: [..., D]; head_weight: [D, V]; targets: [...], ids from 0 to V - 1. chunk: rows of
    logits at a time. fused: by Triton's kernel, else by torch; the loss is float32 at least.
    Raises ValueError naming the argument, its value and the limit.
    """
    check_caption(hidden, head_weight, targets, chunk)
    chunk = chunk or (CUDA_CHUNK if hidden.is_cuda else CHUNK)
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in (hidden, head_weight)]
    rows = hidden.reshape(-1, hidden.shape[-1])
    flat = targets.reshape(-1).to(torch.int64).contiguous()
    return caption_loss_forward(rows, head_weight, flat, pad_id, chunk, wanted, fused)[0]
