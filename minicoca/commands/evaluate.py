"""`minicoca evaluate`: the figures that papers report, of a run on any data."""

import json
import os
from dataclasses import fields, replace
from pathlib import Path

from .. import config
from ..tasks.word_order import HEADS, KINDS
from ..tasks.zero_shot import BY, RULES
from ..training.checkpoint import SHIPPED
from .flags import Usage, add_settings
from .model import add_computing, open_model
from .results import Results, check_output, tell

HELP = "measure a run on data with captions: retrieval, captions, classes"
SETTINGS = (
    *("image_root", "image_column", "caption_column", "split_column", "class_template"),
    *("question_column", "answer_column", "hide"),
    *("validation_part", "held_out_part", "keep_copies", "seed"),
    *("held_out", "exclude", "emoji_source", "unseen_names"),
)
SHARES = {
    "caption_exact": "captions exactly right",
    "caption_novel": "captions not seen in training",
    "caption_bleu_4": "caption BLEU-4",
    "caption_rouge_l": "caption ROUGE-L",
    "image_to_text_r1": "image to text, R@1",
    "image_to_text_r5": "image to text, R@5",
    "image_to_text_r10": "image to text, R@10",
    "text_to_image_r1": "text to image, R@1",
    "text_to_image_r5": "text to image, R@5",
    "text_to_image_r10": "text to image, R@10",
    "image_to_text_reranked_r1": "image to text, re-ranked",
    "text_to_image_reranked_r1": "text to image, re-ranked",
    "zero_shot_top1": "zero-shot accuracy",
    "zero_shot_top5": "zero-shot, right in 5",
    "zero_shot_mean_per_class": "zero-shot, mean over classes",
    **{f"zero_shot_{by}_top1": f"zero-shot by {by}" for by in BY[1:]},
    **{f"order_{k}_{h}": f"{k.replace('_', '/')}, {h}" for k in KINDS for h in HEADS},
}
NUMBERS = {
    "caption_cider_d": "caption CIDEr-D, of 10",
    "caption_words": "words of a caption",
    "image_to_text_median_rank": "image to text, median rank",
    "text_to_image_median_rank": "text to image, median rank",
    "perplexity": "perplexity a token",
    "perplexity_bigram": "... of counts of two tokens",
    "perplexity_unigram": "... of counts of one",
    "perplexity_uniform": "... of any token alike",
    "perplexity_grammar": "... of what draws captions",
}


def add_flags(parser):
    shipped = " or ".join(SHIPPED)
    parser.add_argument("run", nargs="?", type=Path, help=f"a trained run, {shipped} (the newest)")
    parser.add_argument("--data", help="as train takes it (default: what the run was trained on)")
    parser.add_argument("--split", nargs="+", help="which splits (default: those held out, or all)")
    parser.add_argument(
        "--gallery", type=int, help="retrieval among so many images (0: all; shapes: 256)"
    )
    parser.add_argument(
        "--by", nargs="+", choices=BY[1:], default=(), help="judge classes by these too (slow)"
    )
    parser.add_argument(
        "--rule", choices=RULES, default="best", help="of a class's prompts, as for classify"
    )
    parser.add_argument(
        "--word-order",
        action="store_true",
        help="does the true sentence score more than one of the same words that is not?",
    )
    parser.add_argument(
        "--limit", type=int, help="look at the first so many images of a split only"
    )
    parser.add_argument("--out", type=Path, help="a new file of the results, as --json prints them")
    add_computing(parser)
    add_settings(parser.add_argument_group("the data"), SETTINGS)


def run(arguments):
    from .. import data
    from ..evaluate import evaluate
    from ..training.checkpoint import known
    from ..training.run import GALLERY

    if arguments.out:
        check_output("--out", arguments.out)
    model, tokenizer = open_model(arguments)
    settings, own = settings_of(model.config, arguments)
    gallery = GALLERY.get(settings.data, 0) if arguments.gallery is None else arguments.gallery
    if gallery < 0:
        raise Usage(f"--gallery {gallery}: at least 1, or 0 for all")
    if arguments.limit is not None and arguments.limit < 1:
        raise Usage(f"--limit {arguments.limit}: at least 1")
    if arguments.rule == "ensemble" and arguments.by:
        raise Usage("--rule ensemble is a mean of vectors: leave out --by")
    dataset = data.load(settings, untrained=True)
    tell(f"{dataset.name}: {dataset.notes}".strip())
    chosen = splits_of(dataset, own, arguments.split)
    before = known(dataset) if own else ()
    rows = []
    with Results(arguments, len(chosen), as_table) as results:
        for name, pairs in chosen.items():
            figures, _ = evaluate(
                model, tokenizer, pairs, gallery, before, arguments.limit,
                by=arguments.by, rule=arguments.rule, word_order=arguments.word_order,
            )  # fmt: skip
            row = {"run": str(arguments.run), "data": settings.data, "split": name}
            rows.append(row | row_of(figures))
            if arguments.out:
                keep(arguments.out, rows)
            results.add(rows[-1:])
    for pairs in chosen.values():
        if hasattr(pairs, "report") and pairs.report():
            tell(pairs.report())


def settings_of(earlier, arguments):
    """(the settings of the data, whether they are those that the run was trained on). Of other data
    only what they themselves hold out is held out. Raises Usage."""
    given = {name: getattr(arguments, name) for name in SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    name = earlier.data if arguments.data is None else arguments.data
    name = name if name in config.BUILT_IN or not name else os.path.abspath(name)
    try:
        if name == earlier.data:
            return replace(earlier, **given), True
        usual = {f.name: f.default for f in fields(config.Config) if f.name in SETTINGS}
        nothing = {"validation_part": 0.0, "held_out_part": 0.0}
        return replace(earlier, data=name, noise=0.0, **usual | nothing | given), False
    except ValueError as error:
        raise Usage(error) from error


def splits_of(dataset, own, names):
    """{name: pairs} of the splits that are asked for. Raises Usage, naming those there are."""
    there = {"train": dataset.train, "validation": dataset.validation, **dataset.evaluations}
    there = {name: pairs for name, pairs in there.items() if pairs is not None and len(pairs)}
    if not own and [*there] == ["train"]:
        there = {"all": dataset.train}
    usual = [name for name in there if name not in ("train", "validation")]
    names = names or usual
    if missing := [name for name in names if name not in there]:
        raise Usage(f"--split {missing[0]}: the data have {', '.join(there)}")
    if not names:
        raise Usage(f"nothing is held out of the data: give --split; they have {', '.join(there)}")
    return {name: there[name] for name in names}


def row_of(figures):
    """What is told of one split: its figures by clip_benchmark's names where it has them."""
    from ..evaluate import CLIP_BENCHMARK

    def renamed(found):
        return {CLIP_BENCHMARK.get(name, name): value for name, value in found.items()}

    ends, counts = figures["intervals"], ("images", "questions", "gallery", "gallery_captions")
    about = {name: figures[name] for name in counts if name in figures}
    values = {k: v for k, v in figures.items() if k not in counts and k != "intervals"}
    return about | {"metrics": renamed(values), "intervals": renamed(ends)}


def as_table(row):
    """The figures of a split, with the intervals in which chance may have moved them."""
    from ..evaluate import CLIP_BENCHMARK

    head = f"{row['split'].replace('_', ' ')}, {row['images']:,} images"
    lines = [f"{head:32}{'value':>9}   95 % interval"]
    shares = shares_of(row["metrics"], "  {kind}")
    for labels, form, scale, unit in ((shares, ".1f", 100, " %"), (NUMBERS, ".2f", 1, "")):
        for name, label in labels.items():
            key = CLIP_BENCHMARK.get(name, name)
            if key in row["metrics"]:
                value = f"{row['metrics'][key] * scale:{form}}{unit}"
                ends = " to ".join(f"{x * scale:{form}}" for x in row["intervals"].get(key, ()))
                lines.append(f"{label:32}{value:>9}   {ends}{unit}")
    if "gallery" in row:
        among = f"{row['gallery']:,} images and their {row['gallery_captions']:,} captions"
        lines.append(f"(retrieval among {among})")
    if (order := row["metrics"].get("caption_bleu_order", 4)) < 4:
        lines.append(f"(no caption has more than {order} words, so BLEU-4 is BLEU-{order})")
    return "\n".join([*lines, ""])


def shares_of(names, of_a_kind="{way}: {kind}"):
    """SHARES, and those of answers among the names of figures: by way, and by kind of question."""
    from ..report import ANSWERS

    found = {
        name: of_a_kind.format(way=label, kind=name[len(way) + 1 :]) if name != way else label
        for way, label in ANSWERS.items()
        for name in names
        if name.startswith(way)
    }
    return SHARES | found


def keep(path, rows):
    from ..files import write_output

    write_output(path, json.dumps({"results": rows}, indent=1).encode())
