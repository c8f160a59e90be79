"""The command line's grammar: every command and flag, with the words of its --help."""

import argparse
import difflib
import sys
from pathlib import Path

from . import __version__, config

RUNS = "runs"
OPS = ("attention", "attention_pool", "info_nce", "caption_loss")


class Parser(argparse.ArgumentParser):
    """argparse that names the nearest flag when one is wrong."""

    def error(self, message):
        words = message.partition("unrecognized arguments: ")[2].split()
        wrong = next((word for word in words if word.startswith("--")), None)
        if wrong:
            near = difflib.get_close_matches(wrong.split("=")[0], self.known_flags(), 1, 0.5)
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parse_args(self, argv=None):
        self.argv = sys.argv[1:] if argv is None else argv
        return super().parse_args(argv)

    def known_flags(self):
        inside = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        chosen = [sub for a in inside for name, sub in a.choices.items() if name in self.argv[:1]]
        return [flag for p in (self, *chosen) for flag in p._option_string_actions]


def build_parser():
    parser = Parser(
        prog="minicoca",
        description="Train a CoCa on images and captions, then caption, classify and search.",
        epilog="Start with: minicoca train",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, help, **kwargs):
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False, **kwargs)
        return sub

    sub = command("train", "train a model; with no flags, on drawn shapes, in minutes")
    sub.add_argument("--preset", choices=config.PRESETS, help="(default tiny)")
    sub.add_argument("--run", type=Path, help=f"folder to write (default {RUNS}/DATA, numbered)")
    sub.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run")
    sub.add_argument("--json", action="store_true", help="print the results as JSON")
    config.add_flags(sub.add_argument_group("settings, saved with the run (default: the preset's)"))

    def model_command(name, help):
        sub = command(name, help)
        sub.add_argument("--run", type=Path, help="a trained run (default: the newest in runs/)")
        sub.add_argument("--backend", default="auto", choices=("auto", "torch", "triton", "numpy"))
        sub.add_argument("--device", default="auto", help="torch device (default auto)")
        sub.add_argument("--json", action="store_true", help="print JSON, for programs")
        return sub

    sub = model_command("caption", "write a caption for each image")
    sub.add_argument("images", nargs="+", help="image files or folders of them")
    sub.add_argument("--prompt", default="", help="how every caption begins")
    sub.add_argument("--beams", type=int, default=0, help="beam search with so many beams")
    sub.add_argument("--temperature", type=float, help="sample; without it the likeliest token")
    sub.add_argument("--top-k", type=int, help="... from the k likeliest tokens")
    sub.add_argument("--top-p", type=float, help="... from this much probability")
    sub.add_argument("--seed", type=int, help="... with this seed")

    sub = model_command("classify", "say which of your labels fits each image")
    sub.add_argument("images", nargs="+", help="image files or folders of them")
    sub.add_argument("--labels", nargs="+", required=True, help="the classes, in words")
    sub.add_argument(
        "--template", action="append", help='a prompt with {} for the label (default "{}")'
    )

    sub = model_command("search", "find images by a sentence, or by an image")
    sub.add_argument("folder", help="where to look")
    sub.add_argument("query", help="a sentence, or an image file")
    sub.add_argument("-k", type=int, default=6, help="how many to show (default 6)")
    sub.add_argument("--sheet", type=Path, help="write what was found as one picture")

    sub = model_command("embed", "write unit vectors of images, or of sentences")
    sub.add_argument("inputs", nargs="+", help="image files or folders; with --text, sentences")
    sub.add_argument("--text", action="store_true", help="the inputs are sentences")
    sub.add_argument("--out", type=Path, required=True, help=".npz to write: vectors, names")

    sub = command("info", "what is installed, and what a run or a preset is")
    sub.add_argument("--run", type=Path, help="a run to describe")
    sub.add_argument("--preset", choices=config.PRESETS, help="a preset to describe")
    sub.add_argument("--json", action="store_true", help="print JSON, for programs")

    sub = command("data", "look at a data set before training on it")
    sub.add_argument("data", help="shapes, emoji, or a file or folder of images and captions")
    sub.add_argument("--sheet", type=Path, help="write some of its images as one picture")
    names = ("image_size", "image_root", "held_out", "exclude", "emoji_source", "unseen_names")
    config.add_flags(sub, only=names)

    sub = command("bench", "time a training step, or the kernels")
    sub.add_argument("what", choices=("step", "kernels"), help="what to time")
    sub.add_argument("--against", choices=("open_clip",), help="step: beside this, the same batch")
    sub.add_argument("--repeats", type=int, default=5, help="step: steps of each (default 5)")
    sub.add_argument("--batch-size", type=int, default=16, help="step: (default 16)")
    sub.add_argument(
        "--preset", default="open_clip_b32", choices=config.PRESETS, help="step: of this"
    )
    sub.add_argument("--device", default="auto", help="step: torch device (default auto)")
    sub.add_argument("--ops", nargs="+", choices=OPS, help="kernels: only these")
    sub.add_argument("--quick", action="store_true", help="kernels: only shapes with a target")
    sub.add_argument(
        "--no-tests", action="store_true", help="kernels: do not run their tests first"
    )
    sub.add_argument("--pictures", type=Path, help="kernels: folder to draw the figures into")
    sub.add_argument("--json", type=Path, help="write the figures to this file")
    return parser
