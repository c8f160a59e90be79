"""SimVLM: of a caption the beginning is given, the rest is written. As
reference/relatives/simvlm.py."""

import torch

from ...config import PAD
from ...masks import prefix_mask
from .captioner import captioner


def loss(params, config, settings, batch):
    """-> {loss, caption}. The last token of the prefix is the first that predicts."""
    inputs_BT, targets_BT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    places_T, prefix_B = torch.arange(inputs_BT.shape[1], device=inputs_BT.device), batch["prefix"]
    targets_BT = targets_BT.masked_fill(places_T < prefix_B[:, None] - 1, PAD)
    mask_BTT = prefix_mask(places_T, prefix_B)
    value = captioner(params, config, batch["images"], inputs_BT, targets_BT, mask_BTT)
    return {"loss": value, "caption": value}
