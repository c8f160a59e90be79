"""The compile gate: every shipped configuration compiles without a GPU, and to what it should."""

import itertools
import os
import subprocess
import sys

import pytest

triton = pytest.importorskip("triton")
report = pytest.importorskip("minicoca.kernels.compile_report")
attention_config = report.configs.attention_config

if not (report.TOOLS / "nvdisasm").is_file():
    pytest.skip("this Triton comes without a disassembler", allow_module_level=True)

ROW = {
    "sm_90": dict(registers=128, stack=0, shared=100_000, tensor=8, HGMMA=8, HMMA=0, loads=9),
    "gfx942": dict(registers=128, stack=0, shared=60_000, tensor=8),
}


def test_the_report_holds_every_case_for_four_versions():
    saved, cases = report.saved(), {f"{name}, bf16" for name, *_ in report.cases()}
    for version in ("3.6", "3.7", "3.8", "3.9"):
        rows = next(rows for name, rows in saved["versions"].items() if name.startswith(version))
        assert {name for name in rows if name.endswith("bf16")} == cases
        assert all(set(row) == set(report.TARGETS) for row in rows.values())
        assert not report.complaints(rows, {})


def test_the_report_holds_an_assembler_that_is_sound_on_hopper():
    """Every case in bfloat16, within the same gate, by a ptxas that does not miscompile."""
    versions = report.saved()["versions"]
    sound = {name: rows for name, rows in versions.items() if "ptxas" in name}
    assert sound
    for name, rows in sound.items():
        release = tuple(map(int, name.split("ptxas ")[1].split(".")))
        assert release >= report.toolchain.SOUND
        wanted = {f"{case}, bf16" for case, *_ in report.cases()}
        assert {row for row in rows if row.endswith("bf16")} == wanted
        assert all("sm_90" in row for row in rows.values())
        assert not report.complaints(rows, {})


def test_nothing_is_let_spill_on_hopper():
    rows = [row for rows in report.saved()["versions"].values() for row in rows.items()]
    assert not [name for name, on in rows if name.endswith("bf16") and on["sm_90"]["stack"]]


def test_an_assembler_of_ones_own_has_a_report_of_its_own(monkeypatch):
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    assert report.version() == triton.__version__
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/somewhere/ptxas")
    monkeypatch.setattr(report.toolchain, "ptxas_release", lambda: (13, 5))
    assert report.version() == f"{triton.__version__}, ptxas 13.5"


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["sm_80", "sm_90"], ["sm_100", "gfx942"]])
def test_every_configuration_compiles_as_the_report_says(targets):
    """To the register, where the report knows this Triton; else, within the gate. In a fresh
    process: under the interpreter there is nothing to compile."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "minicoca.kernels.compile_report", "--dtypes", "bf16", "--targets",
         *targets],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize(
    ("arch", "change", "says"),
    [
        ("sm_90", dict(stack=8), "8 of spills"),
        ("sm_90", {"2-byte loads": 3}, "3 2-byte loads"),
        ("sm_90", dict(HMMA=4), "4 HMMA"),
        ("sm_90", dict(f64=2), "2 .f64"),
        ("sm_90", dict(shared=240_000), "shared memory is over 232448"),
        ("gfx942", dict(shared=65_537), "shared memory is over 65536"),
        ("gfx942", dict(tensor=0), "no tensor core"),
        ("sm_90", dict(registers=142), "registers were 128"),
    ],
)
def test_the_gate_refuses(arch, change, says):
    assert not report.complaints({"a case, bf16": ROW}, {"a case, bf16": ROW})
    worse = {"a case, bf16": ROW | {arch: ROW[arch] | change}}
    found = report.complaints(worse, {"a case, bf16": ROW})
    assert len(found) == 1 and says in found[0] and arch in found[0]
    what = found[0].split(":")[0]
    assert not report.complaints(worse, {"a case, bf16": ROW}, {what: (1e9, "because")})


DOUBLE = """
import triton, triton.language as tl
from minicoca.kernels import compile_report as report

@triton.jit
def kernel(x_ptr, WIDTH: tl.constexpr, STEP: tl.constexpr):
    i = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + i).to(tl.float32)
    tl.store(x_ptr + i, x * tl.full((), 1 / 3, STEP))

target, _ = report.TARGETS["sm_90"]
for step in (tl.float64, tl.float32):
    given = kernel, {}, dict(WIDTH=128, STEP=step), dict(num_warps=4)
    print(report.facts(report.compile_case(*given, target), target).get("f64", 0))
"""


def test_a_kernel_with_float64_is_found(tmp_path):
    """From its PTX: a constant that was made in float64 carries the product along."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    (tmp_path / "double.py").write_text(DOUBLE)
    done = subprocess.run(
        [sys.executable, tmp_path / "double.py"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    planted, plain = map(int, done.stdout.split())
    assert planted > 0 and plain == 0


def test_a_report_of_other_code_is_stale():
    """By what the code compiles to, not by how it is written."""
    case = {"a case, bf16": ROW}
    assert not report.stale(case, case)
    (found,) = report.stale({"a case, bf16": ROW | {"sm_90": ROW["sm_90"] | dict(loads=10)}}, case)
    assert "a case, bf16/sm_90" in found and "'loads': 10" in found
    assert "not in the report" in report.stale(case, {})[0]


def test_spills_that_are_let_pass_may_not_grow():
    old, new = ({"a case, bf16": {"sm_90": ROW["sm_90"] | dict(stack=n)}} for n in (40, 48))
    allowed = {"*/stack": (100, "because")}
    assert not report.complaints(old, old, allowed)
    (found,) = report.complaints(new, old, allowed)
    assert "8 bytes of spills more than 40" in found


def test_every_row_of_the_static_table_is_compiled():
    """Heads over 32; smaller ones have the same tiles."""

    def rows(T, S, K, shared):
        config = attention_config(T, S, K, shared)
        wide = config.block_k
        yield "forward", wide, config.one_tile, config.forward
        yield "backward", wide, config.short, config.backward
        yield "dq", wide, config.backward_dq

    lengths = (1, 50, 64, 65, 128, 129, 256, 257, 577)
    wanted = {
        row
        for shape in itertools.product(lengths, lengths, (64, 128), (False, True))
        for row in rows(*shape)
    }
    compiled = {row for T, S, K, _, _, s in report.ATTENTION.values() for row in rows(T, S, K, s)}
    assert wanted == compiled
