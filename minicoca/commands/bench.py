"""`minicoca bench`: a training step or the kernels, timed."""

from pathlib import Path

from .. import config
from .flags import Usage
from .results import check_output

HELP = "time a training step, or the kernels"
MOST = 10**6
OPS = ("attention", "attention_pool", "info_nce", "caption_loss")


def add_flags(parser):
    add = parser.add_argument
    add("what", choices=("step", "kernels"), help="what to time")
    add("--against", choices=("open_clip",), help="step: beside this, the same batch")
    add("--repeats", type=int, default=5, help="step: steps of each (default 5)")
    add("--batch-size", type=int, default=16, help="step: (default 16)")
    add("--preset", default="open_clip_b32", choices=config.PRESETS, help="step: of this")
    add("--device", default="auto", help="step: torch device (default auto)")
    add("--ops", nargs="+", choices=OPS, help="kernels: only these")
    add("--quick", action="store_true", help="kernels: only shapes with a target")
    add("--no-tests", action="store_true", help="kernels: do not run their tests first")
    add("--pictures", type=Path, help="kernels: folder to draw the figures into")
    add("--json", type=Path, help="a new file to write the figures to")


def run(arguments):
    from .. import bench

    for flag in ("repeats", "batch_size"):
        if not 1 <= getattr(arguments, flag) <= MOST:
            limit = f"at least 1 and at most {MOST:,}"
            raise Usage(f"--{flag.replace('_', '-')} {getattr(arguments, flag)}: {limit}")
    if arguments.json:
        check_output("--json", arguments.json)
    if arguments.what == "kernels":
        bench.kernels(
            ops=arguments.ops,
            quick=arguments.quick,
            json_path=arguments.json,
            pictures=arguments.pictures,
            tests=not arguments.no_tests,
        )
        return
    bench.step(
        against=arguments.against,
        batch=arguments.batch_size,
        repeats=arguments.repeats,
        device=arguments.device,
        preset_name=arguments.preset,
        json_path=arguments.json,
    )
