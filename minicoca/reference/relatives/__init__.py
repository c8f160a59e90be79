"""CoCa's relatives, a file each: `loss(params, config, settings, batch)` and `loss_backward`."""

from importlib import import_module

from ...relatives import settings_of
from ..answers import questions, questions_backward


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
