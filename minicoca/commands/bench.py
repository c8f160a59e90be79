"""`minicoca bench`: a training step, writing captions, decoding pictures, or the kernels, timed."""

from pathlib import Path

from .. import config
from .flags import Usage
from .results import check_output

HELP = "time a training step, the writing of captions, the decoding of pictures, or the kernels"
MOST = 10**6
OPS = ("attention", "attention_pool", "info_nce", "caption_loss")


def add_flags(parser):
    add = parser.add_argument
    add("what", choices=("step", "generate", "data", "kernels"), help="what to time")
    add("--against", choices=("open_clip",), help="step, generate: beside this, the same")
    add("--repeats", type=int, help="but kernels: times of each (default 5, 3, 3)")
    add("--batch-size", type=int, help="but kernels: images (default 16, 32, 16)")
    add("--tokens", type=int, default=20, help="generate: of each caption (default 20)")
    add("--beams", type=int, default=6, help="generate: beside greedy (default 6)")
    add("--preset", default="open_clip_b32", choices=config.PRESETS, help="step, generate: of this")
    add("--device", default="auto", help="step, generate: torch device (default auto)")
    precisions = ("auto", "float32", "bfloat16")
    add("--precision", default="auto", choices=precisions, help="step: on a CPU, bfloat16: both")
    add("--workers", type=int, nargs="+", default=[1, 2], help="data: threads (default 1 and 2)")
    add("--ops", nargs="+", choices=OPS, help="kernels: only these")
    add("--quick", action="store_true", help="kernels: only shapes with a target")
    add("--no-tests", action="store_true", help="kernels: do not run their tests first")
    add("--pictures", type=Path, help="kernels: folder to draw the figures into")
    add("--json", type=Path, help="a new file to write the figures to")


def run(arguments):
    from .. import bench

    for flag in ("repeats", "batch_size", "tokens", "beams"):
        value = getattr(arguments, flag)
        least = 1 + (flag == "beams")  # one is greedy, which is timed beside them
        if value is not None and not least <= value <= MOST:
            limit = f"at least {least} and at most {MOST:,}"
            raise Usage(f"--{flag.replace('_', '-')} {value}: {limit}")
    if not all(1 <= count <= MOST for count in arguments.workers):
        raise Usage(f"--workers {min(arguments.workers)}: at least 1 and at most {MOST:,}")
    if arguments.json:
        check_output("--json", arguments.json)
    if arguments.what == "data":
        from .. import bench_data

        bench_data.data(
            images=arguments.batch_size or 16,
            repeats=arguments.repeats or 3,
            workers=arguments.workers,
            json_path=arguments.json,
        )
        return
    if arguments.what == "kernels":
        bench.kernels(
            ops=arguments.ops,
            quick=arguments.quick,
            json_path=arguments.json,
            pictures=arguments.pictures,
            tests=not arguments.no_tests,
        )
        return
    how = dict(against=arguments.against, device=arguments.device, json_path=arguments.json)
    how |= dict(preset_name=arguments.preset)
    if arguments.what == "generate":
        from .. import bench_generate

        bench_generate.generate(
            images=arguments.batch_size or 32,
            tokens=arguments.tokens,
            beams=arguments.beams,
            repeats=arguments.repeats or 3,
            **how,
        )
        return
    bench.step(
        batch=arguments.batch_size or 16,
        repeats=arguments.repeats or 5,
        precision=arguments.precision,
        **how,
    )
