"""CoCa's relatives in torch, a file each: `loss(params, config, settings, batch)` -> a dict; and
where that is not CoCa's way, how images and texts are read to be used: `image_features`,
`text_features` and `decoder`, as coca.py has them. `matcher`: of those that learn whether a pair is
one."""

from importlib import import_module

import torch

from ...relatives import drawn, settings_of
from ..answers import questions
from ..vision import normalise
from . import coca

PAIRS = 64  # of an image and a text, read at once


def objective_of(config):
    """What a config learns by: a function of (params, config, batch), whose dict has `loss`."""
    return _questions if config.task != "captions" else by_objective("loss", config)


def by_objective(name, config):
    """The function of this name that a config's objective has, or CoCa's where it has none: of
    (params, config, *what is given)."""
    own, settings = import_module(f".{config.objective}", __name__), settings_of(config)
    function = getattr(own, name, getattr(coca, name, None))
    return lambda params, config, *given: function(params, config, settings, *given)


def inputs(config, step, images, texts, device):
    """What `step` of the objective is given beside images: {name: tensor}. texts: ids, or a dict of
    arrays. step None: to look at, not to learn from."""
    texts = texts if isinstance(texts, dict) else {"tokens": texts}
    more = texts | drawn(config, step, images, texts["tokens"])
    return {name: torch.from_numpy(array).to(device) for name, array in more.items()}


def plain_batch(config, step, images, texts, device, dtype=torch.float32):
    """All of it, with the images as they are: not augmented, with all patches."""
    batch = inputs(config, step, images, texts, device) | {"places": None}
    batch["images"] = torch.from_numpy(images).to(device)
    for name in batch.keys() & {"images", "views"}:
        batch[name] = normalise(batch[name].float() / 255, config).to(dtype)
    return batch


def image_features(params, config, images):
    """Images -> (unit vectors [B, E], what the decoder reads [B, Q, M], the tower's tokens
    [B, S, M]), as the config's objective makes them."""
    return by_objective("image_features", config)(params, config, images)


def text_features(params, config, tokens_BT):
    """Token ids -> (unit vectors [B, E], what the decoder begins with [B, T - 1, D])."""
    return by_objective("text_features", config)(params, config, tokens_BT)


def decoder(params, config):
    """The decoder that writes: {blocks, norm, head}."""
    return by_objective("decoder", config)(params, config)


def match(params, config, images, tokens_RT, image_P, text_P):
    """Whether image and text belong together, of P pairs given by their places: logits [P, 2] of no
    and yes. Each image and each text is read once."""
    matches = by_objective("matcher", config)(params, config, images, tokens_RT)
    parts = zip(image_P.split(PAIRS), text_P.split(PAIRS), strict=True)
    return torch.cat([matches(*part) for part in parts])


def _questions(params, config, batch):
    given = [batch[name] for name in ("images", "tokens", "places")]
    asked = {name: batch[name] for name in ("about", "lengths", "shares")}
    return questions(params, config, *given, **asked)
