"""SimCLR (Chen et al. 2020, arXiv 2002.05709): of every image two views; a view is to find the
other of its image among all. The tower, which is CoCa's, is kept; the projector is thrown away.

h is the mean of the tower's tokens; z is two layers of it, normed, with CoCa's GELU between, where
the paper has ReLU. No norm mixes images, so none tells which views belong together.
Letter of this file: R views, those of all images first and then their second ones, R = 2 B.
"""

import numpy as np

from ..ops import (
    gelu,
    gelu_backward,
    l2_normalise,
    l2_normalise_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
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


def projector(h_RD, params, kind):
    """Two layers with a GELU in between, and length 1: [R, E]."""
    n_RD, norm_cache = layer_norm(h_RD, params["norm"])
    up_RD, up_cache = linear(n_RD, params["up"])
    g_RD, gelu_cache = gelu(up_RD, kind)
    z_RE, down_cache = linear(g_RD, params["down"])
    z_RE, unit_cache = l2_normalise(z_RE)
    return z_RE, (norm_cache, up_cache, gelu_cache, down_cache, unit_cache)


def projector_backward(dz_RE, cache):
    norm_cache, up_cache, gelu_cache, down_cache, unit_cache = cache
    dparams = {}
    dg_RD, dparams["down"] = linear_backward(l2_normalise_backward(dz_RE, unit_cache), down_cache)
    dn_RD, dparams["up"] = linear_backward(gelu_backward(dg_RD, gelu_cache), up_cache)
    dh_RD, dparams["norm"] = layer_norm_backward(dn_RD, norm_cache)
    return dh_RD, dparams


def loss(params, config, settings, batch):
    """-> ({loss, contrastive, image [R, E]}, cache)."""
    images = np.concatenate([*batch["views"]])
    tokens_RSD, tower_cache = image_encoder(images, params["image"], config)
    h_RD = tokens_RSD.mean(1)  # (1)
    z_RE, projector_cache = projector(h_RD, params["projector"], config.gelu)
    value, loss_cache = nt_xent(z_RE, settings.temperature)
    cache = tokens_RSD.shape, tower_cache, projector_cache, loss_cache
    return {"loss": value, "contrastive": value, "image": z_RE}, cache


def loss_backward(dloss, cache):
    shape, tower_cache, projector_cache, loss_cache = cache
    dz_RE = nt_xent_backward(dloss, loss_cache)
    dh_RD, dprojector = projector_backward(dz_RE, projector_cache)
    dtokens_RSD = np.broadcast_to(dh_RD[:, None] / shape[1], shape)  # from (1)
    _, dimage = image_encoder_backward(dtokens_RSD, tower_cache)
    return {"image": dimage, "projector": dprojector}
