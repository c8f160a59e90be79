"""Attentional pooling: learned queries ask, image tokens answer (paper section 3.2, Table 8f).

In the paper a pooler is one layer of multi-head attention whose queries are learned; its text names
no norms. Ours are on the queries, on the keys and on the output, as in open_clip.
Letters of this file: Q queries, S image tokens, M their width, D the text decoder's width, which a
pooler's output has.
"""

import numpy as np

from .attention import multi_head_attention, multi_head_attention_backward
from .ops import (
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
    softmax,
    softmax_backward,
)


def attentional_pooler(tokens_BSM, params, heads, mask=None):
    """[B, S, M] -> [B, Q, D]: the same queries for every sample. mask: as attention takes it."""
    q_QD, query_cache = layer_norm(params["queries"], params["norm_query"])
    k_BSM, key_cache = layer_norm(tokens_BSM, params["norm_key"])
    q_BQD = np.broadcast_to(q_QD, (len(tokens_BSM), *q_QD.shape))
    pooled_BQD, cache = multi_head_attention(q_BQD, k_BSM, params["attention"], heads, mask)
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


def absorbed_pooler(tokens_BSM, params, heads):
    """attentional_pooler of one query, without forming its keys and values: the same function.

    A score is q . W_k' u for u = gamma xhat + beta, the normed token; it is also (W_k q) . u. The
    key bias and beta add the same to all scores of a head, which softmax ignores.
    """
    q_1D, query_norm_cache = layer_norm(params["queries"], params["norm_query"])
    q_1D, query_cache = linear(q_1D, params["attention"]["query"])
    q_HK = q_1D.reshape(heads, -1)
    width = tokens_BSM.shape[-1]
    unit = {"scale": np.ones(width, q_HK.dtype), "bias": np.zeros(width, q_HK.dtype)}
    xhat_BSM, key_cache = layer_norm(tokens_BSM, unit)
    gamma_M, beta_M = params["norm_key"]["scale"], params["norm_key"]["bias"]
    key_MHK, value_MHK = (
        params["attention"][name]["weight"].reshape(width, *q_HK.shape) for name in ("key", "value")
    )
    scale = q_HK.shape[-1] ** -0.5
    a_HM = np.einsum("mhk,hk->hm", key_MHK, q_HK) * scale  # (1)
    p_BHS, softmax_cache = softmax(np.einsum("hm,bsm->bhs", a_HM * gamma_M, xhat_BSM))  # (2)
    m_BHM = np.einsum("bhs,bsm->bhm", p_BHS, xhat_BSM)  # (3)
    u_BHM = m_BHM * gamma_M + beta_M  # (4)
    o_BHK = np.einsum("bhm,mhk->bhk", u_BHM, value_MHK)  # (5)
    o_B1D = o_BHK.reshape(len(o_BHK), 1, -1) + params["attention"]["value"]["bias"]  # (6)
    pooled_B1D, output_cache = linear(o_B1D, params["attention"]["output"])
    y_B1D, norm_cache = layer_norm(pooled_B1D, params["norm_output"])
    inputs = (q_HK, xhat_BSM, gamma_M, key_MHK, value_MHK, scale, a_HM, p_BHS, m_BHM, u_BHM)
    return y_B1D, (
        inputs,
        (query_norm_cache, query_cache, key_cache, softmax_cache, output_cache, norm_cache),
    )


def absorbed_pooler_backward(dy_B1D, cache):
    (q_HK, xhat_BSM, gamma_M, key_MHK, value_MHK, scale, a_HM, p_BHS, m_BHM, u_BHM), caches = cache
    query_norm_cache, query_cache, key_cache, softmax_cache, output_cache, norm_cache = caches
    dp, da = {}, {}
    dpooled_B1D, dp["norm_output"] = layer_norm_backward(dy_B1D, norm_cache)
    do_B1D, da["output"] = linear_backward(dpooled_B1D, output_cache)
    do_BHK = do_B1D.reshape(len(do_B1D), *q_HK.shape)
    dvalue_MHK = np.einsum("bhm,bhk->mhk", u_BHM, do_BHK)  # from (5)
    du_BHM = np.einsum("bhk,mhk->bhm", do_BHK, value_MHK)  # from (5)
    dm_BHM = du_BHM * gamma_M  # from (4)
    dp_BHS = np.einsum("bhm,bsm->bhs", dm_BHM, xhat_BSM)  # from (3)
    ds_BHS = softmax_backward(dp_BHS, softmax_cache)  # from (2)
    dg_HM = np.einsum("bhs,bsm->hm", ds_BHS, xhat_BSM)  # from (2), g = a gamma
    dxhat_BSM = np.einsum("bhs,bhm->bsm", p_BHS, dm_BHM)  # from (3)
    dxhat_BSM = dxhat_BSM + np.einsum("bhs,hm->bsm", ds_BHS, a_HM * gamma_M)  # from (2)
    da_HM = dg_HM * gamma_M * scale
    dq_HK = np.einsum("hm,mhk->hk", da_HM, key_MHK)  # from (1)
    dkey_MHK = np.einsum("hm,hk->mhk", da_HM, q_HK)  # from (1): of rank one for each head
    dgamma_M = (du_BHM * m_BHM).sum((0, 1)) + (dg_HM * a_HM).sum(0)  # from (4) and (2)
    dp["norm_key"] = {"scale": dgamma_M, "bias": du_BHM.sum((0, 1))}
    flat = (len(gamma_M), -1)
    da["key"] = {"weight": dkey_MHK.reshape(flat), "bias": np.zeros(q_HK.size, q_HK.dtype)}
    da["value"] = {"weight": dvalue_MHK.reshape(flat), "bias": do_B1D.sum((0, 1))}
    dq_1D, da["query"] = linear_backward(dq_HK.reshape(1, -1), query_cache)
    dp["queries"], dp["norm_query"] = layer_norm_backward(dq_1D, query_norm_cache)
    dtokens_BSM, _ = layer_norm_backward(dxhat_BSM, key_cache)
    return dtokens_BSM, dp | {"attention": da}


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
