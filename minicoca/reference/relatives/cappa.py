"""CapPa (Tschannen et al. 2023, arXiv 2306.07915): a captioner as a teacher of its image tower.
Most captions are written in parallel: each word from the image and its place alone, none given.

In a parallel caption each input is the same learned vector, the last of the table of tokens, and
all places see all; the others are CoCa's. The paper has no biases and a head that begins as zeros;
ours are CoCa's.
"""

import numpy as np

from ...config import PAD
from ...masks import prefix_mask
from .captioner import captioner, captioner_backward


def loss(params, config, settings, batch):
    """-> ({loss, caption}, cache). Captions are padded to text_length: a word written in parallel
    sees as many places whatever the longest caption of its batch is."""
    tokens, parallel_B = batch["tokens"], batch["parallel"]
    missing = config.text_length - tokens.shape[1]
    tokens = np.pad(tokens, ((0, 0), (0, missing)), constant_values=PAD)
    inputs_BT, targets_BT = tokens[:, :-1], tokens[:, 1:]
    inputs_BT = np.where(parallel_B[:, None], config.vocabulary, inputs_BT)  # (1)
    length = inputs_BT.shape[1]
    mask_BTT = prefix_mask(np.arange(length), length * parallel_B)
    table = np.concatenate([params["text"]["token"], params["word_mask"][None]])  # (2)
    joined = params | {"text": params["text"] | {"token": table}}
    value, cache = captioner(joined, config, batch["images"], inputs_BT, targets_BT, mask_BTT)
    return {"loss": value, "caption": value}, cache


def loss_backward(dloss, cache):
    dparams = captioner_backward(dloss, cache)
    dtable = dparams["text"]["token"]
    dtext = dparams["text"] | {"token": dtable[:-1]}
    return dparams | {"text": dtext, "word_mask": dtable[-1]}  # from (2)
