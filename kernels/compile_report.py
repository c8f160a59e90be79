"""What the compiler makes of every shipped configuration, without a GPU: `make kernel-report`.

Each kernel is compiled as it would be launched (the same divisibility facts about pointers and
strides) for sm_80, sm_90, sm_100 and gfx942, and the machine code is read: registers, stack bytes
(spills), shared memory against the architecture's limit, tensor-core instructions, 2-byte loads.
A report is kept for each version of Triton that it was run with, and for each assembler that
TRITON_PTXAS_PATH put in the place of Triton's own.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import attention, attention_pool, caption_loss_rows, configs, info_nce_tiles, toolchain
from .configs import Tile

FOLDER = Path(__file__).parent
REPORT = FOLDER / "compile_report.json"
SOURCES = (
    "softmax.py", "configs.py", "attention.py", "attention_general.py", "attention_pool.py",
    "info_nce_tiles.py", "caption_loss_rows.py",
)  # fmt: skip
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 166_912),
    "sm_90": (GPUTarget("cuda", 90, 32), 232_448),
    "sm_100": (GPUTarget("cuda", 100, 32), 232_448),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 65_536),
}
STATEMENT_ENDS = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# (T, S, K, causal, lengths, shared queries): CoCa's shapes and others, so that each row of the
# static table for heads over 32 is here; smaller heads have the same tiles, and need less
ATTENTION = {
    "vit 50": (50, 50, 64, False, False, False),
    "vit 50 of 88": (50, 50, 88, False, False, False),
    "cross 50 x 100": (50, 100, 64, False, False, False),
    "cross 100 x 50": (100, 50, 64, False, False, False),
    "vit 257": (257, 257, 64, False, False, False),
    "vit 256": (256, 256, 64, False, False, False),
    "vit 256 of 88": (256, 256, 88, False, False, False),
    "vit 1370 of 128": (1370, 1370, 128, False, False, False),
    "text 77": (77, 77, 64, True, True, False),
    "text 77 of 88": (77, 77, 88, True, True, False),
    "cross 76 x 256": (76, 256, 64, False, False, False),
    "pool 256 x 257": (256, 257, 96, False, False, True),
}
POOL = {  # (N, M, H, lengths)
    "one query, 257 x 1024": (257, 1024, 8, False),
    "one query, lengths, 256 x 1408": (256, 1408, 16, True),
}
ABSENT = {"lengths_ptr": None}
HEADS, BATCH = 12, 64
DTYPES = {"bf16": "bf16", "fp32": "fp32"}  # fp16 compiles as bf16 does

# What the gate lets pass: a pattern of "case/architecture/what", how much, and the reason.
ALLOWED = {
    "captions*/narrow": (1, "the target's logit"),
    "*/gfx942/stack": (280, "tiles are chosen for Hopper"),
    "*/sm_80/stack": (600, "tiles are chosen for Hopper, whose products read shared memory"),
    "*/sm_100/stack": (600, "tiles are chosen for Hopper"),
    "*fp32/*/stack": (10_000, "float32 is there to check with"),
}


def digest():
    """A fingerprint of the kernels' tokens, without comments and docstrings: a report of other code
    is stale. (Not of the syntax tree, which each Python writes in its own way.)"""
    parts = []
    for name in SOURCES:
        before = tokenize.NEWLINE
        with open(FOLDER / name) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type in (tokenize.COMMENT, tokenize.NL):
                    continue
                docstring = before in STATEMENT_ENDS and token.type == tokenize.STRING
                mark = {tokenize.INDENT: ">", tokenize.DEDENT: "<"}.get(token.type, token.string)
                parts.append("" if docstring else mark)
                before = token.type
    return hashlib.sha256("".join("".join(parts).split()).encode()).hexdigest()[:16]


def cases(dtype="bf16"):
    """(name, kernel, values of its run-time arguments by name, constexprs, launch options)."""
    for name, shape in ATTENTION.items():
        yield from attention_cases(name, *shape, dtype=dtype)
    for name, shape in POOL.items():
        yield from pool_cases(name, *shape)
    yield from loss_cases()


def attention_cases(name, T, S, K, causal, lengths, shared, dtype="bf16"):
    """As `cases`: the kernels of attention of one shape, in the order in which they run."""
    config = configs.attention_config(T, S, K, shared, exact=dtype == "fp32")
    sizes = dict(T=T, S=S, H=HEADS, B=BATCH, samples=2 if shared else 1)
    for letter, rows in dict(q=T, k=S, v=S, o=T, do=T, dq=T, dk=S, dv=S).items():
        sizes |= {f"{letter}_b": rows * HEADS * K, f"{letter}_h": K}
    for letter in ("k", "v", "dk", "dv"):
        sizes[f"{letter}_s"] = HEADS * K
    for letter in ("q", "o", "do", "dq"):
        sizes[f"{letter}_t"] = HEADS * K
    flags = dict(CAUSAL=causal, ALIGNED=True, BLOCK_K=config.block_k, K=K)
    flags |= {} if lengths else ABSENT
    flags["PRECISION"] = "ieee"

    def row(kernel, tile, **more):
        blocks = dict(BLOCK_T=tile.block_t, BLOCK_S=tile.block_s)
        options = dict(num_warps=tile.warps, num_stages=tile.stages)
        return f"{name}: {kernel.fn.__name__}", kernel, sizes, blocks | flags | more, options

    yield row(attention.attention_fwd_kernel, config.forward, ONE_TILE=config.one_tile)
    if config.short:
        yield row(attention.attention_bwd_short_kernel, config.backward)
    else:
        yield row(attention.attention_delta_kernel, Tile(64, 64, 4, 1))
        yield row(attention.attention_bwd_dkdv_kernel, config.backward)
        yield row(attention.attention_bwd_dq_kernel, config.backward_dq)


def pool_cases(name, N, M, H, lengths):
    """As `cases`: the kernels of one-query pooling of one shape."""
    sizes = dict(N=N, M=M, H=H, x_b=N * M, x_n=M, g_b=H * M, dx_b=N * M, dx_n=M)
    blocks = dict(BLOCK_N=attention_pool.BLOCK_N, BLOCK_M=attention_pool.BLOCK_M, BLOCK_H=16)
    blocks |= {} if lengths else ABSENT
    for kernel in ("pool_scores_kernel", "pool_sum_kernel", "pool_dx_kernel"):
        yield (
            f"{name}: {kernel}", getattr(attention_pool, kernel), sizes,
            blocks | {"FIND_STATISTICS": True}, dict(num_warps=8, num_stages=2),
        )  # fmt: skip


def loss_cases():
    """As `cases`: the kernels of both losses."""
    tile = configs.INFO_NCE
    blocks = dict(BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_E=tile.block_e)
    options = dict(num_warps=tile.warps, num_stages=tile.stages)
    for E, normalise in ((512, False), (768, True), (1024, False)):
        sizes = dict(M=4096, N=32_768, first=4096, x_m=E, y_n=E, g_m=32_768)
        flags = blocks | dict(E=E, NORMALISE=normalise, GROUP=tile.group)
        for kernel in (info_nce_tiles.info_nce_fwd_kernel, info_nce_tiles.info_nce_bwd_kernel):
            yield f"pairs of {E}: {kernel.fn.__name__}", kernel, sizes, flags, options
    yield (
        "captions of 49408: caption_rows_kernel", caption_loss_rows.caption_rows_kernel,
        dict(row_stride=49_408, V=49_408), dict(GRADIENT=True, BLOCK_V=configs.CAPTION_BLOCK),
        dict(num_warps=configs.CAPTION_WARPS),
    )  # fmt: skip


WIDE_POINTERS = (
    "lse", "delta", "mean", "rstd", "s", "p", "ds", "w", "m", "c1", "c2", "scale", "rx", "ry",
    "row", "column", "total", "loss",
)  # fmt: skip


INTEGERS = {"lengths": "i32", "target": "i64"}


def compile_case(kernel, sizes, constexprs, options, target, dtype="bf16"):
    """The compiled kernel, with what a launch would know of its arguments."""
    precise = dtype == "fp32" and target.backend == "cuda"
    constants = dict(WIDE=tl.float32, UPCAST=False, PRECISION="tf32x3" if precise else "ieee")
    constants |= constexprs
    if "BLOCK_E" in constants and dtype == "fp32":
        constants["BLOCK_E"] //= 2  # as many bytes
    signature, constexpr_values, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if kernel.params[place].is_constexpr or name in constants:
            signature[name], constexpr_values[(place,)] = "constexpr", constants[name]
        elif name.endswith("_ptr"):
            stem = name.removesuffix("_ptr")
            kind = "fp32" if stem in WIDE_POINTERS else INTEGERS.get(stem, dtype)
            signature[name], attributes[(place,)] = f"*{kind}", [["tt.divisibility", 16]]
        elif name in ("scale", "eps"):
            signature[name] = "fp32"
        elif sizes[name] == 1:
            signature[name], constexpr_values[(place,)] = "constexpr", 1
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
    usage = _run("cuobjdump", "-res-usage", compiled)
    code = disassembly(compiled)
    loads = re.findall(r"(LDGSTS|LDG)\.E(?:\.\w+)*", code)
    narrow = re.findall(r"LDG\.E\.U16", code)
    doubles = len(re.findall(r"\.f64\b", compiled.asm["ptx"]))
    row |= {"f64": doubles} if doubles else {}
    return row | {
        "registers": max(map(int, re.findall(r"REG:(\d+)", usage))),
        "stack": max(map(int, re.findall(r"STACK:(\d+)", usage))),
        "tensor": len(re.findall(r"HGMMA|UTC\w*MMA|HMMA", code)),
        "HGMMA": len(re.findall(r"HGMMA", code)),
        "HMMA": len(re.findall(r"\bHMMA", code)),
        "loads": len(loads),
        "2-byte loads": len(narrow),
    }


def disassembly(compiled):
    """NVIDIA's machine code of a compiled kernel, as text."""
    return _run("nvdisasm", compiled)


def _run(tool, *arguments):
    """What one of NVIDIA's tools says of the compiled kernel, its last argument."""
    *flags, compiled = arguments
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [TOOLS / tool, *flags, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def build(targets=TARGETS, dtypes=DTYPES):
    """{"case, dtype": {"sm_90": facts, ...}, ...}"""
    rows = {}
    for dtype in dtypes:
        for name, kernel, sizes, constexprs, options in cases(dtype):
            row = rows[f"{name}, {dtype}"] = {}
            for arch in targets:
                target, _ = TARGETS[arch]
                compiled = compile_case(kernel, sizes, constexprs, options, target, dtype)
                row[arch] = facts(compiled, target)
            print(f"{name}, {dtype}", row, file=sys.stderr)
    return rows


def complaints(rows, before, allowed=ALLOWED):
    """What the gate refuses, as sentences."""
    found = []
    for name, archs in rows.items():
        for arch, row in archs.items():
            limit = TARGETS[arch][1]
            old = before.get(name, {}).get(arch, row)
            products = not any(part in name for part in ("delta", "caption", "fp32"))
            wgmma = arch == "sm_90" and "fp32" not in name
            checks = {  # what: how much, of which there should be none, and in words
                "shared": (max(0, row["shared"] - limit), f"shared memory is over {limit}"),
                "stack": (row["stack"], "of spills"),
                "narrow": (row.get("2-byte loads", 0), "2-byte loads"),
                "f64": (row.get("f64", 0), ".f64 in the PTX: a constant or sum became float64"),
                "HMMA": (row["HMMA"] if wgmma else 0, "HMMA, which is not Hopper's"),
                "tensor": (int(not row["tensor"] and products), "no tensor core used"),
                "registers": (
                    row["registers"] > 1.1 * old["registers"],
                    f"registers were {old['registers']}",
                ),
                "growth": (  # of what is let pass
                    max(0, row["stack"] - old["stack"]) if old["stack"] else 0,
                    f"bytes of spills more than {old['stack']}",
                ),
            }
            for what, (much, words) in checks.items():
                place = f"{name}/{arch}/{what}"
                passes = max(
                    [n for p, (n, _) in allowed.items() if fnmatch.fnmatch(place, p)] + [0]
                )
                if much > passes:
                    found.append(f"{place}: {much} {words} ({row})")
    return found


def stale(rows, before):
    """Where what was compiled now is not what the report holds, as sentences."""
    return [
        f"{name}/{arch}: compiled {row}, reported {before[name].get(arch)}: make kernel-report"
        if name in before
        else f"{name}: not in the report: make kernel-report"
        for name, archs in rows.items()
        for arch, row in archs.items()
        if before.get(name, {}).get(arch) != row
    ]


def version():
    """Of Triton, and of an assembler that is not its own."""
    if "TRITON_PTXAS_PATH" not in os.environ:
        return triton.__version__
    return f"{triton.__version__}, ptxas {'.'.join(map(str, toolchain.ptxas_release()))}"


def saved():
    """The committed report: {"sources": digest, "versions": {version(): rows}}."""
    return json.loads(REPORT.read_text()) if REPORT.exists() else {"versions": {}}


def table(arch="sm_90", of=None):
    """The committed report of one architecture and version, as a Markdown table."""
    versions = saved()["versions"]
    of = of or next(iter(versions), None)
    columns = ("registers", "stack", "shared", "HGMMA", "HMMA", "2-byte loads")
    lines = [f"| {arch}, Triton {of} | " + " | ".join(columns) + " |", "|---" * 7 + "|"]
    for name, row in versions.get(of, {}).items():
        if not name.endswith("fp32"):
            cells = (str(row[arch].get(column, "-")) for column in columns)
            lines.append(f"| {name.removesuffix(', bf16')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"update {REPORT.name}")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    arguments = parser.parse_args()
    report = saved()
    rows = build(arguments.targets, arguments.dtypes)
    before = report["versions"].get(version(), {})
    bad, always = complaints(rows, before), complaints(rows, {})
    if before and not arguments.write:
        bad += stale(rows, before)
    print("\n".join(bad) or "no complaints")
    if arguments.write:
        if report.get("sources") != digest():
            report["versions"] = {}
        report = {"sources": digest(), "versions": report["versions"] | {version(): rows}}
        REPORT.write_text(_json(report))
    # What was written may differ from before, but not spill.
    return 1 if (always if arguments.write else bad) else 0


def _json(report):
    """One line for each case."""
    versions = []
    for version, rows in report["versions"].items():
        lines = (f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        versions.append(f" {json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n }")
    sources = json.dumps(report["sources"])
    return f'{{"sources": {sources}, "versions": {{\n' + ",\n".join(versions) + "\n}}\n"


if __name__ == "__main__":
    sys.exit(main())
