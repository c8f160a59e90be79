"""CoCa is a relative like the others, and to the last bit what it was before there were any: its
first weights, what a step makes of them, and what a checkpoint holds."""

import hashlib

import numpy as np
import pytest
import torch
from test_objectives import batch, config_of, trainer_of

from minicoca.config import preset
from minicoca.engine import model as engine
from minicoca.engine import optim
from minicoca.engine.ops import with_own_backend
from minicoca.engine.vision import normalise
from minicoca.params import flatten, initialise, shapes, tree_map
from minicoca.reference import model as reference
from minicoca.reference import optim as reference_optim
from minicoca.reference import vision
from minicoca.relatives import specs_of
from minicoca.training.checkpoint import trainer_of as module_of
from minicoca.tuning import kept_tokens

CONFIGS = {
    "plain": {},
    "of weights": dict(contrastive_weight=0.5, caption_weight=3.0, freeze="text.token"),
    "of poolers": dict(pooler="cascade", embed_width=8, legacy_cls_mask=True),
    "of patches": dict(patch_keep=0.5),
}
# SHA-256 of the first values that the last version without relatives drew, seed 3. The positions of
# the patches are sines, whose last bit is the processor's.
FIRST = {
    "tiny": "29a69f5451a516304d0a82622bc4a882bd0c8c81231ed5dab81d441c53620c85",
    "emoji": "88f22bd864be57adb8d537fa141d68a6b9160bf44d868fd9a79268158f7587c9",
}
# What that version reported of four steps in NumPy: both losses, and the norm.
REPORTED = {
    "adamw": [
        [2.3019173, 3.1066649, 25.0118383], [1.7275949, 3.3712397, 18.6088810],
        [3.5491085, 3.6416522, 25.8427443], [1.1795144, 3.4128876, 14.9562418],
    ],
    "muon": [
        [2.3019173, 3.1066649, 25.0118383], [1.7246571, 3.3778448, 18.5939223],
        [3.4940975, 3.6292627, 26.8537235], [1.1936490, 3.4435899, 14.3651752],
    ],
}  # fmt: skip


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("optimizer", REPORTED)
def test_steps_are_those_of_before(optimizer, backend):
    """To rounding, which is the processor's."""
    trainer = trainer_of(config_of("coca", backend, optimizer=optimizer))
    for step, want in enumerate(REPORTED[optimizer]):
        report = trainer.step(step, *batch(step))
        found = [report[name] for name in ("contrastive", "caption", "gradient_norm")]
        assert found == pytest.approx(want, rel=1e-4), step


@pytest.mark.parametrize("name", FIRST)
def test_first_weights_are_those_of_before(name):
    config, found = preset(name), hashlib.sha256()
    for leaf, value in sorted(flatten(initialise(config, 3, tree=specs_of(config))).items()):
        if leaf != "image.position":
            found.update(leaf.encode() + np.ascontiguousarray(value).tobytes())
    assert found.hexdigest() == FIRST[name]


class Bare:
    """A step of training as CoCa's own functions and an optimiser make it, with nothing between."""

    def __init__(self, config):
        self.config, self.params = config, tree_map(torch.tensor, initialise(config, 3))
        learns = module_of(config).shapes(config)
        for name, leaf in flatten(self.params).items():
            leaf.requires_grad_(f"exp_avg.{name}" in learns)
        self.optimizers = optim.optimizers(self.params, config)

    @with_own_backend
    def step(self, step, images, tokens, places):
        pixels = normalise(torch.from_numpy(images).float() / 255, self.config)
        given = pixels, torch.from_numpy(tokens), places
        outputs = engine.coca(self.params, self.config, *given)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        outputs["loss"].backward()
        optim.clip_by_global_norm(flatten(self.params).values(), self.config.clip_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optim.learning_rate(step, self.config) * group["factor"]
            optimizer.step()
        optim.clamp_temperature(self.params)
        return float(outputs["loss"].detach())

    def weights(self):
        return tree_map(lambda leaf: leaf.detach().numpy(), self.params)


class BareReference:
    def __init__(self, config):
        self.config, self.params = config, initialise(config, 3)
        self.state = reference_optim.start(self.params, config)

    def step(self, step, images, tokens, places):
        given = vision.normalise(images, self.config), tokens, places
        outputs, cache = reference.coca(self.params, self.config, *given)
        gradients = flatten(reference.coca_backward(1.0, cache)[0])
        gradients = {n: g for n, g in gradients.items() if n not in self.config.freeze.split(",")}
        gradients, _ = reference_optim.clip_by_global_norm(gradients, self.config.clip_norm)
        rate = reference_optim.learning_rate(step, self.config)
        moved = reference_optim.optimise(self.params, gradients, self.state, rate, self.config)
        self.params, self.state = reference_optim.clamp_temperature(moved[0]), moved[1]
        return float(outputs["loss"])

    def weights(self):
        return self.params


@pytest.mark.parametrize(("backend", "bare"), [("torch", Bare), ("numpy", BareReference)])
@pytest.mark.parametrize("options", CONFIGS)
def test_a_step_is_cocas_own(options, backend, bare):
    config = config_of("coca", backend, **CONFIGS[options])
    trainer, plain = trainer_of(config), bare(config)
    for step in range(5):
        images, tokens = batch(step)
        places = kept_tokens(config, step, len(images))
        if places is not None and backend == "torch":
            places = torch.from_numpy(places)
        loss = trainer.step(step, images, tokens)["loss"]
        assert loss == plain.step(step, images, tokens, places)
    theirs = flatten(plain.weights())
    for name, value in flatten(trainer.weights()).items():
        assert value.tobytes() == theirs[name].tobytes(), name


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_a_checkpoint_holds_what_it_held(backend):
    """The weights of CoCa, a mean of gradients of each, and a mean of squares where AdamW moves
    it."""
    config = config_of("coca", backend, optimizer="adamw")
    kinds = {"torch": ("params", "exp_avg", "exp_avg_sq"),
             "numpy": ("params", "adam.mean", "adam.square")}[backend]  # fmt: skip
    found = {n: v.shape for n, v in flatten(trainer_of(config).state()).items()}
    own = shapes(initialise(config))
    assert {f"{kind}.{n}": s for kind in kinds for n, s in own.items()}.items() <= found.items()
    rest = found.keys() - {f"{kind}.{n}" for kind in kinds for n in own}
    assert rest == ({"adam.step"} if backend == "numpy" else {f"step.{n}" for n in own})
