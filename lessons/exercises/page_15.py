"""Exercises of page 15: torch, in float64."""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from minicoca.kernels.info_nce import info_nce_gradients, info_nce_statistics, pull_of

from ..compare import are_numbers, same
from ..exercise import Exercise, distinct, values
from ..memory import peak_bytes

ROWS = 4  # of logits at a time, in 15b
TORCH = "import torch  # noqa: F401"

LOSS_BODY = '''
"""The mean loss of pairs, from float32 vectors of B: the LSE of each row and of each column,
without its own pair, and the pair's own logit. Right also where they are 45 or 120 apart.
"""'''

GRADIENTS_FILE = '''ROWS = 4  # images at a time: no array may be as large as B x B


def info_nce_gradients(image, text, scale, row_lse, column_lse, pull):
    """(dimage [B, E], dtext [B, E], dscale) of the sum of all row and column losses; torch.

    image, text: [B, E]; scale: a tensor of no axes; s = scale image text'. row_lse, column_lse:
    [B], the page's R and C: each LSE with its own pair in it. pull: [B], what the loss gains by
    s_ii. dscale: (sum of G s) / scale only; the caller adds the pairs' share, sum of pull d /
    scale. No factor 1 / 2B here.
    """
    raise NotImplementedError
'''


def _vectors(rng):
    """(row, column, diagonal) of an ordinary, a learned and a hopeless batch."""
    batches = []
    for gap, size in zip((0, -45, 120), distinct(rng, 3), strict=True):
        row, column = (torch.tensor(20 + 3 * rng.standard_normal(size)) for _ in range(2))
        diagonal = torch.tensor(20 - gap + 3 * rng.standard_normal(size))
        batches.append(tuple(v.float() for v in (row, column, diagonal)))
    return (batches,)


def _each(function, batches):
    found = [function(*batch) for batch in batches]
    return None if found[0] is None else tuple(found)


def _loss(of):
    """A wrong loss; `of` is put in softplus's place, or takes all three."""

    def wrong(batches):
        return tuple(
            (of(row, diagonal) + of(column, diagonal)).mean() / 2
            for row, column, diagonal in batches
        )

    return wrong


def _right(row, diagonal):
    return F.softplus(row - diagonal)


def _pairs(rng):
    return _pairs_of(rng, int(rng.integers(17, 24)), int(rng.integers(3, 7)))


def _pairs_of(rng, B, E):
    image, text = (F.normalize(torch.tensor(rng.standard_normal((B, E))), dim=1) for _ in range(2))
    scale = torch.tensor(float(rng.uniform(3, 8)), dtype=torch.float64)
    row, column, diagonal = info_nce_statistics(image, text, scale)
    pull = pull_of(row, column, diagonal)
    return (
        image, text, scale, torch.logaddexp(row, diagonal), torch.logaddexp(column, diagonal), pull
    )  # fmt: skip


def _watched(function, *arguments):
    found = values(function(*arguments), "dimage", "dtext", "dscale")
    pairs = zip(map(np.asarray, info_nce_gradients(*arguments)), found, strict=True)
    right = all(
        are_numbers(x) and np.shape(x) == y.shape and same(np.asarray(x), y, 1e-6) for y, x in pairs
    )
    return *found, len(arguments[0]) if right and _holds_all(function) else ROWS


@functools.cache  # the same for every draw
def _holds_all(function):
    """Whether a batch takes the memory of a quarter of its B x B logits: in one array or in many
    slices, of torch or of NumPy, in float64 or float32."""
    B = 256
    arguments = _pairs_of(np.random.default_rng(0), B, 4)
    return peak_bytes(function, *arguments) > B * B * 8 / 4


def _expected(*arguments):
    return *info_nce_gradients(*arguments), ROWS


def _within_slices(g):
    """The first places of each slice put to 0, as if every slice began at column 0."""
    g[torch.arange(len(g)), torch.arange(len(g)) % ROWS] = 0


def _gradients(clear=lambda g: g.diagonal().zero_(), columns=True, rowwise=False, twice=False,
               pulls=("image", "text"), pull_scale=None, turned=True, scaled=True, last=False,
               halved=True, share=False, whole=False):  # fmt: skip
    """A wrong answer: the right formula with a part of it changed."""

    def wrong(image, text, scale, row, column, pull):
        s = scale * image @ text.T
        d = s.diagonal().clone()
        if twice:
            row, column = torch.logaddexp(row, d), torch.logaddexp(column, d)
        g = torch.exp(s - row[:, None])
        if columns:
            g = g + torch.exp(s - (column[:, None] if rowwise else column))
        clear(g)
        rows = slice((len(image) - 1) // ROWS * ROWS if last else 0, None)
        factor = scale if scaled else 1
        own = {side: factor * pull[:, None] * (side in pulls) for side in ("image", "text")}
        for side in pull_scale or ():
            own[side] = pull[:, None]
        dimage = factor * (g @ text) + own["image"] * text
        dtext = factor * ((g[rows].T if turned else g) @ image[rows])
        dtext[rows] += own["text"][rows] * image[rows]
        dscale = (g * s).sum() / (scale if halved else 1) + share * torch.dot(pull, d) / scale
        return dimage, dtext, dscale, len(image) if whole else ROWS

    return wrong


def _at_once(image, text, scale, row_lse, column_lse, pull):
    """The gradients of all rows at once."""
    s = scale * image @ text.T
    g = torch.exp(s - row_lse[:, None]) + torch.exp(s - column_lse)
    g.diagonal().zero_()
    own = pull[:, None]
    dimage = scale * (g @ text + own * text)
    dtext = scale * (g.T @ image + own * image)
    dscale = (g * s).sum() / scale
    return dimage, dtext, dscale, ROWS


EXERCISES = (
    Exercise(
        "15a", 2, 10, "the loss from its three vectors", "minicoca.kernels.info_nce:loss_of",
        ("loss of an ordinary batch", "loss of a learned batch", "loss of a hopeless batch"),
        _vectors, LOSS_BODY,
        (
            "With r the LSE of the others and d the pair's own: log(exp(r) + exp(d)) - d depends "
            "on r - d alone.",
            "It is log(1 + exp(r - d)), softplus. Written so it overflows above 88 and is 0 below "
            "-17 in float32: max(x, 0) + log1p(exp(-|x|)), or torch's own.",
            "Rows and columns, the mean over the pairs, and half of the two directions' sum.",
        ),
        {
            "log(1 + exp(x)) overflows above 88 and is 0 below -17: use softplus.":
                _loss(lambda r, d: torch.log(1 + torch.exp(r - d))),
            "log1p(exp(x)) keeps small losses but overflows above 88: take max(x, 0) out first.":
                _loss(lambda r, d: torch.log1p(torch.exp(r - d))),
            "LSE minus diagonal cancels where pairs are learned: softplus(LSE of the others - d).":
                _loss(lambda r, d: torch.logaddexp(r, d) - d),
            "The LSEs leave the pair out, so the loss is not their difference from it: softplus.":
                _loss(lambda r, d: r - d),
            "The sign: what counts against a pair is the others. softplus(r - d), not d - r.":
                _loss(lambda r, d: F.softplus(d - r)),
            "The mean over both directions is missing: half of their sum.":
                _loss(lambda r, d: 2 * _right(r, d)),
            "The sum over pairs was taken; it should be the mean.":
                lambda batches: tuple(
                    len(b[0]) * loss
                    for b, loss in zip(batches, _loss(_right)(batches), strict=True)),
            "That is the loss of the rows alone: the columns' belongs to it.":
                lambda batches: tuple(_right(r, d).mean() for r, _, d in batches),
        },
        launch=_each, imports=f"{TORCH}\nimport torch.nn.functional as F  # noqa: F401", close=1e-5,
    ),
    Exercise(
        "15b", 3, 40, "the gradients, a few rows of logits at a time",
        "minicoca.kernels.info_nce:info_nce_gradients",
        ("dimage", "dtext", "dscale", "rows of logits at a time"), _pairs, "",
        (
            "For each slice of ROWS images: their logits [ROWS, B], from them G, and from G all "
            "that these images have to say.",
            "G is exp(s - row_lse) + exp(s - column_lse), and 0 where image and text are a pair: "
            "in the slice from `first` on, G.diagonal(first) is that place.",
            "dimage[rows] = scale (G text + pull text[rows]); dtext += scale G' image[rows], and "
            "dtext[rows] += scale pull image[rows]; dscale += (G s).sum() / scale.",
        ),
        {
            "The pairs are still in G: its diagonal must be 0, pull stands for it.":
                _gradients(clear=lambda g: None),
            "The pair of row i in a slice is column first + i, not column i.":
                _gradients(clear=_within_slices),
            "G holds the rows' probabilities only: add exp(s - column_lse).":
                _gradients(columns=False),
            "Each column has its own LSE: exp(s - column_lse), not column_lse[rows, None].":
                _gradients(rowwise=True),
            "row_lse and column_lse hold the pair already: no second logaddexp with d.":
                _gradients(twice=True),
            "pull is left out: through its own logit image i is drawn to text i.":
                _gradients(pulls=()),
            "dtext lacks pull: text i is drawn to image i as image i is to text i.":
                _gradients(pulls=("image",)),
            "pull needs the factor scale too: s_ii is scale times the product.":
                _gradients(pull_scale=("image", "text")),
            "In dtext pull needs the factor scale too, as it has in dimage.":
                _gradients(pull_scale=("text",)),
            "dtext needs G transposed: a text meets the images of its column.":
                _gradients(turned=False),
            "scale is missing in dimage and dtext: s is scale times the product.":
                _gradients(scaled=False),
            "dtext holds the last slice's share only: add the slices up.": _gradients(last=True),
            "dscale is not divided by scale: s holds the scale, its derivative does not.":
                _gradients(halved=False),
            "dscale holds the pairs' share, sum of pull d / scale: the caller adds that.":
                _gradients(share=True),
            "All is right but B x B logits were held, at once or in parts: only ROWS x B may be.":
                _gradients(whole=True),
        },
        launch=_watched, expected=_expected, model=(_at_once,), file=GRADIENTS_FILE, imports=TORCH,
    ),
)  # fmt: skip
