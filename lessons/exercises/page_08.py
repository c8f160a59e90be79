"""Exercises of page 08."""

import numpy as np

from minicoca.config import PAD
from minicoca.reference.losses import caption_loss
from minicoca.reference.ops import log_softmax

from ..exercise import Exercise, distinct


def _loss_inputs(rng):
    B, T, V = distinct(rng, 3, 4)
    targets = rng.integers(1, V, (B, T))
    lengths = rng.permutation(np.arange(1, T))[: min(B, T - 1)]
    for row, length in zip(targets, lengths, strict=False):
        row[length:] = PAD
    if (targets != PAD).sum() % B == 0:  # no mistake is then a plain multiple of what is right
        return _loss_inputs(rng)
    return rng.standard_normal((B, T, V)) * 2, targets


def _target_costs(logits, targets):
    """-log p of every target, and which are valid."""
    log_p = np.take_along_axis(log_softmax(logits)[0], targets[..., None], 2)[..., 0]
    return -log_p, targets != PAD


def _mean_of_means(logits, targets):
    cost, valid = _target_costs(logits, targets)
    return ((cost * valid).sum(1) / valid.sum(1)).mean()


def _sum_over_captions(logits, targets):
    cost, valid = _target_costs(logits, targets)
    return (cost * valid).sum() / len(targets)


def _pads_in_the_count(logits, targets):
    cost, valid = _target_costs(logits, targets)
    return (cost * valid).mean()


def _logits_alone(logits, targets):
    picked = np.take_along_axis(logits, targets[..., None], 2)[..., 0]
    return -picked[targets != PAD].mean()


def _without_log(logits, targets):
    cost, valid = _target_costs(logits, targets)
    return -np.exp(-cost)[valid].mean()


def _backward_inputs(rng):
    _, cache = caption_loss(*_loss_inputs(rng))
    return rng.standard_normal() + 3, cache


def _gradient(dloss, cache, change):
    """caption_loss_backward of what change(p, onehot, valid, count) gives."""
    (log_p,), targets, valid, count = cache
    onehot = np.eye(log_p.shape[2])[targets]
    return dloss * change(np.exp(log_p), onehot, valid[..., None].astype(float), count)


def _wrong(change):
    return lambda dloss, cache: _gradient(dloss, cache, change)


def _p_minus_onehot(dloss, cache):
    (log_p,), targets, valid, count = cache
    p, V = np.exp(log_p), log_p.shape[2]
    onehot = np.eye(V)[targets]
    return dloss * (p - onehot) * valid[..., None] / count


EXERCISES = (
    Exercise(
        "8a", 1, 10, "the captioning loss", "minicoca.reference.losses:caption_loss",
        ("loss",), _loss_inputs,
        "valid_BT = targets_BT != PAD\n"
        "# log_softmax(x) returns (log_p, cache); return the loss alone",
        (
            "log_softmax over the words gives log p of every word; np.take_along_axis with "
            "targets_BT[..., None] on axis 2 picks that of the target.",
            "Add up -log p where valid_BT is True; divide by how many those are in the batch.",
        ),
        {
            "The pads are counted; they are no targets.":
                lambda x, t: _target_costs(x, t)[0].mean(),
            "Pads cost nothing, but are still in the count that the sum is divided by.":
                _pads_in_the_count,
            "It is the mean of the captions' means; every target should weigh the same.":
                _mean_of_means,
            "Each caption's sum, averaged over captions: divide by the number of valid targets.":
                _sum_over_captions,
            "The target's logit was taken; it should be its log probability, after log_softmax.":
                _logits_alone,
            "The probability was averaged, without its logarithm.": _without_log,
            "The targets were shifted already: compare logits_BTV and targets_BT as they are.":
                lambda x, t: caption_loss(x[:, :-1], t[:, 1:])[0],
            "The sign is turned: the loss is minus the mean of log p.":
                lambda x, t: -caption_loss(x, t)[0],
        },
        imports="import numpy as np\n\nfrom minicoca.config import PAD\n"
        "from minicoca.reference.ops import log_softmax",
    ),
    Exercise(
        "8b", 2, 15, "the gradient of the captioning loss",
        "minicoca.reference.losses:caption_loss_backward", ("dlogits_BTV",), _backward_inputs,
        "(log_p_BTV,), targets_BT, valid_BT, count = cache",
        (
            "For one target: what the model said, p, minus what was true, a row of zeros with a 1 "
            "at the target. p is exp of log_p_BTV.",
            "np.eye(V)[targets_BT] is the rows of zeros with a 1. Multiply by valid_BT[..., None], "
            "and by dloss / count.",
        ),
        {
            "The pads have a gradient; their whole rows should be 0.":
                _wrong(lambda p, o, valid, n: (p - o) / n),
            "The pads' rows still hold p; the whole row should be 0, not the 1 alone.":
                _wrong(lambda p, o, valid, n: (p - o * valid) / n),
            "The count is missing: the loss is a mean, so each target has 1 / count of it.":
                _wrong(lambda p, o, valid, n: (p - o) * valid),
            "Pads are still in the count: divide by `count`, the number of valid targets.":
                _wrong(lambda p, o, valid, n: (p - o) * valid / valid.size),
            "The sign is turned: it should be p minus one-hot.":
                _wrong(lambda p, o, valid, n: (o - p) * valid / n),
            "p is missing: every other logit of the row lowers the target's probability.":
                _wrong(lambda p, o, valid, n: -o * valid / n),
            "dloss is missing: the loss may be weighed by what comes after it.":
                lambda dloss, cache: _gradient(1, cache, lambda p, o, v, n: (p - o) * v / n),
            "It is divided by B, the captions; the loss is a mean over `count`, the targets.":
                _wrong(lambda p, o, valid, n: (p - o) * valid / len(p)),
            "It is divided by T; the loss is a mean over `count`, the targets of all captions.":
                _wrong(lambda p, o, valid, n: (p - o) * valid / p.shape[1]),
            "Each caption's targets are counted by themselves; `count` is that of the batch.":
                _wrong(lambda p, o, valid, n: (p - o) * valid / valid.sum(1, keepdims=True)),
            "1 was added at the target; it is taken off: p minus one-hot.":
                _wrong(lambda p, o, valid, n: (p + o) * valid / n),
            "At the target stands 0; it should be p - 1.":
                _wrong(lambda p, o, valid, n: p * (1 - o) * valid / n),
            "At the target stands -1; it should be p - 1.":
                _wrong(lambda p, o, valid, n: (p * (1 - o) - o) * valid / n),
            "valid is turned around: only the pads have a gradient.":
                _wrong(lambda p, o, valid, n: (p - o) * (1 - valid) / n),
            "p (1 - p) is a sigmoid's slope; of softmax and -log together it is p minus one-hot.":
                _wrong(lambda p, o, valid, n: (p * (1 - p) - o) * valid / n),
            "Divided by dloss; multiply by it.":
                lambda dloss, cache: _wrong(lambda p, o, v, n: (p - o) * v / n)(1 / dloss, cache),
            "log p stands where p should: take exp.":
                _wrong(lambda p, o, valid, n: (np.log(p) - o) * valid / n),
        },
        model=(_p_minus_onehot,),
    ),
)  # fmt: skip
