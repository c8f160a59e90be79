"""GPT: a language model of captions alone. As reference/relatives/gpt.py; no logits are kept."""

from ..losses import caption_loss
from ..ops import layer_norm
from .layers import transformer, words


def loss(params, config, settings, batch):
    """-> {loss, caption}."""
    inputs_BT, targets_BT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    x_BTD = words(inputs_BT, params["text"])
    given = config.text_heads, config.gelu
    x_BTD = transformer(x_BTD, params["text"]["blocks"], *given, causal=True)
    n_BTD = layer_norm(x_BTD, params["decoder"]["norm"])
    table_VD = params["text"]["token"].to(n_BTD.dtype)
    head = {"weight": table_VD.T} if settings.tied else params["decoder"]["head"]
    value = caption_loss(n_BTD, head, targets_BT)
    return {"loss": value, "caption": value}
