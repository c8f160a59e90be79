"""GPT: a language model of captions alone. As reference/relatives/gpt.py; no logits are kept."""

from ..losses import caption_loss
from ..ops import layer_norm
from .layers import transformer, words


def head(params, settings, kind):
    """What makes logits, in this type if it is the table of tokens."""
    table_VD = params["text"]["token"]
    return {"weight": table_VD.to(kind).T} if settings.tied else params["decoder"]["head"]


def loss(params, config, settings, batch):
    """-> {loss, caption}."""
    _, x_BTD = text_features(params, config, settings, batch["tokens"])
    n_BTD = layer_norm(x_BTD, params["decoder"]["norm"])
    value = caption_loss(n_BTD, head(params, settings, n_BTD.dtype), batch["tokens"][:, 1:])
    return {"loss": value, "caption": value}


def image_features(params, config, settings, images):
    """-> (no vectors, no token that a decoder could read [B, 0, D], none of a tower)."""
    return None, images.new_zeros(len(images), 0, config.text_width), None


def text_features(params, config, settings, tokens_BT):
    """-> (no vectors, what all blocks make of the tokens [B, T - 1, D]): the decoder has none."""
    x_BTD, given = words(tokens_BT[:, :-1], params["text"]), (config.text_heads, config.gelu)
    return None, transformer(x_BTD, params["text"]["blocks"], *given, causal=True)


def decoder(params, config, settings):
    """-> {no blocks, norm, head}."""
    norm = params["decoder"]["norm"]
    return {"blocks": {}, "norm": norm, "head": head(params, settings, norm["scale"].dtype)}
