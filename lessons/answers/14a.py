"""A right answer to exercise 14a."""

import numpy as np

from minicoca.reference.ops import layer_norm, linear, softmax


def absorbed_pooler(tokens_BSM, params, heads):
    q_1D, _ = layer_norm(params["queries"], params["norm_query"])
    q_1D, _ = linear(q_1D, params["attention"]["query"])
    q_HK = q_1D.reshape(heads, -1)
    width = tokens_BSM.shape[-1]
    xhat_BSM, _ = layer_norm(tokens_BSM, {"scale": np.ones(width), "bias": np.zeros(width)})
    gamma_M, beta_M = params["norm_key"]["scale"], params["norm_key"]["bias"]
    key_MHK, value_MHK = (
        params["attention"][name]["weight"].reshape(width, *q_HK.shape) for name in ("key", "value")
    )
    a = (key_MHK * q_HK).sum(-1).T / np.sqrt(q_HK.shape[1])
    s = (a * gamma_M) @ xhat_BSM.swapaxes(1, 2)
    p = softmax(s)[0]
    u = (p @ xhat_BSM) * gamma_M + beta_M
    o = (
        np.einsum("bhm,mhk->bhk", u, value_MHK).reshape(len(u), 1, -1)
        + params["attention"]["value"]["bias"]
    )
    y = linear(o, params["attention"]["output"])[0]
    return layer_norm(y, params["norm_output"])[0]
