"""Everything to do on a GPU, in one command and ten minutes; see GPU_CHECKLIST.md.

python -m minicoca.kernels.gpu_check --out FOLDER [--minutes 10] [--only toolchain tests ...]

Each part is run even if one before it failed, as long as there is time; what there was none for is
named, and can be run with --only. Writes results.json and RESULTS.md to FOLDER.
"""

import argparse
import datetime
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import triton

from . import configs
from .attention import attention
from .attention_pool import attention_pool
from .bench import suite
from .caption_loss import caption_loss
from .info_nce import info_nce
from .toolchain import complaint

ROOT = Path(__file__).resolve().parent.parent
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # as in the tests
REPEATED = {  # name: (T, S, H, K, causal, shared queries, lengths): every kernel, every row
    "tiny": (50, 50, 12, 64, False, False, False),
    "short": (128, 128, 4, 64, False, False, False),
    "short of 88": (50, 50, 2, 88, False, False, True),
    "general": (256, 256, 4, 64, False, False, False),
    "general of 88": (300, 300, 2, 88, False, False, True),
    "general of 128": (577, 577, 2, 128, False, False, False),
    "text": (77, 77, 12, 64, True, False, True),
    "text of 88": (77, 77, 2, 88, True, False, True),
    "cross": (76, 256, 4, 64, False, False, True),
    "shared queries": (256, 257, 2, 96, False, True, False),
    "causal, long": (600, 600, 2, 64, True, False, False),
}


def run(*command, timeout=280, **environment):
    """(exit code, what it printed, what it complained of); 124 if it took too long."""
    try:
        done = subprocess.run(
            [str(c) for c in command], capture_output=True, text=True, timeout=timeout, cwd=ROOT,
            env={**os.environ, **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, "", f"longer than {timeout} s"
    except OSError as error:
        return 127, "", str(error)
    return done.returncode, done.stdout, done.stderr[-3000:]


def toolchain():
    """Card, driver, versions, which ptxas assembles, and what is known against it."""
    found = {"torch": torch.__version__, "triton": triton.__version__, "python": sys.version[:6]}
    found["date"] = datetime.date.today().isoformat()
    found["interpreted"] = configs.INTERPRETED
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    for name, path in {
        "ptxas": Path(os.environ.get("TRITON_PTXAS_PATH", bundled / "ptxas")),
        "ptxas-blackwell": bundled / "ptxas-blackwell",
    }.items():
        if path.exists():
            text = run(path, "--version")[1]
            found[name] = text[text.find("release") :].split("\n")[0]
    if torch.cuda.is_available():
        found["card"] = torch.cuda.get_device_name()
        found["complaint"] = complaint() or "none"
        query = "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit"
        found["driver, clocks"] = run("nvidia-smi", query, "--format=csv,noheader")[1].strip()
        blackwell = bundled / "ptxas-blackwell"
        if blackwell.exists() and "TRITON_PTXAS_PATH" not in os.environ:
            code, _, text = run(
                sys.executable, "-m", "minicoca.kernels.gpu_check", "--only", "integers", "--out",
                "/tmp/newer_ptxas", TRITON_PTXAS_PATH=str(blackwell),
                TRITON_CACHE_DIR="/tmp/newer_ptxas_cache",
            )  # fmt: skip
            found["newer ptxas loads and computes"] = code == 0 or text[-300:]
    return found


def tests():
    """The kernels' tests on the card, a process for each type, so that they compile in parallel."""
    names = ("kernels", "kernel_promises", "kernel_edges", "kernel_shifts", "info_nce")
    files = [f"tests/test_{name}.py" for name in names]
    command = (sys.executable, "-m", "pytest", *files, "-q", "-k")
    parts = ("float32", "bfloat16 or float16", "not float")
    with ThreadPoolExecutor(len(parts)) as pool:
        done = list(pool.map(lambda part: run(*command, part), parts))
    tails = {part: out[-400:] + err[-200:] for part, (_, out, err) in zip(parts, done, strict=True)}
    failed = [part for part, (code, _, _) in zip(parts, done, strict=True) if code]
    return {"passed": not failed, "failed": failed, "tails": tails}


def integers():
    """Every op on small integers: products are exact, and so is much of what follows from them."""
    device = _device()
    wrong = _integers_of_the_others(device)
    # Queries of zero weigh all keys alike: outputs are means, known exactly.
    for T, S, K in ((64, 64, 64), (50, 128, 64), (256, 256, 64), (77, 256, 128), (300, 512, 88)):
        for dtype in _types():
            generator = torch.Generator().manual_seed(0)
            draw = functools.partial(torch.randint, -8, 9, generator=generator)
            k, v = (draw((4, S, 2, K)).to(device, dtype) for _ in range(2))
            do = draw((4, T, 2, K)).to(device, dtype)
            q = torch.zeros(4, T, 2, K, device=device, dtype=dtype, requires_grad=True)
            v.requires_grad_()
            k.requires_grad_()
            o = attention(q, k, v)
            dq, dk, dv = torch.autograd.grad(o, (q, k, v), do)
            mean = v.double().mean(1, keepdim=True).expand(o.shape).to(dtype)
            dmean = (do.double().sum(1, keepdim=True) / S).expand(dv.shape).to(dtype)
            dp = torch.einsum("bthk,bshk->bhts", do.double(), v.detach().double())
            ds = (dp - dp.mean(-1, keepdim=True)) / S * K**-0.5
            exact_dq = torch.einsum("bhts,bshk->bthk", ds, k.detach().double())
            where = f"T={T} S={S} K={K} {dtype}"
            for name, got, want in (("o", o, mean), ("dv", dv, dmean), ("dk", dk, 0 * dk)):
                wrong += _differs(f"attention's {name}, {where}", got, want, 0)
            wrong += _differs(f"attention's dq, {where}", dq, exact_dq, ROUNDING[dtype])
    return {"passed": not wrong, "wrong": wrong}


def _integers_of_the_others(device):
    wrong = []
    for dtype in _types():
        generator = torch.Generator().manual_seed(0)
        draw = functools.partial(torch.randint, -1, 2, generator=generator)
        x = torch.ones(4, 256, 64)
        x[..., ::2] = -1  # norms to itself, but for the norm's epsilon
        x *= draw((4, 256, 1)) * 2 + 1
        x = x.sign().to(device, dtype)
        m = attention_pool(x, torch.zeros(8, 64, device=device, dtype=dtype))
        mean = x.double().mean(1, keepdim=True).expand(m.shape)
        wrong += _differs(f"attention_pool, {dtype}", m, mean, 1e-5)

        x, y = (draw((300, 64)).to(device, dtype).requires_grad_() for _ in range(2))
        half = torch.tensor(0.5, device=device)
        s = 0.5 * (x.detach().double() @ y.detach().double().T)
        exact = (s.logsumexp(0) + s.logsumexp(1) - 2 * s.diagonal()).mean() / 2
        g = (s.softmax(0) + s.softmax(1) - 2 * torch.eye(300, device=device)) / 600
        loss = info_nce(x, y, half, workspace=1 << 16)
        (dx,) = torch.autograd.grad(loss, x)
        wrong += _differs(f"info_nce, {dtype}", loss, exact, 1e-5)
        wrong += _differs(f"info_nce's dx, {dtype}", dx, 0.5 * g @ y.double(), ROUNDING[dtype])

        hidden = draw((300, 64)).to(device, dtype).requires_grad_()
        weight = draw((64, 701)).to(device, dtype)
        targets = torch.arange(300, device=device) + 1
        s = hidden.detach().double() @ weight.double()
        exact = torch.nn.functional.cross_entropy(s, targets)
        g = (s.softmax(1) - torch.nn.functional.one_hot(targets, 701)) / 300
        loss = caption_loss(hidden, weight, targets, chunk=128)
        (dx,) = torch.autograd.grad(loss, hidden)
        wrong += _differs(f"caption_loss, {dtype}", loss, exact, 1e-5)
        wrong += _differs(f"caption_loss's dx, {dtype}", dx, g @ weight.double().T, ROUNDING[dtype])
    return wrong


def _differs(name, got, want, tolerance):
    """[a sentence] if the relative error is over the tolerance, else []."""
    gap = (got.detach().double() - want.detach().double()).norm().item()
    size = want.detach().double().norm().item() or 1.0
    return [f"{name}: off by {gap / size:.3g}"] if not gap <= tolerance * size else []


def repeats(times=50):
    """The same call gives the same bits, for every kernel."""
    device, bad = _device(), []
    times = times if device == "cuda" else 2  # the interpreter is slow
    for name, (T, S, H, K, causal, shared, lengths) in REPEATED.items():
        case = _case(4, T, S, H, K, shared, lengths, _types()[-1], device)
        first = None
        for _ in range(times):
            now = _forward_and_backward(attention, *case, causal=causal)
            first = first or now
            if not all(torch.equal(a, b) for a, b in zip(first, now, strict=True)):
                bad.append(name)
                break
    for name, (op, inputs) in _others(device, _types()[-1]).items():
        found = [_forward_and_backward(op, inputs, {}) for _ in range(times)]
        if not all(torch.equal(a, b) for now in found for a, b in zip(found[0], now, strict=True)):
            bad.append(name)
    return {"passed": not bad, "differ": bad, "times": times}


def _others(device, dtype):
    """{name: (op, inputs)}: pooling and the two losses."""
    draw = functools.partial(torch.randn, device=device, dtype=dtype, requires_grad=True)
    pair = (draw(300, 72).detach() for _ in range(2))
    x, y = (torch.nn.functional.normalize(t, dim=1).requires_grad_() for t in pair)
    scale = torch.tensor(14.3, device=device, requires_grad=True)
    targets = torch.arange(300, device=device) % 700
    return {
        "attention_pool": (attention_pool, (draw(4, 257, 128), draw(8, 128))),
        "info_nce": (functools.partial(info_nce, workspace=1 << 16), (x, y, scale)),
        "caption_loss": (
            functools.partial(_caption_loss, targets=targets), (draw(300, 72), draw(72, 700)),
        ),
    }  # fmt: skip


def _caption_loss(hidden, weight, targets):
    return caption_loss(hidden, weight, targets, chunk=128)


def _case(B, T, S, H, K, shared, lengths, dtype, device):
    """((q, k, v), keywords) of an attention call."""
    sizes = (1 if shared else B, T), (B, S), (B, S)
    inputs = tuple(
        torch.randn(b, n, H, K, device=device, dtype=dtype, requires_grad=True) for b, n in sizes
    )
    return inputs, {"key_lengths": torch.arange(B, device=device) * S // B} if lengths else {}


def _forward_and_backward(op, inputs, keywords, **more):
    y = op(*inputs, **keywords, **more)
    return [y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y))]


def sanitizer():
    """compute-sanitizer over every kernel, without torch's caching allocator."""
    tool = shutil.which("compute-sanitizer")
    if not tool:
        return {"skipped": "compute-sanitizer is not installed"}
    code, out, err = run(
        tool, "--tool", "memcheck", "--error-exitcode", "7", sys.executable, "-c",
        "from minicoca.kernels import gpu_check as g; g.integers(); g.repeats(1)",
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )  # fmt: skip
    if "not supported" in out + err:
        return {"skipped": "compute-sanitizer cannot look into this machine's card"}
    return {"passed": code == 0, "tail": (out + err)[-600:]}


def training():
    """Five steps of a small model in bfloat16, once with torch's operators and once with these."""
    batch = 64 if _device() == "cuda" else 4
    code = (
        "import sys, numpy as np; from minicoca.config import preset; "
        "from minicoca.params import initialise; from minicoca.engine.train import Trainer; "
        "c = preset('tiny', pooler='cascade', caption_queries=16, backend=sys.argv[1]); "
        f"t = Trainer(initialise(c), c); b = {batch}; "
        "r = np.random.default_rng(0); x = r.integers(0, 256, (5, b, 32, 32, 3)).astype('uint8'); "
        "y = np.concatenate([np.ones((5, b, 1), int), r.integers(4, 60, (5, b, 9))], 2); "
        "print('LOSSES', [t.step(i, x[i], y[i])['loss'] for i in range(5)])"
    )
    losses = {}
    for backend in ("torch", "triton"):
        exit_code, text, err = run(sys.executable, "-c", code, backend)
        if exit_code:
            return {"passed": False, "backend": backend, "tail": err[-600:]}
        losses[backend] = json.loads(text[text.rindex("LOSSES") + 6 :].split("\n")[0])
    gap = max(abs(a / b - 1) for a, b in zip(*losses.values(), strict=True))
    return {"passed": gap < 0.02, "largest relative gap": gap, "losses": losses}


def timings():
    """Every op against its baselines, short attention first, beside what was reckoned; see bench/.
    Kept row by row, however it ends."""
    return suite.run(quick=True, keep=os.environ.get("MINICOCA_ROWS"))


def steps():
    """A whole training step, these kernels against torch's operators, in bfloat16, in turn."""
    large = _device() == "cuda"
    model = ["--preset", "base", "--batch-size", "256"] if large else ["--preset", "tiny"]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        code, _, text = run(
            sys.executable, "-m", "minicoca", "bench", "step", *model, "--json", file.name,
            "--repeats", "5" if large else "1", TRITON_INTERPRET="0",
        )  # fmt: skip
        if code:
            return {"passed": False, "tail": text[-1000:]}
        return {"passed": True, "report": json.load(open(file.name))}


def _device():
    return "cuda" if torch.cuda.is_available() and not configs.INTERPRETED else "cpu"


def _types():
    return [torch.float32, torch.float16] + ([torch.bfloat16] if _device() == "cuda" else [])


def _report(results):
    """RESULTS.md: what was run on what, what passed, and the tables of timings."""
    lines = ["# On a GPU", "", f"`{results['command']}`", ""]
    lines += [f"- {name}: {value}" for name, value in results.get("toolchain", {}).items()]
    lines.append("")
    for name, part in results.items():
        if isinstance(part, dict) and name != "toolchain":
            verdict = {True: "passed", False: "FAILED", None: "done"}[part.get("passed")]
            lines.append(f"- {name}: {part.get('skipped', verdict)} ({part.get('seconds', 0)} s)")
    if "report" in results.get("steps", {}):
        lines += ["", "```json", json.dumps(results["steps"]["report"], indent=1), "```"]
    if "rows" in results.get("timings", {}):
        lines += ["", suite.table(results["timings"])]
    return "\n".join(lines) + "\n"


CHECKS = (toolchain, integers, repeats, training, tests, sanitizer)
PARTS = {part.__name__: part for part in (*CHECKS, timings, steps)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=10, help="for all of it (default 10)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {"command": " ".join(["python -m minicoca.kernels.gpu_check", *sys.argv[1:]])}
    end = time.perf_counter() + 60 * arguments.minutes - 10  # to write what there is
    for name in arguments.only:
        begun = time.perf_counter()
        if len(arguments.only) == 1:
            results[name] = _here(name)
        elif end - begun > 10:
            results[name] = _apart(name, arguments.out / name, min(400, end - begun))
        else:
            results[name] = {"skipped": f"no time left; run it with --only {name}"}
        results[name]["seconds"] = round(time.perf_counter() - begun, 1)
        print(name, json.dumps(results[name], indent=1), flush=True)
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
        (arguments.out / "RESULTS.md").write_text(_report(results))
    failed = [n for n in arguments.only if results[n].get("passed") is False]
    print("failed:", ", ".join(failed) or "nothing")
    return 1 if failed else 0


def _here(name):
    try:
        return PARTS[name]()
    except Exception:
        return {"passed": False, "traceback": traceback.format_exc()[-1500:]}


def _apart(name, folder, timeout):
    """A part in a process of its own: what it breaks on the card, or holds of it, ends with it."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    folder.mkdir(parents=True)
    rows = folder.resolve() / "rows.json"
    code, _, err = run(
        sys.executable, "-m", "minicoca.kernels.gpu_check", "--only", name, "--out",
        folder.resolve(), timeout=timeout, MINICOCA_ROWS=str(rows),
    )  # fmt: skip
    if (folder / "results.json").is_file():
        return json.loads((folder / "results.json").read_text())[name]
    found = json.loads(rows.read_text()) if rows.is_file() else {}
    return found | {"passed": False, "code": code, "tail": err[-1000:]}


if __name__ == "__main__":
    sys.exit(main())
