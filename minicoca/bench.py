"""How fast a training step is on this CPU, alone or against open_clip's own.

The two sides are one function: the same weights (converted), images and tokens, and losses and
gradients that are checked to agree before anything is timed. Steps are measured in turn, so that a
change in the machine's pace meets both; memory is measured in a fresh process for each.
"""

import json
import math
import multiprocessing
import platform
import resource
import statistics
import sys
import time

import numpy as np
import torch

from .config import preset
from .engine.model import coca
from .engine.optim import adamw, clamp_temperature
from .interop.open_clip import from_open_clip
from .params import flatten, initialise, tree_map

# Tokens of a caption, start and end included: mean 12, at most 24.
ORDINARY = (5, 24, 7, 10, 12, 9, 17, 11, 6, 13, 10, 20, 8, 14, 11, 15)
CASES = ("ordinary", "full")
AGREE = 1e-3  # relative, in float32: gradients that differ by more are not those of one function


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

    def __init__(self, config, tree=None):
        leaf = lambda array: torch.tensor(array).requires_grad_()  # noqa: E731
        self.config, self.params = config, tree_map(leaf, tree or initialise(config))
        self.optimiser = adamw(self.params, config)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate

    def gradients(self, images_BII3, tokens_BT):
        """Forward and backward: (contrastive, caption) loss as weighed; gradients in place."""
        outputs = coca(self.params, self.config, images_BII3, tokens_BT)
        outputs["loss"].backward()
        weights = {"contrastive": self.config.contrastive_weight}
        weights["caption"] = self.config.caption_weight
        return [(weight * outputs[name]).item() for name, weight in weights.items()]

    def step(self, images_BII3, tokens_BT):
        self.gradients(images_BII3, tokens_BT)
        self.optimiser.step()
        self.optimiser.zero_grad()
        clamp_temperature(self.params)


def import_open_clip():
    """The module; raises ValueError with the remedy where it cannot be had."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        remedy = 'pip install -e ".[open-clip]" in an environment of its own'
        raise ValueError(f"open_clip cannot be imported ({error}): {remedy}") from None
    return open_clip


class OpenClip:
    """open_clip's model, loss and optimiser, as its own trainer puts them together."""

    def __init__(self, config):
        open_clip = import_open_clip()
        from open_clip.loss import CoCaLoss

        self.model = open_clip.create_model("coca_ViT-B-32", precision="fp32").train()
        # open_clip leaves its head uninitialised.
        torch.nn.init.normal_(self.model.text_decoder.text_projection, std=512**-0.5)
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
            groups, lr=config.learning_rate, betas=betas, eps=config.epsilon
        )

    def gradients(self, images_BII3, tokens_BT):
        outputs = self.model(images_BII3.permute(0, 3, 1, 2), tokens_BT)
        losses = self.loss(**outputs)
        sum(losses).backward()
        return [loss.item() for loss in losses]

    def step(self, images_BII3, tokens_BT):
        self.gradients(images_BII3, tokens_BT)
        self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))


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
        side.optimiser.zero_grad()
    if max(loss, gradient) > AGREE:
        raise RuntimeError(f"not the same function: loss {loss:.1e}, gradients {gradient:.1e}")
    return loss, gradient


def _peak_mb():
    """Most memory this process has held. (On Linux ru_maxrss would count its parent's too.)"""
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except OSError:
        unit = 1024**2 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _step_memory(side, case, batch):
    """Megabytes that weights, moments and two steps of one side add to a fresh process."""
    config = preset("open_clip_b32")
    if side is OpenClip:
        import_open_clip()  # its libraries are not part of its step
    before, model = _peak_mb(), side(config)
    for _ in range(2):
        model.step(*make_batch(config, case, batch))
    return _peak_mb() - before


def _in_fresh_process(function, *arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _milliseconds(model, batch):
    start = time.perf_counter()
    model.step(*batch)
    return 1e3 * (time.perf_counter() - start)


def step(against=None, batch=16, repeats=5, json_path=None, cases=CASES, memory=True):
    """Time a training step (forward, backward, AdamW) at open_clip's coca_ViT-B-32 shapes.

    against: None or "open_clip". Prints a table; returns what it writes to `json_path`.
    """
    config = preset("open_clip_b32")
    report = {
        "batch": batch,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    sides = {"ours": Ours} | ({"theirs": OpenClip} if against else {})
    if against:
        report["open_clip"] = import_open_clip().__version__
    report |= {case: {} for case in cases}
    for case in cases if memory else ():
        for name, side in sides.items():
            peak = _in_fresh_process(_step_memory, side, case, batch)
            report[case][f"{name}_peak_mb"] = round(peak)
    if against:
        theirs = OpenClip(config)
        weights = from_open_clip(theirs.model.state_dict(), config)
        models = {"ours": Ours(config, weights), "theirs": theirs}
    else:
        models = {"ours": Ours(config)}
    for case in cases:  # before any step: each moves the two models apart by its rounding
        if against:
            loss, gradient = check_agreement(*models.values(), make_batch(config, case, batch))
            report[case] |= {"loss_difference": loss, "gradient_difference": gradient}
    for case in cases:
        data, row = make_batch(config, case, batch), report[case]
        times = {name: [] for name in models}
        for repeat in range(repeats + 1):  # the first warms up
            for name, model in models.items():
                spent = _milliseconds(model, data)
                if repeat:
                    times[name].append(spent)
        row |= {f"{name}_ms": round(statistics.median(t), 1) for name, t in times.items()}
        row |= {f"{name}_all_ms": [round(t, 1) for t in times[name]] for name in models}
        if against:
            row["ratio"] = round(row["theirs_ms"] / row["ours_ms"], 3)
    _print_table(report, cases)
    if json_path:
        with open(json_path, "w") as file:
            json.dump(report, file, indent=2)
            file.write("\n")
    return report


def _print_table(report, cases):
    head = ("captions", "ours ms", "theirs ms", "ratio", "ours MB", "theirs MB", "gradients differ")
    keys = ("ours_ms", "theirs_ms", "ratio", "ours_peak_mb", "theirs_peak_mb")
    print(("{:>11}" * 6 + "{:>18}").format(*head))
    for case in cases:
        row = report[case]
        cells = [
            f"{row[key]:.2f}" if key == "ratio" else f"{row[key]:,.0f}" if key in row else "-"
            for key in keys
        ]
        differ = f"{row['gradient_difference']:.1e}" if "gradient_difference" in row else "-"
        print(("{:>11}" * 6 + "{:>18}").format(case, *cells, differ))
    print(
        f"one step, batch {report['batch']}, median of {report['repeats']}, in turn, "
        f"{report['threads']} threads, torch {report['torch']}"
    )
