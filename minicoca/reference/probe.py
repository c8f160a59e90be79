"""A probe: how much the tokens of a frozen image encoder say of labels (paper section 3.3).

A new attentional pooler of one query reads the tokens of an image, or of all frames of a video, and
a linear map scores the classes; both learn by softmax cross-entropy. The paper names nothing that
would tell frames apart. `frame`, a learned vector for each, is ours: without it a video and the
same frames in any other order have the same scores.
Letters of this file: C classes, J frames (an image is one), S the tokens of all frames, N of one.
"""

import numpy as np

from .ops import linear, linear_backward, log_softmax, log_softmax_backward
from .pooling import attentional_pooler, attentional_pooler_backward


def probe(tokens_BJNM, params, heads):
    """Tokens of each frame -> scores of the classes [B, C]."""
    x_BJNM = tokens_BJNM
    if "frame" in params:
        x_BJNM = x_BJNM + params["frame"][:, None]  # (1)
    x_BSM = x_BJNM.reshape(len(x_BJNM), -1, x_BJNM.shape[-1])  # (2)
    pooled_B1M, pooler_cache = attentional_pooler(x_BSM, params["pooler"], heads)
    logits_BC, classifier_cache = linear(pooled_B1M[:, 0], params["classifier"])
    return logits_BC, (tokens_BJNM.shape, "frame" in params, pooler_cache, classifier_cache)


def probe_backward(dlogits_BC, cache):
    shape, has_frames, pooler_cache, classifier_cache = cache
    dparams = {}
    dpooled_BM, dparams["classifier"] = linear_backward(dlogits_BC, classifier_cache)
    dx_BSM, dparams["pooler"] = attentional_pooler_backward(dpooled_BM[:, None], pooler_cache)
    dtokens_BJNM = dx_BSM.reshape(shape)  # from (2)
    if has_frames:
        dparams["frame"] = dtokens_BJNM.sum((0, 2))  # from (1)
    return dtokens_BJNM, dparams


def probe_loss(logits_BC, labels_B):
    """Mean of -log softmax at the label."""
    log_p_BC, cache = log_softmax(logits_BC)  # (1)
    log_p_B = np.take_along_axis(log_p_BC, labels_B[:, None], 1)[:, 0]  # (2)
    return -log_p_B.mean(), (cache, labels_B)  # (3)


def probe_loss_backward(dloss, cache):
    log_softmax_cache, labels_B = cache
    dlog_p_BC = np.zeros_like(log_softmax_cache[0])
    np.put_along_axis(dlog_p_BC, labels_B[:, None], -dloss / len(labels_B), 1)  # from (3) and (2)
    return log_softmax_backward(dlog_p_BC, log_softmax_cache)  # from (1)
