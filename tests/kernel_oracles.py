"""What kernels are judged by: float64 results, poisoned memory, mutated copies of the source."""

import contextlib
import importlib.util
import itertools
import shutil
import sys
from pathlib import Path

import torch

import minicoca.kernels

FOLDER = Path(minicoca.kernels.__file__).parent
GUARD = 64  # elements of NaN on either side of everything a kernel may write

# error / norm of the float64 result: forward, gradients (fp32 products are exact on a CPU)
ABSOLUTE = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (2e-6, 1e-5),
    torch.float16: (1e-3, 2e-3),
    torch.bfloat16: (5e-3, 1e-2),
}


class Poisoned:
    """Within the block `torch.empty_like` and `new_empty`, by which kernels allocate, give NaN
    between guard bands of NaN.

    `intact()` then says whether the bands are as they were: whether every stray write is absent.
    """

    def __enter__(self):
        self.buffers = []
        self.patches = contextlib.ExitStack()
        originals = torch.empty, torch.empty_like, torch.Tensor.new_empty

        def make(shape, dtype, device):
            shape = torch.Size(shape)
            count = shape.numel()
            if not dtype.is_floating_point:
                return originals[0](shape, dtype=dtype, device=device)
            whole = torch.full((count + 2 * GUARD,), torch.nan, dtype=dtype, device=device)
            self.buffers.append((whole, count))
            return whole[GUARD : GUARD + count].view(shape)

        def new_empty(self_, *shape, dtype=None, device=None, **_):
            shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
            return make(shape, dtype or self_.dtype, device or self_.device)

        def empty_like(x, **_):
            return make(x.shape, x.dtype, x.device)

        torch.Tensor.new_empty, torch.empty_like = new_empty, empty_like
        self.originals = originals
        return self

    def __exit__(self, *_):
        _, torch.empty_like, torch.Tensor.new_empty = self.originals

    def intact(self):
        bands = [(w[:GUARD], w[GUARD + n :]) for w, n in self.buffers]
        return bool(self.buffers) and all(b.isnan().all() for pair in bands for b in pair)


def error(got, want):
    """(relative error of the whole, largest error of a row relative to the largest row)."""
    gap = got.double() - want
    rows = gap.flatten(0, -2).norm(dim=-1) if gap.ndim > 1 else gap.abs()
    scale = want.flatten(0, -2).norm(dim=-1) if gap.ndim > 1 else want.abs()
    # A gradient that is exactly 0 (softmax of one key) is what is left of terms of about this size.
    floor = 10.0 if float(want.abs().max()) < 1e-9 else 0.1
    whole = float(gap.norm() / want.norm().clamp(min=floor * gap.numel() ** 0.5))
    return whole, float(rows.max() / scale.max().clamp(min=floor * want.shape[-1] ** 0.5))


def judge(names, ours, plain, exact, dtype, largest_logit=0.0):
    """Ours may err twice as much as plain torch in the same type, and by the absolute gates at
    most, over each tensor and in its worst row (four times the gates); there may be no NaN.

    Probabilities come back from a log-sum-exp in float32: where logits are in the hundreds, four
    of its last digits are allowed instead.
    """
    for i, (name, a, b, want) in enumerate(zip(names, ours, plain, exact, strict=True)):
        assert a.shape == want.shape, f"{name} has shape {tuple(a.shape)}, not {tuple(want.shape)}"
        assert not a.isnan().any(), f"{name} holds NaN"
        limit = ABSOLUTE[dtype][min(i, 1)]
        pairs = zip(error(a, want), error(b, want), (limit, 4 * limit), strict=True)
        for kind, (mine, theirs, gate) in zip(("whole", "worst row"), pairs, strict=True):
            allowed = min(max(2 * theirs, gate / 2), gate)
            allowed = max(allowed, 4 * largest_logit * 2.0**-24)
            assert mine <= allowed, (
                f"{name}, {kind}: error {mine:.1e}; plain torch {theirs:.1e}, allowed {allowed:.1e}"
            )


_numbers = itertools.count()


@contextlib.contextmanager
def mutant(tmp_path, file, old, new):
    """A copy of the kernels with one change, as a package of its own (and ops of its own)."""
    name = f"mutant_kernels_{next(_numbers)}"
    folder = tmp_path / name
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__", "bench"))
    for path in folder.glob("*.py"):
        text = path.read_text()
        if path.name == file:
            if (
                text.count(old) != 1
            ):  # no AssertionError, which would pass for a bug that was caught
                raise LookupError(f"{file}: {old!r} stands {text.count(old)} times")
            text = text.replace(old, new)
        path.write_text(text.replace('"minicoca::', f'"{name}::'))
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        yield lambda part: importlib.import_module(f"{name}.{part}")
    finally:
        for loaded in [m for m in sys.modules if m.startswith(name)]:
            del sys.modules[loaded]
