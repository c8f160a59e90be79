"""Softmax-InfoNCE in both directions without a B x B array, in torch and in Triton.

With s_ij = scale (x_i . y_j) between image i and text j, the loss of pair i is half of
    (LSE_j s_ij - s_ii) + (LSE_j s_ji - s_ii).
The diagonal is kept apart, in float32: with r_i the LSE over j != i, a row's loss is
softplus(r_i - s_ii), which keeps its digits where the pairs are learned and s_ii is all there is
(a bfloat16 logit near 100 is a multiple of 0.5, and their difference is nothing but rounding).

Forward: one pass over tiles gives both the rows' and the columns' LSE. Backward: G_ij =
exp(s_ij - LSE of row i) + exp(s_ij - LSE of column j) again, in chunks of rows, and two library
products with each chunk: dX = G Y, dY = G' X. Four products of B x B x E in all; the workspace is a
parameter; no atomics, every sum in a fixed order.
Wins: memory, always; time, from a few thousand pairs. Does not win: a few hundred.

The functions on statistics and gradients also serve a rank that has M of all N images: its image i
belongs to text offset + i. Columns of the ranks are merged by logaddexp, gradients of texts added.
Letters: B pairs (M images, N texts), E width.
"""

import torch
import torch.nn.functional as F

from .checks import check_pairs
from .products import add_product, product
from .wanted import chosen, stand_ins

WORKSPACE = 1 << 28  # bytes


def inverse_norms(x, eps=1e-12):
    """1 / |x| of every row, in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    square = torch.cat([part.to(wide).square().sum(1) for part in x.split(4096)])
    return torch.rsqrt(square + eps)


def _tiles(fused):
    """What computes a chunk of rows: Triton's kernels, or torch."""
    if fused:
        from . import info_nce_tiles

        return info_nce_tiles
    return TorchTiles


class TorchTiles:
    """A chunk of rows, all columns, as plain torch; the meaning of the kernels."""

    @staticmethod
    def bytes_per_row(x, columns):
        return 4 * columns * torch.promote_types(x.dtype, torch.float32).itemsize

    @staticmethod
    def _logits(x, y, scale, first, rx, ry):
        """s [c, N], -inf where row and column are a pair."""
        s = product(x, y.T) * scale
        if rx is not None:
            s = s.mul_(rx[:, None]).mul_(ry)
        s.diagonal(first).fill_(-torch.inf)
        return s

    @classmethod
    def statistics(cls, x, y, scale, first, rx, ry):
        """LSE of the rows [c] and, over these rows, of the columns [N]."""
        s = cls._logits(x, y, scale, first, rx, ry)
        return s.logsumexp(1), s.logsumexp(0)

    @classmethod
    def gradient(cls, x, y, scale, first, rx, ry, row, column, for_scale=True):
        """(G rx ry [c, N], sum of G s or None), the pairs left out."""
        s = cls._logits(x, y, scale, first, rx, ry)
        g = torch.exp(s - row[:, None]).add_(torch.exp(s - column))
        total = None
        if for_scale:  # row by row: over millions of terms torch.dot in float32 keeps four digits
            s.diagonal(first).zero_()
            total = torch.bmm(g[:, None], s[:, :, None]).sum()
        if rx is not None:
            g = g.mul_(rx[:, None]).mul_(ry)
        return g, total


def chunks(image, text, workspace, tiles):
    """Slices of the images, as long as the workspace allows."""
    rows = max(1, workspace // tiles.bytes_per_row(image, len(text)))
    rows = rows // 128 * 128 or rows
    return [slice(i, min(i + rows, len(image))) for i in range(0, len(image), rows)]


def _part(norms, rows):
    return None if norms is None else norms[rows]


def info_nce_statistics(
    image, text, scale, *, offset=0, norms=(None, None), workspace=WORKSPACE, fused=False
):
    """(row [M], column [N], diagonal [M]): LSE over all others, and the pairs' own logits.

    Image i is the pair of text offset + i. norms: `inverse_norms` of both sides, to compare
    directions only. A column's LSE is over the images given here.
    """
    tiles, wide = _tiles(fused), torch.promote_types(image.dtype, torch.float32)
    rx, ry = norms
    row, diagonal = (image.new_empty(len(image), dtype=wide) for _ in range(2))
    column = image.new_full((len(text),), -torch.inf, dtype=wide)
    scale = scale.to(wide)
    for rows in chunks(image, text, workspace, tiles):
        x, own = image[rows], text[offset + rows.start : offset + rows.stop]
        diagonal[rows] = (x.to(wide) * own.to(wide)).sum(1) * scale
        found = tiles.statistics(x, text, scale, offset + rows.start, _part(rx, rows), ry)
        row[rows], column = found[0], torch.logaddexp(column, found[1])
    if rx is not None:
        diagonal *= rx * ry[offset : offset + len(image)]
    return row, column, diagonal


def info_nce_gradients(
    image, text, scale, row, column, pull, *,
    offset=0, norms=(None, None), workspace=WORKSPACE, fused=False, wanted=(True, True, True),
):  # fmt: skip
    """Gradients of sum_i (row_i + column_i) + pull_i s_ii: (dimage [M, E], dtext [N, E], dscale).

    row [M], column [N]: each LSE with its own pair; pull [M]: what multiplies ds_ii. All float32 at
    least. dtext and dscale are sums over the images given here. With norms, of the unit vectors'
    directions too; `without_radial` then takes out what a length cannot change. None for what is
    not `wanted`.
    """
    tiles, wide = _tiles(fused), torch.promote_types(image.dtype, torch.float32)
    rx, ry = norms
    scale = scale.to(wide)
    dimage = torch.empty_like(image, dtype=wide) if wanted[0] else None
    dtext = torch.zeros_like(text, dtype=wide) if wanted[1] else None
    dscale = pull.new_zeros(()) if wanted[2] else None
    for rows in chunks(image, text, workspace, tiles):
        x, mine = image[rows], slice(offset + rows.start, offset + rows.stop)
        g, total = tiles.gradient(
            x, text, scale, mine.start, _part(rx, rows), ry, row[rows], column, wanted[2]
        )
        own = pull[rows] if rx is None else pull[rows] * rx[rows] * ry[mine]
        if wanted[0]:
            dimage[rows] = product(g, text)
            dimage[rows] += own[:, None] * text[mine]
        if wanted[1]:
            add_product(dtext, g.T, x)
            dtext[mine] += own[:, None] * x
        if wanted[2]:
            dscale = dscale + total / scale
        del g  # before the next chunk's: one workspace at a time
    sums = (None if d is None else d.mul_(scale) for d in (dimage, dtext))
    return *sums, dscale


def without_radial(dx, x, inverse_norm):
    """The gradient with respect to x, of what depends on x / |x| only."""
    along = (dx * x).sum(1, keepdim=True) * inverse_norm[:, None].square()
    return dx - along * x


def pull_of(row, column, diagonal):
    """d(row loss + column loss) / ds_ii: minus the probability of everything else, twice."""
    return -(torch.sigmoid(row - diagonal) + torch.sigmoid(column - diagonal))


def loss_of(row, column, diagonal):
    """The mean loss of pairs whose columns are complete."""
    return (F.softplus(row - diagonal) + F.softplus(column - diagonal)).mean() / 2


@torch.library.custom_op("minicoca::info_nce", mutates_args=())
def info_nce_forward(
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    normalise: bool,
    workspace: int,
    fused: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, row [B], column [B], diagonal [B])."""
    norms = (inverse_norms(image), inverse_norms(text)) if normalise else (None, None)
    found = info_nce_statistics(image, text, scale, norms=norms, workspace=workspace, fused=fused)
    return loss_of(*found), *found


@info_nce_forward.register_fake
def _(image, text, scale, normalise, workspace, fused):
    wide = torch.promote_types(image.dtype, torch.float32)
    vectors = (image.new_empty(len(image), dtype=wide) for _ in range(3))
    return image.new_empty((), dtype=wide), *vectors


@torch.library.custom_op("minicoca::info_nce_backward", mutates_args=())
def info_nce_backward(
    dloss: torch.Tensor,
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    row: torch.Tensor,
    column: torch.Tensor,
    diagonal: torch.Tensor,
    normalise: bool,
    workspace: int,
    fused: bool,
    wanted: list[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dimage, dtext, dscale), empty where it is not wanted."""
    norms = (inverse_norms(image), inverse_norms(text)) if normalise else (None, None)
    pull = pull_of(row, column, diagonal)
    dimage, dtext, dscale = info_nce_gradients(
        image, text, scale, torch.logaddexp(row, diagonal), torch.logaddexp(column, diagonal), pull,
        norms=norms, workspace=workspace, fused=fused, wanted=wanted,
    )  # fmt: skip
    if wanted[2]:
        dscale = dscale + torch.dot(pull, diagonal) / scale
    if normalise and wanted[0]:
        dimage = without_radial(dimage, image, norms[0])
    if normalise and wanted[1]:
        dtext = without_radial(dtext, text, norms[1])
    share = dloss / (2 * len(image))
    found = zip((dimage, dtext, dscale), (image, text, scale), strict=True)
    return stand_ins(share, [None if d is None else (d * share).to(x.dtype) for d, x in found])


@info_nce_backward.register_fake
def _(dloss, image, text, scale, row, column, diagonal, normalise, workspace, fused, wanted):
    found = zip((image, text, scale), wanted, strict=True)
    return stand_ins(dloss, [torch.empty_like(x) if w else None for x, w in found])


def _save(ctx, inputs, output):
    image, text, scale, *ctx.options = inputs
    ctx.save_for_backward(image, text, scale, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, dloss, *_):
    wanted = ctx.needs_input_grad[:3]
    gradients = info_nce_backward(dloss, *ctx.saved_tensors, *ctx.options, wanted)
    return *chosen(wanted, gradients), None, None, None


info_nce_forward.register_autograd(_backward, setup_context=_save)


def info_nce(image, text, scale, *, normalise=False, workspace=WORKSPACE, fused=True):
    """Mean over B pairs and both directions of -log softmax(scale x . y) at the pair; a scalar.

    image, text: [B, E], unit vectors, or any with `normalise`. scale: a tensor of no axes, what
    multiplies the cosines (1 / temperature), not 0. workspace: bytes, beyond the gradients.
    fused: by Triton's kernels, else by torch; the loss is float32 at least.
    Raises ValueError naming the argument, its value and the limit.
    """
    check_pairs(image, text, scale, workspace)
    return info_nce_forward(image, text, scale, normalise, workspace, fused)[0]
