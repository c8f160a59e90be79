"""Attentional pooling. Line for line reference/pooling.py; the queries, being the same for every
sample, are normed and projected once."""

import torch

from .attention import multi_head_attention
from .ops import attention_pool, layer_norm, linear


def attentional_pooler(tokens_BSM, params, heads, mask=None):
    """[B, S, M] -> [B, Q, D]: the same queries for every sample. mask: as attention takes it."""
    q_1QD = layer_norm(params["queries"], params["norm_query"])[None]
    k_BSM = layer_norm(tokens_BSM, params["norm_key"])
    pooled_BQD = multi_head_attention(q_1QD, k_BSM, params["attention"], heads, mask=mask)
    return layer_norm(pooled_BQD, params["norm_output"])


def absorbed_pooler(tokens_BSM, params, heads):
    """attentional_pooler of one query, without forming its keys and values: the same function.

    See reference/pooling.py. The key bias adds the same to all scores and is not used.
    """
    q_1D = linear(layer_norm(params["queries"], params["norm_query"]), params["attention"]["query"])
    q_HK = q_1D.view(heads, -1)
    width = tokens_BSM.shape[-1]
    key_MHK, value_MHK = (
        params["attention"][name]["weight"].view(width, *q_HK.shape) for name in ("key", "value")
    )
    gamma_M, beta_M = params["norm_key"]["scale"], params["norm_key"]["bias"]
    a_HM = torch.einsum("mhk,hk->hm", key_MHK, q_HK) * q_HK.shape[-1] ** -0.5
    u_BHM = attention_pool(tokens_BSM, a_HM * gamma_M) * gamma_M + beta_M
    u_BHM = u_BHM.to(tokens_BSM.dtype)  # a norm's numbers are float32 whatever the tokens are
    o_B1D = torch.einsum("bhm,mhk->bhk", u_BHM, value_MHK).flatten(1)[:, None]
    pooled_B1D = linear(o_B1D + params["attention"]["value"]["bias"], params["attention"]["output"])
    return layer_norm(pooled_B1D, params["norm_output"])


def pool(tokens_BSM, params, config):
    """Image tokens -> (contrast [B, D], memory for the decoder). Which reads what:

    cascade   memory = caption(tokens)   contrast = contrast(memory)    the paper's default
    parallel  memory = caption(tokens)   contrast = contrast(tokens)    as its Fig. 2 draws it
    shared    one pooler; its query 0 is contrast, the others memory    open_clip
    none      memory = tokens            contrast = contrast(tokens)    Table 8f, n_query = 0
    """
    mode, heads = config.pooler, config.pooler_heads
    if mode == "shared":
        y_BQD = attentional_pooler(tokens_BSM, params["shared"], heads)
        return y_BQD[:, 0], y_BQD[:, 1:]
    memory = tokens_BSM
    if mode != "none":
        memory = attentional_pooler(tokens_BSM, params["caption"], heads)
    read = memory if mode == "cascade" else tokens_BSM
    return absorbed_pooler(read, params["contrast"], heads)[:, 0], memory
