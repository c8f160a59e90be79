"""Attentional pooling. Line for line reference/pooling.py; the queries, being the same for every
sample, are normed and projected once."""

from .attention import multi_head_attention
from .ops import layer_norm


def attentional_pooler(tokens_BSM, params, heads):
    """[B, S, M] -> [B, Q, D]: the same queries for every sample."""
    q_1QD = layer_norm(params["queries"], params["norm_query"])[None]
    k_BSM = layer_norm(tokens_BSM, params["norm_key"])
    pooled_BQD = multi_head_attention(q_1QD, k_BSM, params["attention"], heads)
    return layer_norm(pooled_BQD, params["norm_output"])


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
    return attentional_pooler(read, params["contrast"], heads)[:, 0], memory
