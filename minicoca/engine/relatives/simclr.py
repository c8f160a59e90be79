"""SimCLR: of every image two views, each to find the other. As reference/relatives/simclr.py."""

import torch
import torch.nn.functional as F

from ..attention import mlp
from ..ops import l2_normalise, layer_norm
from ..vision import image_encoder


def nt_xent(z_RE, temperature):
    """Eq. 1, its mean over all views: - log softmax of z_i . z_j / temperature at the other view,
    over all views but i itself."""
    logits_RR = z_RE @ z_RE.T / temperature
    places_R = torch.arange(len(z_RE), device=z_RE.device)
    logits_RR = logits_RR.masked_fill(places_R[:, None] == places_R, -torch.inf)
    return F.cross_entropy(logits_RR, places_R.roll(len(z_RE) // 2))


def projector(h_RD, params, kind):
    """Two layers with a GELU in between, and length 1: [R, E]."""
    return l2_normalise(mlp(layer_norm(h_RD, params["norm"]), params, kind))


def loss(params, config, settings, batch):
    """-> {loss, contrastive, image [R, E]}."""
    tokens_RSD = image_encoder(batch["views"].flatten(0, 1), params["image"], config)
    z_RE = projector(tokens_RSD.mean(1), params["projector"], config.gelu)
    value = nt_xent(z_RE, settings.temperature)
    return {"loss": value, "contrastive": value, "image": z_RE}
