"""Every exercise: what it asks, what it is given, its hints, and the mistakes it knows."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .checker import load_answer


@dataclass(frozen=True)
class Exercise:
    """answer: "module:function", the project's own. mistakes: {what is wrong: a wrong answer}."""

    name: str
    level: int  # 1 to 3
    minutes: int
    task: str
    answer: str
    outputs: tuple[str, ...]
    inputs: Callable
    body: str  # the stub's first lines: what is given, unpacked
    hints: tuple[str, ...]
    mistakes: dict[str, Callable]

    @property
    def function(self):
        return self.answer.split(":")[1]

    @property
    def dots(self):
        return "●" * self.level + "○" * (3 - self.level)

    def stub(self):
        """A file to fill in."""
        signature = inspect.signature(load_answer(self))
        lines = "".join(f"    {line}\n" if line else "\n" for line in self.body.split("\n"))
        return (
            f'"""Exercise {self.name}: {self.task}"""\n\nimport numpy as np  # noqa: F401\n\n\n'
            f"def {self.function}{signature}:\n{lines}    raise NotImplementedError\n"
        )


def _distinct(rng, count, low=3, high=9):
    """Sizes of which no two are equal."""
    return rng.permutation(np.arange(low, high + count))[:count]


def _patchify_inputs(rng):
    B, p, side = _distinct(rng, 3, 2, 5)
    return rng.standard_normal((B, side * p, side * p, 3)), int(p)


def _unpatchify_inputs(rng):
    B, p, side = _distinct(rng, 3, 2, 5)
    return rng.standard_normal((B, side * side, p * p * 3)), int(p)


def _patches(images, p, order):
    """patchify with its axes put in another order."""
    B, side = len(images), images.shape[1] // p
    grid = images.reshape(B, side, p, side, p, 3).transpose(order)
    return grid.reshape(B, side * side, p * p * 3)


def _softmax_inputs(rng):
    B, T = _distinct(rng, 2)
    e = np.exp(rng.standard_normal((B, T)))
    return rng.standard_normal((B, T)), (e / e.sum(-1, keepdims=True),)


def _linear_inputs(rng):
    B, T, D, F = _distinct(rng, 4)
    params = {"weight": rng.standard_normal((D, F)), "bias": rng.standard_normal(F)}
    return rng.standard_normal((B, T, F)), (rng.standard_normal((B, T, D)), params)


def _linear_mistake(change):
    def wrong(dy, cache):
        x, params = cache
        rows_x, rows_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        right = {
            "dx": dy @ params["weight"].T,
            "weight": rows_x.T @ rows_dy,
            "bias": rows_dy.sum(0),
        }
        right |= change(x, dy, params)
        return right["dx"], {"weight": right["weight"], "bias": right["bias"]}

    return wrong


_ALL = (
    Exercise(
        "1a", 2, 10, "cut images into patches", "minicoca.reference.vision:patchify",
        ("patches_BNP",), _patchify_inputs,
        "B, side = len(images_BII3), images_BII3.shape[1] // patch_size  # side: in patches",
        (
            "Split each side into (patches, pixels): a reshape to [B, side, p, side, p, 3].",
            "Bring both patch axes to the front, then both pixel axes, then the channel; a last "
            "reshape joins them to N and P.",
        ),
        {
            "The axes were not moved before the last reshape: rows of pixels became patches.":
                lambda x, p: _patches(x, p, (0, 1, 2, 3, 4, 5)),
            "Inside a patch columns come before rows.":
                lambda x, p: _patches(x, p, (0, 1, 3, 4, 2, 5)),
            "Patches go down the columns first; they should go along the rows.":
                lambda x, p: _patches(x, p, (0, 3, 1, 2, 4, 5)),
            "The channel comes first in a patch; it should come last.":
                lambda x, p: _patches(x, p, (0, 1, 3, 5, 2, 4)),
        },
    ),
    Exercise(
        "1b", 2, 10, "put patches together again", "minicoca.reference.vision:unpatchify",
        ("images_BII3",),
        _unpatchify_inputs,
        "B, p = len(patches_BNP), patch_size\nside = int(np.sqrt(patches_BNP.shape[1]))",
        (
            "It is 1a backwards: the same six axes, moved back.",
            "Reshape to [B, side, side, p, p, 3]; which transpose undoes (0, 1, 3, 2, 4, 5)?",
        ),
        {
            "The axes were not moved before the last reshape.":
                lambda x, p: _unpatches(x, p, (0, 1, 2, 3, 4, 5)),
            "Every patch is transposed: rows and columns inside it are exchanged.":
                lambda x, p: _unpatches(x, p, (0, 1, 4, 2, 3, 5)),
            "Patches are laid down the columns first.":
                lambda x, p: _unpatches(x, p, (0, 2, 3, 1, 4, 5)),
        },
    ),
    Exercise(
        "2a", 1, 10, "the gradient of a linear layer", "minicoca.reference.ops:linear_backward",
        ("dx", "dparams"), _linear_inputs,
        "x, params = cache\nweight_DF = params[\"weight\"]",
        (
            "Shapes nearly decide it: dx is like x, dweight like weight. Batch and tokens are only "
            "rows: reshape x to [R, D] and dy to [R, F].",
            "dweight = x' dy over the rows; dbias sums dy over the rows; dx = dy weight'.",
        ),
        {
            "dweight must add up over every row of the batch: here it is the mean.":
                _linear_mistake(lambda x, dy, p: {
                    "weight": np.einsum("btd,btf->df", x, dy) / (x.size // x.shape[-1])}),
            "dbias is the mean over the rows; it should be the sum.":
                _linear_mistake(lambda x, dy, p: {"bias": dy.mean((0, 1))}),
            "dbias sums over one sample only.":
                _linear_mistake(lambda x, dy, p: {"bias": dy[0].sum(0)}),
            "dweight uses the first sample only.":
                _linear_mistake(lambda x, dy, p: {"weight": x[0].T @ dy[0]}),
        },
    ),
    Exercise(
        "2b", 2, 15, "the gradient of softmax", "minicoca.reference.ops:softmax_backward",
        ("dx",), _softmax_inputs, "(p,) = cache",
        (
            "Every output depends on every input: dp_i/dx_j = p_i (1[i = j] - p_j).",
            "Sum over i: dx_j = p_j (dp_j - sum_i p_i dp_i). The sum is one number per row.",
        ),
        {
            "The shared sum is missing: raising one input lowers every other output.":
                lambda dp, c: c[0] * dp,
            "That is the derivative of a sigmoid: p (1 - p) leaves out the other outputs.":
                lambda dp, c: c[0] * (1 - c[0]) * dp,
            "The sum runs over the batch; it should run over a row, the last axis.":
                lambda dp, c: c[0] * (dp - (c[0] * dp).sum(0, keepdims=True)),
            "The mean of dp was taken off, not its mean weighted by p.":
                lambda dp, c: c[0] * (dp - dp.mean(-1, keepdims=True)),
        },
    ),
)  # fmt: skip


def _unpatches(patches, p, order):
    B, side = len(patches), int(np.sqrt(patches.shape[1]))
    grid = patches.reshape(B, side, side, p, p, 3).transpose(order)
    return grid.reshape(B, side * p, side * p, 3)


EXERCISES = {exercise.name: exercise for exercise in _ALL}
