"""Attention, the MLP, and the pre-norm block made of both (Vaswani et al. 2017; Xiong et al. 2020).

The paper does not say where its norms stand; pre-norm is the ViT's choice and ours.
"""

import numpy as np

from .ops import (
    gelu,
    gelu_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
    softmax,
    softmax_backward,
)


def causal_mask(length):
    """[T, T], True where query t may see key s: s <= t.    1 . .
    1 1 .
    1 1 1"""
    return np.tri(length, dtype=bool)


def text_mask(lengths_B, tokens, legacy=False):
    """[B, S, S] for S = `tokens` tokens and CLS last. Lengths 2 of 3 tokens:    1 . . .
    Tokens see what came before. CLS sees the valid tokens and itself.             1 1 . .
                                                                                   1 1 1 .
    `legacy` is open_clip's mask, shifted by one: CLS sees one pad, not itself.    1 1 . 1"""
    mask_BSS = np.tile(causal_mask(tokens + 1), (len(lengths_B), 1, 1))
    key_S = np.arange(tokens + 1)
    if legacy:
        mask_BSS[:, -1] = key_S <= lengths_B[:, None]
    else:
        mask_BSS[:, -1] = (key_S < lengths_B[:, None]) | (key_S == tokens)
    return mask_BSS


def attention(q_BTHK, k_BSHK, v_BSHK, mask=None):
    """softmax(q k' / sqrt(K)) v for each head; `mask` is True where a query may look."""
    q_BHTK, k_BHSK, v_BHSK = (x.transpose(0, 2, 1, 3) for x in (q_BTHK, k_BSHK, v_BSHK))
    scale = q_BTHK.shape[-1] ** -0.5
    s_BHTS = (q_BHTK @ k_BHSK.transpose(0, 1, 3, 2)) * scale  # (1)
    if mask is not None:
        s_BHTS = np.where(mask[..., None, :, :], s_BHTS, -np.inf)  # (2)
    p_BHTS, softmax_cache = softmax(s_BHTS)  # (3)
    o_BTHK = (p_BHTS @ v_BHSK).transpose(0, 2, 1, 3)  # (4)
    return o_BTHK, (q_BHTK, k_BHSK, v_BHSK, p_BHTS, softmax_cache, scale)


def attention_backward(do_BTHK, cache):
    q_BHTK, k_BHSK, v_BHSK, p_BHTS, softmax_cache, scale = cache
    do_BHTK = do_BTHK.transpose(0, 2, 1, 3)
    dv_BHSK = p_BHTS.transpose(0, 1, 3, 2) @ do_BHTK  # from (4)
    dp_BHTS = do_BHTK @ v_BHSK.transpose(0, 1, 3, 2)  # from (4)
    # (2) needs no step of its own: where the mask is False p is 0, and so is this gradient.
    ds_BHTS = softmax_backward(dp_BHTS, softmax_cache) * scale  # from (3), scale from (1)
    dq_BHTK = ds_BHTS @ k_BHSK  # from (1); rows of ds sum to 0, so k may be centred: the kernels do
    dk_BHSK = ds_BHTS.transpose(0, 1, 3, 2) @ q_BHTK  # from (1)
    return tuple(x.transpose(0, 2, 1, 3) for x in (dq_BHTK, dk_BHSK, dv_BHSK))


def multi_head_attention(x_BTD, memory_BSM, params, heads, mask=None):
    """Queries from x, keys and values from memory (x itself for self-attention)."""
    q_BTD, query_cache = linear(x_BTD, params["query"])
    k_BSD, key_cache = linear(memory_BSM, params["key"])
    v_BSD, value_cache = linear(memory_BSM, params["value"])
    split = [y.reshape(*y.shape[:2], heads, -1) for y in (q_BTD, k_BSD, v_BSD)]
    o_BTHK, attention_cache = attention(*split, mask)
    y_BTD, output_cache = linear(o_BTHK.reshape(q_BTD.shape), params["output"])
    return y_BTD, (query_cache, key_cache, value_cache, attention_cache, output_cache, heads)


def multi_head_attention_backward(dy_BTD, cache):
    query_cache, key_cache, value_cache, attention_cache, output_cache, heads = cache
    dparams = {}
    do_BTD, dparams["output"] = linear_backward(dy_BTD, output_cache)
    do_BTHK = do_BTD.reshape(*do_BTD.shape[:2], heads, -1)
    dsplit = attention_backward(do_BTHK, attention_cache)
    dq_BTD, dk_BSD, dv_BSD = (d.reshape(*d.shape[:2], -1) for d in dsplit)
    dx_BTD, dparams["query"] = linear_backward(dq_BTD, query_cache)
    dmemory_by_key_BSM, dparams["key"] = linear_backward(dk_BSD, key_cache)
    dmemory_by_value_BSM, dparams["value"] = linear_backward(dv_BSD, value_cache)
    return dx_BTD, dmemory_by_key_BSM + dmemory_by_value_BSM, dparams


def mlp(x_BTD, params, kind):
    """down(gelu(up(x)))."""
    u_BTF, up_cache = linear(x_BTD, params["up"])
    g_BTF, gelu_cache = gelu(u_BTF, kind)
    y_BTD, down_cache = linear(g_BTF, params["down"])
    return y_BTD, (up_cache, gelu_cache, down_cache)


def mlp_backward(dy_BTD, cache):
    up_cache, gelu_cache, down_cache = cache
    dparams = {}
    dg_BTF, dparams["down"] = linear_backward(dy_BTD, down_cache)
    dx_BTD, dparams["up"] = linear_backward(gelu_backward(dg_BTF, gelu_cache), up_cache)
    return dx_BTD, dparams


def self_attention_layer(x_BTD, norm, params, heads, mask=None):
    """x + attention(norm(x))."""
    n_BTD, norm_cache = layer_norm(x_BTD, norm)
    a_BTD, attention_cache = multi_head_attention(n_BTD, n_BTD, params, heads, mask)
    return x_BTD + a_BTD, (norm_cache, attention_cache)


def self_attention_layer_backward(dy_BTD, cache):
    norm_cache, attention_cache = cache
    dn_as_query_BTD, dn_as_memory_BTD, dparams = multi_head_attention_backward(
        dy_BTD, attention_cache
    )
    dx_BTD, dnorm = layer_norm_backward(dn_as_query_BTD + dn_as_memory_BTD, norm_cache)
    return dy_BTD + dx_BTD, dnorm, dparams  # x was used twice


def cross_attention_layer(x_BTD, memory_BSM, norm, norm_memory, params, heads):
    """x + attention(norm(x), norm(memory))."""
    n_BTD, norm_cache = layer_norm(x_BTD, norm)
    m_BSM, memory_cache = layer_norm(memory_BSM, norm_memory)
    a_BTD, attention_cache = multi_head_attention(n_BTD, m_BSM, params, heads)
    return x_BTD + a_BTD, (norm_cache, memory_cache, attention_cache)


def cross_attention_layer_backward(dy_BTD, cache):
    norm_cache, memory_cache, attention_cache = cache
    dn_BTD, dm_BSM, dparams = multi_head_attention_backward(dy_BTD, attention_cache)
    dx_BTD, dnorm = layer_norm_backward(dn_BTD, norm_cache)
    dmemory_BSM, dnorm_memory = layer_norm_backward(dm_BSM, memory_cache)
    return dy_BTD + dx_BTD, dmemory_BSM, dnorm, dnorm_memory, dparams  # x was used twice


def mlp_layer(x_BTD, norm, params, kind):
    """x + mlp(norm(x))."""
    n_BTD, norm_cache = layer_norm(x_BTD, norm)
    y_BTD, mlp_cache = mlp(n_BTD, params, kind)
    return x_BTD + y_BTD, (norm_cache, mlp_cache)


def mlp_layer_backward(dy_BTD, cache):
    norm_cache, mlp_cache = cache
    dn_BTD, dparams = mlp_backward(dy_BTD, mlp_cache)
    dx_BTD, dnorm = layer_norm_backward(dn_BTD, norm_cache)
    return dy_BTD + dx_BTD, dnorm, dparams  # x was used twice


def block(x_BTD, params, heads, kind, mask=None):
    """Self-attention, then MLP: a layer of the image encoder and of the unimodal decoder."""
    x_BTD, attention_cache = self_attention_layer(
        x_BTD, params["norm_attention"], params["attention"], heads, mask
    )
    y_BTD, mlp_cache = mlp_layer(x_BTD, params["norm_mlp"], params["mlp"], kind)
    return y_BTD, (attention_cache, mlp_cache)


def block_backward(dy_BTD, cache):
    attention_cache, mlp_cache = cache
    dparams = {}
    dx_BTD, dparams["norm_mlp"], dparams["mlp"] = mlp_layer_backward(dy_BTD, mlp_cache)
    dx_BTD, dparams["norm_attention"], dparams["attention"] = self_attention_layer_backward(
        dx_BTD, attention_cache
    )
    return dx_BTD, dparams
