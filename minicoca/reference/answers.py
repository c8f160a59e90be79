"""Answers to questions about pictures (paper appendix B), a head and captions trained together.

The head is a new attentional pooler of one query over the decoder's outputs, and a linear
classifier over the training answers; the captioning loss is of the question with its answer. The
decoder is causal: its outputs up to the question's end do not depend on the answer that follows.
So one pass serves both, and the pooler reads the rows of start and question alone.

Of a pair of pictures each is read with the question, and the classifier gets both pooled vectors
(appendix B, as for NLVR2) and here their product too: a linear map of two vectors adds what each
says, and whether they say the same is no sum.
Letters of this file: A answers, R rows of a picture and a question: B questions, or 2 B of pairs.
"""

import numpy as np

from ..config import PAD
from .losses import caption_loss, caption_loss_backward
from .ops import linear, linear_backward, log_softmax, log_softmax_backward
from .pooling import attentional_pooler, attentional_pooler_backward
from .towers import decoded, decoded_backward


def answer_head(n_RTD, params, lengths_R, config):
    """The decoder's outputs, of which the first `lengths_R` of each row are read -> logits of the
    answers [B, A]."""
    mask_R1T = np.arange(n_RTD.shape[1]) < lengths_R[:, None, None]
    pooled_R1D, pool_cache = attentional_pooler(
        n_RTD, params["pooler"], config.pooler_heads, mask_R1T
    )
    x = pooled_R1D.reshape(len(n_RTD) // config.pictures, -1)  # (1) one beside the other
    if config.pictures > 1:
        one, other = np.split(x, 2, -1)
        x = np.concatenate([x, one * other], -1)  # (2)
    logits_BA, classifier_cache = linear(x, params["classifier"])
    return logits_BA, (pool_cache, pooled_R1D, classifier_cache)


def answer_head_backward(dlogits_BA, cache):
    pool_cache, pooled_R1D, classifier_cache = cache
    dparams = {}
    dx, dparams["classifier"] = linear_backward(dlogits_BA, classifier_cache)
    if len(dx) < len(pooled_R1D):  # pairs
        one, other = np.split(pooled_R1D.reshape(len(dx), -1), 2, -1)
        dx, dproduct = np.split(dx, [2 * one.shape[1]], -1)
        dx = dx + np.concatenate([dproduct * other, dproduct * one], -1)  # from (2)
    dpooled_R1D = dx.reshape(pooled_R1D.shape)  # from (1)
    dn_RTD, dparams["pooler"] = attentional_pooler_backward(dpooled_R1D, pool_cache)
    return dn_RTD, dparams


def answer_loss(logits_BA, shares_BA):
    """Mean over the questions of - sum over answers of share x log p. shares: how many of those who
    were asked gave each answer, as a part of all of them; what the list lacks counts nowhere."""
    log_p_BA, cache = log_softmax(logits_BA)  # (1)
    return -(shares_BA * log_p_BA).sum() / len(shares_BA), (cache, shares_BA)  # (2)


def answer_loss_backward(dloss, cache):
    log_softmax_cache, shares_BA = cache
    dlog_p_BA = -dloss / len(shares_BA) * shares_BA  # from (2)
    return log_softmax_backward(dlog_p_BA, log_softmax_cache)  # from (1)


def word_targets(tokens_RT, lengths_R, config):
    """What each token but the last is followed by; padding, which is no target, where only the
    answer's words are to be learned."""
    targets = tokens_RT[:, 1:]
    if config.caption_loss == "all":
        return targets
    asked = np.arange(targets.shape[1]) < lengths_R[:, None] - 1
    return np.where(asked, PAD, targets)


def rows_of(config, images, about_B, *texts):
    """Images one by one; which of them each row is about [R]; and texts of questions, a row for
    each picture of a question."""
    if config.pictures == 1:
        return images, about_B, *texts
    about_R = (about_B[:, None] * config.pictures + np.arange(config.pictures)).ravel()
    texts = (np.repeat(of_text, config.pictures, 0) for of_text in texts)
    return images.reshape(-1, *images.shape[2:]), about_R, *texts


def answer_logits(params, config, images, tokens_BT, lengths_B):
    """Logits of the answers [B, A], question b about image b. tokens: start, question and at least
    one more."""
    about_B = np.arange(len(images))
    images, about_R, tokens_RT, lengths_R = rows_of(config, images, about_B, tokens_BT, lengths_B)
    *_, n, _ = decoded(params, config, images, tokens_RT, about_R=about_R)
    return answer_head(n, params["head"], lengths_R, config)[0]


def questions(params, config, images, tokens_BT, places=None, *, about, lengths, shares):
    """The whole objective. images: [., I, I, 3], or [., 2, I, I, 3] of pairs; about: which of them
    each question is about [B]. tokens: [B, T] ids of start, question, answer and end, padded.
    lengths: how many are start and question [B]. shares: [B, A], as `answer_loss` takes them.

    Returns (outputs, cache); outputs has `loss`, `caption` and, with a head, `answer`.
    """
    images, about_R, tokens_RT, lengths_R = rows_of(config, images, about, tokens_BT, lengths)
    image, text, n, towers = decoded(params, config, images, tokens_RT, places, about_R)
    logits, words_cache = linear(n, params["decoder"]["head"])
    caption, caption_cache = caption_loss(logits, word_targets(tokens_RT, lengths_R, config))
    loss, head_cache = config.caption_weight * caption, None
    outputs = {"caption": caption}
    if config.answers:
        answers, head_cache = answer_head(n, params["head"], lengths_R, config)
        outputs["answer"], answer_cache = answer_loss(answers, shares)
        loss = loss + config.answer_weight * outputs["answer"]
        head_cache = head_cache, answer_cache
    cache = config, (image, text, towers), words_cache, caption_cache, head_cache
    return outputs | {"loss": loss}, cache


def questions_backward(dloss, cache):
    """The gradient of every parameter, as a tree like the parameters', and of the images."""
    config, (image, text, towers), words_cache, caption_cache, head_cache = cache
    dlogits = caption_loss_backward(config.caption_weight * dloss, caption_cache)
    dn, dwords = linear_backward(dlogits, words_cache)
    dparams = {"log_temperature": np.zeros((), dn.dtype)}  # which no loss reads
    if head_cache:
        danswers = answer_loss_backward(config.answer_weight * dloss, head_cache[1])
        dread, dparams["head"] = answer_head_backward(danswers, head_cache[0])
        dn = dn + dread  # the decoder's outputs were read twice
    unread = np.zeros_like(image), np.zeros_like(text)  # the embeddings
    dimages, dtowers = decoded_backward(*unread, dn, towers)
    dtowers["decoder"] = dtowers["decoder"] | {"head": dwords}
    return dparams | dtowers, dimages
