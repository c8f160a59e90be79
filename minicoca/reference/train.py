"""One training step in NumPy, and everything a run must keep to go on exactly where it was."""

import math

import numpy as np

from ..params import flatten, tree_map
from ..params import shapes as params_shapes
from ..relatives import specs_of
from ..tuning import by_muon, factors, shares
from .generate import CoCa
from .optim import clamp_temperature, clip_by_global_norm, learning_rate, optimise, start
from .relatives import batch_of, objective_of, reported

PLAIN = {  # what the settings that only the engine serves may be here
    "augment": (0,), "accumulate": (1,), "ema": (0,), "compile": (False,), "recompute": (False,),
    "precision": ("auto", "float32"), "device": ("auto", "cpu"),
}  # fmt: skip


class Trainer:
    """Float32 parameters and their optimizer. What only the engine can do raises ValueError."""

    def __init__(self, params, config):
        for name, plain in PLAIN.items():
            if getattr(config, name) not in plain:
                raise ValueError(f"{name} needs --backend torch; here it is {plain[-1]}")
        self.params, self.config, self.mark, self.locked = params, config, lambda part: None, None
        self.learns = [name for name, factor in factors(params, config).items() if factor]
        self.adam, self.gradients = start(params, config), {}

    def step(self, step, images, texts):
        """Learn from uint8 images [B, I, I, 3] and token ids [B, T]; what happened, as floats.
        If the loss or the gradient is not finite, nothing is changed. texts: as the engine's."""
        self.gradients = {}
        self.mark("forward")
        forward, backward = objective_of(self.config)
        batch = batch_of(self.config, step, images, texts, self.locked, self.params)
        outputs, cache = forward(self.params, self.config, batch)
        self.mark("backward")
        gradients = flatten(backward(1.0, cache))
        gradients = {name: gradients[name] for name in self.learns}
        self.mark("optimiser")
        self.gradients, norm = clip_by_global_norm(gradients, self.config.clip_norm)
        report = reported(outputs, self.config)
        report["gradient_norm"] = norm
        rate = learning_rate(step, self.config)
        if all(math.isfinite(value) for value in report.values()):
            given = self.params, self.gradients, self.adam
            self.params, self.adam = optimise(*given, rate, self.config)
            if "log_temperature" in self.learns:
                self.params = clamp_temperature(self.params)
        report["learning_rate"] = rate
        if "log_temperature" in self.params:
            report["temperature"] = float(np.exp(self.params["log_temperature"]))
        return report

    def tell_parts(self, mark):
        """From now on `mark` is called with the name of each part of a step as it begins."""
        self.mark = mark

    def gradient_shares(self):
        """What part of the last step's squared gradient each branch had; clipping changes none."""
        return shares({name: float(np.vdot(g, g)) for name, g in self.gradients.items()})

    def state(self):
        """Everything that changes from step to step, as a tree of arrays."""
        return {"params": self.params, "adam": self.adam | {"step": np.array(self.adam["step"])}}

    def load(self, tree):
        """Go on from a tree that `state` made."""
        self.params = tree["params"]
        self.adam = tree["adam"] | {"step": int(tree["adam"]["step"])}

    def weights(self):
        """The weights to use and to keep."""
        return tree_map(np.copy, self.params)

    def model(self):
        """The model as it stands, for evaluation."""
        return CoCa(self.params, self.config)


def shapes(config):
    """{name: shape} of what `Trainer.state` gives."""
    own = params_shapes(specs_of(config))
    parts = dict.fromkeys(("params", "adam.mean", "adam.square"), own)
    matrices = by_muon(specs_of(config), config)
    parts["adam.square"] = {name: shape for name, shape in own.items() if name not in matrices}
    found = {f"{part}.{n}": s for part, of in parts.items() for n, s in of.items()}
    return found | {"adam.step": ()}
