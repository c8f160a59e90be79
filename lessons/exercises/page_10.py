"""Exercises of page 10."""

from dataclasses import replace

import numpy as np

from minicoca.config import preset
from minicoca.params import initialise, tree_map
from minicoca.reference.losses import caption_loss, contrastive_loss
from minicoca.reference.ops import l2_normalise, linear
from minicoca.reference.pooling import pool
from minicoca.reference.text import multimodal_decoder, unimodal_decoder
from minicoca.reference.vision import image_encoder

from ..exercise import Exercise, distinct

PIECES = """import numpy as np  # noqa: F401

from minicoca.reference.losses import caption_loss, contrastive_loss
from minicoca.reference.ops import l2_normalise, linear
from minicoca.reference.pooling import pool
from minicoca.reference.text import multimodal_decoder, unimodal_decoder
from minicoca.reference.vision import image_encoder"""


def _adamw_inputs(rng):
    D, F = distinct(rng, 2)
    params = {
        "weight": rng.standard_normal((D, F)),
        "bias": rng.standard_normal(F),
        "log_temperature": np.array(rng.uniform(-3, -1)),
    }
    gradients, mean = (
        tree_map(lambda p: np.array(rng.standard_normal(p.shape)), params) for _ in range(2)
    )
    square = tree_map(lambda p: np.array(rng.random(p.shape) + 0.1), params)
    state = {"mean": mean, "square": square, "step": int(rng.integers(1, 6))}
    b1, b2 = rng.uniform(0.5, 0.9), rng.uniform(0.9, 0.95)
    config = preset("tiny", beta1=b1, beta2=b2, epsilon=0.01, weight_decay=0.3)
    return params, gradients, state, rng.uniform(0.05, 0.1), config


def _adamw(move, coupled=False, lag=0, keep=False, power=2, stored=None, news=(False, False)):
    """adamw with another move(p, mhat, shat, rate, decay, config), or other moments, or with
    stored(state, b1, b2) instead of what the state should hold."""

    def wrong(params, gradients, state, rate, config):
        step, b1, b2 = state["step"] + 1 - lag, config.beta1, config.beta2
        if coupled:  # the decay goes through the gradient
            gradients = tree_map(lambda g, p: g + _decay(p, config) * p, gradients, params)
        a1, a2 = (1 if whole else 1 - b for whole, b in zip(news, (b1, b2), strict=True))
        mean = tree_map(lambda m, g: b1 * m + a1 * g, state["mean"], gradients)
        square = tree_map(lambda s, g: b2 * s + a2 * g**power, state["square"], gradients)
        used = (state["mean"], state["square"]) if keep else (mean, square)

        def moved(p, m, s):
            mhat, shat = m / (1 - b1**step), s / (1 - b2**step)
            return move(p, mhat, shat, rate, 0 if coupled else _decay(p, config), config)

        with np.errstate(invalid="ignore"):  # where the "squares" are negative
            new = tree_map(moved, params, *used)
        after = {"mean": mean, "square": square, "step": state["step"] + 1}
        return new, stored(after, b1, b2) if stored else after

    return wrong


def _betas_exchanged(params, gradients, state, rate, config):
    config = replace(config, beta1=config.beta2, beta2=config.beta1)
    return _adamw(_right)(params, gradients, state, rate, config)


def _weights_exchanged(params, gradients, state, rate, config):
    """b and 1 - b in each other's places in both means; the correction as it is."""
    turned = replace(config, beta1=1 - config.beta1, beta2=1 - config.beta2)
    _, after = _adamw(_right)(params, gradients, state, rate, turned)
    b1, b2, step = config.beta1, config.beta2, after["step"]

    def moved(p, m, s):
        m, s = m / (1 - b1**step), s / (1 - b2**step)
        return _right(p, m, s, rate, _decay(p, config), config)

    return tree_map(moved, params, after["mean"], after["square"]), after


def _old_step(state, b1, b2):
    return state | {"step": state["step"] - 1}


def _stored_corrected(state, b1, b2):
    mean, square = (
        tree_map(lambda x, b=b: x / (1 - b ** state["step"]), state[name])
        for name, b in (("mean", b1), ("square", b2))
    )
    return state | {"mean": mean, "square": square}


def _decay(p, config):
    return config.weight_decay if p.ndim >= 2 else 0.0


def _right(p, m, s, rate, decay, c):
    return p - rate * (m / (np.sqrt(s) + c.epsilon) + decay * p)


def _epsilon_inside(p, m, s, rate, decay, c):
    return p - rate * (m / np.sqrt(s + c.epsilon) + decay * p)


def _uncorrected(params, gradients, state, rate, config):
    late = _adamw(_right)(params, gradients, state | {"step": 10**6}, rate, config)
    return late[0], late[1] | {"step": state["step"] + 1}


def _coca_inputs(rng):
    B, T, V = distinct(rng, 3, 4)
    sizes = dict(image_size=8, patch_size=4, image_width=8, image_layers=1, image_hidden=12)
    sizes |= dict(text_width=8, text_hidden=12, image_heads=2, text_heads=2, pooler_heads=2)
    sizes |= dict(pooler="cascade", caption_queries=3, text_length=12, vocabulary=int(V) + 4)
    weights = dict(contrastive_weight=rng.uniform(0.5, 0.9), caption_weight=rng.uniform(2.1, 3))
    config = preset("tiny", **sizes, **weights)
    params = initialise(config, int(rng.integers(1000)), float)
    params["log_temperature"] = np.array(rng.uniform(-2, -1))
    tokens = rng.integers(4, V + 4, (B, T))
    tokens[:, 0], tokens[0, -2:], tokens[1, -1] = 1, (2, 0), 2  # one row is full, one is not
    return params, config, rng.standard_normal((B, 8, 8, 3)), tokens


def _same(x):
    return x


def _ours(config):
    return config.contrastive_weight, config.caption_weight


def _coca(unit=("image", "text"), targets=lambda t: t[:, 1:], temperature=_same, read=_same,
          reads_memory=True, weights=_ours, asked=slice(None, -1)):  # fmt: skip
    """coca with one of its steps put wrong."""

    def wrong(params, config, images, tokens):
        patches, _ = image_encoder(images, params["image"], config)
        contrast, memory, _ = pool(patches, params["pooler"], config)
        x, cls, _ = unimodal_decoder(read(tokens), params["text"], config)
        image = l2_normalise(contrast)[0] if "image" in unit else contrast
        text = l2_normalise(cls)[0] if "text" in unit else cls
        contrastive, _ = contrastive_loss(image, text, temperature(params["log_temperature"]))
        memory = memory if reads_memory else patches
        x = x[:, asked] if x.shape[1] == tokens.shape[1] else x
        n, _ = multimodal_decoder(x, memory, params["decoder"], config)
        logits, _ = linear(n, params["decoder"]["head"])
        caption, _ = caption_loss(logits, targets(tokens))
        a, b = weights(config)
        outputs = {"loss": a * contrastive + b * caption, "contrastive": contrastive}
        return outputs | {"caption": caption, "image": image, "text": text, "logits": logits}

    return wrong


EXERCISES = (
    Exercise(
        "10a", 2, 15, "one step of AdamW", "minicoca.reference.optim:adamw",
        ("params", "state"), _adamw_inputs,
        'step = state["step"] + 1\n'
        "b1, b2 = config.beta1, config.beta2  # also: config.epsilon, config.weight_decay\n"
        '# return the new params, {"mean": ..., "square": ..., "step": step}',
        (
            'Lines (1) and (2) are a tree_map each, of state["mean"] or state["square"] and '
            "gradients. Lines (3) and (4) are one tree_map of params and the two new means.",
            "Write move(p, m, s): correct m and s by 1 - b1**step and 1 - b2**step; the decay is "
            "config.weight_decay if p.ndim >= 2 else 0; return (4).",
        ),
        {
            "The means are not corrected for their start from 0: divide by 1 - beta**step.":
                _uncorrected,
            "The correction uses the number of the step before; n is that of this step, from 1.":
                _adamw(_right, lag=1),
            "The state keeps the old step; store the number of this step, from 1.":
                _adamw(_right, stored=_old_step),
            "The corrected means were stored; store m and s uncorrected.":
                _adamw(_right, stored=_stored_corrected),
            "s is the mean of g; it should be that of g squared.": _adamw(_right, power=1),
            "epsilon stands inside the root; add it after the root.": _adamw(_epsilon_inside),
            "The decay has the wrong sign: it should pull p towards 0.":
                _adamw(lambda p, m, s, rate, decay, c: _right(p, m, s, rate, -decay, c)),
            "Vectors and numbers decay too; only matrices should (p.ndim >= 2).":
                _adamw(lambda p, m, s, rate, decay, c: _right(p, m, s, rate, c.weight_decay, c)),
            "Nothing decays: decay times p belongs beside the divided mean, for matrices.":
                _adamw(lambda p, m, s, rate, decay, c: _right(p, m, s, rate, 0, c)),
            "The decay was added to the gradient; it belongs outside of the division.":
                _adamw(_right, coupled=True),
            "The decay is not multiplied by the rate.":
                _adamw(lambda p, m, s, rate, decay, c: _right(p, m, s, rate, decay / rate, c)),
            "The root is missing: divide by the root of the mean square.":
                _adamw(lambda p, m, s, rate, decay, c: _right(p, m, s * s, rate, decay, c)),
            "The step was made with the old means; update them first.":
                _adamw(_right, keep=True),
            "The step goes uphill: p minus rate times the divided mean, not plus.":
                _adamw(lambda p, m, s, rate, decay, c: _right(p, -m, s, rate, decay, c)),
            "The step and the decay have the wrong sign: p - rate (...), not p + rate (...).":
                _adamw(lambda p, m, s, rate, decay, c: 2 * p - _right(p, m, s, rate, decay, c)),
            "beta1 and beta2 are exchanged: beta1 is the mean's, beta2 the square's.":
                _betas_exchanged,
            "The new g needs the factor 1 - beta1 in the mean.": _adamw(_right, news=(True, False)),
            "The new g^2 needs the factor 1 - beta2 in the square.":
                _adamw(_right, news=(False, True)),
            "beta weighs the old mean and 1 - beta the new g, not the other way round.":
                _weights_exchanged,
            "epsilon is missing.": _adamw(
                lambda p, m, s, rate, decay, c: p - rate * (m / np.sqrt(s) + decay * p)),
            "The decay is not multiplied by p.": _adamw(
                lambda p, m, s, rate, decay, c: _right(p, m, s, rate, 0, c) - rate * decay),
            "The rate multiplies the decay only; the divided mean needs it too.": _adamw(
                lambda p, m, s, rate, decay, c: _right(p, m / rate, s, rate, decay, c)),
            "Matrices do not decay but vectors do: it is the other way round.": _adamw(
                lambda p, m, s, rate, decay, c: _right(
                    p, m, s, rate, 0 if decay else c.weight_decay, c)),
        },
        imports="import numpy as np\n\nfrom minicoca.params import tree_map", in_place=True,
    ),
    Exercise(
        "10b", 3, 30, "CoCa's forward, from its pieces", "minicoca.reference.model:coca",
        ("outputs",), _coca_inputs,
        "# the pieces; each returns its results and, last, a cache:\n"
        '# image_encoder(images, params["image"], config) -> tokens, cache\n'
        '# pool(tokens, params["pooler"], config) -> contrast, memory, cache\n'
        '# unimodal_decoder(ids, params["text"], config) -> tokens, CLS, cache\n'
        '# multimodal_decoder(x, memory, params["decoder"], config) -> n, cache\n'
        '# linear(n, params["decoder"]["head"]) -> logits, cache\n'
        "# l2_normalise(x) -> x of length 1, cache; each loss -> loss, cache\n"
        "# return the dict alone: loss, contrastive, caption, image, text, logits",
        (
            "pool gives (contrast [B, D], memory, cache), unimodal_decoder (token outputs, CLS, "
            "cache). The contrast and CLS become image and text by l2_normalise.",
            "The multimodal decoder reads x_BTD[:, :-1] and the memory; the head's logits are "
            "compared with tokens_BT[:, 1:]. The unimodal half reads all tokens.",
            "loss = config.contrastive_weight * contrastive + config.caption_weight * caption; "
            'contrastive_loss takes params["log_temperature"] as it is.',
        ),
        {
            "The labels are not shifted: the output at t should be compared with token t + 1.":
                _coca(targets=lambda t: t[:, :-1]),
            "image and text do not have length 1: l2_normalise them.":
                _coca(unit=()),
            "image is not of length 1: l2_normalise the pooled contrast.": _coca(unit=("text",)),
            "text is not of length 1: l2_normalise CLS.": _coca(unit=("image",)),
            "The first token was left out of the decoder, not the last.":
                _coca(asked=slice(1, None)),
            "The temperature was made of its logarithm too early; the loss does that itself.":
                _coca(temperature=np.exp),
            "The unimodal half lost the last token; only the multimodal half leaves it out.":
                _coca(read=lambda t: t[:, :-1]),
            "The decoder reads the encoder's tokens; it should read the pooled memory.":
                _coca(reads_memory=False),
            "The losses are added without the weights of the config.":
                _coca(weights=lambda config: (1, 1)),
            "The weights 1 and 2 are the paper's; take those of the config.":
                _coca(weights=lambda config: (1, 2)),
            "caption_weight is not always 2; take that of the config.":
                _coca(weights=lambda config: (config.contrastive_weight, 2)),
            "contrastive_weight is missing; it is not always 1.":
                _coca(weights=lambda config: (1, config.caption_weight)),
        },
        imports=PIECES,
    ),
)  # fmt: skip
