"""What a card would take, reckoned from machine code alone: no card is asked, nothing is timed.

The instructions of one warp are counted (NVIDIA's disassembler; what stands in a loop, as often as
the loop runs), and with them what a launch asks of each part of the chip. Each part alone would
take some time for that; no launch is faster than the slowest of them, which is the bound and says
what to change. Latency is left out: with few programs resident, parts wait for each other.
"""

import re
from collections import Counter
from dataclasses import dataclass

THREADS = 32  # of a warp


@dataclass(frozen=True)
class Chip:
    """A card by its data sheet: operations and bytes a second. Per multiprocessor and clock: CUDA
    C++ Programming Guide, compute capability 9.0; the cache's is A100's (its white paper), since
    none is published for Hopper."""

    name: str
    bandwidth: float  # bytes a second from and to memory
    products: float = 989.4e12  # operations a second in bfloat16, dense
    multiprocessors: int = 132
    tensor_rate: int = 4096  # operations a clock and multiprocessor, as are the next three
    special_rate: int = 16  # exponentials, reciprocals, roots
    shared_rate: int = 128  # bytes
    issue_rate: int = 4  # instructions of a warp
    cache_bytes: int = 5120  # a clock, from the cache that all share
    registers: int = 65_536  # of a multiprocessor, as are the next three
    shared: int = 233_472
    warps: int = 64
    programs: int = 32

    @property
    def clock(self):
        """Hertz at which the data sheet's operations are reached."""
        return self.products / self.multiprocessors / self.tensor_rate


H100 = Chip("H100", 3.35e12)  # SXM: nvidia.com/en-us/data-center/h100
H200 = Chip("H200", 4.8e12)  # nvidia.com/en-us/data-center/h200
CHIPS = (H100, H200)
PARTS = {  # what is counted: what it is divided by
    "products": "tensor_rate",
    "special": "special_rate",
    "shared": "shared_rate",
    "instructions": "issue_rate",
}

_LINE = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\w*(?:\.\w+)*)(.*)$")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}  # bytes a thread; else 4
_MATRICES = {"2": 8, "4": 16}  # of LDSM and STSM, bytes a thread; else 4


def instructions(disassembly):
    """[(label or None, predicate or "", operation, operands)] of the one kernel in it, up to its
    last EXIT. Raises ValueError where there is no code."""
    found, label, inside = [], None, False
    for line in disassembly.splitlines():
        if line.startswith("\t.section\t"):
            inside = ".text." in line
        elif inside and (place := _LABEL.match(line)):
            label = place[1]
        elif inside and (code := _LINE.match(line)):
            found.append((label, code[1] or "", code[2], code[3]))
            label = None
    ends = [i for i, (_, _, operation, _) in enumerate(found) if operation == "EXIT"]
    if not ends:
        raise ValueError("no machine code that ends is in this disassembly: nothing to reckon")
    return found[: ends[-1] + 1]


def loops(code):
    """[(first, last)] places of each loop's instructions: branches that lead back."""
    places = {label: i for i, (label, *_) in enumerate(code) if label}
    found = {}
    for i, (_, _, operation, operands) in enumerate(code):
        target = re.search(r"\.L_x_\d+", operands) if operation.startswith("BRA") else None
        if target and places.get(target[0], i) < i:
            found[places[target[0]]] = i
    return sorted(found.items())


def count(disassembly, trips=()):
    """What one warp does in one program, as a Counter.

    trips: how often loops run: the outer ones, those inside of them, ... Raises ValueError where
    the code has loops that are deeper than that, or none although one is told of.
    """
    code = instructions(disassembly)
    ranges = loops(code)
    depths = [sum(a <= i <= b for a, b in ranges) for i in range(len(code))]
    if max(depths) != len(trips):
        raise ValueError(f"loops in the code are {max(depths)} deep; trips are given for {trips}")
    total = Counter()
    for (_, predicate, operation, operands), depth in zip(code, depths, strict=True):
        times = 1
        for n in trips[:depth]:
            times *= n
        for what, much in _effects(predicate, operation, operands).items():
            total[what] += times * much
    return total


def _effects(predicate, operation, operands):
    """What one instruction asks of each part, by a warp."""
    name, *parts = operation.split(".")
    found = {"instructions": 1}
    if predicate == "!PT":  # never done
        return found
    width = THREADS * next((_WIDTHS[p] for p in parts if p in _WIDTHS), 4)
    if name in ("LDG", "LDGSTS", "STG"):
        found["written" if name == "STG" else "read"] = width
    if name in ("LDS", "STS", "LDGSTS"):
        found["shared"] = width
    if name in ("LDSM", "STSM"):
        found["shared"] = THREADS * _MATRICES.get(parts[-1], 4)
    if name in ("LDL", "STL"):
        found["spilled"] = width
    if name == "MUFU":
        found["special"] = THREADS
    if name == "HGMMA":  # of four warps together: A [M, K] and B [K, N], A perhaps from registers
        m, n, k = map(int, parts[0].split("x"))
        first = operands.split(",")[1]
        found["products"] = 2 * m * n * k // 4
        found["shared"] = 2 * k * (n + (m if "gdesc" in first else 0)) // 4
        found["tensor instructions"] = 1
    if name == "HMMA":
        m, n, k = {"16816": (16, 8, 16), "1688": (16, 8, 8)}[parts[0]]
        found["products"], found["tensor instructions"] = 2 * m * n * k, 1
    return found


def resident(registers, shared, warps, chip=H100):
    """How many programs a multiprocessor holds at once."""
    per_warp = -(-registers // 8) * 8 * THREADS
    return min(
        chip.programs,
        chip.warps // warps,
        chip.registers // (per_warp * warps),
        chip.shared // (shared + 1024),
    )


@dataclass(frozen=True)
class Launch:
    """Equal launches of one kernel. tensors: bytes of what one reads and writes, each once;
    cached: with what programs read again; work: what a warp does in a program (`count`)."""

    kernel: str
    direction: str
    launches: int
    programs: int
    warps: int
    registers: int
    shared: int
    tensors: int
    cached: int
    work: dict

    def resident(self, chip=H100):
        return resident(self.registers, self.shared, self.warps, chip)

    def waves(self, chip=H100):
        """How often the chip is filled; at the end of the last it is not full."""
        return self.programs / (self.resident(chip) * chip.multiprocessors)

    def seconds(self, chip=H100):
        """{part: seconds that it alone would take}. A multiprocessor's parts serve the programs of
        the one that has the most of them."""
        busiest = -(-self.programs // chip.multiprocessors) * self.warps
        found = {
            "memory": self.tensors / chip.bandwidth,
            "cache": self.cached / chip.cache_bytes / chip.clock,
        }
        for part, rate in PARTS.items():
            found[part] = self.work.get(part, 0) * busiest / getattr(chip, rate) / chip.clock
        return {part: self.launches * t for part, t in found.items()}

    def bound(self, chip=H100):
        """(part, seconds) of the slowest."""
        return max(self.seconds(chip).items(), key=lambda item: item[1])
