"""What the compiler makes of every shipped configuration, without a GPU: `make kernel-report`.

Each kernel is compiled as it would be launched (the same divisibility facts about pointers and
strides) for sm_80, sm_90, sm_100 and gfx942, and the machine code is read: registers, stack bytes
(spills), shared memory against the architecture's limit, tensor-core instructions, and loads of q,
k, v narrower than 16 bytes. `python -m minicoca.kernels.compile_report [--write | --check]`.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import attention, attention_pool, configs

FOLDER = Path(__file__).parent
REPORT = FOLDER / "compile_report.json"
SOURCES = ("softmax.py", "attention.py", "attention_pool.py", "configs.py")
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 166_912),
    "sm_90": (GPUTarget("cuda", 90, 32), 232_448),
    "sm_100": (GPUTarget("cuda", 100, 32), 232_448),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 65_536),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# (T, S, K, causal, lengths, shared queries): CoCa's shapes, one for each row of the static table
ATTENTION = {
    "vit 50": (50, 50, 64, False, False, False),
    "vit 257": (257, 257, 64, False, False, False),
    "vit 256": (256, 256, 64, False, False, False),
    "vit 256 of 88": (256, 256, 88, False, False, False),
    "vit 1370 of 128": (1370, 1370, 128, False, False, False),
    "text 77": (77, 77, 64, True, True, False),
    "text 77 of 88": (77, 77, 88, True, True, False),
    "cross 76 x 256": (76, 256, 64, False, False, False),
    "pool 256 x 257": (256, 257, 96, False, False, True),
}
POOL = {"one query, 257 x 1024": (257, 1024, 8), "one query, 256 x 1408": (256, 1408, 16)}
HEADS, BATCH = 12, 64


def digest():
    """A fingerprint of the kernels' sources: a report of other sources is stale."""
    data = b"".join((FOLDER / name).read_bytes() for name in SOURCES)
    return hashlib.sha256(data).hexdigest()[:16]


def cases():
    """(name, kernel, values of its run-time arguments by name, constexprs, launch options)."""
    for name, (T, S, K, causal, lengths, shared) in ATTENTION.items():
        config = configs.attention_config(T, S, K, shared)
        sizes = dict(T=T, S=S, H=HEADS, B=BATCH, samples=2)
        for letter, rows in dict(q=T, k=S, v=S, o=T, do=T, dq=T, dk=S, dv=S).items():
            sizes |= {f"{letter}_b": rows * HEADS * K, f"{letter}_h": K}
            sizes |= {f"{letter}_{'s' if rows == S and letter in 'kvdkdv' else 't'}": HEADS * K}
        for letter in ("k", "v", "dk", "dv"):
            sizes[f"{letter}_s"] = HEADS * K
        for letter in ("q", "o", "do", "dq"):
            sizes[f"{letter}_t"] = HEADS * K
        flags = dict(CAUSAL=causal, LENGTHS=lengths, ALIGNED=True, BLOCK_K=config.block_k, K=K)

        def row(kernel, tile, sizes=sizes, flags=flags, name=name, **more):
            blocks = dict(BLOCK_T=tile.block_t, BLOCK_S=tile.block_s)
            options = dict(num_warps=tile.warps, num_stages=tile.stages)
            return f"{name}: {kernel.fn.__name__}", kernel, sizes, blocks | flags | more, options

        yield row(attention.attention_fwd_kernel, config.forward, ONE_TILE=config.one_tile)
        if config.short:
            yield row(attention.attention_bwd_short_kernel, config.backward)
        else:
            yield row(attention.attention_bwd_dkdv_kernel, config.backward)
            yield row(attention.attention_bwd_dq_kernel, config.backward_dq)
    for name, (N, M, H) in POOL.items():
        sizes = dict(N=N, M=M, H=H, x_b=N * M, x_n=M, g_b=H * M, dx_b=N * M, dx_n=M)
        blocks = dict(BLOCK_N=attention_pool.BLOCK_N, BLOCK_M=attention_pool.BLOCK_M, BLOCK_H=16)
        for kernel in ("pool_scores_kernel", "pool_sum_kernel", "pool_dx_kernel"):
            yield (
                f"{name}: {kernel}", getattr(attention_pool, kernel), sizes,
                blocks | {"FIND_STATISTICS": True}, dict(num_warps=8, num_stages=2),
            )  # fmt: skip


WIDE_POINTERS = ("lse", "delta", "mean", "rstd", "s", "p", "ds", "w", "m", "c1", "c2")


def compile_case(kernel, sizes, constexprs, options, target):
    """The compiled kernel, bfloat16 inputs, with what a launch would know of its arguments."""
    constants = constexprs | dict(WIDE=tl.float32, UPCAST=False, PRECISION="ieee")
    signature, constexpr_values, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if kernel.params[place].is_constexpr:
            signature[name], constexpr_values[(place,)] = "constexpr", constants[name]
        elif name.endswith("_ptr"):
            stem = name.removesuffix("_ptr")
            kind = "i32" if stem == "lengths" else "fp32" if stem in WIDE_POINTERS else "bf16"
            signature[name], attributes[(place,)] = f"*{kind}", [["tt.divisibility", 16]]
        elif name in ("scale", "eps"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if sizes[name] % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexpr_values, attributes)
    return triton.compile(source, target=target, options=options)


def facts(compiled, target):
    """What the machine code says of itself."""
    row = {"shared": compiled.metadata.shared}
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        return row | {
            "registers": int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1]),
            "stack": int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text)[1]),
            "tensor": len(re.findall(r"v_mfma", text)),
        }
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", file.name)
    loads = re.findall(r"(LDGSTS|LDG)\.E(?:\.\w+)*", code)
    narrow = re.findall(r"LDG\.E\.U16", code)
    return row | {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "tensor": len(re.findall(r"HGMMA|UTC\w*MMA|HMMA", code)),
        "HGMMA": len(re.findall(r"HGMMA", code)),
        "HMMA": len(re.findall(r"\bHMMA", code)),
        "loads": len(loads),
        "2-byte loads": len(narrow),
    }


def _run(tool, *arguments):
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def build(targets=TARGETS):
    """{"case": {"sm_90": facts, ...}, ...}"""
    rows = {}
    for name, kernel, sizes, constexprs, options in cases():
        rows[name] = {}
        for arch in targets:
            target, _ = TARGETS[arch]
            compiled = compile_case(kernel, sizes, constexprs, options, target)
            rows[name][arch] = facts(compiled, target)
        print(name, rows[name], file=sys.stderr)
    return rows


def complaints(rows, before, allowed):
    """What the gate refuses, as sentences. `allowed`: {"case/arch/what": reason}."""
    found = []
    for name, archs in rows.items():
        for arch, row in archs.items():
            limit = TARGETS[arch][1]
            checks = {
                "shared": row["shared"] > limit and f"{row['shared']} bytes, limit {limit}",
                "stack": row["stack"] > 0 and f"{row['stack']} bytes of spills",
                "narrow": row.get("2-byte loads", 0) > 0 and f"{row['2-byte loads']} 2-byte loads",
                "HMMA": arch == "sm_90" and row["HMMA"] > 0 and f"{row['HMMA']} HMMA on Hopper",
                "tensor": row["tensor"] == 0 and "no tensor-core instruction",
            }
            old = before.get(name, {}).get(arch, {}).get("registers")
            if old and row["registers"] > 1.1 * old:
                checks["registers"] = f"{row['registers']} registers, before {old}"
            for what, text in checks.items():
                if text and f"{name}/{arch}/{what}" not in allowed:
                    found.append(f"{name}, {arch}: {text}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"update {REPORT.name}")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    arguments = parser.parse_args()
    saved = json.loads(REPORT.read_text()) if REPORT.exists() else {"rows": {}, "allowed": {}}
    rows = build(arguments.targets)
    bad = complaints(rows, saved["rows"], saved["allowed"])
    print("\n".join(bad) or "no complaints", file=sys.stderr)
    if arguments.write:
        report = {
            "sources": digest(), "triton": triton.__version__, "allowed": saved["allowed"],
            "rows": rows,
        }  # fmt: skip
        REPORT.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if bad and not arguments.write else 0


if __name__ == "__main__":
    sys.exit(main())
