"""The decoupled text decoder: unimodal layers, then multimodal ones (paper section 3.2, Fig. 2).

All layers are causal. CLS is a learned vector appended after the tokens (its position is its own,
so the text embedding cannot depend on the length of the padding) and dropped before the multimodal
layers. The paper's text names no position embedding and no norms: positions are learned, CLS normed
on its own at the end, and the tokens go on un-normed, as one residual stream through both halves.
Letters of this file: T tokens, S the T tokens and CLS, M width of the image tokens (memory).
"""

import numpy as np

from ..config import PAD
from .attention import (
    block,
    block_backward,
    causal_mask,
    cross_attention_layer,
    cross_attention_layer_backward,
    mlp_layer,
    mlp_layer_backward,
    self_attention_layer,
    self_attention_layer_backward,
    text_mask,
)
from .ops import embedding, embedding_backward, layer_norm, layer_norm_backward


def lengths_of(tokens_BT):
    """How many tokens each row has before its padding."""
    return (tokens_BT != PAD).sum(1)


def text_embedding(tokens_BT, params):
    """Token + position, and CLS at the end: [B, T + 1, D]. Raises ValueError if T is too long."""
    if tokens_BT.shape[1] > len(params["position"]):
        most = len(params["position"])
        raise ValueError(f"{tokens_BT.shape[1]} tokens, but the model has {most} positions")
    x_BTD, token_cache = embedding(tokens_BT, params["token"])
    x_BTD = x_BTD + params["position"][: tokens_BT.shape[1]]
    cls_B1D = np.broadcast_to(params["cls"], (len(x_BTD), 1, x_BTD.shape[-1]))
    return np.concatenate([x_BTD, cls_B1D], 1), (token_cache, params["position"].shape)


def text_embedding_backward(dx_BSD, cache):
    token_cache, position_shape = cache
    dx_BTD = dx_BSD[:, :-1]
    dposition = np.zeros(position_shape, dx_BSD.dtype)
    dposition[: dx_BTD.shape[1]] = dx_BTD.sum(0)
    return {
        "token": embedding_backward(dx_BTD, token_cache),
        "position": dposition,
        "cls": dx_BSD[:, -1].sum(0),
    }


def unimodal_decoder(tokens_BT, params, config):
    """Token ids [B, T] -> (x [B, T, D] for the multimodal layers, normed CLS [B, D])."""
    mask_BSS = text_mask(lengths_of(tokens_BT), tokens_BT.shape[1], config.legacy_cls_mask)
    x_BSD, embedding_cache = text_embedding(tokens_BT, params)
    caches = []
    for i in range(config.unimodal_layers):
        layer = params["blocks"][str(i)]
        x_BSD, cache = block(x_BSD, layer, config.text_heads, config.gelu, mask_BSS)
        caches.append(cache)
    cls_BD, norm_cache = layer_norm(x_BSD[:, -1], params["norm"])
    return x_BSD[:, :-1], cls_BD, (embedding_cache, caches, norm_cache)


def unimodal_decoder_backward(dx_BTD, dcls_BD, cache):
    embedding_cache, caches, norm_cache = cache
    dlast_BD, dnorm = layer_norm_backward(dcls_BD, norm_cache)
    dx_BSD = np.concatenate([dx_BTD, dlast_BD[:, None]], 1)
    dblocks = {}
    for i in reversed(range(len(caches))):
        dx_BSD, dblocks[str(i)] = block_backward(dx_BSD, caches[i])
    return {"blocks": dblocks, "norm": dnorm} | text_embedding_backward(dx_BSD, embedding_cache)


def multimodal_block(x_BTD, memory_BSM, params, config, mask):
    """Causal self-attention, cross-attention to the image, one MLP: the paper's parameter counts
    leave room for one. `multimodal_mlps=2` has another before the cross-attention (open_clip)."""
    heads, inner_cache = config.text_heads, None
    x_BTD, self_cache = self_attention_layer(
        x_BTD, params["norm_attention"], params["attention"], heads, mask
    )
    if config.multimodal_mlps == 2:
        x_BTD, inner_cache = mlp_layer(
            x_BTD, params["norm_inner"], params["inner_mlp"], config.gelu
        )
    x_BTD, cross_cache = cross_attention_layer(
        x_BTD, memory_BSM, params["norm_cross"], params["norm_memory"], params["cross"], heads
    )
    y_BTD, mlp_cache = mlp_layer(x_BTD, params["norm_mlp"], params["mlp"], config.gelu)
    return y_BTD, (self_cache, inner_cache, cross_cache, mlp_cache)


def multimodal_block_backward(dy_BTD, cache):
    self_cache, inner_cache, cross_cache, mlp_cache = cache
    dp = {}
    dx_BTD, dp["norm_mlp"], dp["mlp"] = mlp_layer_backward(dy_BTD, mlp_cache)
    dx_BTD, dmemory_BSM, dp["norm_cross"], dp["norm_memory"], dp["cross"] = (
        cross_attention_layer_backward(dx_BTD, cross_cache)
    )
    if inner_cache:
        dx_BTD, dp["norm_inner"], dp["inner_mlp"] = mlp_layer_backward(dx_BTD, inner_cache)
    dx_BTD, dp["norm_attention"], dp["attention"] = self_attention_layer_backward(
        dx_BTD, self_cache
    )
    return dx_BTD, dmemory_BSM, dp


def multimodal_decoder(x_BTD, memory_BSM, params, config, mask=None):
    """Unimodal token outputs and image tokens -> what heads read, [B, T, D]. mask None: causal."""
    mask = causal_mask(x_BTD.shape[1]) if mask is None else mask
    caches = []
    for i in range(len(params["blocks"])):
        layer = params["blocks"][str(i)]
        x_BTD, cache = multimodal_block(x_BTD, memory_BSM, layer, config, mask)
        caches.append(cache)
    n_BTD, norm_cache = layer_norm(x_BTD, params["norm"])
    return n_BTD, (caches, norm_cache, memory_BSM.shape)


def multimodal_decoder_backward(dn_BTD, cache):
    caches, norm_cache, memory_shape = cache
    dx_BTD, dnorm = layer_norm_backward(dn_BTD, norm_cache)
    dmemory_BSM, dblocks = np.zeros(memory_shape, dn_BTD.dtype), {}
    for i in reversed(range(len(caches))):
        dx_BTD, dread_BSM, dblocks[str(i)] = multimodal_block_backward(dx_BTD, caches[i])
        dmemory_BSM = dmemory_BSM + dread_BSM  # every layer reads the same image tokens
    return dx_BTD, dmemory_BSM, {"blocks": dblocks, "norm": dnorm}
