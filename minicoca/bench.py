"""How fast a training step is, alone or against open_clip's own; and how fast the kernels are.

The two sides are one function: the same weights (converted), images and tokens, and losses and
gradients that are checked to agree before anything is timed. Steps are measured in turn, so that a
change in the machine's pace meets both; memory is measured in a fresh process for each.
"""

import importlib.util
import itertools
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from .bench_sides import (
    CASES,
    OpenClip,
    Ours,
    check_agreement,
    check_losses,
    computing_in,
    import_open_clip,
    make_batch,
)
from .config import preset
from .engine.model import coca
from .engine.ops import pick_device, pick_dtype, use
from .files import write_output
from .interop.open_clip import from_open_clip
from .kernels.bench import measure
from .params import specs, tree_map
from .training.log import machine

NARROW = "_bf16"  # how the names of what computes in bfloat16 on a CPU end
NAMES = ("ours", "torch", "theirs", "ours_bf16", "theirs_bf16")
RATIOS = {  # {name: (time of this, over that of this, in words)}
    "ratio": ("theirs", "ours", "{} open_clip"),
    "torch_ratio": ("torch", "ours", "{} our torch backend"),
    "ratio_bf16": ("theirs_bf16", "ours_bf16", "{} open_clip, both in bfloat16"),
    "gain_bf16": ("ours", "ours_bf16", "in bfloat16 {} in float32"),
}


def peak_mb():
    """Most memory this process has held, in MB. (On Linux ru_maxrss would count its parent's.)"""
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _step_memory(side, dtype, case, batch, preset_name):
    """Megabytes that weights, moments and two steps of one side add to a fresh process."""
    config = preset(preset_name)
    if side is OpenClip:
        import_open_clip()  # its libraries are not part of its step
    before, model = peak_mb(), side(config, dtype=dtype)
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
    preset_name="open_clip_b32", precision="auto",
):  # fmt: skip
    """Time a training step (forward, backward, AdamW), by default at coca_ViT-B-32's shapes.

    On a GPU our Triton kernels ("ours") and torch's own operators ("torch") are timed in turn; on a
    CPU each side in float32, and with `precision` bfloat16 in that too (auto: not), of the same
    weights. against: None or "open_clip". Prints a table; returns what it writes to `json_path`.
    """
    config, device = preset(preset_name), pick_device(device).type
    dtype = pick_dtype(precision, torch.device(device))
    types = {"": dtype}
    if device == "cpu" and dtype != torch.float32:
        types = {"": torch.float32, NARROW: dtype}
    if against and not preset_name.startswith(against):
        raise ValueError(f"--against {against} needs a --preset {against}_..., not {preset_name}")
    rate = measure.roofline(device, types[""])["tflop_s"]
    report = {
        "preset": preset_name,
        "batch": batch,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if device == "cuda" else machine(),
        "device": device,
        "precision": [str(t).removeprefix("torch.") for t in types.values()],
        "tflop": model_flops(config, batch) / 1e12,
        "product_tflop_s": round(rate, 3),
    }
    sides = {"ours": Ours} | ({"theirs": OpenClip} if against else {})
    if against:
        report["open_clip"] = import_open_clip().__version__
    report |= {case: {} for case in cases}
    if memory and device == "cpu":
        every = itertools.product(cases, types.items(), sides.items())
        for case, (suffix, dtype), (name, side) in every:
            peak = in_fresh_process(_step_memory, side, dtype, case, batch, preset_name)
            report[case][f"{name}{suffix}_peak_mb"] = round(peak)
    weights = None
    if against:
        theirs = OpenClip(config, device, dtype=types[""])
        weights = from_open_clip(theirs.model.state_dict(), config)
    models = {"ours": Ours(config, weights, device, dtype=types[""])}
    if device == "cuda":
        models["torch"] = Ours(config, weights, device, "torch", types[""])
    if against:
        models["theirs"] = theirs
    if NARROW in types:
        models |= {
            name + NARROW: computing_in(model, types[NARROW]) for name, model in models.items()
        }
    data = {case: [x.to(device) for x in make_batch(config, case, batch)] for case in cases}
    for case in cases:  # before any step: each moves the two models apart by its rounding
        if against and device == "cpu":
            loss, gradient = check_agreement(models["ours"], theirs, data[case])
            report[case] |= {"loss_difference": loss, "gradient_difference": gradient}
            if NARROW in types:
                pair = (models[name + NARROW] for name in ("ours", "theirs"))
                report[case]["loss_difference" + NARROW] = check_losses(*pair, data[case])
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
            ratio: round(row[f"{name}_ms"] / row[f"{than}_ms"], 3)
            for ratio, (name, than, _) in RATIOS.items()
            if name in models and than in models
        }
    if "full" in cases:  # no padding: the model's own arithmetic is what must be done
        spent = report["full"]["ours_ms"] / 1e3
        report["full"]["ours_flop_utilisation"] = round(report["tflop"] / spent / rate, 3)
    _print_table(report, cases)
    if json_path:
        write_output(json_path, (json.dumps(report, indent=2) + "\n").encode())
    return report


def _print_table(report, cases):
    names = [name for name in NAMES if f"{name}_ms" in report[cases[0]]]
    columns = [f"{name}_{unit}" for name in names for unit in ("ms", "peak_mb")]
    columns = [column for column in columns if column in report[cases[0]]]
    print(f"{'captions':>10}" + "".join(f"{column:>20}" for column in columns))
    for case in cases:
        print(f"{case:>10}" + "".join(f"{report[case][column]:>20,.0f}" for column in columns))
    for case in cases:
        row = report[case]
        for ratio, (_, _, words) in RATIOS.items():
            if ratio in row:
                print(f"{case}: {words.format(f'{row[ratio]:.2f} times as fast as')}")
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
