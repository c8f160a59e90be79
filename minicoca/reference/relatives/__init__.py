"""CoCa's relatives, a file each: `loss(params, config, settings, batch)` and `loss_backward`; and
where that is not CoCa's way, how images and texts are read to be used: `image_features`,
`text_features` and `decoder`, as coca.py has them. `matcher`: of those that learn whether a pair is
one."""

from importlib import import_module

import numpy as np

from ...relatives import LOSSES, drawn, settings_of
from ...tuning import kept_tokens
from ..answers import questions, questions_backward
from ..model import encode_image
from ..vision import normalise
from . import coca

PAIRS = 16  # of an image and a text, read at once


def objective_of(config):
    """What a config learns by: (a function of (params, config, batch) that gives a dict, which has
    `loss`, and a cache; a function of (dloss, cache) that gives the parameters' gradients)."""
    if config.task != "captions":
        return _questions, lambda dloss, cache: questions_backward(dloss, cache)[0]
    backward = import_module(f".{config.objective}", __name__).loss_backward
    return by_objective("loss", config), backward


def by_objective(name, config):
    """The function of this name that a config's objective has, or CoCa's where it has none: of
    (params, config, *what is given)."""
    own, settings = import_module(f".{config.objective}", __name__), settings_of(config)
    function = getattr(own, name, getattr(coca, name, None))
    return lambda params, config, *given: function(params, config, settings, *given)


def image_features(params, config, images):
    """Images -> (unit vectors [B, E], what the decoder reads [B, Q, M], the tower's tokens
    [B, S, M]), as the config's objective makes them."""
    return by_objective("image_features", config)(params, config, images)


def text_features(params, config, tokens_BT):
    """Token ids -> (unit vectors [B, E], what the decoder begins with [B, T, D])."""
    return by_objective("text_features", config)(params, config, tokens_BT)


def decoder(params, config):
    """The decoder that writes: {blocks, norm, head}."""
    return by_objective("decoder", config)(params, config)


def match(params, config, images, tokens_RT, image_P, text_P):
    """Whether image and text belong together, of P pairs given by their places: logits [P, 2] of no
    and yes. Each image and each text is read once."""
    matches = by_objective("matcher", config)(params, config, images, tokens_RT)
    parts = [slice(p, p + PAIRS) for p in range(0, len(image_P), PAIRS)]
    return np.concatenate([matches(image_P[part], text_P[part]) for part in parts])


def _questions(params, config, batch):
    given = [batch[name] for name in ("images", "tokens", "places")]
    asked = {name: batch[name] for name in ("about", "lengths", "shares")}
    return questions(params, config, *given, **asked)


def batch_of(config, step, images, texts, locked=None, params=None):
    """What `step` is given, as the objective takes it: a dict of arrays. step None: to look at, not
    to learn from, with all patches. locked: a tuning.Locked of these params, if there is one."""
    texts = texts if isinstance(texts, dict) else {"tokens": texts}
    batch = texts | drawn(config, step, images, texts["tokens"])
    if "views" in batch:
        batch["views"] = normalise(batch["views"], config)
    places = None if step is None else kept_tokens(config, step, len(images))
    if locked:

        def encoded(images):
            return encode_image(params, config, normalise(images, config))[:2]

        return batch | {"images": locked(images, encoded, np.stack), "places": places}
    return batch | {"images": normalise(images, config), "places": places}


def reported(outputs, config):
    """The losses of outputs, as floats; none that weighs nothing."""
    weighed = [name for name in LOSSES if getattr(config, f"{name}_weight", 1)]
    return {n: float(outputs[n]) for n in ("loss", *weighed) if n in outputs}
