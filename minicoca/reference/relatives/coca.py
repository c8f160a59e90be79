"""CoCa as one of its relatives: model.py, with a batch that is a dict."""

from ..model import coca, coca_backward


def loss(params, config, settings, batch):
    """-> ({loss, contrastive, caption, image [B, E], text [B, E], logits}, cache)."""
    return coca(params, config, batch["images"], batch["tokens"], batch.get("places"))


def loss_backward(dloss, cache):
    return coca_backward(dloss, cache)[0]
