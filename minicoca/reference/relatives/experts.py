"""Transformer blocks in which not all tokens have the same MLP: it is chosen by their modality
(VLMo), or by a router that learns (Switch).

Letters of this file: S tokens of any kind, R those of all samples, G experts, L tokens of one.
"""

import math

import numpy as np

from ...masks import padding_mask
from ..attention import (
    mlp,
    mlp_backward,
    mlp_layer,
    mlp_layer_backward,
    self_attention_layer,
    self_attention_layer_backward,
)
from ..ops import (
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
    softmax,
    softmax_backward,
)


def multiway(x_BSD, params, parts, kind):
    """x + mlp(norm(x)) of each part of the sequence by its own expert; parts: {expert: length}, one
    after the other."""
    ends = np.cumsum([*parts.values()])[:-1]
    done = {}
    for name, part in zip(parts, np.split(x_BSD, ends, 1), strict=True):
        done[name] = mlp_layer(part, params[name]["norm"], params[name]["mlp"], kind)
    caches = {name: cache for name, (_, cache) in done.items()}
    return np.concatenate([y for y, _ in done.values()], 1), (ends, caches)


def multiway_backward(dy_BSD, cache):
    ends, caches = cache
    dparts, dparams = [], {}
    for name, dpart in zip(caches, np.split(dy_BSD, ends, 1), strict=True):
        dx, dnorm, dmlp = mlp_layer_backward(dpart, caches[name])
        dparts.append(dx)
        dparams[name] = {"norm": dnorm, "mlp": dmlp}
    return np.concatenate(dparts, 1), dparams


def dispatched(p_RG, real_R, capacity):
    """(the expert of each token [R], whether it has a place there [R], what part of the real tokens
    wants each expert [G]). An expert has places for `capacity` times its share, first come, first
    served; 0: for all. Padding wants none."""
    chosen_R = p_RG.real.argmax(1)
    wants_RG = (chosen_R[:, None] == np.arange(p_RG.shape[1])) & real_R[:, None]
    count = max(1, int(real_R.sum()))
    most = math.ceil(capacity * count / p_RG.shape[1]) if capacity else count
    place_R = wants_RG.cumsum(0)[np.arange(len(p_RG)), chosen_R]
    return chosen_R, real_R & (place_R <= most), wants_RG.sum(0) / count


def routed(x_BSD, params, real_BS, capacity, kind):
    """x + p_g(n) mlp_g(n) for n = norm(x), where g is the likeliest expert (Fedus et al. 2021,
    Eq. 2); x alone for a token without a place. -> (y, balance, cache), balance as Eq. 4 without
    alpha: 1 where all experts are wanted alike, or all are as probable."""
    n_BSD, norm_cache = layer_norm(x_BSD, params["norm"])
    n_RD, real_R = n_BSD.reshape(-1, n_BSD.shape[-1]), real_BS.reshape(-1)
    logits_RG, router_cache = linear(n_RD, params["router"])
    p_RG, softmax_cache = softmax(logits_RG)
    chosen_R, kept_R, share_G = dispatched(p_RG, real_R, capacity)
    values, caches = [], {}
    for g in np.unique(chosen_R[kept_R]):
        rows_L = np.nonzero(kept_R & (chosen_R == g))[0]
        o_1LD, cache = mlp(n_RD[None, rows_L], params["experts"][str(g)], kind)
        values.append(p_RG[rows_L, g, None] * o_1LD[0])  # (1)
        caches[g] = rows_L, o_1LD[0], cache
    y_RD = np.zeros(n_RD.shape, np.result_type(*values))
    y_RD[np.concatenate([rows_L for rows_L, *_ in caches.values()])] = np.concatenate(values)
    even = p_RG.shape[1] / max(1, int(real_R.sum()))
    weight_RG = (even * share_G * real_R[:, None]).astype(p_RG.real.dtype)
    balance = (weight_RG * p_RG).sum()  # (2) experts x sum of their share x their mean p
    cache = norm_cache, router_cache, softmax_cache, caches, weight_RG
    return x_BSD + y_RD.reshape(x_BSD.shape), balance, cache


def routed_backward(dy_BSD, dbalance, cache):
    norm_cache, router_cache, softmax_cache, caches, weight_RG = cache
    dy_RD, (p_RG,) = dy_BSD.reshape(-1, dy_BSD.shape[-1]), softmax_cache
    dp_RG = dbalance * weight_RG  # from (2)
    dn_RD, dexperts = np.zeros_like(dy_RD), {}
    for g, (rows_L, o_LD, cache) in caches.items():
        dp_RG[rows_L, g] += (dy_RD[rows_L] * o_LD).sum(-1)  # from (1)
        do_LD = p_RG[rows_L, g, None] * dy_RD[rows_L]  # from (1)
        dn_1LD, dexperts[str(g)] = mlp_backward(do_LD[None], cache)
        dn_RD[rows_L] = dn_1LD[0]
    dthrough_RD, drouter = linear_backward(softmax_backward(dp_RG, softmax_cache), router_cache)
    dn_BSD = (dn_RD + dthrough_RD).reshape(dy_BSD.shape)
    dx_BSD, dnorm = layer_norm_backward(dn_BSD, norm_cache)
    return dy_BSD + dx_BSD, {"norm": dnorm, "router": drouter, "experts": dexperts}


def expert_blocks(x_BSD, params, config, settings, real_BS, parts, fused=False):
    """Attention that all tokens share, to those that are real, then experts: by modality, where the
    parts are one to an expert called both in the layers that have it, if `fused`; or by a router.
    -> (y, the sum of the layers' balances, cache)."""
    caches, total = [], 0
    for i in range(len(params)):
        layer = params[str(i)]
        given = layer["norm_attention"], layer["attention"], config.text_heads
        x_BSD, cache = self_attention_layer(x_BSD, *given, padding_mask(real_BS))
        if settings.experts:
            given = layer["routed"], real_BS, settings.capacity, config.gelu
            x_BSD, balance, own = routed(x_BSD, *given)
            total = total + balance
        else:
            joined = fused and "both" in layer["experts"]
            own_parts = {"both": x_BSD.shape[1]} if joined else parts
            x_BSD, own = multiway(x_BSD, layer["experts"], own_parts, config.gelu)
        caches.append((cache, own))
    return x_BSD, total, (settings, caches)


def expert_blocks_backward(dx_BSD, dtotal, cache):
    settings, caches = cache
    dparams = {}
    for i in reversed(range(len(caches))):
        attention_cache, own = caches[i]
        if settings.experts:
            dx_BSD, dexperts = routed_backward(dx_BSD, dtotal, own)
        else:
            dx_BSD, dexperts = multiway_backward(dx_BSD, own)
        dx_BSD, dnorm, dattention = self_attention_layer_backward(dx_BSD, attention_cache)
        dparams[str(i)] = {"norm_attention": dnorm, "attention": dattention}
        dparams[str(i)]["routed" if settings.experts else "experts"] = dexperts
    return dx_BSD, dparams
