"""Blocks in which not every token has the same MLP. As reference/relatives/experts.py."""

import math

import torch

from ...masks import padding_mask
from ..attention import mlp, mlp_layer, self_attention_layer
from ..ops import layer_norm, linear, widened


def multiway(x_BSD, params, parts, kind):
    """x + mlp(norm(x)) of each part of the sequence by its own expert; parts: {expert: length}, one
    after the other."""
    done = []
    for name, part in zip(parts, x_BSD.split([*parts.values()], 1), strict=True):
        done.append(mlp_layer(part, params[name]["norm"], params[name]["mlp"], kind))
    return torch.cat(done, 1)


def dispatched(p_RG, real_R, capacity):
    """(the expert of each token [R], whether it has a place there [R], what part of the real tokens
    wants each expert [G]). An expert has places for `capacity` times its share, first come, first
    served; 0: for all. Padding wants none."""
    chosen_R = p_RG.argmax(1)
    experts_G = torch.arange(p_RG.shape[1], device=p_RG.device)
    wants_RG = (chosen_R[:, None] == experts_G) & real_R[:, None]
    count = max(1, int(real_R.sum()))
    most = math.ceil(capacity * count / p_RG.shape[1]) if capacity else count
    place_R = wants_RG.cumsum(0).gather(1, chosen_R[:, None])[:, 0]
    return chosen_R, real_R & (place_R <= most), wants_RG.sum(0).to(p_RG.dtype) / count


def routed(x_BSD, params, real_BS, capacity, kind):
    """x + p_g(n) mlp_g(n) for n = norm(x), where g is the likeliest expert; x alone for a token
    without a place. -> (y, balance). The router computes in float32 at least."""
    n_BSD = layer_norm(x_BSD, params["norm"])
    n_RD, real_R = n_BSD.flatten(0, 1), real_BS.flatten()
    router = {name: widened(leaf) for name, leaf in params["router"].items()}
    p_RG = torch.softmax(linear(widened(n_RD), router), -1)
    chosen_R, kept_R, share_G = dispatched(p_RG, real_R, capacity)
    y_RD = torch.zeros_like(n_RD)
    for g in range(p_RG.shape[1]):
        rows = (kept_R & (chosen_R == g)).nonzero()[:, 0]
        value = p_RG[rows, g, None] * mlp(n_RD[rows], params["experts"][str(g)], kind)
        y_RD = y_RD.index_copy(0, rows, value.to(y_RD.dtype))
    mean_G = (p_RG * real_R[:, None]).sum(0) / real_R.sum().clamp(min=1)
    return x_BSD + y_RD.view(x_BSD.shape), len(share_G) * (share_G * mean_G).sum()


def expert_blocks(x_BSD, params, config, settings, real_BS, parts, fused=False):
    """Attention that all tokens share, to those that are real, then experts: by modality, where the
    parts are one to an expert called both in the layers that have it, if `fused`; or by a router.
    -> (y, the sum of the layers' balances)."""
    total = 0
    for i in range(len(params)):
        layer = params[str(i)]
        given = layer["norm_attention"], layer["attention"], config.text_heads
        x_BSD = self_attention_layer(x_BSD, *given, mask=padding_mask(real_BS))
        if settings.experts:
            given = layer["routed"], real_BS, settings.capacity, config.gelu
            x_BSD, balance = routed(x_BSD, *given)
            total = total + balance
        else:
            joined = fused and "both" in layer["experts"]
            own_parts = {"both": x_BSD.shape[1]} if joined else parts
            x_BSD = multiway(x_BSD, layer["experts"], own_parts, config.gelu)
    return x_BSD, total
