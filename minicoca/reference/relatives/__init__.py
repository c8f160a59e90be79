"""CoCa's relatives, a file each: `loss(params, config, settings, batch)` and `loss_backward`."""

from importlib import import_module

import numpy as np

from ...relatives import LOSSES, drawn, settings_of
from ...tuning import kept_tokens
from ..answers import questions, questions_backward
from ..model import encode_image
from ..vision import normalise


def objective_of(config):
    """What a config learns by: (a function of (params, config, batch) that gives a dict, which has
    `loss`, and a cache; a function of (dloss, cache) that gives the parameters' gradients)."""
    if config.task != "captions":
        return _questions, lambda dloss, cache: questions_backward(dloss, cache)[0]
    module, settings = import_module(f".{config.objective}", __name__), settings_of(config)
    return (
        lambda params, config, batch: module.loss(params, config, settings, batch),
        module.loss_backward,
    )


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
