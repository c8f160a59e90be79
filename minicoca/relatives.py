"""The relatives of CoCa: the settings, the parameters and the draws that each has of its own.

Each is an objective: `loss(params, config, settings, batch)` in the file of its name, in
reference/relatives/ (which has `loss_backward` too) and in engine/relatives/. A batch is a dict of
arrays. All that is random in a step is in it, put there by `draw`: a loss is a function.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from . import params
from .config import PAD, check_field, option
from .params import Spec

_own = partial(option, "objective")


class Constant(Spec):
    """A parameter that begins as a number."""

    def draw(self, rng):
        return np.full(self.shape, self.fill)


@dataclass(frozen=True)
class Relative:
    """The settings of one, and what follows from them; here: as of CoCa, which draws nothing."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))

    def specs(self, config):
        """The tree of Specs. What CoCa has too has CoCa's names, and begins as CoCa's would."""
        return params.specs(config)

    def draw(self, rng, config, batch):
        """The batch with what is random in a step, drawn by a NumPy generator."""
        return batch


@dataclass(frozen=True)
class GPT(Relative):
    """A language model of captions alone (Radford et al. 2018). Batch: tokens [B, T]."""

    tied: bool = _own(False, "the head is the table of tokens, turned")

    def specs(self, config):
        c, depth = config, config.unimodal_layers + config.multimodal_layers
        D = c.text_width
        text = {
            "token": Spec((c.vocabulary, D), D**-0.5 if self.tied else 0.5),
            "position": Spec((c.text_length, D), 0.5),
            "blocks": params.blocks(depth, depth, D, c.text_hidden),
        }
        head = {} if self.tied else {"head": {"weight": params.matrix(D, c.vocabulary)}}
        return {"text": text, "decoder": {"norm": params.norm(D)} | head}


@dataclass(frozen=True)
class SimVLM(Relative):
    """Of a caption the beginning is given and the rest is written (Wang et al. 2021). Batch: images
    [B, I, I, 3], tokens [B, T], prefix [B]: how many tokens are given."""

    def draw(self, rng, config, batch):
        lengths_B = (batch["tokens"] != PAD).sum(1)
        return batch | {"prefix": rng.integers(0, lengths_B)}  # the end, at least, is to be written


@dataclass(frozen=True)
class CapPa(Relative):
    """Most captions are to be written blindly, all words at once (Tschannen et al. 2023). Batch:
    images [B, I, I, 3], tokens [B, T], parallel [B]: which captions."""

    parallel: float = _own(0.75, "part of the captions that is written all at once", part=True)

    def specs(self, config):
        return params.specs(config) | {"word_mask": Spec((config.text_width,), 0.5)}

    def draw(self, rng, config, batch):
        return batch | {"parallel": rng.random(len(batch["tokens"])) < self.parallel}


@dataclass(frozen=True)
class SigLIP(Relative):
    """CoCa with a yes or no for every pair of a batch in place of a softmax (Zhai et al. 2023).
    Batch: images [B, I, I, 3], tokens [B, T]."""

    def specs(self, config):
        """The first bias makes a batch's first loss small: of B answers to an image 1 is yes."""
        tree = params.specs(config) | {"log_temperature": Constant((), -math.log(10))}
        return tree | {"sigmoid_bias": Constant((), -math.log(max(1, config.batch_size - 1)))}


@dataclass(frozen=True)
class Matching(Relative):
    """CoCa with a head that says whether a picture and a caption belong together (Li et al. 2022,
    BLIP). Batch: images [B, I, I, 3], tokens [B, T], noise [2, B] from 0 to 1: which of the texts,
    and of the images, that are alike to a pair are taken for what is not one."""

    matching_weight: float = _own(1.0, "weight of the matching loss")

    def specs(self, config):
        D = config.text_width
        head = {"pooler": params.pooler(1, D, D), "classifier": params.linear(D, 2)}
        return params.specs(config) | {"matching": head}

    def draw(self, rng, config, batch):
        return batch | {"noise": rng.random((2, len(batch["tokens"])))}


RELATIVES = {"gpt": GPT, "simvlm": SimVLM, "cappa": CapPa, "siglip": SigLIP, "matching": Matching}
