"""What softmax-InfoNCE promises beyond being right: learned batches, shards, and memory."""

import pytest
import torch
from kernel_cases import (
    DEVICE,
    check_learned_pairs,
    check_pairs,
    draw_pairs,
    exact_pairs,
    plain_pairs,
)  # fmt: skip

from minicoca.kernels import info_nce as module


@pytest.mark.parametrize("fused", [True, False], ids=["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_learned_batch_keeps_its_gradient(dtype, fused):
    check_learned_pairs(module, dtype, fused)


def test_eager_bfloat16_loses_the_gradient_of_a_learned_batch():
    """Why the diagonal is kept apart: logits near 100 are multiples of a half there."""
    x, y = draw_pairs(0, 160, 14, torch.bfloat16, "learned")
    scale = torch.tensor(100.0, device=DEVICE)
    exact, eager = (f(x, y, scale, False) for f in (exact_pairs, plain_pairs))
    gaps = [float((a.double() - b).norm() / b.norm()) for a, b in zip(eager, exact, strict=True)]
    assert min(gaps) > 0.9, gaps


@pytest.mark.parametrize("fused", [True, False], ids=["triton", "torch"])
@pytest.mark.parametrize("normalise", [False, True])
def test_ranks_that_hold_parts_of_the_images_add_up(fused, normalise):
    """Each rank has some images and all texts; columns are merged, gradients of texts added."""
    x, y = draw_pairs(0, 150, 24, torch.float32, normalise=normalise)
    scale = torch.tensor(14.3, device=DEVICE)
    whole = check_pairs(module, 0, 150, 24, normalise=normalise, fused=fused)
    ry = module.inverse_norms(y) if normalise else None
    parts = [slice(0, 40), slice(40, 41), slice(41, 150)]
    norms = [(module.inverse_norms(x[p]), ry) if normalise else (None, None) for p in parts]
    options = [
        dict(offset=p.start, norms=n, workspace=1 << 16, fused=fused)
        for p, n in zip(parts, norms, strict=True)
    ]
    found = [
        module.info_nce_statistics(x[p], y, scale, **o) for p, o in zip(parts, options, strict=True)
    ]
    column = torch.stack([part[1] for part in found]).logsumexp(0)
    row, diagonal = (torch.cat([part[i] for part in found]) for i in (0, 2))
    torch.testing.assert_close(module.loss_of(row, column, diagonal).reshape(1), whole[0])
    pull = module.pull_of(row, column, diagonal)
    full_row, full_column = torch.logaddexp(row, diagonal), torch.logaddexp(column, diagonal)
    dx, dy, dscale = [], 0, torch.dot(pull, diagonal) / scale
    for p, o in zip(parts, options, strict=True):
        part = module.info_nce_gradients(x[p], y, scale, full_row[p], full_column, pull[p], **o)
        dx, dy, dscale = [*dx, part[0]], dy + part[1], dscale + part[2]
    dx = torch.cat(dx)
    if normalise:
        dx = module.without_radial(dx, x, module.inverse_norms(x))
        dy = module.without_radial(dy, y, ry)
    for got, want in zip((dx, dy, dscale.reshape(1)), whole[1:], strict=True):
        torch.testing.assert_close(got / (2 * len(x)), want, rtol=1e-4, atol=1e-6)
