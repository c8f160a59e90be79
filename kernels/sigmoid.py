"""The sigmoid loss of a batch's pairs (Zhai et al. 2023, SigLIP) without a B x B array.

With s_ij = scale (x_i . y_j) + bias between image i and text j, the loss is 1/B times
    sum_i log(1 + exp(-s_ii)) + sum of log(1 + exp(s_ij)) over i, j that are no pair.
Where two texts are one caption, neither is a negative of the other's image: captions are numbers,
one a text, and are compared where a chunk stands.

No pair asks for another, so that a chunk of images with all texts is done with at once: its share
of the loss, and, where gradients are wanted, G_ij = sigmoid(s_ij) in the logits' own memory and two
library products, dX = scale (G Y + g Y) and dY = scale (G' X + g X) with g_i = -sigmoid(-s_ii).
Three products of B x B x E in all (softmax-InfoNCE takes four, for its backward needs each row's
sum first); the gradients are held from the forward pass on.
Wins: memory, from a few thousand pairs. In torch alone: README.md says what tiles would save.
Letters: B pairs, E width.
"""

import torch
from torch.nn.functional import logsigmoid

from .checks import check_sigmoid
from .info_nce import WORKSPACE, TorchTiles, chunks
from .products import add_product, product
from .wanted import chosen, stand_ins


def sigmoid_sums(image, text, scale, bias, captions, workspace, wanted):
    """(the sum of all losses, its gradients with respect to image, text, scale and bias; None for
    what is not `wanted`), float32 at least. captions: [B], or None where all differ."""
    wide = torch.promote_types(image.dtype, torch.float32)
    scale, bias = scale.to(wide), bias.to(wide)
    total, dscale, dbias = (scale.new_zeros(()) for _ in range(3))
    dimage = torch.empty_like(image, dtype=wide) if wanted[0] else None
    dtext = torch.zeros_like(text, dtype=wide) if wanted[1] else None
    for rows in chunks(image, text, workspace, TorchTiles):
        x, y = image[rows], text[rows]
        cosine = (x.to(wide) * y.to(wide)).sum(1)
        own = cosine * scale + bias
        cosines = product(x, text.T)
        no = (cosines * -scale).sub_(bias)  # -s: the logit of "no pair"
        if captions is None:
            no.diagonal(rows.start).fill_(torch.inf)
        else:
            no.masked_fill_(captions[rows, None] == captions, torch.inf)
        total -= logsigmoid(own).sum() + logsigmoid(no).sum()
        if not any(wanted):
            continue
        g, pull = no.neg_().sigmoid_(), -torch.sigmoid(-own)
        if wanted[0]:
            dimage[rows] = product(g, text).add_(pull[:, None] * y)
        if wanted[1]:
            add_product(dtext, g.T, x)
            dtext[rows] += pull[:, None] * x
        if wanted[2]:  # row by row, as in info_nce
            dscale += torch.bmm(g[:, None], cosines[:, :, None]).sum() + torch.dot(pull, cosine)
        dbias += g.sum() + pull.sum()
        del cosines, no, g  # before the next chunk's: one workspace at a time
    found = (d if d is None else d.mul_(scale) for d in (dimage, dtext))
    found = (*found, dscale if wanted[2] else None, dbias if wanted[3] else None)
    return total, found


@torch.library.custom_op("minicoca::sigmoid_loss", mutates_args=())
def sigmoid_forward(
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    captions: torch.Tensor | None,
    workspace: int,
    wanted: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, the gradients of B times it, float32 at least, empty where they are not wanted)."""
    total, found = sigmoid_sums(image, text, scale, bias, captions, workspace, wanted)
    return total / len(image), *stand_ins(total, found)


@sigmoid_forward.register_fake
def _(image, text, scale, bias, captions, workspace, wanted):
    wide = torch.promote_types(image.dtype, torch.float32)
    loss = image.new_empty((), dtype=wide)
    given = zip((image, text, scale, bias), wanted, strict=True)
    found = [torch.empty_like(x, dtype=wide) if w else None for x, w in given]
    return loss, *stand_ins(loss, found)


@torch.library.custom_op("minicoca::sigmoid_loss_backward", mutates_args=())
def sigmoid_backward(
    dloss: torch.Tensor, gradients: list[torch.Tensor], pairs: int
) -> list[torch.Tensor]:
    """The gradients of the loss itself. An op, since it has no derivative, as in caption_loss."""
    return [d * (dloss / pairs) for d in gradients]


@sigmoid_backward.register_fake
def _(dloss, gradients, pairs):
    return [torch.empty_like(d) for d in gradients]


def _save(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.dtypes, ctx.pairs = [x.dtype for x in inputs[:4]], len(inputs[0])


def _backward(ctx, dloss, *_):
    found = sigmoid_backward(dloss, list(ctx.saved_tensors), ctx.pairs)
    found = [d.to(dtype) for d, dtype in zip(found, ctx.dtypes, strict=True)]
    return *chosen(ctx.needs_input_grad[:4], found), None, None, None


sigmoid_forward.register_autograd(_backward, setup_context=_save)


def sigmoid_loss(image, text, scale, bias, captions=None, *, workspace=WORKSPACE):
    """SigLIP's loss of B pairs, a scalar, float32 at least: 1/B times the sum over images and texts
    of -log sigmoid(z (scale x . y + bias)), z = 1 for a pair and -1 for all others that count.

    image, text: [B, E], unit vectors. scale, bias: tensors of no axes. captions: int [B], equal
    where texts are one caption; None where all differ. workspace: bytes, beyond the gradients.
    Raises ValueError naming the argument, its value and the limit.
    """
    check_sigmoid(image, text, scale, bias, captions, workspace)
    given = image, text, scale, bias
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in given]
    return sigmoid_forward(*given, captions, workspace, wanted)[0]
