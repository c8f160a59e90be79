"""One training step in torch, and everything a run must keep to go on exactly where it was."""

import math

import torch

from ..config import PAD
from ..params import flatten, specs, stream, tree_map, unflatten
from ..params import shapes as params_shapes
from ..tuning import by_muon, factors, kept_tokens, shares
from .answers import questions
from .augment import augment
from .generate import CoCa
from .losses import contrastive_loss
from .model import coca, encode_image, encode_text, total_loss
from .ops import complaint, pick_device, pick_dtype, use, with_own_backend
from .optim import clamp_temperature, clip_by_global_norm, learning_rate, optimizers
from .precision import in_type
from .vision import normalise

LOSSES = ("loss", "contrastive", "caption", "answer")
KEPT = ("exp_avg", "exp_avg_sq", "step")  # as torch calls them; Muon has the first alone


class Trainer:
    """Parameters in float32, gradients, optimizers. `params` is a tree of NumPy arrays."""

    def __init__(self, params, config):
        self.config, self.device = config, pick_device(config.device)
        self.dtype = pick_dtype(config.precision, self.device)
        with use(config.backend):
            self.complaint = complaint() if self.device.type == "cuda" else ""
        self.params = tree_map(lambda a: torch.tensor(a, device=self.device), params)
        self.leaves = flatten(self.params)
        for name, factor in factors(self.params, config).items():
            self.leaves[name].requires_grad_(factor > 0)
        self.optimizers = optimizers(self.params, config)
        # What torch would make at the first step, so that a checkpoint holds the same arrays
        # whenever it is written.
        self.moments, names = {}, {id(leaf): name for name, leaf in self.leaves.items()}
        for optimizer in self.optimizers:
            for leaf in (p for group in optimizer.param_groups for p in group["params"]):
                own = {"exp_avg": torch.zeros_like(leaf, memory_format=torch.preserve_format)}
                if isinstance(optimizer, torch.optim.AdamW):
                    own |= {"exp_avg_sq": torch.zeros_like(own["exp_avg"])}
                    own |= {"step": torch.zeros((), device=self.device)}
                self.moments[names[id(leaf)]] = optimizer.state[leaf] = own
        self.ema = tree_map(lambda p: p.detach().clone(), self.params) if config.ema else None
        self.mark = lambda part: None
        objective = coca if config.task == "captions" else questions
        self.objective = torch.compile(objective) if config.compile else objective

    @with_own_backend
    def step(self, step, images, texts):
        """Learn from uint8 images [B, I, I, 3] and token ids [B, T], both NumPy; what happened, as
        floats. If the loss or the gradient is not finite, nothing is changed.

        texts: ids, or a dict of arrays, `tokens` and what else the objective takes by name.
        """
        self.mark("forward")
        batch = self.batch(step, images, texts)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        losses = self._gradients(**batch)
        self.mark("optimiser")
        norm = clip_by_global_norm(self.leaves.values(), self.config.clip_norm)
        report = {k: float(v) for k, v in losses.items()} | {"gradient_norm": float(norm)}
        rate = learning_rate(step, self.config)
        if all(map(math.isfinite, report.values())):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["factor"]
                optimizer.step()
            if self.leaves["log_temperature"].requires_grad:
                clamp_temperature(self.params)
            if self.ema:  # less of an average at first, when the weights are still anything
                decay = min(self.config.ema, (1 + step) / (10 + step))
                new = [p.detach() for p in self.leaves.values()]
                torch._foreach_lerp_(list(flatten(self.ema).values()), new, 1 - decay)
        temperature = float(self.params["log_temperature"].detach().exp())
        return report | {"learning_rate": rate, "temperature": temperature}

    def tell_parts(self, mark):
        """From now on `mark` is called with the name of each part of a step as it begins."""
        self.mark = mark

    def batch(self, step, images, texts):
        """What `step` is given, as the objective takes it: {name: tensor}. step None: to look at,
        not to learn from, so not augmented, and with all patches."""
        texts = texts if isinstance(texts, dict) else {"tokens": texts}
        batch = {name: torch.from_numpy(array).to(self.device) for name, array in texts.items()}
        places = None if step is None else kept_tokens(self.config, step, len(images))
        if places is not None:
            places = torch.from_numpy(places).to(self.device)
        return batch | {"images": self._images(step, images), "places": places}

    def gradient_shares(self):
        """What part of the last step's squared gradient each branch of the model had (`shares`).
        Clipping scales all of it alike."""
        own = {name: leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}
        norms = torch._foreach_norm(list(own.values())) if own else []
        squares = torch.stack(norms).double().square().tolist() if own else []
        return shares(dict(zip(own, squares, strict=True)))

    def _images(self, step, images):
        """To float, augmented, normalised, in the compute type."""
        config = self.config
        images = torch.from_numpy(images).to(self.device).float() / 255
        if config.augment and step is not None:
            images = augment(images, config.augment, stream("augment", config.seed, step))
        return normalise(images, config).to(self.dtype)

    def _compute_params(self):
        return in_type(self.params, self.dtype)

    def _gradients(self, images, tokens, places=None, **more):
        if self.config.accumulate <= 1:
            params = self._compute_params()
            outputs = self.objective(params, self.config, images, tokens, places, **more)
            self.mark("backward")
            _backward(outputs["loss"])
            return {k: outputs[k].detach() for k in LOSSES if k in outputs}
        return self._accumulated(images, tokens, places)

    def _accumulated(self, images, tokens, places):
        """The same gradient in micro-batches (Gao et al. 2021, gradient caching).

        The contrastive loss compares all pairs, so all embeddings come first, without their graphs;
        its gradient with respect to them is then fed to each micro-batch as it is run again.
        """
        config, parts = self.config, min(self.config.accumulate, len(tokens))
        batches = list(zip(images.chunk(parts), tokens.chunk(parts), strict=True))
        kept = [None] * len(batches) if places is None else places.chunk(parts)
        losses, dimage, dtext = {}, None, None
        if config.contrastive_weight:
            params = self._compute_params()
            with torch.no_grad():
                pairs = [
                    (encode_image(params, config, x, p)[0], encode_text(params, config, t)[0])
                    for (x, t), p in zip(batches, kept, strict=True)
                ]
            image, text = (torch.cat(side).requires_grad_() for side in zip(*pairs, strict=True))
            losses["contrastive"] = contrastive_loss(image, text, params["log_temperature"])
            (config.contrastive_weight * losses["contrastive"]).backward()
            dimage, dtext = image.grad.chunk(parts), text.grad.chunk(parts)
        targets = (tokens[:, 1:] != PAD).sum().clamp(min=1)
        for i, (x, t) in enumerate(batches):
            self.mark("forward")
            outputs = self.objective(self._compute_params(), config, x, t, kept[i])
            objective = 0
            if dimage:
                objective = (outputs["image"] * dimage[i]).sum() + (
                    outputs["text"] * dtext[i]
                ).sum()
            if config.caption_weight:
                caption = outputs["caption"] * ((t[:, 1:] != PAD).sum() / targets)
                objective = objective + config.caption_weight * caption
                losses["caption"] = losses.get("caption", 0) + caption.detach()
            self.mark("backward")
            _backward(objective)
        losses = {k: v.detach() for k, v in losses.items()}
        return {"loss": total_loss(losses, config)} | losses

    def state(self):
        """Everything that changes from step to step, as a tree of NumPy arrays of `shapes`."""
        flat = {"params": self.leaves} | {
            key: {name: own[key] for name, own in self.moments.items() if key in own}
            for key in KEPT
        }
        if self.ema:
            flat["ema"] = flatten(self.ema)
        return {name: unflatten(_numpy(part)) for name, part in flat.items()}

    @torch.no_grad()
    def load(self, tree):
        """Go on from a tree that `state` made."""
        for name, value in flatten(tree["params"]).items():
            self.leaves[name].copy_(torch.from_numpy(value))
        for key in KEPT:
            for name, value in flatten(tree[key]).items():
                self.moments[name][key].copy_(torch.from_numpy(value))
        if self.ema:
            for name, value in flatten(tree["ema"]).items():
                flatten(self.ema)[name].copy_(torch.from_numpy(value))

    def weights(self):
        """The weights to use and to keep, as a tree of NumPy arrays: averaged, where EMA is on."""
        return unflatten(_numpy(flatten(self.ema) if self.ema else self.leaves))

    def model(self):
        """The model as it stands, for evaluation."""
        return CoCa(self.weights(), self.config)


def shapes(config):
    """{name: shape} of what `Trainer.state` gives."""
    own = params_shapes(specs(config))
    moved = {n: own[n] for n, factor in factors(specs(config), config).items() if factor}
    squared = {n: s for n, s in moved.items() if n not in by_muon(own, config)}
    parts = {
        "params": own,
        "exp_avg": moved,
        "exp_avg_sq": squared,
        "step": dict.fromkeys(squared, ()),
    }
    parts |= {"ema": own} if config.ema else {}
    return {f"{part}.{name}": shape for part, of in parts.items() for name, shape in of.items()}


def _backward(objective):
    if objective.requires_grad:  # else the losses reach nothing that learns
        objective.backward()


def _numpy(leaves):
    return {name: leaf.detach().float().cpu().numpy().copy() for name, leaf in leaves.items()}
