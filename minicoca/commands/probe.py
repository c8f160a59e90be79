"""`minicoca probe`: what can be told from a frozen model's features with a few labels."""

import os
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np

from .. import config
from ..tasks.probe import KINDS, accuracy, curve, features_of, save_probe, zero_shot
from .flags import Usage, add_settings
from .model import add_flags as add_model_flags
from .model import note, open_model, tell_unread
from .results import Results, check_output, check_picture, save_figure, tell

HELP = "learn your labels from a frozen model's features, and measure it"
SETTINGS = ("image_root", "image_column", "split_column", "keep_copies", "held_out", "exclude")
SETTINGS += ("emoji_source",)
HELD_OUT, MOVING = 0.2, "moving"


def add_flags(parser):
    parser.add_argument(
        "--data",
        required=True,
        help="class folders, or a list with a label each; shapes, emoji, moving (drawn videos)",
    )
    parser.add_argument("--video", action="store_true", help="the data are videos")
    parser.add_argument("--label-column", help="the column or field of labels; else by its name")
    parser.add_argument(
        "--by",
        nargs="+",
        choices=KINDS,
        help="nearest neighbours, logistic regression on vectors or on the mean of tokens, a new "
        "attentional pooler, or of videos one that does not tell frames apart (default: all)",
    )
    parser.add_argument(
        "--shots",
        nargs="+",
        type=shots_of,
        default=[1, 2, 5, 10, None],
        metavar="N",
        help="labelled images of each class, or all (default 1 2 5 10 all)",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="draws of which images are labelled (default 3)"
    )
    parser.add_argument(
        "--template", action="append", help='zero-shot: a prompt with {} for a class (default "{}")'
    )
    parser.add_argument("--out", type=Path, help="a new picture to write, of the curves")
    parser.add_argument(
        "--save", type=Path, help="a new .safetensors of the one probe --by names: classify --probe"
    )
    parser.add_argument(
        "--held-out-part",
        type=float,
        default=HELD_OUT,
        help=f"part that is tested, where the data give no split (default {HELD_OUT})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of that split (default 0)")
    add_model_flags(parser)
    add_settings(parser.add_argument_group("the data"), SETTINGS)


def shots_of(text):
    """A number of images, or None of "all"."""
    if text != "all" and not text.lstrip("-").isdecimal():
        raise ArgumentTypeError(f"{text} is neither a number of images nor all")
    return None if text == "all" else int(text)


def run(arguments):
    check(arguments)
    model, tokenizer = open_model(arguments)
    data = data_of(arguments, model.config)
    is_video = arguments.video or arguments.data == MOVING
    tell(f"{data.name}: {data.notes}".strip())
    kinds = list(dict.fromkeys(arguments.by or (KINDS if is_video else KINDS[:-1])))
    shots = list(dict.fromkeys(arguments.shots))
    with_tokens = bool({*KINDS[2:]} & {*kinds})
    known = features_of(model, data.train, with_tokens)
    tested = features_of(model, data.test, with_tokens)
    for pairs in (data.train.pairs, data.test.pairs):
        if hasattr(pairs, "report") and pairs.report():
            tell(pairs.report())
    few = np.bincount(known.labels, minlength=len(data.classes)).min()
    if short := [many for many in shots if many and many > few]:
        note(f"a class has but {few:,} images: all of them count as its {short[0]}")
    head = {"run": str(arguments.run), "data": arguments.data, "classes": len(data.classes)}
    head |= {"train": len(known.labels), "test": len(tested.labels)}
    head |= {"chance": chance(tested.labels), "zero_shot": None, "zero_shot_interval": None}
    try:
        templates = arguments.template or ["{}"]
        if model.config.compares:
            if not data.prompts:
                tell_unread(model, tokenizer, data.classes)
            named = accuracy(zero_shot(model, tokenizer, data, tested, templates)[None])
            head |= {"zero_shot": named["accuracy"], "zero_shot_interval": named["interval"]}
    except ValueError as error:
        note(f"no zero-shot figure: {error}")
    rows = []
    with Results(arguments, len(kinds), lambda row: as_table(row, first=not rows)) as results:
        for kind in kinds:
            given = kind, known, tested, data.classes, model.config
            found = list(curve(*given, shots, arguments.seeds))
            row = head | {"probe": kind, "shots": [row_of(many, own) for many, own, _ in found]}
            results.add([row])
            rows.append(row)
            if arguments.save:
                save_probe(arguments.save, found[-1][2], model)
                note(f"the last of these is {arguments.save}: minicoca classify --probe")
    if arguments.out:
        save_figure(arguments.out, drawn(rows))


def check(arguments):
    """Raise Usage for what cannot be."""
    if few := [many for many in arguments.shots if many is not None and many < 1]:
        raise Usage(f"--shots {few[0]}: at least 1, or all")
    if arguments.seeds < 1:
        raise Usage(f"--seeds {arguments.seeds}: at least 1")
    if not 0 <= arguments.held_out_part < 1:
        raise Usage(f"--held-out-part {arguments.held_out_part}: at least 0 and under 1")
    if "unordered" in (arguments.by or ()) and not (arguments.video or arguments.data == MOVING):
        raise Usage("--by unordered is of frames: --video, or --data moving")
    if arguments.out:
        check_picture("--out", arguments.out)
    if arguments.save:
        if len(arguments.by or KINDS) > 1 or arguments.by == ["knn"]:
            raise Usage("--save keeps one probe: give --by linear, linear-tokens or pooler")
        if arguments.save.suffix != ".safetensors":
            raise Usage(f"--save {arguments.save}: the name must end in .safetensors")
        check_output("--save", arguments.save)


def data_of(arguments, earlier):
    """The data that the flags name. Raises Usage."""
    from ..data import labelled, labelled_videos, load, moving, shapes

    given = {name: getattr(arguments, name) for name in SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    side, seed = earlier.image_size, arguments.seed
    if arguments.data == MOVING:
        return moving.load(seed, side)
    if arguments.data == "shapes":
        dataset = shapes.load(seed, side, train=0, evaluation=labelled.SCENES)
        return labelled.of_prompts(dataset, dataset.validation)
    try:
        given |= {"data": arguments.data, "seed": seed, "image_size": side, "patch_size": 1}
        usual = config.Config(**given)
    except ValueError as error:
        raise Usage(error) from error
    if arguments.data == "emoji":
        dataset = load(usual)
        return labelled.of_prompts(dataset, dataset.train)
    how = {"seed": seed, "held_out": arguments.held_out_part}
    how |= {"image_root": usual.image_root or None}
    how |= {"columns": (usual.image_column, arguments.label_column or "", usual.split_column)}
    source = os.path.abspath(arguments.data)
    if arguments.video:
        return labelled_videos.load(source, side, **how)
    return labelled.load(source, side, keep_copies=usual.keep_copies, **how)


def chance(labels):
    """The accuracy of always naming the class that most images to test are of."""
    return float(np.bincount(labels).max() / len(labels))


def row_of(many, right):
    """What is told of one number of shots."""
    return {"shots": "all" if many is None else many, **accuracy(right)}


def as_table(row, first):
    """A probe's lines, under the heading where it is the first."""
    cells = [percent(one["accuracy"], one["spread"]) for one in row["shots"]]
    ends = [within(one["interval"]) for one in row["shots"]]
    lines = [f"{row['probe']:14}" + "".join(f"{cell:>16}" for cell in cells)]
    lines += [" " * 14 + "".join(f"{cell:>16}" for cell in ends)]
    if not first:
        return "\n".join(lines)
    zero = row["zero_shot"]
    named = "none" if zero is None else f"{zero:.1%} ({within(row['zero_shot_interval'])})"
    told = f"chance {row['chance']:.1%}, zero-shot {named}"
    sizes = f"{row['classes']:,} classes, {row['train']:,} to learn from, {row['test']:,} tested"
    marks = "".join(f"{one['shots']:>16}" for one in row["shots"])
    about = "   of each class: %, mean and spread; 95 % interval"
    return "\n".join([f"{sizes}; {told}", f"{'labels':14}{marks}{about}", *lines])


def within(ends):
    return " to ".join(f"{100 * end:.1f}" for end in ends)


def percent(mean, spread):
    return f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def drawn(rows):
    """The curves, as a figure of matplotlib's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    marks = [str(one["shots"]) for one in rows[0]["shots"]]
    for row in rows:
        y = [100 * one["accuracy"] for one in row["shots"]]
        e = [100 * (one["spread"] or 0) for one in row["shots"]]
        axis.errorbar(range(len(y)), y, e, marker="o", capsize=3, label=row["probe"])
    axis.axhline(100 * rows[0]["chance"], color="grey", linestyle=":", label="chance")
    if rows[0]["zero_shot"] is not None:
        axis.axhline(100 * rows[0]["zero_shot"], color="k", linestyle="--", label="zero-shot")
    axis.set_xticks(range(len(marks)), marks)
    axis.set(xlabel="labelled images of each class", ylabel="accuracy, %", ylim=(0, 102))
    axis.set_title(f"{rows[0]['test']:,} tested, {rows[0]['classes']:,} classes", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure
