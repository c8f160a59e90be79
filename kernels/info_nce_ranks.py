"""InfoNCE of a batch that several processes share: each has some images, and the texts of them.

Texts travel once, images never. A rank compares its images with all texts: its rows are complete,
and of each column it has the LSE over its own images. A column's owner merges those of all ranks.
Then gradients: of the rank's images they are complete, of all texts they are parts, whose sum goes
to the owner. On the wire, a rank: B E numbers of texts, 2 B of columns, B E of text gradients.
Memory: a chunk of rows by B columns, as ever; and 3 B E.

The gradients are made in the forward pass, where the texts are at hand: the backward pass exchanges
nothing, and cannot be out of step with what DDP or FSDP2 sends meanwhile.
Letters: B pairs in all, b of this rank, E width.
"""

import torch
import torch.nn.functional as F

from .info_nce import WORKSPACE, info_nce_gradients, info_nce_statistics, pull_of


class _OverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, scale, ranks, counts, workspace, fused):
        how = dict(offset=sum(counts[: ranks.rank]), workspace=workspace, fused=fused)
        texts = ranks.gather(text, counts)
        row, part, diagonal = info_nce_statistics(image, texts, scale, **how)
        column = ranks.to_owners(part, counts).logsumexp(0)
        each = F.softplus(row - diagonal) + F.softplus(column - diagonal)
        share = 1 / (2 * sum(counts))
        wanted = ctx.needs_input_grad[:3]
        if any(wanted):
            columns = ranks.gather(torch.logaddexp(column, diagonal), counts)
            pull = pull_of(row, column, diagonal)
            rows = torch.logaddexp(row, diagonal)
            dimage, dtext, dscale = info_nce_gradients(
                image, texts, scale, rows, columns, pull, wanted=(True, True, True), **how
            )
            dtext = ranks.to_owners(dtext, counts).sum(0)
            dscale = dscale + torch.dot(pull, diagonal) / scale
            ctx.save_for_backward(*(d * share for d in (dimage, dtext, dscale)))
            ctx.types = [x.dtype for x in (image, text, scale)]
        return ranks.sum(each.sum()) * share

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss):
        found = zip(ctx.saved_tensors, ctx.types, strict=True)
        return *((d * dloss).to(kind) for d, kind in found), None, None, None, None


@torch.compiler.disable
def info_nce_over_ranks(image, text, scale, ranks, counts, *, workspace=WORKSPACE, fused=True):
    """`info_nce` of all ranks' pairs together: the same scalar in every process.

    image, text: [b, E] unit vectors, this rank's of counts[rank] pairs. ranks: has `rank`, and
    gather(x, counts), to_owners(x, counts) and sum(x) as ranks.py's. All ranks must
    call it. The gradients of image and text are the whole's; that of scale is this rank's part, so
    that the gradient of anything below is the sum over the ranks of what each one finds.
    """
    if len(image) != counts[ranks.rank] or image.shape != text.shape:
        raise ValueError(
            f"image {tuple(image.shape)} and text {tuple(text.shape)} are not both of the "
            f"{counts[ranks.rank]} pairs that are rank {ranks.rank}'s"
        )
    return _OverRanks.apply(image, text, scale, ranks, counts, workspace, fused)
