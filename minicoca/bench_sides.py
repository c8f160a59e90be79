"""The two sides of a timed training step: our model and optimiser, and open_clip's.

Each computes in its `dtype`: ours as a run does, open_clip under torch.autocast, which is what its
trainer's `--precision amp_bf16` does. Weights, moments and gradients are float32 in both.
"""

import copy
import math

import numpy as np
import torch

from .engine.model import coca
from .engine.ops import use
from .engine.optim import clamp_temperature, optimizers
from .engine.precision import in_type
from .interop.open_clip import from_open_clip
from .params import flatten, initialise, tree_map

# Tokens of a caption, start and end included: mean 12, at most 24.
ORDINARY = (5, 24, 7, 10, 12, 9, 17, 11, 6, 13, 10, 20, 8, 14, 11, 15)
CASES = ("ordinary", "full")
AGREE = 1e-3  # relative, in float32: gradients that differ by more are not those of one function
AGREE_NARROW = 1e-2  # losses in bfloat16


def make_batch(config, case, batch, seed=0):
    """Random images [B, I, I, 3], and ids [B, T] of captions that are all of full length or not."""
    generator = torch.Generator().manual_seed(seed)
    side, T = config.image_size, config.text_length
    images_BII3 = torch.randn(batch, side, side, 3, generator=generator)
    tokens_BT = torch.randint(1, config.vocabulary, (batch, T), generator=generator)
    if case == "ordinary":
        for b, row in enumerate(tokens_BT):
            row[ORDINARY[b % len(ORDINARY)] :] = 0
    return images_BII3, tokens_BT


class Ours:
    """Our model and optimiser."""

    def __init__(self, config, tree=None, device="cpu", backend="auto", dtype=torch.float32):
        leaf = lambda array: torch.tensor(array, device=device).requires_grad_()  # noqa: E731
        self.config, self.params = config, tree_map(leaf, tree or initialise(config))
        self.backend, self.dtype = backend, dtype
        self.optimizers = optimizers(self.params, config)
        for group in (group for one in self.optimizers for group in one.param_groups):
            group["lr"] = config.learning_rate * group["factor"]

    def gradients(self, images_BII3, tokens_BT):
        """Forward and backward: (contrastive, caption) loss as weighed; gradients in place."""
        params = in_type(self.params, self.dtype)
        with use(self.backend):
            outputs = coca(params, self.config, images_BII3.to(self.dtype), tokens_BT)
        outputs["loss"].backward()
        weights = {"contrastive": self.config.contrastive_weight}
        weights["caption"] = self.config.caption_weight
        return [(weight * outputs[name]).item() for name, weight in weights.items()]

    def step(self, images_BII3, tokens_BT):
        self.gradients(images_BII3, tokens_BT)
        for optimizer in self.optimizers:
            optimizer.step()
        self.zero_grad()
        clamp_temperature(self.params)

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()


def import_open_clip():
    """The module; raises ValueError with the remedy where it cannot be had."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        remedy = 'pip install -e ".[open-clip]" in an environment of its own'
        raise ValueError(f"open_clip cannot be imported ({error}): {remedy}") from None
    return open_clip


class OpenClip:
    """open_clip's model and loss, put together as by its own trainer; AdamW fused, as ours."""

    def __init__(self, config, device="cpu", dtype=torch.float32):
        open_clip = import_open_clip()
        from open_clip.loss import CoCaLoss

        c, self.device, self.dtype = config, device, dtype
        text = dict(
            context_length=c.text_length, vocab_size=c.vocabulary, width=c.text_width,
            heads=c.text_heads,
        )  # fmt: skip
        vision = dict(
            image_size=c.image_size, patch_size=c.patch_size, layers=c.image_layers,
            width=c.image_width, head_width=c.image_width // c.image_heads, attentional_pool=True,
            attn_pooler_heads=c.pooler_heads, attn_pooler_queries=c.caption_queries + 1,
            output_tokens=True,
        )  # fmt: skip
        model = open_clip.CoCa(
            embed_dim=c.embed_width,
            vision_cfg=vision,
            text_cfg=text | dict(layers=c.unimodal_layers, embed_cls=True, output_tokens=True),
            multimodal_cfg=text | dict(layers=c.multimodal_layers),
        )
        self.model = model.train().to(device)
        # open_clip leaves its head uninitialised.
        torch.nn.init.normal_(self.model.text_decoder.text_projection, std=c.text_width**-0.5)
        self.loss = CoCaLoss(
            caption_loss_weight=config.caption_weight, clip_loss_weight=config.contrastive_weight
        )
        decayed, plain = [], []
        for name, p in self.model.named_parameters():
            exempt = p.ndim < 2 or any(s in name for s in ("bn", "ln", "bias", "logit_scale"))
            (plain if exempt else decayed).append(p)
        groups = [
            {"params": plain, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": config.weight_decay},
        ]
        betas = (config.beta1, config.beta2)
        self.optimiser = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True
        )

    def gradients(self, images_BII3, tokens_BT):
        narrow = self.dtype != torch.float32
        with torch.autocast(self.device, torch.bfloat16, enabled=narrow):
            outputs = self.model(images_BII3.permute(0, 3, 1, 2), tokens_BT)
            losses = self.loss(**outputs)
        sum(losses).backward()
        return [loss.item() for loss in losses]

    def step(self, images_BII3, tokens_BT):
        self.gradients(images_BII3, tokens_BT)
        self.optimiser.step()
        self.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))

    def zero_grad(self):
        self.optimiser.zero_grad()


def computing_in(side, dtype):
    """The same weights and moments, whose next step is computed in this type."""
    other = copy.copy(side)
    other.dtype = dtype
    return other


def check_losses(ours, theirs, batch):
    """Largest difference of losses, as a part of both together; of sides that compute in bfloat16.
    Raises RuntimeError where that is more than its rounding."""
    mine, other = ours.gradients(*batch), theirs.gradients(*batch)
    difference = max(abs(a - b) for a, b in zip(mine, other, strict=True)) / sum(other)
    for side in (ours, theirs):
        side.zero_grad()
    if difference > AGREE_NARROW:
        raise RuntimeError(f"not the same function: losses in bfloat16 differ by {difference:.1e}")
    return difference


def check_agreement(ours, theirs, batch):
    """Largest difference of losses, and of any parameter's gradient relative to that gradient.

    For this open_clip's CLS is told to see the caption and itself, as ours does (it has the switch,
    but no way to set it from a configuration); timed it is as it comes. Raises RuntimeError where
    the two are not one function.
    """
    theirs.model.text.correct_cls_mask = True
    pairs = zip(ours.gradients(*batch), theirs.gradients(*batch), strict=True)
    loss = max(abs(a - b) for a, b in pairs)
    named = theirs.model.named_parameters()
    want = flatten(from_open_clip({n: p.grad for n, p in named}, ours.config))
    want["text.cls"] /= 2  # the sum of two gradients that are one
    have = {name: p.grad.numpy() for name, p in flatten(ours.params).items()}
    # A key's bias moves no softmax: its gradient is 0 but for rounding.
    gradient = max(
        float(np.linalg.norm(have[name] - want[name]) / np.linalg.norm(want[name]))
        for name in want
        if not name.endswith("key.bias")
    )
    theirs.model.text.correct_cls_mask = False
    for side in (ours, theirs):
        side.zero_grad()
    if max(loss, gradient) > AGREE:
        raise RuntimeError(f"not the same function: loss {loss:.1e}, gradients {gradient:.1e}")
    return loss, gradient
