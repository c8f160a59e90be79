"""CoCa's relatives in torch, a file each: `loss(params, config, settings, batch)` -> a dict."""

from importlib import import_module

from ...relatives import settings_of
from ..answers import questions


def objective_of(config):
    """What a config learns by: a function of (params, config, batch), whose dict has `loss`."""
    if config.task != "captions":
        return _questions
    loss, settings = import_module(f".{config.objective}", __name__).loss, settings_of(config)
    return lambda params, config, batch: loss(params, config, settings, batch)


def _questions(params, config, batch):
    given = [batch[name] for name in ("images", "tokens", "places")]
    asked = {name: batch[name] for name in ("about", "lengths", "shares")}
    return questions(params, config, *given, **asked)
