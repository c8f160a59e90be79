"""Attentional pooling: learned queries ask, image tokens answer (paper section 3.2, Table 8f).

The paper says "one multi-head attention layer with n learnable queries" and nothing of norms; ours
are on the queries, on the keys and on the output, as in open_clip. Letters of this file: Q queries,
S image tokens, M their width, D the text decoder's width, which a pooler's output has.
"""

import numpy as np

from .attention import multi_head_attention, multi_head_attention_backward
from .ops import layer_norm, layer_norm_backward


def attentional_pooler(tokens_BSM, params, heads):
    """[B, S, M] -> [B, Q, D]: the same queries for every sample."""
    q_QD, query_cache = layer_norm(params["queries"], params["norm_query"])
    k_BSM, key_cache = layer_norm(tokens_BSM, params["norm_key"])
    q_BQD = np.broadcast_to(q_QD, (len(tokens_BSM), *q_QD.shape))
    pooled_BQD, cache = multi_head_attention(q_BQD, k_BSM, params["attention"], heads)
    y_BQD, output_cache = layer_norm(pooled_BQD, params["norm_output"])
    return y_BQD, (query_cache, key_cache, cache, output_cache)


def attentional_pooler_backward(dy_BQD, cache):
    query_cache, key_cache, attention_cache, output_cache = cache
    dparams = {}
    dpooled_BQD, dparams["norm_output"] = layer_norm_backward(dy_BQD, output_cache)
    dq_BQD, dk_BSM, dparams["attention"] = multi_head_attention_backward(
        dpooled_BQD, attention_cache
    )
    dtokens_BSM, dparams["norm_key"] = layer_norm_backward(dk_BSM, key_cache)
    dqueries_QD, dparams["norm_query"] = layer_norm_backward(dq_BQD.sum(0), query_cache)
    return dtokens_BSM, {"queries": dqueries_QD} | dparams


def pool(tokens_BSM, params, config):
    """Image tokens -> (contrast [B, D], memory for the decoder). Which reads what:

    cascade   memory = caption(tokens)   contrast = contrast(memory)    the paper's default
    parallel  memory = caption(tokens)   contrast = contrast(tokens)    as its Fig. 2 draws it
    shared    one pooler; its query 0 is contrast, the others memory    open_clip
    none      memory = tokens            contrast = contrast(tokens)    Table 8f, n_query = 0
    """
    mode, heads = config.pooler, config.pooler_heads
    if mode == "shared":
        y_BQD, cache = attentional_pooler(tokens_BSM, params["shared"], heads)
        return y_BQD[:, 0], y_BQD[:, 1:], (mode, cache, None)
    memory, caption_cache = tokens_BSM, None
    if mode != "none":
        memory, caption_cache = attentional_pooler(tokens_BSM, params["caption"], heads)
    read = memory if mode == "cascade" else tokens_BSM
    y_B1D, contrast_cache = attentional_pooler(read, params["contrast"], heads)
    return y_B1D[:, 0], memory, (mode, contrast_cache, caption_cache)


def pool_backward(dcontrast_BD, dmemory, cache):
    mode, contrast_cache, caption_cache = cache
    dcontrast_B1D = dcontrast_BD[:, None]
    if mode == "shared":
        dy_BQD = np.concatenate([dcontrast_B1D, dmemory], 1)
        dtokens_BSM, dshared = attentional_pooler_backward(dy_BQD, contrast_cache)
        return dtokens_BSM, {"shared": dshared}
    dread, dcontrast = attentional_pooler_backward(dcontrast_B1D, contrast_cache)
    if mode == "none":
        return dread + dmemory, {"contrast": dcontrast}  # tokens were read twice
    dmemory = dmemory + dread if mode == "cascade" else dmemory  # memory was read twice
    dtokens_BSM, dcaption = attentional_pooler_backward(dmemory, caption_cache)
    dtokens_BSM = dtokens_BSM + dread if mode == "parallel" else dtokens_BSM  # tokens, twice
    return dtokens_BSM, {"contrast": dcontrast, "caption": dcaption}
