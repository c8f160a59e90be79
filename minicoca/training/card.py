"""README.md of a run: what it is, for people and, by its front matter, for the Hugging Face Hub.

The last line of one of ours holds the digest of all above it. A README.md that does not end so was
written or edited by a person, and is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import params
from ..config import Config
from ..files import digest, read_bytes, write_atomically
from ..relatives import specs_of
from ..words import clip
from .checkpoint import CARD, read_config

MARK = re.compile(rb"<!-- written by minicoca, sha256 of all above: ([0-9a-f]{64}) -->\n")
TAGS = ("coca", "contrastive-captioner", "image-text-retrieval", "zero-shot-image-classification")
# {a figure: (task of the Hub, its kind of metric, in words)}.
FIGURES = {
    "caption_exact": ("image-to-text", "exact_match", "captions exactly right"),
    "caption_bleu_4": ("image-to-text", "bleu", "caption BLEU-4"),
    "caption_cider_d": ("image-to-text", "cider", "caption CIDEr-D"),
    "image_to_text_r1": ("image-text-retrieval", "recall_at_1", "image to text, R@1"),
    "text_to_image_r1": ("image-text-retrieval", "recall_at_1", "text to image, R@1"),
    "zero_shot_top1": ("zero-shot-image-classification", "accuracy", "zero-shot accuracy"),
    "zero_shot_top5": ("zero-shot-image-classification", "accuracy", "zero-shot, right in 5"),
    "answer_head": ("visual-question-answering", "accuracy", "answers right, by the head"),
    "answer_generation": ("visual-question-answering", "accuracy", "answers right, written"),
}
WHOLE = ("caption_cider_d",)  # not a part of one
LICENCES = {  # {data: (the Hub's name of a licence, why)}
    "shapes": ("mit", "The data are drawn by minicoca, and hold nothing made by others."),
    "emoji": (
        "other",
        "The drawings are their vendors', each under its own licence (`minicoca data emoji` lists "
        "them): see to it that yours allow what you do with the weights.",
    ),
}
UNKNOWN = (
    "unknown",
    "Not known here: it depends on what the weights were trained on. Say it in this file before "
    "you pass them on.",
)


def write_card(
    folder: Path,
    results: Mapping[str, Any] | None = None,
    source: str = "",
    say: Callable[[str], None] = print,
) -> bool:
    """Write README.md of the run in a folder, unless a person's is there; whether it did.

    results: what results.json holds, of a run that was trained here. source: where weights that
    were not come from. Raises ValueError for a folder that holds no run, OSError where it cannot
    be written.
    """
    folder = Path(folder)
    path = folder / CARD
    if not is_ours(path):
        say(f"{path} is not ours, or was edited: it stays as it is")
        return False
    text = card(folder.absolute().name, read_config(folder), results or {}, source)
    content = text.encode(errors="backslashreplace")  # a path may be no text
    mark = f"<!-- written by minicoca, sha256 of all above: {digest(content)} -->\n"
    write_atomically(path, content + mark.encode())
    return True


def is_ours(path: Path) -> bool:
    """Whether there is no such file, or one as `write_card` left it."""
    if not path.is_symlink() and not path.exists():
        return True
    try:
        content = read_bytes(path)
    except ValueError:
        return False
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    found = MARK.fullmatch(content[start:])
    return bool(found) and found[1].decode() == digest(content[:start])


def card(name: str, config: Config, results: Mapping[str, Any], source: str) -> str:
    """The whole text but its last line."""
    splits = {key: value for key, value in results.items() if isinstance(value, dict)}
    licence, why = UNKNOWN if config.init or source else LICENCES.get(config.data, UNKNOWN)
    return "\n".join([
        *front_matter(name, config, splits, licence),
        f"# {shown(name)}",
        "",
        *introduction(config, source),
        *use(config),
        *training(config, results, source),
        *figures(splits),
        *limits(config, splits, source),
        "## Licence",
        "",
        f"`{licence}`. {why}",
        "",
    ])  # fmt: skip


def front_matter(name, config, splits, licence):
    """Lines of YAML; strings are in quotes, as JSON writes them, which YAML reads."""
    lines = ["---", f"license: {licence}"]
    if licence == "other":
        lines.append("license_name: of-the-drawings")
    task = "zero-shot-image-classification" if config.compares else "feature-extraction"
    task = "image-to-text" if config.writes else task
    task = task if config.task == "captions" else "visual-question-answering"
    lines += ["library_name: minicoca", f"pipeline_tag: {task}", "tags:"]
    lines += [f"- {tag}" for tag in TAGS]
    if not any(key in FIGURES for split in splits.values() for key in split):
        return [*lines, "---"]
    lines += ["model-index:", f"- name: {quoted(name)}", "  results:"]
    data = Path(config.data).name or config.data
    for split, values in splits.items():
        for task in dict.fromkeys(FIGURES[key][0] for key in values if key in FIGURES):
            lines += ["  - task:", f"      type: {task}", "    dataset:"]
            lines += [f"      name: {quoted(f'{data}, {split}')}", f"      type: {quoted(data)}"]
            lines += [f"      split: {quoted(split)}", "    metrics:"]
            for key, (of, kind, words) in FIGURES.items():
                if key in values and of == task:
                    lines += [f"    - type: {kind}", f"      name: {quoted(words)}"]
                    lines.append(f"      value: {round(float(values[key]), 4)}")
    return [*lines, "---"]


def shown(text):
    """On one line of Markdown, whatever stands in it."""
    return re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", clip(text, 200))


def quoted(text):
    return json.dumps(clip(str(text), 200), ensure_ascii=False)


def introduction(config, source):
    size = params.count(specs_of(config))
    kind = "A CoCa ([Contrastive Captioner](https://arxiv.org/abs/2205.01917))"
    can = ["answers questions about images"] if config.task != "captions" else []
    if config.writes and not can:
        can.append("captions images")
    if config.compares:
        can.append("compares images with sentences")
    if config.objective != "coca":
        kind = f"A relative of CoCa ({config.objective})"
    pixels = f"{config.image_size} x {config.image_size} pixels"
    can = f", which {' and '.join(can)}" if can else ""
    return [
        f"{kind} of {size:,} parameters{can}. It reads {pixels} and up to "
        f"{config.text_length} tokens"
        + (f", and was imported from {shown(source)}." if source else "."),
        "",
    ]


def use(config):
    if config.task != "captions":
        photos = " ".join(f"photo{n or ''}.png" for n in range(config.pictures))
        lines = [f'minicoca ask {photos} "what is it" --run .']
        return [
            "## Use",
            "",
            "In this folder, with minicoca installed:",
            "",
            "```",
            *lines,
            "```",
            "",
        ]
    caption = "minicoca caption photo.png --run ."
    classify = 'minicoca classify photo.png --labels "a cat" "a dog" --run .'
    compares = [classify] if config.compares else []
    lines = [caption] * config.writes + compares
    if config.task != "captions":
        photos = " ".join(["photo.png", "other.png"][: config.pictures])
        lines = [f'minicoca ask {photos} "what is it" --run .']
    if not lines:
        return []
    return ["## Use", "", "In this folder, with minicoca installed:", "", "```", *lines, "```", ""]


def training(config, results, source):
    if source or not results:
        return []
    rows = {
        "data": config.data,
        "begun from": config.init,
        "command": results.get("command"),
        "seed": config.seed,
        "steps": f"{config.steps:,} of {config.batch_size} pairs",
        "seconds": results.get("train_seconds"),
        "machine": results.get("machine"),
        "date": results.get("date"),
    }
    lines = [f"| {name} | {shown(str(value))} |" for name, value in rows.items() if value != ""]
    return ["## Training", "", "| | |", "|---|---|", *lines, ""]


def figures(splits):
    names = [key for key in FIGURES if any(key in values for values in splits.values())]
    if not names:
        return []
    lines = ["## Figures", "", "| held out | " + " | ".join(map(shown, splits)) + " |"]
    lines.append("|---|" + "---|" * len(splits))
    for key in names:
        form = "{:.3f}" if key in WHOLE else "{:.1%}"
        cells = (form.format(v[key]) if key in v else "-" for v in splits.values())
        lines.append(f"| {FIGURES[key][2]} | {' | '.join(cells)} |")
    counts = ", ".join(f"{shown(n)} {v['images']:,}" for n, v in splits.items() if "images" in v)
    galleries = {v["gallery"] for v in splits.values() if "gallery" in v}
    among = f" R@1: found first among {max(galleries):,}." if galleries else ""
    return [*lines, "", f"Images: {counts}.{among} One run, of one seed.", ""]


def limits(config, splits, source):
    lines = ["## Limits", ""]
    if source:
        lines.append("- What it was trained on, and how good it is, is not known here.")
    elif config.data == "shapes":
        lines.append("- It knows drawn shapes on plain ground, their colours, sizes and places.")
    else:
        lines.append("- It knows what its training data show, and says of all else what it can.")
    if not splits and not source:
        lines.append("- Nothing was measured on data that were held out.")
    if config.writes or config.task != "captions":
        what = "A caption" if config.task == "captions" else "An answer"
        lines.append(f"- {what} may be wrong, and nothing in it says so.")
    return [*lines, ""]
