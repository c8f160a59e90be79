"""CoCa as one of its relatives. As reference/relatives/coca.py."""

from ..model import coca


def loss(params, config, settings, batch):
    """-> {loss, contrastive, caption, image [B, E], text [B, E]}."""
    return coca(params, config, batch["images"], batch["tokens"], batch.get("places"))
