"""SimVLM (Wang et al. 2021, arXiv 2108.10904): a prefix language model. Of a caption the beginning,
of any length, is given: its words see one another; the rest is written word by word.

The paper's encoder reads image and prefix together. Here the image is read across, as CoCa's is, so
that the mask and which words count are all that differs: a prefix of 0 or 1 is CoCa's captioner.
"""

import numpy as np

from ...config import PAD
from ...masks import prefix_mask
from .captioner import captioner, captioner_backward


def loss(params, config, settings, batch):
    """-> ({loss, caption}, cache). The last token of the prefix is the first that predicts."""
    inputs_BT, targets_BT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    places_T, prefix_B = np.arange(inputs_BT.shape[1]), batch["prefix"]
    targets_BT = np.where(places_T < prefix_B[:, None] - 1, PAD, targets_BT)
    mask_BTT = prefix_mask(places_T, prefix_B)
    value, cache = captioner(params, config, batch["images"], inputs_BT, targets_BT, mask_BTT)
    return {"loss": value, "caption": value}, cache


def loss_backward(dloss, cache):
    return captioner_backward(dloss, cache)
