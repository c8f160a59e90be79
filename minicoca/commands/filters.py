"""`minicoca filter`: which captions of a data set are worth training on, as a list of them."""

import json
import os
from pathlib import Path

import numpy as np

from ..config import BUILT_IN
from ..data.rules import Rules, owners
from ..tasks.filtering import PASSING
from .flags import Usage, add_settings, from_flags
from .model import add_computing, open_model, tell_unread
from .results import check_output, check_picture, save_picture, tell

HELP = "leave out captions that are noise, by rules and by a model, into a list of the others"
SETTINGS = (
    *("image_root", "image_column", "caption_column", "split_column", "class_template"),
    *("validation_part", "held_out_part", "keep_copies", "seed"),
)
RULES = {
    "min_words": "words of a caption at least",
    "max_words": "... and at most",
    "min_characters": "characters of a caption at least",
    "min_letters": "part of them that are letters, at least",
    "max_repeated": "part of the words that stand there already, at most",
    "max_shared": "pictures that have the same caption, at most",
    "min_side": "pixels of a picture's shorter side at least",
    "max_ratio": "of its longer side to the shorter, at most",
}
BORDER = 36  # captions on the sheet


def add_flags(parser):
    add = parser.add_argument
    add("data", help="a list, a folder or .tar shards, as train takes them; it is not changed")
    add("--out", type=Path, required=True, help="a new list, .jsonl, for train --data")
    for name, text in RULES.items():
        value, flag = Rules._field_defaults[name], "--" + name.replace("_", "-")
        add(flag, type=type(value), default=value, help=f"{text} (0: any; default {value:g})")
    add("--by", dest="run", type=Path, help="a trained run, whose cosines judge the captions too")
    add("--min-cosine", type=float, help="drop captions of a smaller cosine with their pictures")
    add("--keep", type=float, help="... or all but this share of them, the nearest first")
    add(
        "--passing", type=float,
        help=f"... or those under what this share of others' captions reach (default {PASSING:g})",
    )  # fmt: skip
    add("--replace", action="store_true", help="write the run's own captions where they pass")
    add("--sheet", type=Path, help="a new picture to write, of captions on the border")
    add_computing(parser)
    add_settings(parser.add_argument_group("the data"), SETTINGS)


def run(arguments):
    from .. import data
    from ..data.files import Report

    check(arguments)
    model = tokenizer = None
    arguments.patch_size = 1
    if arguments.run:
        model, tokenizer = open_model(arguments)
        arguments.image_size = model.config.image_size
    dataset = data.load(from_flags(arguments))
    tell(f"{dataset.name}: {dataset.notes}".strip())
    report, pairs = Report(), dataset.train
    captions = dict(enumerate(pairs.captions))
    rules = Rules(**{name: getattr(arguments, name) for name in RULES})
    good = by_rules(pairs, captions, rules, report)
    written, judged = {}, None
    if model and captions:
        judged = by_model(model, tokenizer, pairs, captions, good, arguments, report)
        written = {row: text for row, (text, _) in judged.written.items()}
        if arguments.sheet:
            save_picture(arguments.sheet, sheet_of(pairs, captions, judged))
        captions = {
            row: [text for text, x in zip(captions[row], own, strict=True) if x >= judged.least]
            for row, own in judged.own.items()
        }
    kept = {row: own for row, own in captions.items() if own}
    kept |= {row: [text] for row, text in written.items()}
    if not kept:
        raise ValueError(f"nothing is left of {arguments.data}: {first_reason(report)}")
    save(arguments.out, dataset, kept, written)
    said = {
        "captions": sum(map(len, pairs.captions)), "pictures": len(pairs),
        "kept_captions": sum(map(len, captions.values())), "kept_pictures": len(kept),
        "replaced": len(written), "least_cosine": judged and judged.least,
        "out": str(arguments.out), "dropped": report.named,
    }  # fmt: skip
    print(json.dumps(said) if arguments.json else in_words(said, report, dataset, arguments))


def check(arguments):
    """Raises Usage."""
    if arguments.data in BUILT_IN:
        raise Usage(f"{arguments.data} is made without noise; filter data of your own")
    if arguments.out.suffix.lower() != ".jsonl":
        raise Usage(f"--out {arguments.out}: the name must end in .jsonl")
    check_output("--out", arguments.out)
    if arguments.sheet:
        check_picture("--sheet", arguments.sheet)
    least = ("min_cosine", "keep", "passing")
    given = [name for name in least if getattr(arguments, name) is not None]
    asked = [*given, *(name for name in ("replace", "sheet") if getattr(arguments, name))]
    if asked and not arguments.run:
        raise Usage(f"--{asked[0].replace('_', '-')} is of a model's judgement: give --by RUN too")
    if len(given) > 1:
        raise Usage("--min-cosine, --keep and --passing exclude each other")
    for name in ("keep", "passing", "min_letters", "max_repeated"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value <= 1:
            raise Usage(f"--{name.replace('_', '-')} {value:g} is not from 0 to 1")
    for name in RULES:
        if getattr(arguments, name) < 0:
            raise Usage(f"--{name.replace('_', '-')} {getattr(arguments, name):g}: 0 or more")


def by_rules(pairs, captions, rules, report):
    """Takes what the rules drop out of `captions`, {row: texts}; returns the rows of pictures that
    they leave."""
    from ..survey import headers

    shared, good = owners(pairs.captions), []
    for (row, own), header in zip(list(captions.items()), headers(pairs.paths), strict=True):
        why = rules.against_size(header[2:]) if header else "pictures that cannot be opened"
        if why:
            size = " ({} x {})".format(*header[2:]) if header else ""
            report.add(why, f"{pairs.paths[row]}{size}")
            del captions[row]
            continue
        good.append(row)
        reasons = [rules.against(text, shared[text.lower()]) for text in own]
        for text, why in zip(own, reasons, strict=True):
            if why:
                report.add(why, f"{pairs.paths[row]}: {text}")
        captions[row] = [text for text, why in zip(own, reasons, strict=True) if not why]
        if not captions[row]:
            del captions[row]
    return good


def by_model(model, tokenizer, pairs, captions, good, arguments, report):
    """What the model judges of the captions that are left, with what it drops in the report."""
    from ..tasks.filtering import judged

    tell_unread(model, tokenizer, [text for own in captions.values() for text in own])
    asked = {} if arguments.passing is None else {"passing": arguments.passing}
    found = judged(
        model, tokenizer, lambda rows: images_of(pairs, rows), captions,
        min_cosine=arguments.min_cosine, keep=arguments.keep,
        replace=good if arguments.replace else (), **asked,
    )  # fmt: skip
    for row, own in captions.items():
        if row not in found.own:
            report.add("pictures that cannot be decoded", str(pairs.paths[row]))
            continue
        for text, cosine in zip(own, found.own[row], strict=True):
            if cosine < found.least:
                report.add("captions that do not fit", f"{pairs.paths[row]}: {text} ({cosine:.3f})")
    for row, (text, cosine) in found.written.items():
        report.add("captions written instead", f"{pairs.paths[row]}: {text} ({cosine:.3f})")
    return found


def images_of(pairs, rows):
    """(rows, images) in batches, without those that turn out to be damaged."""
    from ..tasks import BATCH

    for i in range(0, len(rows), BATCH):
        part = np.array(rows[i : i + BATCH])
        images = pairs.batch(part)
        whole = pairs.shown(part) == part  # another stands in for a damaged one
        if whole.any():
            yield part[whole].tolist(), images[whole]


def sheet_of(pairs, captions, judged):
    """A contact sheet of the captions that were nearest to being judged otherwise."""
    from PIL import Image

    from ..tasks.retrieval import contact_sheet

    near = [(x, row, text) for row, own in judged.own.items()
            for x, text in zip(own.tolist(), captions[row], strict=True)]  # fmt: skip
    near.sort()
    first = sum(x < judged.least for x, *_ in near)
    near = near[max(0, first - BORDER // 2) : first + BORDER // 2]
    images = [Image.fromarray(image) for image in pairs.batch([row for _, row, _ in near])]
    marks = ["kept" if x >= judged.least else "dropped" for x, *_ in near]
    labels = [f"{x:.3f} {mark}: {t}" for (x, _, t), mark in zip(near, marks, strict=True)]
    return contact_sheet(images, labels)


def save(path, dataset, kept, written):
    """The list: what is kept of training, and the other splits as they are."""
    from ..files import write_output

    def name(file):
        near = os.path.relpath(file, path.absolute().parent)
        return str(os.path.abspath(file)) if near.startswith(os.pardir) else near

    splits = {"validation": dataset.validation, **dataset.evaluations}
    rows = [("train", dataset.train, row, kept[row]) for row in sorted(kept)]
    rows += [
        (split, pairs, row, pairs.captions[row])
        for split, pairs in splits.items()
        for row in range(len(pairs) if pairs is not None else 0)
    ]
    lines = []
    for split, pairs, row, texts in rows:
        line = {"image": name(pairs.paths[row]), "caption": list(texts), "split": split}
        if split == "train" and row in written:
            line["replaces"] = list(pairs.captions[row])
        lines.append(json.dumps(line) + "\n")
    write_output(path, "".join(lines).encode())


def first_reason(report):
    often = max(report.named.items(), key=lambda item: len(item[1]), default=("no pairs", ()))
    return f"{len(often[1]):,} {often[0]}, most of all; see minicoca filter --help"


def in_words(said, report, dataset, arguments):
    from ..training.checkpoint import to_run

    lines = [str(report)] if report.named else []
    if said["least_cosine"] is not None:
        lines.append(f"least cosine of a caption that fits: {said['least_cosine']:.3f}")
    others = sum(map(len, dataset.evaluations.values())) + len(dataset.validation or ())
    lines.append(
        f"{said['kept_captions']:,} of {said['captions']:,} captions are kept, "
        f"{said['replaced']:,} written instead: {said['kept_pictures']:,} of "
        f"{said['pictures']:,} training pictures; {others:,} held out as they are"
    )
    return "\n".join([*lines, to_run("train", "--data", arguments.out)])
