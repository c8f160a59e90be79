"""Exercises of page 09."""

import numpy as np

from minicoca.reference.losses import contrastive_loss
from minicoca.reference.ops import l2_normalise, log_softmax

from ..exercise import Exercise, distinct


def _loss_inputs(rng):
    B, E = distinct(rng, 2, 4)
    image = l2_normalise(rng.standard_normal((B, E)))[0]
    text = l2_normalise(image + 0.5 * rng.standard_normal((B, E)))[0]
    return image, text, np.array(rng.uniform(-2, -0.5))


def _loss(logits, reduce=np.mean, parts=(0.5, 0.5)):
    """Both directions' -log p of the diagonal, reduced and weighed."""
    both = (log_softmax(x)[0] for x in (logits, logits.T))
    return sum(-w * reduce(np.diagonal(x)) for w, x in zip(parts, both, strict=True))


def _with_logits(make, **options):
    return lambda image, text, log_t: _loss(make(image @ text.T, log_t), **options)


def _divided(cosines, log_t):
    return cosines / np.exp(log_t)


def _one_softmax(image, text, log_t):
    logits = image @ text.T / np.exp(log_t)
    return -np.diagonal(log_softmax(logits.reshape(1, -1))[0].reshape(logits.shape)).mean()


def _every_pair(image, text, log_t):
    logits = image @ text.T / np.exp(log_t)
    return -(log_softmax(logits)[0].mean() + log_softmax(logits.T)[0].mean()) / 2


def _cosines_only(image, text, log_t):
    return -np.diagonal(image @ text.T / np.exp(log_t)).mean()


def _backward_inputs(rng):
    _, cache = contrastive_loss(*_loss_inputs(rng))
    return rng.standard_normal() + 3, cache


def _wrong(dlogits=None, **outputs):
    """contrastive_loss_backward with another dlogits(p, r, I), or another of its outputs."""

    def wrong(dloss, cache):
        image, text, scale, logits, (log_p,), (log_r,) = cache
        p, r, eye = np.exp(log_p), np.exp(log_r), np.eye(len(image))
        ds = (dlogits or _both)(p, r, eye) * dloss / (2 * len(image))
        found = {"image": scale * ds @ text, "text": scale * ds.T @ image}
        found["temperature"] = -(ds * logits).sum()
        found |= {name: make(ds, cache) for name, make in outputs.items()}
        return found["image"], found["text"], found["temperature"]

    return wrong


def _both(p, r, eye):
    return (p - eye) + (r - eye).T


def _without_dloss(dloss, cache):
    return _wrong()(1.0, cache)


def _without_the_pair(logits):
    """The loss whose sums leave the pair itself out."""
    others = np.where(np.eye(len(logits), dtype=bool), -np.inf, logits)
    both = np.logaddexp.reduce(others, 1) + np.logaddexp.reduce(others, 0)
    return (both / 2 - np.diagonal(logits)).mean()


def _both_choices(image_BE, text_BE, log_temperature):
    s = image_BE @ text_BE.T / np.exp(log_temperature)
    e = np.exp(s)
    p, r = e / e.sum(1, keepdims=True), e / e.sum(0, keepdims=True)
    rows, columns = -np.log(np.diagonal(p)), -np.log(np.diagonal(r))
    return (rows.mean() + columns.mean()) / 2


def _gradients(dloss, cache):
    image, text, scale, logits, (log_p,), (log_r,) = cache
    B, p, r = len(image), np.exp(log_p), np.exp(log_r)
    ds = dloss * (p - np.eye(B) + (r - np.eye(B)).T) / (2 * B)
    dimage = scale * ds @ text
    dtext = scale * ds.T @ image
    dlog_temperature = -(ds * logits).sum()
    return dimage, dtext, dlog_temperature


EXERCISES = (
    Exercise(
        "9a", 2, 20, "the contrastive loss", "minicoca.reference.losses:contrastive_loss",
        ("loss",), _loss_inputs,
        "# the vectors have length 1 already\n"
        "# log_softmax(x) returns (log_p, cache); return the loss alone",
        (
            "The logits are image_BE @ text_BE.T divided by the temperature, which is exp of "
            "log_temperature. A row is a choice among texts; the right one is on the diagonal.",
            "log_softmax of the logits for the images' choice, of their transpose for the texts'; "
            "np.diagonal of each, its mean, and half of minus their sum.",
        ),
        {
            "Only the images choose; the texts must choose among the images as well.":
                _with_logits(_divided, parts=(1, 0)),
            "Only the texts choose; the images must choose among the texts as well.":
                _with_logits(_divided, parts=(0, 1)),
            "The two directions are added, as in Eq. 2; here it is their mean.":
                _with_logits(_divided, parts=(1, 1)),
            "The cosines are multiplied by the temperature; they should be divided by it.":
                _with_logits(lambda cosines, log_t: cosines * np.exp(log_t)),
            "log_temperature is a logarithm: take exp of it first.":
                _with_logits(lambda cosines, log_t: cosines / log_t),
            "The temperature is missing.": _with_logits(lambda cosines, log_t: cosines),
            "It is the sum over the pairs; it should be the mean.":
                _with_logits(_divided, reduce=np.sum),
            "One softmax runs over the whole matrix; each row, and each column, needs its own.":
                _one_softmax,
            "Every pair was counted; only those on the diagonal are right answers.":
                _every_pair,
            "Nothing pushes wrong pairs apart: softmax is missing.": _cosines_only,
            "The right pair is left out of the sum that it is divided by: softmax is over all.":
                lambda image, text, log_t: _without_the_pair(image @ text.T / np.exp(log_t)),
            "The sign is turned: the loss is minus the mean of log p.":
                lambda *a: -_with_logits(_divided)(*a),
            "The temperature was taken twice: divide by exp(log_temperature) once.":
                _with_logits(lambda cosines, log_t: cosines / np.exp(2 * log_t)),
            "Divided by 0.07, where the temperature begins; take exp(log_temperature).":
                _with_logits(lambda cosines, log_t: cosines / 0.07),
            "The cosines were divided by sqrt(E) too; that is attention's, not this loss's.":
                lambda image, text, log_t: _loss(
                    image @ text.T / np.exp(log_t) / image.shape[1] ** 0.5),
            "The probabilities were averaged without their logarithm.":
                _with_logits(_divided, reduce=lambda log_p: np.exp(log_p).mean()),
            "Images were compared with images: the logits are image_BE @ text_BE.T.":
                lambda image, text, log_t: _loss(image @ image.T / np.exp(log_t)),
            "Divided by B twice: the mean is one already.":
                lambda *a: _with_logits(_divided)(*a) / len(a[0]),
        },
        model=(_both_choices,),
        imports="import numpy as np\n\nfrom minicoca.reference.ops import log_softmax",
    ),
    Exercise(
        "9b", 3, 30, "the gradient of the contrastive loss",
        "minicoca.reference.losses:contrastive_loss_backward",
        ("dimage_BE", "dtext_BE", "dlog_temperature"), _backward_inputs,
        "image_BE, text_BE, scale, logits_BB, (log_p_BB,), (log_r_BB,) = cache\nB = len(image_BE)",
        (
            "First the logits' gradient. The images' choice gives (P - I) / (2 B), the texts' the "
            "same with R, but turned: log_r_BB is [text, image].",
            "dimage = scale dlogits text, dtext = scale dlogits' image. For the temperature: "
            "logits = exp(-log_temperature) cosines, so d logits / d log_temperature = -logits.",
        ),
        {
            "The texts' direction is not turned back: add the transpose of R - I.":
                _wrong(lambda p, r, eye: (p - eye) + (r - eye)),
            "Only the images' direction is there; the texts' adds to the same logits.":
                _wrong(lambda p, r, eye: p - eye),
            "The diagonal was taken off once; each of the two directions has its own.":
                _wrong(lambda p, r, eye: p + r.T - eye),
            "Each direction counts whole; the loss is their mean, so each counts half.":
                _wrong(lambda p, r, eye: 2 * _both(p, r, eye)),
            "log p stands where P should: take exp of log_p_BB and log_r_BB.":
                _wrong(lambda p, r, eye: _both(np.log(p), np.log(r), eye)),
            "dtext uses dlogits as it stands; it needs the transpose.":
                _wrong(text=lambda ds, c: c[2] * ds @ c[0]),
            "dimage and dtext lack the scale that the cosines were multiplied by.":
                _wrong(image=lambda ds, c: ds @ c[1], text=lambda ds, c: ds.T @ c[0]),
            "dlog_temperature has the wrong sign: a larger temperature makes the logits smaller.":
                _wrong(temperature=lambda ds, c: (ds * c[3]).sum()),
            "dlog_temperature is the gradient by the scale: by its logarithm, -scale times that.":
                _wrong(temperature=lambda ds, c: (ds * c[3]).sum() / c[2]),
            "dlog_temperature is that by the temperature, not by its logarithm: multiply by it.":
                _wrong(temperature=lambda ds, c: -(ds * c[3]).sum() * c[2]),
            "dlog_temperature lacks the scale: use the logits, not the cosines.":
                _wrong(temperature=lambda ds, c: -(ds * c[3]).sum() / c[2]),
            "dloss is missing: the loss may be weighed by what comes after it.": _without_dloss,
        },
        model=(_gradients,),
    ),
)  # fmt: skip
