"""A right answer to exercise 14b."""

import numpy as np

from minicoca.reference.ops import softmax_backward


def absorbed_backward(do_BHK, inputs):
    q_HK, xhat_BSM, gamma_M, key_MHK, value_MHK, scale, a_HM, p_BHS, m_BHM, u_BHM = inputs
    dvalue_MHK = np.einsum("bhm,bhk->mhk", u_BHM, do_BHK)
    du_BHM = np.einsum("bhk,mhk->bhm", do_BHK, value_MHK)
    dbeta_M = du_BHM.sum((0, 1))
    dm_BHM = du_BHM * gamma_M
    dgamma_M = (du_BHM * m_BHM).sum((0, 1))
    dp_BHS = np.einsum("bhm,bsm->bhs", dm_BHM, xhat_BSM)
    dxhat_BSM = np.einsum("bhs,bhm->bsm", p_BHS, dm_BHM)
    ds_BHS = softmax_backward(dp_BHS, (p_BHS,))
    dg_HM = np.einsum("bhs,bsm->hm", ds_BHS, xhat_BSM)
    dxhat_BSM = dxhat_BSM + np.einsum("bhs,hm->bsm", ds_BHS, a_HM * gamma_M)
    dgamma_M = dgamma_M + (dg_HM * a_HM).sum(0)
    da_HM = dg_HM * gamma_M * scale
    dq_HK = np.einsum("hm,mhk->hk", da_HM, key_MHK)
    dkey_MHK = np.einsum("hm,hk->mhk", da_HM, q_HK)
    return dxhat_BSM, dq_HK, dkey_MHK, dvalue_MHK, dgamma_M, dbeta_M
