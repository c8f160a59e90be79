"""One training step in torch, and everything a run must keep to go on exactly where it was."""

import math
from functools import partial

import torch

from .. import relatives
from ..config import END, PAD, START, UNKNOWN
from ..params import flatten, stream, tree_map, unflatten
from ..params import shapes as params_shapes
from ..ranks import ALONE
from ..relatives import specs_of
from ..tuning import by_muon, factors, kept_tokens, shares
from .augment import augment
from .distributed import as_parts, own, shared, syncing, whole
from .generate import CoCa
from .losses import contrastive_loss
from .model import coca, encode_image, encode_text, total_loss
from .ops import complaint, pick_device, pick_dtype, use, with_own_backend
from .optim import clamp_temperature, clip_by_global_norm, learning_rate, optimizers
from .precision import in_type
from .relatives import inputs, objective_of
from .vision import normalise

LOSSES = ("loss", *relatives.LOSSES)
KEPT = ("exp_avg", "exp_avg_sq", "step")  # as torch calls them; Muon has the first alone


class Trainer:
    """Parameters in float32, gradients, optimizers. `params` is a tree of NumPy arrays.

    ranks: the processes of the run (ranks.py). Each has its own rows of a batch, and
    together they do what one would do with all of it; all of them call each method.
    """

    def __init__(self, params, config, ranks=ALONE):
        self.config, self.device, self.ranks = config, pick_device(config.device), ranks
        self.dtype = pick_dtype(config.precision, self.device)
        with use(config.backend):
            self.complaint = complaint() if self.device.type == "cuda" else ""
        self.params = tree_map(lambda a: torch.tensor(a, device=self.device), params)
        self.leaves = flatten(self.params)
        objective = objective_of(config)
        self.objective = torch.compile(objective) if config.compile else objective
        for name, factor in factors(self.params, config).items():
            self.leaves[name].requires_grad_(factor > 0)
        if ranks.world > 1:
            self._without_idle()
            self.module, self.params = shared(self.params, config.parallel)
            self.leaves = flatten(self.params)
        self.optimizers = optimizers(self.params, config, ranks)
        # What torch would make at the first step, so that a checkpoint holds the same arrays
        # whenever it is written.
        self.moments, names = {}, {id(leaf): name for name, leaf in self.leaves.items()}
        for optimizer in self.optimizers:
            for leaf in (p for group in optimizer.param_groups for p in group["params"]):
                moments = {"exp_avg": torch.zeros_like(leaf, memory_format=torch.preserve_format)}
                if isinstance(optimizer, torch.optim.AdamW):
                    moments |= {"exp_avg_sq": torch.zeros_like(moments["exp_avg"])}
                    moments |= {"step": torch.zeros((), device=self.device)}
                self.moments[names[id(leaf)]] = optimizer.state[leaf] = moments
        self.ema = tree_map(lambda p: p.detach().clone(), self.params) if config.ema else None
        self.mark, self.locked = lambda part: None, None  # or a tuning.Locked

    @with_own_backend
    def step(self, step, images, texts):
        """Learn from uint8 images [B, I, I, 3] and token ids [B, T], both NumPy; what happened, as
        floats. If the loss or the gradient is not finite, nothing is changed.

        texts: ids, or a dict of arrays, `tokens` and what else the objective takes by name.
        """
        self.mark("forward")
        batch = self.batch(step, images, texts)
        if self.locked:
            batch["images"] = self.locked(images, self._encoded, torch.stack)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        losses = self._gradients(batch)
        self.mark("optimiser")
        if self.ranks.world > 1 and self.config.parallel == "fsdp":
            self._sum_scalars()
        norm = clip_by_global_norm(self.leaves.values(), self.config.clip_norm)
        report = {k: float(v) for k, v in losses.items()} | {"gradient_norm": float(norm)}
        rate = learning_rate(step, self.config)
        if all(map(math.isfinite, report.values())):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["factor"]
                optimizer.step()
            if "log_temperature" in self.leaves and self.leaves["log_temperature"].requires_grad:
                clamp_temperature(self.params)
            if self.ema:  # less of an average at first, when the weights are still anything
                decay = min(self.config.ema, (1 + step) / (10 + step))
                averages = [own(p) for p in flatten(self.ema).values()]
                new = [own(p.detach()) for p in self.leaves.values()]
                torch._foreach_lerp_(averages, new, 1 - decay)
        report["learning_rate"] = rate
        if "log_temperature" in self.params:
            report["temperature"] = float(self.params["log_temperature"].detach().exp())
        return report

    def tell_parts(self, mark):
        """From now on `mark` is called with the name of each part of a step as it begins."""
        self.mark = mark

    def batch(self, step, images, texts):
        """What `step` is given, as the objective takes it: {name: tensor}."""
        batch = inputs(self.config, step, images, texts, self.device)
        if "views" in batch:
            batch["views"] = self._pixels(batch["views"])
        # What is drawn is drawn for all rows of the batch.
        rows = [n for [n] in self.ranks.table(len(images))]
        first, whole = sum(rows[: self.ranks.rank]), sum(rows)
        places = kept_tokens(self.config, step, whole)
        if places is not None:
            places = torch.from_numpy(places[first : first + len(images)]).to(self.device)
        return batch | {"images": self._images(step, images, (first, whole)), "places": places}

    def gradient_shares(self):
        """What part of the last step's squared gradient each branch of the model had (`shares`).
        Clipping scales all of it alike."""
        found = {name: leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}
        norms = torch._foreach_norm([own(g) for g in found.values()]) if found else []
        squares = torch.stack(norms).double().square() if found else torch.zeros(0)
        parted = [own(g) is not g for g in found.values()]  # by FSDP2
        if any(parted):
            parted = torch.tensor(parted, device=squares.device)
            squares = torch.where(parted, self.ranks.sum(squares), squares)
        return shares(dict(zip(found, squares.tolist(), strict=True)))

    def _images(self, step, images, place=None):
        """To float, augmented as at their place in the batch, normalised, in the compute type."""
        config = self.config
        images = torch.from_numpy(images).to(self.device)
        if not config.augment or step is None:  # None: to be read, not learned from
            return self._pixels(images)
        rng = stream("augment", config.seed, step)
        return self._pixels(augment(images.float() / 255, config.augment, rng, place))

    def _pixels(self, images):
        images = images if images.is_floating_point() else images.float() / 255
        return normalise(images, self.config).to(self.dtype)

    def _encoded(self, images):
        """What encode_image makes of images; without image tokens where nothing reads them."""
        pixels = self._images(None, images)
        image_BE, memory = encode_image(self._compute_params(), self.config, pixels)
        reads = self.config.caption_weight or self.config.objective != "coca"
        return image_BE, memory if reads else memory[:, :0]

    def _compute_params(self):
        return in_type(self.params, self.dtype)

    def _gradients(self, batch):
        if self.config.accumulate <= 1 and self.ranks.world == 1:
            outputs = self.objective(self._compute_params(), self.config, batch)
            self.mark("backward")
            _backward(outputs["loss"])
            return {k: outputs[k].detach() for k in LOSSES if k in outputs}
        return self._in_parts(batch["images"], batch["tokens"], batch["places"])

    def _in_parts(self, images, tokens, places):
        """The same gradient from parts of a batch: micro-batches, processes, or both.

        The contrastive loss compares all pairs. With micro-batches all embeddings come first,
        without their graphs; its gradient with respect to them is then fed to each micro-batch as
        it is run again (Gao et al. 2021, gradient caching). The captioning loss is a mean over the
        tokens of all parts, so each part counts by its own.
        """
        config, ranks = self.config, self.ranks
        # Of each process: its pairs, and the tokens that it learns to write.
        table = ranks.table(len(tokens), int((tokens[:, 1:] != PAD).sum()))
        counts, targets = [rows for rows, _ in table], max(1, sum(words for _, words in table))
        parts = max(1, min(config.accumulate, *counts))
        kept = [None] * parts if places is None else places.tensor_split(parts)
        batches = list(
            zip(images.tensor_split(parts), tokens.tensor_split(parts), kept, strict=True)
        )
        contrast, losses = partial(contrastive_loss, ranks=ranks, counts=counts), {}
        contrasts = [contrast] * parts
        if config.contrastive_weight and parts > 1:
            losses["contrastive"], contrasts = self._cached(batches, contrast)

        def forward(x, t, p, contrast, tree):
            part = {"images": x, "tokens": t, "places": p, "compare": False}
            outputs = self.objective(in_type(tree, self.dtype), config, part)
            found = {}
            if config.contrastive_weight:
                pairs = outputs["image"], outputs["text"]
                found["contrastive"] = contrast(*pairs, tree["log_temperature"])
            if config.caption_weight:
                found["caption"] = outputs["caption"] * (t[:, 1:] != PAD).sum() / targets
            # Nothing else that has a graph: DDP would wait for its gradient.
            said = {name: value.detach() for name, value in found.items()}
            return total_loss(found, config) * ranks.world, said

        for i, (batch, contrast) in enumerate(zip(batches, contrasts, strict=True)):
            with self._syncing(last=i + 1 == parts):
                self.mark("forward")
                objective, said = self._forward(partial(forward, *batch, contrast))
                self.mark("backward")
                _backward(objective)
            if parts == 1 and config.contrastive_weight:
                losses["contrastive"] = said["contrastive"]
            if config.caption_weight:
                losses["caption"] = losses.get("caption", 0) + said["caption"]
        if config.caption_weight:
            losses["caption"] = ranks.sum(losses["caption"])
        return {"loss": total_loss(losses, config)} | losses

    def _cached(self, batches, contrast):
        """(the contrastive loss, for each micro-batch what stands for it: its gradient there)."""
        config = self.config

        def embeddings(x, t, p, tree):
            params = in_type(tree, self.dtype)
            return encode_image(params, config, x, p)[0], encode_text(params, config, t)[0]

        with torch.no_grad():
            pairs = [self._forward(partial(embeddings, *batch)) for batch in batches]
        image, text = (torch.cat(side).requires_grad_() for side in zip(*pairs, strict=True))
        temperature = self.params["log_temperature"].detach().requires_grad_()
        loss = contrast(image, text, temperature)
        loss.backward()
        gradients = (side.grad.tensor_split(len(batches)) for side in (image, text))

        def stand_in(dimage, dtext, dtemperature, image, text, temperature):
            pairs = (image * dimage).sum() + (text * dtext).sum()
            return pairs + (temperature * dtemperature).sum()

        dtemperature = temperature.grad / len(batches)
        found = zip(*gradients, strict=True)
        return loss.detach(), [partial(stand_in, dx, dt, dtemperature) for dx, dt in found]

    def _without_idle(self):
        """What the losses do not reach has no gradient that DDP could wait for: it learns nothing.
        Found with the smallest batch, once, and the same in every process."""
        config, learn = self.config, [p for p in self.leaves.values() if p.requires_grad]
        side = config.image_size
        images = torch.zeros(2, side, side, 3, device=self.device, dtype=self.dtype)
        tokens = torch.tensor([[START, UNKNOWN, END]] * 2, device=self.device)
        with use(config.backend):
            loss = coca(in_type(self.params, self.dtype), config, images, tokens)["loss"]
            found = torch.autograd.grad(loss, learn, allow_unused=True)
        for p, g in zip(learn, found, strict=True):
            p.requires_grad_(g is not None)

    def _sum_scalars(self):
        """FSDP2 leaves scalars to us: their gradient is the mean of all processes', as with DDP."""
        for leaf in self.leaves.values():
            if not leaf.ndim and leaf.grad is not None:
                leaf.grad = self.ranks.sum(leaf.grad) / self.ranks.world

    def _forward(self, function):
        """What a function makes of the parameters, under DDP or FSDP2 where there are processes."""
        return self.module(function) if self.ranks.world > 1 else function(self.params)

    def _syncing(self, last):
        return syncing(self.module, last) if self.ranks.world > 1 else torch.enable_grad()

    def state(self):
        """Everything that changes from step to step, as a tree of NumPy arrays of `shapes`."""
        flat = {"params": self.leaves} | {
            key: {name: own[key] for name, own in self.moments.items() if key in own}
            for key in KEPT
        }
        if self.ema:
            flat["ema"] = flatten(self.ema)
        return {name: unflatten(self._numpy(part)) for name, part in flat.items()}

    @torch.no_grad()
    def load(self, tree):
        """Go on from a tree that `state` made."""
        for name, value in flatten(tree["params"]).items():
            self._fill(self.leaves[name], value)
        for key in KEPT:
            for name, value in flatten(tree[key]).items():
                self._fill(self.moments[name][key], value)
        if self.ema:
            for name, value in flatten(tree["ema"]).items():
                self._fill(flatten(self.ema)[name], value)

    @staticmethod
    def _fill(leaf, value):
        own(leaf).copy_(own(as_parts(torch.from_numpy(value).to(leaf.device), leaf)))

    def weights(self):
        """The weights to use and to keep, as a tree of NumPy arrays: averaged, where EMA is on."""
        return unflatten(self._numpy(flatten(self.ema) if self.ema else self.leaves))

    def model(self):
        """The model as it stands, for evaluation; the first process has it."""
        weights = self.weights()
        return CoCa(weights, self.config) if self.ranks.first else None

    def _numpy(self, leaves):
        """Whole arrays, in the first process; nothing in the others."""
        found = {}
        for name, leaf in leaves.items():
            leaf = whole(leaf.detach())
            if self.ranks.first:
                found[name] = leaf.float().cpu().numpy().copy()
        return found


def shapes(config):
    """{name: shape} of what `Trainer.state` gives."""
    own = params_shapes(specs_of(config))
    moved = {n: own[n] for n, factor in factors(specs_of(config), config).items() if factor}
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
