"""SimCLR (Chen et al. 2020, arXiv 2002.05709): of every image two views; a view is to find the
other of its image among all. The tower, which is CoCa's, is kept; the projector is thrown away.

h is the mean of the tower's tokens, normed; z is two layers of h, with CoCa's GELU in between where
the paper has ReLU. No norm mixes images, so none tells which views belong together.
Letter of this file: R views, those of all images first and then their second ones, R = 2 B.
"""

import numpy as np

from ..attention import mlp, mlp_backward
from ..ops import (
    l2_normalise,
    l2_normalise_backward,
    layer_norm,
    layer_norm_backward,
    log_softmax,
    log_softmax_backward,
)
from ..vision import image_encoder, image_encoder_backward


def nt_xent(z_RE, temperature):
    """Eq. 1, its mean over all views: - log softmax of z_i . z_j / temperature at the other view,
    over all views but i itself."""
    logits_RR = z_RE @ z_RE.T / temperature  # (1)
    own_RR = np.eye(len(z_RE), dtype=bool)
    log_p_RR, cache = log_softmax(np.where(own_RR, -np.inf, logits_RR))  # (2)
    other_R1 = np.roll(np.arange(len(z_RE)), len(z_RE) // 2)[:, None]
    loss = -np.take_along_axis(log_p_RR, other_R1, 1).mean()  # (3)
    return loss, (z_RE, temperature, other_R1, cache)


def nt_xent_backward(dloss, cache):
    z_RE, temperature, other_R1, softmax_cache = cache
    dlog_p_RR = np.zeros((len(z_RE), len(z_RE)), z_RE.dtype)
    np.put_along_axis(dlog_p_RR, other_R1, -dloss / len(z_RE), 1)  # from (3)
    dlogits_RR = log_softmax_backward(dlog_p_RR, softmax_cache)  # from (2)
    return (dlogits_RR + dlogits_RR.T) @ z_RE / temperature  # from (1): z is on both sides


def loss(params, config, settings, batch):
    """-> ({loss, contrastive, image [R, E]}, cache)."""
    images = np.concatenate([*batch["views"]])
    tokens_RSD, tower_cache = image_encoder(images, params["image"], config)
    h_RD, norm_cache = layer_norm(tokens_RSD.mean(1), params["projector"]["norm"])  # (1)
    z_1RE, mlp_cache = mlp(h_RD[None], params["projector"], config.gelu)
    z_RE, unit_cache = l2_normalise(z_1RE[0])
    value, loss_cache = nt_xent(z_RE, settings.temperature)
    cache = tokens_RSD.shape, tower_cache, norm_cache, mlp_cache, unit_cache, loss_cache
    return {"loss": value, "contrastive": value, "image": z_RE}, cache


def loss_backward(dloss, cache):
    shape, tower_cache, norm_cache, mlp_cache, unit_cache, loss_cache = cache
    dz_RE = l2_normalise_backward(nt_xent_backward(dloss, loss_cache), unit_cache)
    dh_1RD, dprojector = mlp_backward(dz_RE[None], mlp_cache)
    dmean_RD, dprojector["norm"] = layer_norm_backward(dh_1RD[0], norm_cache)
    dtokens_RSD = np.broadcast_to(dmean_RD[:, None] / shape[1], shape)  # from (1)
    _, dimage = image_encoder_backward(dtokens_RSD, tower_cache)
    return {"image": dimage, "projector": dprojector}
