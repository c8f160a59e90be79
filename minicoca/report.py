"""What a person looks at after a run: a table, and pictures of held-out images and captions."""

import io
import textwrap
import warnings

import numpy as np

from .evaluate import nearest_truth, written
from .files import write_atomically
from .tasks import embed_texts
from .training.log import Log

ROWS = {
    "caption_exact": "captions exactly right",
    "image_to_text_r1": "image to text, R@1",
    "text_to_image_r1": "text to image, R@1",
    "image_to_text_reranked_r1": "image to text, re-ranked",
    "text_to_image_reranked_r1": "text to image, re-ranked",
    "zero_shot_top1": "zero-shot accuracy",
    "zero_shot_top5": "zero-shot, right in 5",
    "caption_bleu_4": "caption BLEU-4",
}
NUMBERS = {
    "loss": "loss",
    "perplexity": "perplexity a token",
    "perplexity_bigram": "... of counts of pairs",
    "perplexity_grammar": "... of what draws captions",
}
ANSWERS = {
    "answer_head": "answers, by the head",
    "answer_generation": "answers, written",
    "answer_most_frequent": "most frequent answer",
    "answer_same_question": "... of the same question",
}
GREEN, RED = "#1a7f37", "#c0362c"


def table(results):
    """The figures of every split, and a few captions beside their truths, as text."""
    splits = [name for name, value in results.items() if isinstance(value, dict)]
    lines = ["", f"{'':26}" + "".join(f"{name.replace('_', ' '):>16}" for name in splits)]
    for key, label in ROWS.items():
        if any(key in results[name] for name in splits):
            cells = (
                f"{results[n][key]:>16.1%}" if key in results[n] else f"{'-':>16}" for n in splits
            )
            lines.append(f"{label:26}" + "".join(cells))
    lines += _answers([results[name] for name in splits])
    for key, label in NUMBERS.items():
        if any(key in results[name] for name in splits):
            cells = (f"{results[n][key]:>16.3f}" if key in results[n] else "" for n in splits)
            lines.append(f"{label:26}" + "".join(cells))
    galleries = sorted({_gallery(results[n]) for n in splits if "gallery" in results[n]})
    if galleries:
        lines.append(f"(R@1: found first among {', '.join(galleries)})")
    for name in splits:
        if (order := results[name].get("caption_bleu_order", 4)) < 4:
            most = f"no caption has more than {order} words"
            lines.append(f"({name.replace('_', ' ')}: {most}, so BLEU-4 is BLEU-{order})")
    if "pixel_nearest_neighbour_top1" in results:
        top1, top5 = (results[f"pixel_nearest_neighbour_top{k}"] for k in (1, 5))
        lines.append(f"(nearest in pixels: {top1:.1%} right, {top5:.1%} right in 5)")
    lines.append("")
    for sample in results["samples"]:
        mark = "=" if sample["caption"] == sample["truth"] else "x"
        lines.append(f"{mark} {sample['caption']}")
        if mark == "x":
            lines.append(f"  truth: {sample['truth']}")
    seconds, speed = results["train_seconds"], results["images_per_second"]
    lines.append(f"\ntrained for {seconds:.0f} s ({speed:.0f} images a second)")
    lines.append(f"run folder: {results['folder']}")
    return "\n".join(lines)


def _answers(splits):
    """How many answers are right, by way and kind of question, and what guessing comes to."""
    lines, blank = [], f"{'-':>16}"
    for way, label in ANSWERS.items():
        keys = dict.fromkeys(key for s in splits for key in s if key.startswith(way))
        for key in keys:
            cells = (f"{s[key]:>16.1%}" if key in s else blank for s in splits)
            kind = key[len(way) + 1 :]
            lines.append(f"{f'  {kind}' if kind else label:26}" + "".join(cells))
            if key.startswith(("answer_most", "answer_same")):
                break  # guesses are told of all kinds together
    return lines


def _gallery(figures):
    size = figures["gallery"]
    captions = figures.get("gallery_captions", size)
    return f"{size}" if captions == size else f"{size} images and their {captions} captions"


def make_picture(folder, model, tokenizer, name, pairs, captions):
    """Draw held-out images with their captions, the similarity matrix and the loss curves.

    Returns the path of the picture.
    """
    path, picture = folder / f"{name}.png", io.BytesIO()
    figure = _figure(folder, model, tokenizer, pairs, captions, name)
    with warnings.catch_warnings():  # matplotlib warns of every letter that its font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(picture, dpi=110, bbox_inches="tight", facecolor="white")
    write_atomically(path, picture.getvalue())
    return str(path)


def _figure(folder, model, tokenizer, pairs, captions, name):
    from matplotlib.figure import Figure  # which fails where its settings are nonsense

    figure = Figure(figsize=(13, 7.5))
    left, right = figure.subfigures(1, 2, width_ratios=[1.45, 1])
    what = "generated captions" if model.config.task == "captions" else "answers"
    left.suptitle(f"{name.replace('_', ' ')}: {what} (truth below where wrong)")
    axes = left.subplots(4, 5, gridspec_kw={"hspace": 0.75}).flat
    for i, axis in enumerate(axes):
        axis.set_axis_off()
        if i >= len(pairs):
            continue
        image = pairs.batch([i])[0]
        image = image if image.ndim == 3 else np.concatenate(image, 1)  # of a pair, side by side
        axis.imshow(image, interpolation="nearest")
        if captions:
            truth = nearest_truth(captions[i], written(pairs, i))
            ok = captions[i] == truth
            text = captions[i] if ok else f"{captions[i]}\n[{truth}]"
            text = "\n".join(textwrap.fill(part, 24) for part in text.split("\n"))
            axis.text(
                0.5, -0.06, text, transform=axis.transAxes, fontsize=6.5, ha="center", va="top",
                color=GREEN if ok else RED, parse_math=False,
            )  # fmt: skip
    top, bottom = right.subplots(2, 1, gridspec_kw={"hspace": 0.35})
    _similarity(top, model, tokenizer, pairs)
    _curves(bottom, folder / "metrics.jsonl")
    return figure


def _similarity(axis, model, tokenizer, pairs):
    n = min(24, len(pairs))
    if not model.config.compares:
        axis.set_axis_off()
        return
    image_vectors = model.embed_images(pairs.batch(np.arange(n)))
    texts = [text for i in range(n) for text in pairs.captions[i]]
    cosines = image_vectors @ embed_texts(model, tokenizer, texts).T
    shown = axis.imshow(cosines, cmap="viridis", vmin=-0.2, vmax=1, aspect=len(texts) / n)
    axis.figure.colorbar(shown, ax=axis)
    axis.set(title="cosine of image and text", xlabel="text", ylabel="image")


def _curves(axis, path):
    records = [r for r in Log.read(path) if "loss" in r]
    parts = [n for n in ("contrastive", "caption", "answer") if any(n in r for r in records)]
    for name in parts or ["loss"]:
        points = [(r["step"], r[name]) for r in records if name in r]
        if points:
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
    axis.set(title="training losses", xlabel="step", yscale="log")
    axis.legend()
    axis.grid(alpha=0.3)
