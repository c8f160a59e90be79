"""What an H100 and an H200 would take at the shapes of the target table, in a file that needs no
compiler to be read (reckoned.json), and the tables that are made of it.

    python -m minicoca.kernels.bench.reckoned --write     compile, count, write them all anew

A library's products are reckoned as what they compute or move, whichever takes longer.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from . import reckon

FOLDER = Path(__file__).parent.parent
FILE, KERNELS, README = (FOLDER / name for name in ("reckoned.json", "RECKONED.md", "README.md"))
BEGIN, END = "<!-- reckoned: by kernels/bench/reckoned.py -->", "<!-- end of reckoned -->"
DIRECTIONS = ("forward", "backward")
WORDS = {  # what a part is called in a table
    "memory": "memory", "cache": "cache", "products": "tensor cores", "special": "exponentials",
    "shared": "shared memory", "instructions": "instructions", "library": "library",
}  # fmt: skip


def saved():
    """{shape: {"launches": [fields of reckon.Launch], "library": [[direction, operations, bytes]],
    "operations", "traffic": [forward, backward], "others": {name: [bytes, bytes]}}}, as written."""
    return json.loads(FILE.read_text())["shapes"]


def launches(shape):
    """[reckon.Launch] of a shape, in the order in which they run."""
    return [reckon.Launch(**fields) for fields in shape["launches"]]


def parts(shape, direction, chip):
    """[(kernel, what bounds it, seconds)] of one direction."""
    found = [(x.kernel, *x.bound(chip)) for x in launches(shape) if x.direction == direction]
    for way, operations, moved in shape["library"]:
        if way == direction:
            found.append(("library", "library", _roofline(operations, moved, chip)))
    return found


def seconds(shape, chip):
    """(forward, backward): the sum of its launches' bounds."""
    return tuple(sum(t for *_, t in parts(shape, way, chip)) for way in DIRECTIONS)


def ceiling(shape, chip):
    """Seconds of both directions, if nothing were computed or moved but what must be."""
    both = zip(shape["operations"], shape["traffic"], strict=True)
    return sum(_roofline(*needed, chip) for needed in both)


def _roofline(operations, moved, chip):
    return max(operations / chip.products, moved / chip.bandwidth)


def moved(shape):
    """Bytes from and to memory, both directions."""
    ours = sum(x.launches * x.tensors for x in launches(shape))
    return ours + sum(much for _, _, much in shape["library"])


def milliseconds(device):
    """{shape: (forward, backward)} on the chip whose name is in the device's; {} for others."""
    chip = next((chip for chip in reckon.CHIPS if chip.name in device), None)
    if chip is None:
        return {}
    return {
        name: tuple(round(1e3 * t, 4) for t in seconds(shape, chip))
        for name, shape in saved().items()
    }


def summary(shapes):
    """A row for each shape, beside its ceiling and what others move, as Markdown."""
    lines = [
        "| shape | H100, ms (forward, backward) | H200, ms | bound by | ceiling, ms: H100, H200 "
        "| moves, MB | others move, MB |",
        "|---" * 7 + "|",
    ]
    for name, shape in shapes.items():
        times = (
            ", ".join(f"{1e3 * t:.3f}" for t in seconds(shape, chip) if t) for chip in reckon.CHIPS
        )
        ceilings = ", ".join(f"{1e3 * ceiling(shape, chip):.3f}" for chip in reckon.CHIPS)
        bounds = (
            ", ".join(WORDS[part] for _, part, _ in parts(shape, way, reckon.H100))
            for way in DIRECTIONS
        )
        others = (f"{label} {sum(both) / 1e6:,.0f}" for label, both in shape["others"].items())
        cells = (
            name, *times, "; ".join(x for x in bounds if x), ceilings,
            f"{moved(shape) / 1e6:,.0f}", ", ".join(others),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kernels(shapes):
    """A row for each launch: what it asks for, and what each part alone would take on an H100."""
    columns = (
        "shape", "kernel", "programs", "resident", "waves", "registers", "shared, kB",
        "tensor, other instructions of a warp", "exponentials of a program", "moves, MB",
        *(f"{word}, µs" for word in WORDS.values() if word != "library"), "memory of an H200, µs",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, shape in shapes.items():
        for x in launches(shape):
            tensor, others = x.work.get("tensor instructions", 0), x.work["instructions"]
            slowest, _ = x.bound()
            times = (
                f"**{1e6 * t:,.0f}**" if part == slowest else f"{1e6 * t:,.0f}"
                for part, t in x.seconds().items()
            )
            cells = (
                name, f"{x.kernel.removesuffix('_kernel')}{f' x {x.launches}' * (x.launches > 1)}",
                f"{x.programs:,}", x.resident(), f"{x.waves():.1f}", x.registers,
                f"{x.shared / 1e3:.0f}", f"{tensor:,.0f}, {others - tensor:,.0f}",
                f"{x.work.get('special', 0) * x.warps:,.0f}",
                f"{x.launches * x.tensors / 1e6:,.0f}", *times,
                f"{1e6 * x.seconds(reckon.H200)['memory']:,.0f}",
            )  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def replaced(text, table):
    """The text with the table between its marks. Raises ValueError where they are not there."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{BEGIN} and {END} must stand once each in the file")
    return f"{text.partition(BEGIN)[0]}{BEGIN}\n{table}\n{END}{text.partition(END)[2]}"


def build():
    """What `saved` reads, made anew; compiles every kernel of the target table."""
    import torch

    from . import plans, registry

    cases = {case.name: case for case in registry.cases("cpu", torch.bfloat16)}
    return {
        shape.name: {
            "operations": cases[shape.name].flops,
            "traffic": cases[shape.name].traffic,
            "library": shape.library,
            "others": shape.others,
            "launches": [asdict(plans.launched(planned)) for planned in shape.planned],
        }
        for shape in plans.shapes()
    }


def write():
    """Every file that is made of the machine code."""
    from .. import compile_report

    shapes, version = build(), compile_report.version()
    lines = (f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in shapes.items())
    rows = ",\n".join(lines)
    FILE.write_text(f'{{"version": {json.dumps(version)}, "shapes": {{\n{rows}\n}}}}\n')
    shapes = saved()
    README.write_text(replaced(README.read_text(), summary(shapes)))
    KERNELS.write_text(replaced(KERNELS.read_text(), kernels(shapes)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="compile, count, write the files")
    if parser.parse_args().write:
        write()
    print(summary(saved()))
