"""CoCa as one of its relatives. As reference/relatives/coca.py."""

from ..model import coca


def loss(params, config, settings, batch):
    """-> {loss, contrastive, caption, image [B, E], text [B, E]}."""
    given = batch["images"], batch["tokens"], batch.get("places"), batch.get("compare", True)
    return coca(params, config, *given)
