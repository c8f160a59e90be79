"""A right answer to exercise 15b."""

import torch

ROWS = 4


def info_nce_gradients(image, text, scale, row_lse, column_lse, pull):
    dimage, dtext = torch.empty_like(image), torch.zeros_like(text)
    dscale = 0
    for first in range(0, len(image), ROWS):
        rows = slice(first, first + ROWS)
        x, own = image[rows], pull[rows, None]
        s = scale * x @ text.T
        g = torch.exp(s - row_lse[rows, None]) + torch.exp(s - column_lse)
        g.diagonal(first).zero_()
        dimage[rows] = scale * (g @ text + own * text[rows])
        dtext += scale * g.T @ x
        dtext[rows] += scale * own * x
        dscale = dscale + (g * s).sum() / scale
    return dimage, dtext, dscale
