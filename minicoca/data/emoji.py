"""Real drawings with real names: emoji as several vendors draw them, one vendor never trained on.

Every vendor draws the same list of things in a style of its own, so a model can be trained on all
but one and asked to name the drawings of the last. `emoji_drawings` finds and draws them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from minicoca.data.emoji_drawings import VENDORS, Sheet, draw_sheet, find_sources, key_of
from minicoca.data.pairs import Dataset, Pairs, ZeroShot
from minicoca.metrics import top_k_accuracy

Sources = Mapping[str, str | os.PathLike]  # vendor -> font, folder or tarball


@lru_cache(maxsize=1)
def all_names() -> dict[str, tuple[str, str]]:
    """Every emoji without a skin tone: key -> (its characters, its English CLDR name).

    Raises ValueError if the package `emoji`, which knows the names, is not installed.
    """
    try:
        import emoji
    except ImportError as error:
        raise ValueError("emoji names come from a package: pip install emoji") from error
    return {
        key_of(text): (text, entry["en"].strip(":").replace("_", " "))
        for text, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == emoji.STATUS["fully_qualified"]
        and not any("\U0001f3fb" <= character <= "\U0001f3ff" for character in text)
    }


@lru_cache(maxsize=1)
def things() -> dict[str, tuple[str, ...]]:
    """The keys of 1,015 things that four vendors all draw, by group (food, animals, ...)."""
    groups: dict[str, list[str]] = {}
    for line in (Path(__file__).parent / "emoji_things.txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            group = groups.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            group.extend(line.split())
    return {name: tuple(keys) for name, keys in groups.items()}


def choose_keys(names: str | Collection[str]) -> tuple[str, ...]:
    """Sorted keys meant by `names`: "things", "all", a group of things, or a collection of keys.

    Raises ValueError for any other word and for keys that no emoji has.
    """
    if isinstance(names, str):
        choices = {"all": tuple(all_names()), "things": sum(things().values(), ()), **things()}
        if names not in choices:
            raise ValueError(f"names={names!r} is none of {', '.join(choices)}")
        names = choices[names]
    if unknown := sorted(set(names) - set(all_names())):
        raise ValueError(f"no emoji without a skin tone has the key {', '.join(unknown[:5])}")
    return tuple(sorted(names))


def is_unseen(key: str) -> bool:
    """Whether a name is among the 5 % or so kept from training; depends on nothing but its key."""
    return hashlib.sha256(key.encode()).digest()[0] < 13  # 13 / 256 = 5.1 %


def load(
    seed: int = 0,
    side: int = 32,
    held_out: str = "twemoji",
    sources: Sources | None = None,
    directory: str | Path = "data/emoji",
    names: str | Collection[str] = "things",
    *,
    exclude: Collection[str] = (),
    unseen_names: bool = False,
) -> Dataset:
    """Trains on every vendor found but `held_out`, whose drawings are the evaluation "held_out".

    A name takes part if the held-out vendor and at least one other draw it; zero-shot is over all
    of them, with the name as the one prompt. To choose settings, hold out another vendor and leave
    the one of the final figure alone: `held_out="noto", exclude=("twemoji",)`.

    unseen_names: keeps about 5 % of the names out of training and of "held_out" (where they stay
        among the candidates), and adds the evaluation "held_out_names": every vendor's drawings of
        these names, with these names as the only candidates.
    seed: taken as other data sets take it; nothing here is random.

    Raises ValueError if fewer than two vendors or not `held_out` are found, and says what to
    install; and for unknown `names` and sources that cannot be read.
    """
    sheets = load_sheets(side, sources, directory, exclude)
    if len(sheets) < 2 or held_out not in sheets:
        found = ", ".join(sheets) or "none"
        need = "at least two vendors" if len(sheets) < 2 else f"the held-out vendor {held_out!r}"
        raise ValueError(f"emoji need {need}; found: {found}. {advice(sheets, exclude, '; ')}")
    rows = {vendor: sheet.index() for vendor, sheet in sheets.items()}
    others = [vendor for vendor in sheets if vendor != held_out]
    keys = [
        key
        for key in choose_keys(names)
        if key in rows[held_out] and any(key in rows[vendor] for vendor in others)
    ]
    unseen = [key for key in keys if unseen_names and is_unseen(key)]
    seen = [key for key in keys if not (unseen_names and is_unseen(key))]
    if not seen:
        raise ValueError(f"names={names!r}: {held_out} and the other vendors share none of them")

    train = make_pairs(sheets, others, seen, None)
    evaluations = {"held_out": make_pairs(sheets, [held_out], seen, keys)}
    if unseen:
        evaluations["held_out_names"] = make_pairs(sheets, list(sheets), unseen, unseen)
    pixels = train.images.reshape(-1, 3)
    return Dataset(
        name="emoji",
        train=train,
        validation=None,
        evaluations=evaluations,
        mean=tuple((pixels.mean(0, dtype=np.float64) / 255).tolist()),
        std=tuple((pixels.std(0, dtype=np.float64) / 255).tolist()),
        notes=f"{len(keys)} names, held out: {held_out}\n" + summary(sheets, keys),
    )


def load_sheets(
    side: int, sources: Sources | None, directory: str | Path, exclude: Collection[str] = ()
) -> dict[str, Sheet]:
    """Vendor -> its drawings, for every vendor found and not excluded."""
    texts = {key: text for key, (text, _) in all_names().items()}
    return {
        vendor: draw_sheet(vendor, source, side, texts, directory)
        for vendor, source in find_sources(sources, directory).items()
        if vendor not in exclude
    }


def make_pairs(
    sheets: Mapping[str, Sheet],
    vendors: Collection[str],
    keys: Collection[str],
    candidates: list[str] | None,
) -> Pairs:
    """What `vendors` draw of `keys`, vendor by vendor; candidates: the classes of its zero-shot."""
    rows = {vendor: sheets[vendor].index() for vendor in vendors}
    drawn = [(vendor, key) for vendor in vendors for key in keys if key in rows[vendor]]
    names = {key: name for key, (_, name) in all_names().items()}
    zero_shot = None
    if candidates is not None:
        classes = {key: label for label, key in enumerate(candidates)}
        zero_shot = ZeroShot(
            names=tuple(names[key] for key in candidates),
            prompts=tuple((names[key],) for key in candidates),
            images=np.arange(len(drawn), dtype=np.int64),
            labels=np.array([classes[key] for _, key in drawn], dtype=np.int64),
        )
    return Pairs(
        images=np.stack([sheets[vendor].images[rows[vendor][key]] for vendor, key in drawn]),
        captions=tuple((names[key],) for _, key in drawn),
        zero_shot=zero_shot,
    )


def pixel_nearest_neighbour(dataset: Dataset, size: int = 16) -> dict[str, float]:
    """The baseline to beat on "held_out": name a drawing after the most alike training drawing.

    Alike means the cosine between their ink (255 - pixel) at `size` x `size` pixels; a name scores
    what its most alike drawing scores. Returns top1, top5 and chance, parts of 1.
    """
    split = dataset.evaluations["held_out"]
    classes = {name: label for label, name in enumerate(split.zero_shot.names)}
    labels = np.array([classes[captions[0]] for captions in dataset.train.captions])
    cosine = ink(split.images, size) @ ink(dataset.train.images, size).T
    scores = np.full((len(split), len(classes)), -np.inf, dtype=np.float32)
    for row, label in enumerate(labels):
        scores[:, label] = np.maximum(scores[:, label], cosine[:, row])
    accuracy = top_k_accuracy(scores, split.zero_shot.labels)
    return {"top1": accuracy[1], "top5": accuracy[5], "chance": 1 / len(classes)}


def ink(images: np.ndarray, size: int) -> np.ndarray:
    """float32 [n, size * size * 3]: how dark each pixel is, every image scaled to length 1."""
    small = np.stack([Image.fromarray(image).resize((size, size), Image.Resampling.BOX)
                      for image in images])  # fmt: skip
    dark = (255 - small.astype(np.float32)).reshape(len(images), -1)
    return dark / np.maximum(np.linalg.norm(dark, axis=1, keepdims=True), 1e-6)


def describe(
    side: int = 32,
    sources: Sources | None = None,
    directory: str | Path = "data/emoji",
    names: str | Collection[str] = "things",
) -> str:
    """What was found, on what terms, what was left out, and what to install for the rest."""
    sheets = load_sheets(side, sources, directory)
    found = summary(sheets, choose_keys(names)) if sheets else ""
    return f"{found}\n{advice(sheets)}".strip()


def summary(sheets: Mapping[str, Sheet], keys: Collection[str]) -> str:
    """A line or two per vendor: source, counts, credit and licence, drawings hard to tell apart."""
    lines = []
    for vendor, sheet in sheets.items():
        rows = sheet.index()
        chosen = [rows[key] for key in keys if key in rows]
        known = VENDORS.get(vendor)
        terms = f"{known.credit}; {known.licence}" if known else "your own source; licence unknown"
        left_out = ", ".join(f"{number} {reason}" for reason, number in sheet.left_out.items())
        lines.append(
            f"{vendor}: {len(chosen)} of {len(keys)} names ({len(rows)} of {len(all_names())} emoji"
            f"{'; ' + left_out if left_out else ''}), {near_duplicates(sheet.images[chosen])} drawn"
            f" almost like another\n  {terms}\n  {sheet.source}"
        )
    common = set(keys).intersection(*(sheet.keys for sheet in sheets.values()))
    return "\n".join([*lines, f"drawn by all {len(sheets)}: {len(common)} of {len(keys)} names"])


def near_duplicates(images: np.ndarray) -> int:
    """How many drawings have a twin, by a cosine of ink over 0.995."""
    if len(images) < 2:
        return 0
    dark = ink(images, 16)
    cosine = dark @ dark.T
    np.fill_diagonal(cosine, 0)
    return int((cosine.max(1) > 0.995).sum())


def advice(sheets: Mapping[str, Sheet], exclude: Collection[str] = (), joint="\n") -> str:
    """How to get the vendors that were not found; empty if there are none."""
    return joint.join(
        f"not found: {vendor} ({known.licence}): {known.install}, or --emoji-source {vendor}=PATH"
        for vendor, known in VENDORS.items()
        if vendor not in sheets and vendor not in exclude
    )
