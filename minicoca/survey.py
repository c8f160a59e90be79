"""What a person should know of a data set before training on it, in numbers and in words."""

import hashlib
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from .data.alike import marks, near_equal, some_of
from .data.checksums import compare
from .data.files import Report, equal_bytes, in_threads
from .images import ImageError, name_of, open_file, open_image
from .tokenizer import Tokenizer
from .words import clip, words_of

FIRST_TEMPERATURE = 0.07  # sigma, as training begins
NEGLIGIBLE = 1e-12
SHOWN = 5


def survey(dataset, config):
    """All that `minicoca data` says, as a dict that JSON can hold; shares are 0 to 1.

    Pictures are decoded to find near-equal ones, at most alike.MOST_LOOKED of a split.
    """
    splits = {"train": dataset.train, "validation": dataset.validation, **dataset.evaluations}
    splits = {name: pairs for name, pairs in splits.items() if pairs is not None and len(pairs)}
    learned = next(iter(splits.values()))  # what is trained on, if anything is
    texts = [text for own in learned.captions for text in own]
    batch = min(config.batch_size, len(learned))
    return {
        "name": dataset.name,
        "notes": dataset.notes,
        "splits": {name: counts(pairs) for name, pairs in splits.items()},
        "pictures": pictures(splits, config.image_size),
        "checksums": checksums(splits),
        "tokens": tokens(texts, config),
        "repeats": repeats(learned.captions, batch),
        "words": words(texts),
        "across_splits": across(splits),
        "left_out": dataset.left_out.splitlines(),
    }


def counts(pairs):
    per_image = [len(own) for own in pairs.captions]
    return {
        "images": len(pairs),
        "captions": sum(per_image),
        "captions_per_image": [min(per_image), sum(per_image) / len(per_image), max(per_image)],
        "first_captions": [own[0] for own in pairs.captions[:3]],
        "classes": len(pairs.zero_shot.names) if pairs.zero_shot else 0,
    }


def headers(paths):
    """(format, mode, width, height) of each picture by its header; None where it cannot be
    opened."""

    def look(path):
        try:
            with open_file(path) as file, open_image(file, name_of(path)) as image:
                return image.format, image.mode, *image.size
        except ImageError:
            return None

    with ThreadPoolExecutor(4) as pool:
        return in_threads(pool, look, paths)


def pictures(splits, image_size):
    """Formats, modes and sizes from the headers of all files; None where pictures are drawn."""
    paths = [path for pairs in splits.values() for path in getattr(pairs, "paths", ())]
    if not paths:
        return None
    found = [seen for seen in headers(paths) if seen]
    sizes = np.array([seen[2:] for seen in found]).reshape(-1, 2)
    shorter = sizes.min(1) if len(sizes) else np.zeros(1, np.int64)
    return {
        "formats": dict(Counter(seen[0] for seen in found).most_common()),
        "modes": dict(Counter(seen[1] for seen in found).most_common()),
        "shorter_side": [int(shorter.min()), float(np.median(shorter)), int(shorter.max())],
        "smaller_than_image_size": int((shorter < image_size).sum()) if len(sizes) else 0,
        "over_twice_as_long": int((sizes.max(1) > 2 * shorter).sum()) if len(sizes) else 0,
        "image_size": image_size,
    }


def checksums(splits):
    """Shards whose bytes are those that were written, and what is wrong with the others; of folders
    that hold the sums."""
    paths = [path for pairs in splits.values() for path in getattr(pairs, "paths", ())]
    homes = {path.within.parent for path in paths if hasattr(path, "within")}
    report = Report()
    good = sum(compare(home, report, whole=True) for home in sorted(homes))
    return {"right": good, "wrong": report.whole().splitlines()}


def tokens(texts, config):
    """Lengths of captions in tokens, start and end included, by a tokenizer trained as a run's."""
    try:
        tokenizer = Tokenizer.train(texts, config.vocabulary, config.tokenizer, config.fold)
    except ValueError as error:
        return {"error": str(error)}
    lengths = np.array([tokenizer.count(text) for text in texts]) + 2
    return {
        "tokenizer": f"{config.tokenizer}, {tokenizer.vocab_size} ids",
        "lengths": [int(lengths.min()), *np.percentile(lengths, (50, 95)), int(lengths.max())],
        "text_length": config.text_length,
        "cut": int((lengths > config.text_length).sum()),
        "cut_share": float((lengths > config.text_length).mean()),
        "unknown_share": tokenizer.unknown_share(texts),
    }


def repeats(captions, batch):
    """Captions of more than one image, and the floors of the contrastive loss, in nats."""
    owners = Counter(text for own in captions for text in dict.fromkeys(own))
    again = {text: times for text, times in owners.items() if times > 1}
    touched = sum(any(text in again for text in own) for own in captions)
    often = sorted(again.items(), key=lambda item: -item[1])[:SHOWN]
    return {
        "captions_of_several_images": len(again),
        "images_with_one": touched,
        "most_frequent": [[text, times] for text, times in often],
        "batch_size": batch,
        "guessing": math.log(batch),
        "floor_of_repeats": floor_of_repeats(captions, batch),
        "floor_of_unit_vectors": lowest(batch, FIRST_TEMPERATURE),
        "temperature": FIRST_TEMPERATURE,
    }


def lowest(batch, sigma):
    """Lesson 09: the least contrastive loss of `batch` different pairs of unit vectors at the
    temperature sigma; that of the corners of a regular simplex."""
    if batch < 2:
        return 0.0
    return math.log1p((batch - 1) * math.exp(-batch / (batch - 1) / sigma))


def floor_of_repeats(captions, batch):
    """The least contrastive loss that any vectors reach, at any temperature, in the mean over
    batches of `batch` images drawn at random, each with one of its captions.

    Where k pairs of a batch have the same caption, none of their images can give its own more than
    1/k, and the caption can give its k images no more than 1 together: ln k for each, both ways.
    """
    n = len(captions)
    groups = {}  # caption -> {captions of an image that has it: how many such images}
    for own in captions:
        own = dict.fromkeys(own)
        for text in own:
            groups.setdefault(text, Counter())[len(own)] += 1
    kinds = Counter(tuple(sorted(group.items())) for group in groups.values())
    log = np.array([math.lgamma(k + 1) for k in range(n + 1)])  # of factorials

    @cache
    def mean_log(others):
        """E ln(1 + how many of `others` images with this caption are in the batch too)."""
        least = max(0, batch - 1 - (n - 1 - others))
        k = np.arange(least, min(others, batch - 1) + 1)
        rest, left = n - 1 - others, batch - 1 - k
        chosen = log[others] - log[k] - log[others - k] + log[rest] - log[left] - log[rest - left]
        chosen -= log[n - 1] - log[batch - 1] - log[n - batch]
        return float(np.exp(chosen) @ np.log1p(k))

    total = 0.0
    for kind, times in kinds.items():
        group = dict(kind)
        if sum(group.values()) == 1:
            continue
        for size, count in group.items():
            share = np.ones(1)  # of how many others show this caption
            for other, number in group.items():
                share = np.convolve(share, binomial(number - (other == size), 1 / other, log))
            found = sum(p * mean_log(int(m)) for m, p in enumerate(share) if p > NEGLIGIBLE)
            total += times * count / size * found
    return total / n


def binomial(number, chance, log):
    """Probabilities of 0 to `number` successes."""
    if chance == 1:
        return np.r_[np.zeros(number), 1.0]
    k = np.arange(number + 1)
    chosen = log[number] - log[k] - log[number - k]
    return np.exp(chosen + k * math.log(chance) + (number - k) * math.log1p(-chance))


def words(texts):
    """How many words there are, and those that occur once: a model cannot learn these."""
    seen = Counter(word for text in texts for word in words_of(text.lower()))
    once = [word for word, times in seen.items() if times == 1]
    return {"words": sum(seen.values()), "different": len(seen), "once": len(once),
            "examples": once[: 2 * SHOWN]}  # fmt: skip


def across(splits):
    """Pictures of validation and evaluations that training has too: with equal bytes (of drawn
    ones: equal pixels), and near-equal ones; and how many of each split were looked at."""
    if "train" not in splits:
        return {}
    train, found = splits["train"], {}
    seen = {name: some_of(len(pairs)) for name, pairs in splits.items()}
    rows, cells = marks(train, seen["train"])
    for name, pairs in splits.items():
        if name == "train":
            continue
        equal = equal_content(train, pairs)
        own_rows, own_cells = marks(pairs, seen[name])
        near = [(int(own_rows[i]), int(rows[j])) for i, j in near_equal(own_cells, cells)]
        near = [pair for pair in near if pair[0] not in equal]
        found[name] = {
            "equal": len(equal),
            "near_equal": len(near),
            "examples": [
                [said(pairs, row), said(train, first)]
                for row, first in [*equal.items(), *near][:SHOWN]
            ],
            "looked_at": [len(own_rows), len(rows)],
        }
    return found


def equal_content(train, pairs):
    """Rows of `pairs` whose picture training has too -> the row there."""
    if hasattr(pairs, "paths"):
        with ThreadPoolExecutor(4) as pool:
            first = equal_bytes([*train.paths, *pairs.paths], pool)
        n = len(train)
        return {row - n: known for row, known in first.items() if row >= n > known}
    known = {}
    for row in range(len(train)):
        known.setdefault(content(train, row), row)
    found = ((row, known.get(content(pairs, row))) for row in range(len(pairs)))
    return {row: first for row, first in found if first is not None}


def content(pairs, row):
    return hashlib.sha256(pairs.batch([row]).tobytes()).digest()


def said(pairs, row):
    return str(pairs.paths[row]) if hasattr(pairs, "paths") else f"number {row}"


def in_words(found):
    """The lines of a survey."""
    yield f"{found['name']}\n{found['notes']}"
    for name, split in found["splits"].items():
        least, mean, most = split["captions_per_image"]
        each = (
            f"{split['captions']:,} captions ({least} to {most} an image, {mean:.1f} in the mean)"
        )
        classes = f", {split['classes']} classes to tell apart" if split["classes"] else ""
        yield f"{name + ':':16} {split['images']:>8,} images, {each}{classes}"
        yield from (f"{'':27}{clip(text, 100)}" for text in split["first_captions"])
    if shown := found["pictures"]:
        kinds = ", ".join(f"{count:,} {name}" for name, count in shown["formats"].items())
        modes = ", ".join(f"{count:,} {name}" for name, count in shown["modes"].items())
        least, middle, most = shown["shorter_side"]
        yield f"pictures:        {kinds} ({modes})"
        yield f"                 shorter side {least} to {most} pixels, median {middle:g}"
        yield (
            f"                 {shown['smaller_than_image_size']:,} are smaller than --image-size "
            f"{shown['image_size']}, {shown['over_twice_as_long']:,} over twice as long as wide"
        )
    if (sums := found["checksums"]) and (sums["right"] or sums["wrong"]):
        yield f"checksums:       {sums['right']:,} shards hold what was written into them (sha256)"
        yield from (f"{'':17}{clip(line)}" for line in sums["wrong"])
    yield from text_lines(found)
    for name, split in found["across_splits"].items():
        own, others = split["looked_at"]
        yield (
            f"{name} in train: {split['equal']:,} equal pictures, {split['near_equal']:,} "
            f"near-equal ({own:,} looked at, among {others:,})"
        )
        yield from (f"{'':17}{clip(a, 70)} is {clip(b, 70)}" for a, b in split["examples"])


def text_lines(found):
    told, again, words_found = found["tokens"], found["repeats"], found["words"]
    if "error" in told:
        yield f"tokens:          {told['error']}"
    else:
        least, middle, most_of_them, most = told["lengths"]
        yield (
            f"tokens:          {least} to {most} a caption, median {middle:g}, 95 % up to "
            f"{most_of_them:g} ({told['tokenizer']})"
        )
        yield (
            f"                 {told['cut']:,} captions ({told['cut_share']:.1%}) are cut at "
            f"--text-length {told['text_length']}; {told['unknown_share']:.1%} of tokens unknown"
        )
    yield (
        f"repeats:         {again['captions_of_several_images']:,} captions are of several images, "
        f"{again['images_with_one']:,} images have one"
    )
    yield from (f"{'':17}{times:>6,} x {clip(text, 80)}" for text, times in again["most_frequent"])
    advice = "; --distinct keeps them apart" if again["floor_of_repeats"] > 0.005 else ""
    yield (
        f"contrastive loss at --batch-size {again['batch_size']}: at least "
        f"{again['floor_of_repeats']:.3f} for repeats{advice}"
    )
    yield (
        f"                 {again['floor_of_unit_vectors']:.3f} for unit vectors at sigma "
        f"{again['temperature']:g}, {again['guessing']:.3f} by guessing (lesson 09)"
    )
    yield (
        f"words:           {words_found['words']:,}, {words_found['different']:,} different, "
        f"{words_found['once']:,} seen once{': ' * bool(words_found['examples'])}"
        f"{', '.join(map(clip, words_found['examples']))}"
    )
