"""What is reckoned from machine code: counted right, no less than must be, as the files say."""

import math
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from minicoca.kernels.bench import plans, reckon, reckoned, registry

SHAPES = list(plans.shapes())
CASES = {case.name: case for case in registry.cases("cpu", torch.bfloat16)}
SAVED = reckoned.saved()
LAUNCHES = [
    (shape.name, *pair)
    for shape in SHAPES
    for pair in zip(shape.planned, reckoned.launches(SAVED[shape.name]), strict=True)
]

# As nvdisasm writes it: an outer loop (1 to 2) with one inside, a trap behind the last EXIT, and a
# section's flags, which begin as a section does.
CODE = """
\t.section\t.debug_line,"",@progbits
        /*0000*/                   MUFU.EX2 R1, R2 ;
\t.section\t.text.some_kernel,"ax",@progbits
\t.sectionflags\t@"SHF_BARRIERS=1"
.text.some_kernel:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0010*/                   MUFU.EX2 R1, R2 ;
        /*0020*/              @!PT LDS RZ, [RZ] ;
.L_x_2:
        /*0030*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64] ;
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0050*/              @!P0 BRA `(.L_x_2) ;
        /*0060*/                   HGMMA.64x64x16.F32.BF16 R24, R8, gdesc[UR4].tnspB, R24, gsb0 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/                   STG.E.64 desc[UR4][R2.64], R8 ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
\t.section\t.nv.shared.some_kernel,"aw",@nobits
        /*0000*/                   MUFU.EX2 R1, R2 ;
"""


def check_count(module):
    """By hand: the outer loop 3 times, the inner one 5 times in each."""
    found = module.count(CODE, (3, 5))
    assert found["instructions"] == 1 + 3 * 4 + 15 * 3 + 2
    assert found["special"] == 3 * 32
    assert found["read"] == (1 + 15) * 512 and found["written"] == 256
    wide, narrow = 2 * 64 * 128 * 16 // 4, 2 * 64 * 64 * 16 // 4
    assert found["products"] == 15 * wide + 3 * narrow
    assert found["tensor instructions"] == 18
    # A [64, 16] and B [16, 128] from shared memory; only B [16, 64]; and what was copied to it.
    assert found["shared"] == 15 * (2 * 16 * (64 + 128) // 4 + 512) + 3 * 2 * 16 * 64 // 4


def check_resident(module):
    for registers, warps, count in (
        (255, 8, 1),
        (128, 4, 4),
        (169, 4, 2),
        (32, 1, 32),
        (32, 16, 4),
    ):
        assert module.resident(registers, 512, warps) == count
    assert module.resident(32, 115_712, 4) == 2 and module.resident(32, 115_713, 4) == 1


def check_bound(module):
    work = {"products": 8e6, "special": 1e3, "shared": 1e3, "instructions": 1e3}
    launch = module.Launch("kernel", "forward", 1, 133, 4, 64, 0, 10**6, 10**6, work)
    times = launch.seconds()
    assert launch.bound() == ("products", max(times.values()))
    # 133 programs on 132 multiprocessors: one of them has two.
    assert times["products"] == pytest.approx(2 * 4 * 8e6 / 4096 / module.H100.clock)
    assert replace(launch, launches=3).bound()[1] == pytest.approx(3 * times["products"])


CHECKS = (check_count, check_resident, check_bound)


@pytest.mark.parametrize("check", CHECKS)
def test_counts_and_times_are_those_made_by_hand(check):
    check(reckon)


@pytest.mark.parametrize(
    ("old", "new", "check"),
    [
        ('startswith("\\t.section\\t")', 'startswith("\\t.section")', check_count),
        ("inside = \".text.\" in line", "inside = True", check_count),
        ("if target and places", "if False and places", check_count),
        ("for n in trips[:depth]", "for n in trips[:1]", check_count),
        ('if predicate == "!PT"', 'if predicate == "PT"', check_count),
        ('if "gdesc" in first else 0', "", check_count),
        ("2 * m * n * k // 4", "2 * m * n * k", check_count),
        ('"128": 16', '"128": 8', check_count),
        ("found[: ends[-1] + 1]", "found", check_count),
        ("(shared + 1024)", "(shared)", check_resident),
        ("-(-registers // 8) * 8", "registers", check_resident),
        ("chip.programs,\n", "", check_resident),
        ("return max(self.seconds", "return min(self.seconds", check_bound),
        ("-(-self.programs // chip.multi", "(self.programs // chip.multi", check_bound),
        ("* self.warps\n", "\n", check_bound),
        ("self.launches * t for", "t for", check_bound),
    ],
)  # fmt: skip
def test_a_planted_bug_is_caught(monkeypatch, old, new, check):
    source = Path(reckon.__file__).read_text()
    if source.count(old) != 1:
        raise LookupError(f"{old!r} stands {source.count(old)} times")
    module = types.ModuleType("mutant_of_reckon")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look there
    exec(compile(source.replace(old, new), "reckon.py", "exec"), module.__dict__)
    with pytest.raises((AssertionError, ValueError)):
        check(module)


def test_code_that_is_not_there_is_refused():
    """Not reckoned as nothing; and trips must be those of the loops that are there."""
    for empty in ("", CODE.replace(".text.", ".data."), CODE.replace("EXIT", "NOP")):
        with pytest.raises(ValueError, match="nothing to reckon"):
            reckon.count(empty)
    for trips in ((), (3,), (3, 5, 7)):
        with pytest.raises(ValueError, match="2 deep"):
            reckon.count(CODE, trips)


@given(st.integers(1, 255), st.integers(0, 232_448), st.sampled_from([1, 2, 4, 8, 16]))
def test_as_many_programs_are_resident_as_fit(registers, shared, warps):
    def fits(count):
        threads = 32 * warps * count
        return threads * registers <= 65_536 and count * (shared + 1024) <= 233_472 and count <= 32

    count = reckon.resident(registers, shared, warps)
    assert count == 0 or fits(count)
    assert not fits(count + 1) or warps * (count + 1) > 64 or registers % 8


@pytest.mark.parametrize("chip", reckon.CHIPS, ids=lambda chip: chip.name)
def test_a_bound_is_the_slowest_part_and_no_faster_than_what_must_be(chip):
    for _, _, launch in LAUNCHES:
        part, seconds = launch.bound(chip)
        assert seconds == launch.seconds(chip)[part] == max(launch.seconds(chip).values()) > 0
    for name, shape in SAVED.items():
        if not name.startswith("pool"):  # whose ceiling is of the projected path
            assert sum(reckoned.seconds(shape, chip)) >= 0.98 * reckoned.ceiling(shape, chip), name


def test_a_launch_moves_its_tensors_and_asks_for_no_less():
    """Loads and stores in the code, masked ones too, are at least every tensor once; and what
    programs read again is what they ask for, up to the edges of tiles."""
    for name, _, launch in LAUNCHES:
        asked = (launch.work["read"] + launch.work["written"]) * launch.warps * launch.programs
        assert asked >= 0.999 * launch.tensors, (name, launch.kernel)
        assert launch.cached >= launch.tensors and asked <= 2 * launch.cached, name


def test_no_shape_moves_less_than_its_inputs_and_outputs():
    for shape in SHAPES:
        for direction, least in zip(reckoned.DIRECTIONS, CASES[shape.name].traffic, strict=True):
            own = [p for p in shape.planned if p.direction == direction]
            moved = sum(p.launches * sum(p.tensors.values()) for p in own)
            moved += sum(much for way, _, much in shape.library if way == direction)
            if own:
                assert moved >= 0.98 * least, (shape.name, direction)


PRODUCTS = {  # of a tile, for each trip of the innermost loop
    "attention_fwd_kernel": 2, "attention_bwd_short_kernel": 5, "attention_bwd_dkdv_kernel": 4,
    "attention_bwd_dq_kernel": 3, "info_nce_fwd_kernel": 1, "info_nce_bwd_kernel": 1,
    "pool_scores_kernel": 1, "pool_sum_kernel": 1,
}  # fmt: skip


def test_tensor_cores_do_what_the_formula_says_and_nothing_twice():
    """Also that loops were counted as often as they run."""
    seen = set()
    for name, planned, launch in LAUNCHES:
        if launch.kernel in PRODUCTS:
            sizes = planned.row[3]
            tile = math.prod(v for k, v in sizes.items() if k.startswith("BLOCK_"))
            want = 2 * tile * PRODUCTS[launch.kernel] * math.prod(planned.trips)
            assert launch.work["products"] * launch.warps == pytest.approx(want), name
            seen.add(launch.kernel)
    assert seen == set(PRODUCTS)


def test_no_op_computes_less_than_its_operations():
    for shape in SHAPES:
        if not shape.name.startswith("pool"):  # counted as if projected for every sample
            ours = sum(
                launch.work.get("products", 0) * launch.warps * launch.programs * launch.launches
                for name, _, launch in LAUNCHES
                if name == shape.name
            )
            ours += sum(operations for _, operations, _ in shape.library)
            assert ours >= 0.999 * sum(CASES[shape.name].flops), shape.name


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([64, 88, 128]))
def test_twice_the_batch_is_twice_the_work(T, S, K):
    both = (plans.attention(T, S, 4, K, batch) for batch in (8, 16))
    for one, two in zip(*both, strict=True):
        assert two.programs == 2 * one.programs and two.trips == one.trips
        assert sum(two.tensors.values()) == 2 * sum(one.tensors.values())
    launch = LAUNCHES[0][2]
    twice = replace(launch, programs=2 * launch.programs)
    assert twice.waves() == 2 * launch.waves()
    for part, seconds in twice.seconds().items():
        assert seconds <= 2 * launch.seconds()[part]


def test_the_file_is_of_this_table_of_tiles():
    """Programs, warps and tensors as they would be planned now."""
    assert list(SAVED) == [shape.name for shape in SHAPES]
    for name, planned, launch in LAUNCHES:
        again = "run: python -m minicoca.kernels.bench.reckoned --write"
        assert launch.kernel == planned.row[1].fn.__name__, (name, again)
        assert launch.programs == planned.programs, (name, again)
        assert launch.warps == planned.row[4]["num_warps"], (name, again)
        assert launch.tensors == int(sum(planned.tensors.values())), (name, again)
    for shape in SHAPES:
        assert SAVED[shape.name]["operations"] == list(CASES[shape.name].flops), shape.name
        assert SAVED[shape.name]["traffic"] == list(CASES[shape.name].traffic), shape.name


def test_tables_are_of_the_file():
    for path, table in ((reckoned.README, reckoned.summary), (reckoned.KERNELS, reckoned.kernels)):
        text = path.read_text()
        assert reckoned.replaced(text, table(SAVED)) == text, path.name
    with pytest.raises(ValueError, match="once each"):
        reckoned.replaced("no marks", "table")


def test_a_card_is_known_by_its_name():
    for device, chip in (("NVIDIA H200", reckon.H200), ("NVIDIA H100 80GB HBM3", reckon.H100)):
        name, (forward, backward) = next(iter(reckoned.milliseconds(device).items()))
        assert (forward, backward) == pytest.approx(
            [1e3 * t for t in reckoned.seconds(SAVED[name], chip)], abs=1e-4
        )
    assert reckoned.milliseconds("NVIDIA A100") == {}


KNOWN = """
import triton, triton.language as tl
from minicoca.kernels import compile_report as report
from minicoca.kernels.bench import reckon

@triton.jit
def kernel(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    for first in range(0, N, BLOCK):
        i = first + tl.arange(0, BLOCK)
        tl.store(y_ptr + i, tl.exp2(tl.load(x_ptr + i).to(tl.float32)))

target, _ = report.TARGETS["sm_90"]
compiled = report.compile_case(kernel, {"N": 10**6}, dict(BLOCK=4096), dict(num_warps=4), target)
found = reckon.count(report.disassembly(compiled), (7,))
print(*(4 * found[what] for what in ("read", "written", "special")))
"""


def test_a_compiled_kernel_is_counted(tmp_path):
    """4,096 numbers of two bytes a trip, seven trips: in, out, and one exponential each."""
    (tmp_path / "known.py").write_text(KNOWN)
    done = subprocess.run(
        [sys.executable, tmp_path / "known.py"], capture_output=True, text=True, check=True,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )  # fmt: skip
    assert done.stdout.split() == ["57344", "57344", "28672"]
