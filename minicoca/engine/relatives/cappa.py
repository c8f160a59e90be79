"""CapPa: most captions are written in parallel, no word given. As reference/relatives/cappa.py."""

import torch
from torch.nn.functional import pad

from ...config import PAD
from ...masks import prefix_mask
from .captioner import captioner


def loss(params, config, settings, batch):
    """-> {loss, caption}. Captions are padded to text_length: a word written in parallel sees as
    many places whatever the longest caption of its batch is."""
    tokens, parallel_B = batch["tokens"], batch["parallel"]
    tokens = pad(tokens, (0, config.text_length - tokens.shape[1]), value=PAD)
    inputs_BT, targets_BT = tokens[:, :-1], tokens[:, 1:]
    inputs_BT = inputs_BT.masked_fill(parallel_B[:, None], config.vocabulary)
    length = inputs_BT.shape[1]
    mask_BTT = prefix_mask(torch.arange(length, device=tokens.device), length * parallel_B)
    table = torch.cat([params["text"]["token"], params["word_mask"][None]])
    joined = params | {"text": params["text"] | {"token": table}}
    value = captioner(joined, config, batch["images"], inputs_BT, targets_BT, mask_BTT)
    return {"loss": value, "caption": value}
