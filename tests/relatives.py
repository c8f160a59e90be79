"""Every relative with its settings, as the tests run them: both sides behind one face."""

import importlib

import numpy as np
import torch
from strategies import model_and_batch

from minicoca.params import flatten, initialise, tree_map, unflatten
from minicoca.relatives import RELATIVES

MAE = {"decoder_width": 8}
WIDE = {"image_width": 20}
ONE_WIDTH = {"image_width": 12, "text_width": 12}
CONVOLVED = {"image_width": 20, "image_heads": 2, "image_size": 8, "patch_size": 2}
# What they cannot do without.
FIXED = {
    "mae": {"stem": "plain"},
    "simmim": {"stem": "plain"},
    "resnet": CONVOLVED,
    "vlmo": ONE_WIDTH | {"embed_width": 0},
}
# What is tried of each: settings of its own, and of the config.
CASES = {
    "coca": [({}, {})],
    "gpt": [({}, {}), ({"tied": True}, {"gelu": "exact"})],
    "simvlm": [({}, {}), ({}, {"pooler": "shared", "multimodal_mlps": 2})],
    "cappa": [({}, {}), ({"parallel_part": 0.5}, {"pooler": "none"})],
    "siglip": [({}, {}), ({}, {"embed_width": 22, "caption_weight": 0.0, "pooler": "parallel"})],
    "matching": [({}, {}), ({"matching_weight": 0.4}, {"pooler": "none", "embed_width": 22})],
    "simclr": [({"width": 9, "temperature": 0.7}, {}), ({}, {"stem": "clip"})],
    "mae": [
        (MAE, {}),
        (MAE | {"normalise_patches": True, "masked": 0.3}, {"gelu": "exact"}),
        (MAE | {"mask_tokens": True}, {}),
    ],
    "simmim": [({}, {}), ({"masked": 1.0}, {})],
    "resnet": [
        ({"stages": 2}, WIDE),
        ({"stages": 2, "depth": 2, "transformer": True, "attention_pool": True}, WIDE),
        ({"stages": 2, "stem_pools": 1}, WIDE | {"image_size": 8, "pooler": "shared"}),
    ],
    "vlmo": [
        ({"masked": 0.4}, ONE_WIDTH),
        ({"masked": 0.4, "experts": 3, "capacity": 0.8, "balance_weight": 0.3}, ONE_WIDTH),
        ({"experts": 2, "capacity": 0.0}, ONE_WIDTH),
    ],
}
ALL = [(name, own, options) for name, cases in CASES.items() for own, options in cases]


def side(which, name):
    """The module of a relative in the reference or the engine."""
    return importlib.import_module(f"minicoca.{which}.relatives.{name}")


def given(name, config, seed, batch=4, **own):
    """(settings, float64 params away from their first zeros and ones, batch): two captions are
    equal, and two views of every image are different images."""
    settings, rng = RELATIVES[name](**own), np.random.default_rng(seed)
    params = initialise(config, seed, np.float64, settings.specs(config))
    params = tree_map(lambda a: a + 0.2 * rng.standard_normal(a.shape), params)
    _, images, tokens = model_and_batch(config, seed, batch)
    tokens[-1] = tokens[-2]
    views = rng.standard_normal((2, *images.shape))
    drawn = settings.draw(rng, config, {"images": images, "tokens": tokens})
    return settings, params, drawn | {"views": views}


def by_reference(name, params, config, settings, batch):
    """({name: value}, {name: gradient})."""
    module = side("reference", name)
    outputs, cache = module.loss(params, config, settings, batch)
    return outputs, flatten(module.loss_backward(1.0, cache))


def by_engine(name, params, config, settings, batch):
    """The same, by torch; a leaf that no loss reads has a gradient of 0."""
    leaves = {k: torch.tensor(v, requires_grad=True) for k, v in flatten(params).items()}
    tensors = {k: torch.tensor(v) for k, v in batch.items()}
    outputs = side("engine", name).loss(unflatten(leaves), config, settings, tensors)
    outputs["loss"].backward()
    grads = {k: np.zeros(v.shape) if v.grad is None else v.grad.numpy() for k, v in leaves.items()}
    return {k: v.detach().numpy() for k, v in outputs.items()}, grads


SIDES = {"reference": by_reference, "engine": by_engine}


def value(which, name, params, config, settings, batch, output="loss"):
    """One output of a side, a float or an array."""
    return SIDES[which](name, params, config, settings, batch)[0][output]


def on(check, *given_, **own):
    """A check of these arguments, as a row of planted bugs names it."""

    def run():
        check(*given_, **own)

    return run
