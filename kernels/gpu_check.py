"""Everything to do on a GPU, in one command and under ten minutes; see GPU_CHECKLIST.md.

python -m minicoca.kernels.gpu_check --out FOLDER [--only toolchain tests integers ...]

Each part is run even if one before it failed. Writes results.json and RESULTS.md to FOLDER.
"""

import argparse
import datetime
import functools
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch
import triton

from . import configs
from .attention import attention
from .attention_pool import attention_pool

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {  # name: (B, T, S, H, K, causal, target: at least so many times SDPA's speed)
    "vit 50": (512, 50, 50, 12, 64, False, 1.2),
    "vit 197": (256, 197, 197, 12, 64, False, 1.2),
    "vit 256": (256, 256, 256, 12, 64, False, 1.2),
    "vit 257": (256, 257, 257, 12, 64, False, 1.2),
    "vit 577": (64, 577, 577, 12, 64, False, 0.9),
    "vit 1370": (16, 1370, 1370, 12, 64, False, 0.9),
    "vit 577 of 88": (64, 577, 577, 16, 88, False, 0.9),
    "vit 577 of 128": (64, 577, 577, 12, 128, False, 0.9),
    "text 76 causal": (512, 76, 76, 12, 64, True, 1.3),
    "cross 76 x 256": (512, 76, 256, 12, 64, False, 1.3),
}


def run(*command, timeout=240, **environment):
    """(exit code, the last lines of what it printed)."""
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=timeout, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr)[-3000:]


def toolchain():
    """Card, driver, versions, and which ptxas assembles. Before CUDA 13.3 it can miscompile
    products whose left side is in registers, on Hopper; attention has such products."""
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
        query = "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit"
        found["driver, clocks"] = run("nvidia-smi", query, "--format=csv,noheader")[1].strip()
        blackwell = bundled / "ptxas-blackwell"
        if blackwell.exists() and "TRITON_PTXAS_PATH" not in os.environ:
            code, text = run(
                sys.executable, "-m", "minicoca.kernels.gpu_check", "--only", "integers", "--out",
                "/tmp/newer_ptxas", TRITON_PTXAS_PATH=str(blackwell),
                TRITON_CACHE_DIR="/tmp/newer_ptxas_cache",
            )  # fmt: skip
            found["newer ptxas loads and computes"] = code == 0 or text[-300:]
    return found


def tests():
    """The kernels' tests, on the card, in all types."""
    code, text = run(sys.executable, "-m", "pytest", "tests/test_kernels.py", "-q", "-x")
    return {"passed": code == 0, "tail": text[-600:]}


def integers():
    """Queries of zero weigh all keys alike: outputs are means of small integers, known exactly."""
    device = _device()
    wrong = []
    for T, S, K in ((64, 64, 64), (50, 128, 64), (256, 256, 64), (77, 256, 128), (300, 512, 88)):
        for dtype in _types():
            generator = torch.Generator().manual_seed(0)
            draw = functools.partial(torch.randint, -8, 9, generator=generator)
            k, v = (draw((4, S, 2, K)).to(device, dtype) for _ in range(2))
            do = draw((4, T, 2, K)).to(device, dtype)
            q = torch.zeros(4, T, 2, K, device=device, dtype=dtype, requires_grad=True)
            v.requires_grad_()
            o = attention(q, k, v)
            (dv,) = torch.autograd.grad(o, v, do)
            mean = v.double().mean(1, keepdim=True).expand(o.shape).to(dtype)
            dmean = (do.double().sum(1, keepdim=True) / S).expand(dv.shape).to(dtype)
            for name, got, want in (("o", o, mean), ("dv", dv, dmean)):
                if not torch.equal(got, want):
                    gap = (got.double() - want.double()).abs().max().item()
                    wrong.append(f"{name}, T={T} S={S} K={K} {dtype}: off by {gap:.3g}")
    return {"passed": not wrong, "wrong": wrong}


def repeats(times=50):
    """The same call gives the same bits."""
    device, bad = _device(), []
    for name, (_, T, S, H, K, causal, _) in SHAPES.items():
        q, k, v, do = (
            torch.randn(4, n, H, K, device=device, dtype=_types()[-1], requires_grad=True)
            for n in (T, S, S, T)
        )
        first = None
        for _ in range(times):
            o = attention(q, k, v, causal=causal)
            now = [o, *torch.autograd.grad(o, (q, k, v), do)]
            first = first or now
            if not all(torch.equal(a, b) for a, b in zip(first, now, strict=True)):
                bad.append(name)
                break
    return {"passed": not bad, "differ": bad}


def sanitizer():
    """compute-sanitizer over every configuration, without torch's caching allocator."""
    tool = shutil.which("compute-sanitizer")
    if not tool:
        return {"skipped": "compute-sanitizer is not installed"}
    code, text = run(
        tool, "--tool", "memcheck", "--error-exitcode", "7", sys.executable, "-m",
        "minicoca.kernels.gpu_check", "--only", "integers", "--out", "/tmp/sanitizer",
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )  # fmt: skip
    return {"passed": code == 0, "tail": text[-600:]}


def training():
    """Five steps of a small model in bfloat16, once with torch's operators and once with these."""
    code = (
        "import sys, numpy as np; from minicoca.config import preset; "
        "from minicoca.params import initialise; from minicoca.engine.train import Trainer; "
        "c = preset('tiny', pooler='cascade', caption_queries=16, backend=sys.argv[1]); "
        "t = Trainer(initialise(c), c); "
        "r = np.random.default_rng(0); x = r.integers(0, 256, (5, 64, 32, 32, 3)).astype('uint8'); "
        "y = np.concatenate([np.ones((5, 64, 1), int), r.integers(4, 60, (5, 64, 9))], 2); "
        "print('LOSSES', [t.step(i, x[i], y[i])['loss'] for i in range(5)])"
    )
    losses = {}
    for backend in ("torch", "triton"):
        exit_code, text = run(sys.executable, "-c", code, backend)
        if exit_code:
            return {"passed": False, "backend": backend, "tail": text[-600:]}
        losses[backend] = json.loads(text[text.rindex("LOSSES") + 6 :].split("\n")[0])
    gap = max(abs(a / b - 1) for a, b in zip(*losses.values(), strict=True))
    return {"passed": gap < 0.02, "largest relative gap": gap, "losses": losses}


def timings():
    """Forward and backward against SDPA, as ratios in one run; and the pooler."""
    if not torch.cuda.is_available():
        return {"skipped": "no GPU: nothing is timed"}
    rows = {"copy GB/s": _copy_bandwidth()}
    for name, (B, T, S, H, K, causal, target) in SHAPES.items():
        q, k, v, do = (
            torch.randn(B, n, H, K, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for n in (T, S, S, T)
        )
        ways = {"ours": functools.partial(attention, causal=causal)}
        for label, backend in _sdpa_backends().items():
            ways[label] = functools.partial(_sdpa, causal=causal, backend=backend)
        rows[name] = row = {"target": target}
        for label, way in ways.items():
            try:
                row[label] = _time(way, (q, k, v), do)
            except RuntimeError as error:
                row[label] = str(error).split("\n")[0][:80]
        base = row.get("sdpa default")
        if isinstance(base, list):
            row["ratio forward, backward"] = [
                round(b / o, 3) for o, b in zip(row["ours"], base, strict=True)
            ]
        moved = 2 * B * H * K * (2 * T + 2 * S)
        row["forward GB/s"] = round(moved / row["ours"][0] / 1e6, 1)
    rows["one query, 257 x 1024"] = _time_pool(256, 257, 1024, 8)
    return rows


def _time_pool(B, N, M, H):
    x = torch.randn(B, N, M, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    q = torch.randn(H, M // H, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    key, value = (
        torch.randn(M, M, device="cuda", dtype=torch.bfloat16).mul_(M**-0.5).requires_grad_()
        for _ in range(2)
    )

    def absorbed(x, q, key, value):
        g = torch.einsum("mhk,hk->hm", key.view(M, H, -1), q) * (M // H) ** -0.5
        m = attention_pool(x, g).to(x.dtype)
        return torch.einsum("bhm,mhk->bhk", m, value.view(M, H, -1))

    def projected(x, q, key, value):
        xhat = torch.nn.functional.layer_norm(x, (M,))
        k, v = ((xhat @ w).view(B, N, H, -1) for w in (key, value))
        return _sdpa(q.expand(B, 1, H, -1), k, v, causal=False, backend=None)[:, 0]

    do = torch.randn(B, H, M // H, device="cuda", dtype=torch.bfloat16)
    ours, theirs = (_time(f, (x, q, key, value), do) for f in (absorbed, projected))
    ratios = [round(b / a, 2) for a, b in zip(ours, theirs, strict=True)]
    return {"ours": ours, "projected": theirs, "ratio forward, backward": ratios, "target": 5.0}


def _sdpa_backends():
    from torch.nn.attention import SDPBackend

    return {
        "sdpa default": None,
        "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
        "sdpa flash": SDPBackend.FLASH_ATTENTION,
    }


def _sdpa(q, k, v, *, causal, backend):
    from contextlib import nullcontext

    from torch.nn.attention import sdpa_kernel

    with sdpa_kernel(backend) if backend is not None else nullcontext():
        moved = (x.transpose(1, 2) for x in (q, k, v))
        o = torch.nn.functional.scaled_dot_product_attention(*moved, is_causal=causal)
        return o.transpose(1, 2)


def _time(way, inputs, do):
    """[forward, backward] in milliseconds, medians."""
    bench = functools.partial(triton.testing.do_bench, warmup=25, rep=100, return_mode="median")
    forward = bench(lambda: way(*inputs))
    o = way(*inputs)
    backward = bench(lambda: torch.autograd.grad(o, inputs, do, retain_graph=True))
    return [round(forward, 4), round(backward, 4)]


def _copy_bandwidth():
    x = torch.empty(1 << 28, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    return round(2 * 2 * x.numel() / triton.testing.do_bench(lambda: y.copy_(x)) / 1e6, 1)


def _device():
    return "cuda" if torch.cuda.is_available() and not configs.INTERPRETED else "cpu"


def _types():
    return [torch.float32, torch.float16] + ([torch.bfloat16] if _device() == "cuda" else [])


PARTS = {f.__name__: f for f in (toolchain, integers, repeats, tests, sanitizer, training, timings)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {"command": " ".join(sys.argv)}
    for name in arguments.only:
        begun = time.perf_counter()
        try:
            results[name] = PARTS[name]()
        except Exception:
            results[name] = {"passed": False, "traceback": traceback.format_exc()[-1500:]}
        results[name]["seconds"] = round(time.perf_counter() - begun, 1)
        print(name, json.dumps(results[name], indent=1), flush=True)
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
    failed = [n for n in arguments.only if results[n].get("passed") is False]
    print("failed:", ", ".join(failed) or "nothing")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
