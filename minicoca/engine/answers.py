"""Answers to questions about pictures (paper appendix B), a head and captions trained together. As
reference/answers.py, with the rows of padding not computed where that is worth it."""

import torch

from ..config import PAD
from .losses import caption_loss
from .ops import linear, widened
from .pooling import attentional_pooler
from .towers import decoded


def answer_head(n_RTD, params, lengths_R, config):
    """The decoder's outputs, of which the first `lengths_R` of each row are read -> logits of the
    answers [B, A]."""
    mask_R1T = torch.arange(n_RTD.shape[1], device=n_RTD.device) < lengths_R[:, None, None]
    pooled_R1D = attentional_pooler(n_RTD, params["pooler"], config.pooler_heads, mask_R1T)
    x = pooled_R1D.reshape(len(n_RTD) // config.pictures, -1)
    x = x.to(params["classifier"]["weight"].dtype)
    if config.pictures > 1:
        one, other = x.chunk(2, -1)
        x = torch.cat([x, one * other], -1)
    return linear(x, params["classifier"])


def answer_loss(logits_BA, shares_BA):
    """Mean over the questions of - sum over answers of share x log p, in float32 at least."""
    log_p_BA = torch.log_softmax(widened(logits_BA), -1)
    return -(shares_BA * log_p_BA).sum() / len(shares_BA)


def word_targets(tokens_RT, lengths_R, config):
    """What each token but the last is followed by; padding, which is no target, where only the
    answer's words are to be learned."""
    targets = tokens_RT[:, 1:]
    if config.caption_loss == "all":
        return targets
    places_T = torch.arange(targets.shape[1], device=targets.device)
    return targets.masked_fill(places_T < lengths_R[:, None] - 1, PAD)


def rows_of(config, images, about_B, *texts):
    """Images one by one; which of them each row is about [R]; and texts of questions, a row for
    each picture of a question."""
    if config.pictures == 1:
        return images, about_B, *texts
    both_2 = torch.arange(config.pictures, device=about_B.device)
    about_R = (about_B[:, None] * config.pictures + both_2).flatten()
    texts = (x.repeat_interleave(config.pictures, 0) for x in texts)
    return images.flatten(0, 1), about_R, *texts


def answer_logits(params, config, images, tokens_BT, lengths_B):
    """Logits of the answers [B, A], question b about image b. tokens: start, question and at least
    one more."""
    about_B = torch.arange(len(images), device=tokens_BT.device)
    images, about_R, tokens_RT, lengths_R = rows_of(config, images, about_B, tokens_BT, lengths_B)
    *_, n, packing = decoded(params, config, images, tokens_RT, about_R=about_R)
    n_RTD = packing.pad(n) if packing else n
    return answer_head(n_RTD, params["head"], lengths_R, config)


def questions(params, config, images, tokens_BT, places=None, *, about, lengths, shares):
    """The whole objective, as the reference's: a dict of `loss`, `caption` and `answer`; a loss of
    weight 0 is not computed."""
    images, about_R, tokens_RT, lengths_R = rows_of(config, images, about, tokens_BT, lengths)
    *_, n, packing = decoded(params, config, images, tokens_RT, places, about_R)
    outputs = {}
    if config.caption_weight:
        targets = word_targets(tokens_RT, lengths_R, config)
        outputs["caption"] = caption_loss(n, params["decoder"]["head"], targets, packing)
    if config.answers:
        n_RTD = packing.pad(n) if packing else n
        answers_BA = answer_head(n_RTD, params["head"], lengths_R, config)
        outputs["answer"] = answer_loss(answers_BA, shares)
    weights = {"caption": config.caption_weight, "answer": config.answer_weight}
    outputs["loss"] = sum(weights[name] * loss for name, loss in outputs.items())
    return outputs
