"""How fast a training step is, alone or against open_clip's own; and how fast the kernels are.

The two sides are one function: the same weights (converted), images and tokens, and losses and
gradients that are checked to agree before anything is timed. Steps are measured in turn, so that a
change in the machine's pace meets both; memory is measured in a fresh process for each.
"""

import importlib.util
import itertools
import json
import math
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from .config import preset
from .engine.model import coca
from .engine.ops import pick_device, pick_dtype, use
from .engine.optim import clamp_temperature, optimizers
from .engine.precision import in_type
from .files import write_output
from .interop.open_clip import from_open_clip
from .kernels.bench import measure
from .params import flatten, initialise, specs, tree_map
from .training.log import machine

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
    """Our model and optimiser; in bfloat16 on a GPU that has it."""

    def __init__(self, config, tree=None, device="cpu", backend="auto"):
        leaf = lambda array: torch.tensor(array, device=device).requires_grad_()  # noqa: E731
        self.config, self.params = config, tree_map(leaf, tree or initialise(config))
        self.backend, self.dtype = backend, pick_dtype("auto", torch.device(device))
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

    def __init__(self, config, device="cpu"):
        open_clip = import_open_clip()
        from open_clip.loss import CoCaLoss

        c, self.device = config, device
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
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
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


def peak_mb():
    """Most memory this process has held, in MB. (On Linux ru_maxrss would count its parent's.)"""
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _step_memory(side, case, batch, preset_name):
    """Megabytes that weights, moments and two steps of one side add to a fresh process."""
    config = preset(preset_name)
    if side is OpenClip:
        import_open_clip()  # its libraries are not part of its step
    before, model = peak_mb(), side(config)
    for _ in range(2):
        model.step(*make_batch(config, case, batch))
    return peak_mb() - before


def in_fresh_process(function, *arguments):
    """What a function of ours gives in a process that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _milliseconds(model, batch):
    wait = torch.cuda.synchronize if batch[0].is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    model.step(*batch)
    wait()
    return 1e3 * (time.perf_counter() - start)


def _gpu_memory(model, batch):
    """Megabytes that a step of a model that is on a GPU needs beside what is there before it."""
    model.step(*batch)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model.step(*batch)
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def model_flops(config, batch):
    """Multiplications and additions of a step's products at captions of full length: forward and
    backward as torch counts them, and the head's, which stands in an operator of ours."""
    from torch.utils.flop_counter import FlopCounterMode

    leaf = lambda spec: torch.empty(spec.shape, device="meta", requires_grad=True)  # noqa: E731
    side, T = config.image_size, config.text_length
    images_BII3 = torch.empty(batch, side, side, 3, device="meta")
    tokens_BT = torch.ones(batch, T, dtype=torch.int64, device="meta")
    with use("torch"), FlopCounterMode(display=False) as counter:
        coca(tree_map(leaf, specs(config)), config, images_BII3, tokens_BT)["loss"].backward()
    head = 6 * batch * (T - 1) * config.text_width * config.vocabulary
    return counter.get_total_flops() + head


def step(
    against=None, batch=16, repeats=5, json_path=None, cases=CASES, memory=True, device="auto",
    preset_name="open_clip_b32",
):  # fmt: skip
    """Time a training step (forward, backward, AdamW), by default at coca_ViT-B-32's shapes.

    On a GPU our Triton kernels ("ours") and torch's own operators ("torch") are timed in turn.
    against: None or "open_clip". Prints a table; returns what it writes to `json_path`.
    """
    config, device = preset(preset_name), pick_device(device).type
    if against and not preset_name.startswith(against):
        raise ValueError(f"--against {against} needs a --preset {against}_..., not {preset_name}")
    rate = measure.roofline(device, pick_dtype("auto", torch.device(device)))["tflop_s"]
    report = {
        "preset": preset_name,
        "batch": batch,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if device == "cuda" else machine(),
        "device": device,
        "tflop": model_flops(config, batch) / 1e12,
        "product_tflop_s": round(rate, 3),
    }
    sides = {"ours": Ours} | ({"theirs": OpenClip} if against else {})
    if against:
        report["open_clip"] = import_open_clip().__version__
    report |= {case: {} for case in cases}
    if memory and device == "cpu":
        for case, (name, side) in itertools.product(cases, sides.items()):
            peak = in_fresh_process(_step_memory, side, case, batch, preset_name)
            report[case][f"{name}_peak_mb"] = round(peak)
    weights = None
    if against:
        theirs = OpenClip(config, device)
        weights = from_open_clip(theirs.model.state_dict(), config)
    models = {"ours": Ours(config, weights, device)}
    if device == "cuda":
        models["torch"] = Ours(config, weights, device, "torch")
    if against:
        models["theirs"] = theirs
    data = {case: [x.to(device) for x in make_batch(config, case, batch)] for case in cases}
    for case in cases:  # before any step: each moves the two models apart by its rounding
        if against and device == "cpu":
            loss, gradient = check_agreement(models["ours"], theirs, data[case])
            report[case] |= {"loss_difference": loss, "gradient_difference": gradient}
    for case in cases:
        row, times = report[case], {name: [] for name in models}
        for repeat in range(repeats + 1):  # the first warms up
            for name, model in models.items():
                spent = _milliseconds(model, data[case])
                if repeat:
                    times[name].append(spent)
        row |= {f"{name}_ms": round(statistics.median(t), 1) for name, t in times.items()}
        row |= {f"{name}_all_ms": [round(t, 1) for t in times[name]] for name in models}
        if device == "cuda" and memory:
            for name, model in models.items():
                row[f"{name}_peak_mb"] = round(_gpu_memory(model, data[case]))
        row |= {
            ratio: round(row[f"{name}_ms"] / row["ours_ms"], 3)
            for name, ratio in (("theirs", "ratio"), ("torch", "torch_ratio"))
            if name in models
        }
    if "full" in cases:  # no padding: the model's own arithmetic is what must be done
        spent = report["full"]["ours_ms"] / 1e3
        report["full"]["ours_flop_utilisation"] = round(report["tflop"] / spent / rate, 3)
    _print_table(report, cases)
    if json_path:
        write_output(json_path, (json.dumps(report, indent=2) + "\n").encode())
    return report


def _print_table(report, cases):
    names = [name for name in ("ours", "torch", "theirs") if f"{name}_ms" in report[cases[0]]]
    columns = [f"{name}_{unit}" for name in names for unit in ("ms", "peak_mb")]
    columns = [column for column in columns if column in report[cases[0]]]
    print(f"{'captions':>10}" + "".join(f"{column:>16}" for column in columns))
    for case in cases:
        print(f"{case:>10}" + "".join(f"{report[case][column]:>16,.0f}" for column in columns))
    for case in cases:
        row = report[case]
        for ratio, name in (("ratio", "open_clip"), ("torch_ratio", "our torch backend")):
            if ratio in row:
                print(f"{case}: {row[ratio]:.2f} times as fast as {name}")
        if "gradient_difference" in row:
            print(f"{case}: gradients differ by {row['gradient_difference']:.1e}, relative")
    if "ours_flop_utilisation" in report.get("full", {}):
        share = report["full"]["ours_flop_utilisation"]
        rate = report["product_tflop_s"]
        print(f"full: {share:.0%} of the {rate:.2f} TFLOP/s that a large product reaches here")
    print(
        f"one step of {report['preset']}, batch {report['batch']}, median of {report['repeats']}, "
        f"in turn, {report['device']}, {report['threads']} threads, torch {report['torch']}"
    )


def kernels(ops=None, quick=False, json_path=None, pictures=None, tests=True):
    """Time every kernel against what people use today; returns what it writes to `json_path`.

    The tests of an op come first: a red one is not timed. Without a GPU it says what can be said:
    the tests in Triton's interpreter, the losses' CPU code timed, what the compiler makes of every
    kernel, and memory by the model.
    """
    from .kernels import compile_report
    from .kernels.bench import suite

    ops = ops or ("attention", "attention_pool", "info_nce", "caption_loss")
    verdicts = {op: _op_tests(op) if tests else "not run" for op in ops}
    green = [op for op in ops if verdicts[op] != "red"]
    report = suite.run(quick=quick, ops=green) | {"tests": verdicts}
    for op, verdict in verdicts.items():
        print(f"{op:15} tests: {verdict}")
    print(f"\n{suite.table(report)}\n")
    if report["size"] != "full":
        print("There is no GPU here: kernels are not timed. What can be said without one:\n")
        print(f"{compile_report.table()}\n\n{suite.memory_table()}\n")
    if json_path:
        write_output(json_path, (json.dumps(report, indent=2) + "\n").encode())
    if pictures:
        from .kernels.bench.pictures import draw

        for path in draw(report, pictures):
            print(f"picture: {path}")
    if "red" in verdicts.values():
        raise RuntimeError("an op whose tests fail is not timed; see above")
    return report


def _op_tests(op):
    """green, red, or not here: the op's tests, in Triton's interpreter where there is no GPU."""
    tests = Path(__file__).parent.parent / "tests" / "test_kernels.py"
    if not tests.is_file():
        return "not here: run from a checkout"
    if not importlib.util.find_spec("pytest"):
        return "not run: pytest is not installed"
    print(f"testing {op} ...", file=sys.stderr)
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(tests), "-k", f"test_{op}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-2000:], file=sys.stderr)
    return "red" if done.returncode else "green"
