"""Matrix products whose sums are kept in float32 whatever the factors are."""

import torch


def product(a, b):
    """a b, float32 at least."""
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    if a.dtype == b.dtype == wide:
        return a @ b
    if a.is_cuda and a.dtype == b.dtype:
        return torch.mm(a, b, out_dtype=wide)  # float32 is kept where it was summed
    return a.to(wide) @ b.to(wide)


def add_product(total, a, b):
    """total += a b, in total's type."""
    if a.is_cuda and a.dtype == b.dtype != total.dtype:
        try:
            torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
        except (RuntimeError, TypeError):
            total += product(a, b)  # torch before 2.11 cannot add a float32 sum here
        return
    total.addmm_(a.to(total.dtype), b.to(total.dtype))
