"""What is wrong with a run, in a line each, and what to do: from what its log says, so that a run
that is taken up is told what it would have been told.

Every question below is asked of a `Seen` and gives a sentence, or nothing. The limits were chosen
so that runs of the presets are silent, with room, and runs made sick on purpose are not
(DECISIONS.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median
from typing import Any

from ..config import Config

WINDOW, LEAST = 10, 5  # records that are looked at, one in ten steps; fewest that say anything
FLAT = 0.97  # of the way from the least loss to guessing: nothing was learned
REPEATS = 0.05  # of ln B: a floor that counts
COLDEST, HOTTEST = 0.0101, 0.999  # temperatures: at the clamps, but for rounding
CLIPPED = 20  # times --clip-norm
STARVED, ASIDE = 0.01, 0.05  # part of the gradient's norm, and without the weights
ALIKE, LOOPING = 0.9, 0.1  # parts of the captions that were written
DIRECTIONS, VECTORS = 2.0, 16  # an effective rank below is a collapse; of so many vectors
ABOVE = 0.05  # of the loss of guessing: how far the loss is above the first
RISES, RISE = 0.15, 0.1  # likewise: all that it rose in a window; at once
STAYS = 0.95  # of the first loss that is left after warm-up
GENERAL = 0.5  # part of what was gained in training that validation gained too
WAITING, SPARE = 0.3, 1.5  # part of a step; how much faster decoding is where it is no limit


@dataclass(frozen=True)
class Seen:
    """What is known of a run: its settings, how many pairs it trains on, and its log so far."""

    config: Config
    pairs: int
    records: Sequence[Mapping[str, Any]] = field(repr=False)

    @cached_property
    def steps(self) -> list[Mapping[str, Any]]:
        return [record for record in self.records if "learning_rate" in record]

    @cached_property
    def last(self) -> list[Mapping[str, Any]]:
        return self.steps[-WINDOW:]

    @cached_property
    def warm(self) -> list[Mapping[str, Any]]:
        """Of those, the ones after warm-up; empty where they are too few."""
        found = [record for record in self.last if record["step"] > self.config.warmup]
        return found if len(found) >= LEAST else []

    @cached_property
    def look(self) -> Mapping[str, float]:
        """The last look."""
        return next((r["look"] for r in reversed(self.records) if "look" in r), {})

    def mean(self, name: str) -> float:
        return fmean(record[name] for record in self.warm)

    def has(self, *names: str) -> bool:
        """Whether they are in all records of a window after warm-up; earlier versions logged fewer
        figures."""
        return bool(self.warm) and all(name in r for r in self.warm for name in names)

    @cached_property
    def guessing(self) -> dict[str, float]:
        """{loss: what guessing costs}, in nats, of the losses that have a weight and are logged."""
        config = self.config
        whole = {
            "contrastive": math.log(config.batch_size),
            "caption": math.log(config.vocabulary),
            "answer": math.log(max(len(config.answers), 1)),
        }
        return {name: cost for name, cost in whole.items() if name in self.steps[0]}

    def weighed(self, losses: Mapping[str, float]) -> float:
        return sum(getattr(self.config, f"{k}_weight") * v for k, v in losses.items())


def contrastive_flat(seen: Seen) -> str | None:
    if not seen.has("contrastive", "contrastive_floor"):
        return None
    loss, guessing = seen.mean("contrastive"), seen.guessing["contrastive"]
    floor = seen.mean("contrastive_floor")
    if guessing - floor < REPEATS * guessing or loss - floor < FLAT * (guessing - floor):
        return None
    return (
        f"the contrastive loss is {loss:.3f} after warm-up, and guessing among {_batch(seen)} "
        f"gives ln {_batch(seen)} = {guessing:.3f}: it tells no pair from another. See that "
        "captions stand beside their own pictures (minicoca data), then try a third of "
        "--learning-rate or a longer --warmup"
    )


def equal_captions(seen: Seen) -> str | None:
    if not seen.has("contrastive", "contrastive_floor"):
        return None
    loss, guessing = seen.mean("contrastive"), seen.guessing["contrastive"]
    floor = seen.mean("contrastive_floor")
    if floor <= REPEATS * guessing:
        return None
    if floor > (1 - REPEATS) * guessing:
        what = "all captions of a step are equal: is --caption-column the right one?"
    else:
        what = "--distinct keeps equal ones apart, and so does a smaller --batch-size"
    return (
        f"equal captions in a step put a floor of {floor:.3f} under the contrastive loss, which is "
        f"{loss - floor:.3f} above it (guessing: {guessing:.3f}): {what}"
    )


def temperature_at_limit(seen: Seen) -> str | None:
    if not seen.has("contrastive", "contrastive_floor"):
        return None
    values = [record["temperature"] for record in seen.warm]
    if max(values) <= COLDEST:
        return (
            f"the temperature is {values[-1]:.3f}, its lower limit: 1 / sigma stays at 100. Late "
            "in a long run that is usual; early, --contrastive-weight or --learning-rate is too "
            "high"
        )
    if min(values) >= HOTTEST:
        return (
            f"the temperature is {values[-1]:.3f}, its upper limit: vectors tell nothing apart. "
            "Try a third of --learning-rate, or a longer --warmup"
        )
    return None


def gradient_clipped(seen: Seen) -> str | None:
    limit = seen.config.clip_norm
    if not seen.warm or not limit:
        return None
    norm = median(record["gradient_norm"] for record in seen.warm)
    if norm <= CLIPPED * limit:
        return None
    parts = _gradients(seen)
    whole = sum(parts.values()) or 1
    whose = ", ".join(f"{name} {value / whole:.0%}" for name, value in parts.items())
    return (
        f"the gradient's norm is {norm:.3g} in the middle, {norm / limit:.0f} times --clip-norm "
        f"{limit:g}{f' ({whose})' if whose else ''}: steps follow its direction alone. Lower the "
        "weight of the loss it comes from, or raise --clip-norm"
    )


def loss_starved(seen: Seen) -> str | None:
    parts = _gradients(seen)
    if len(parts) < 2 or not seen.warm or not all(parts.values()):
        return None
    alone = {name: value / getattr(seen.config, f"{name}_weight") for name, value in parts.items()}
    name = min(parts, key=parts.get)
    share, own = parts[name] / sum(parts.values()), alone[name] / sum(alone.values())
    loss, guessing = seen.mean(name), seen.guessing[name]
    if share >= STARVED or own < ASIDE or loss < GENERAL * guessing:
        return None
    weight = getattr(seen.config, f"{name}_weight")
    return (
        f"the {name} loss has {share:.2%} of the gradient's norm and is {loss:.3f} still "
        f"(guessing: {guessing:.3f}): raise --{name}-weight, now {weight:g}"
    )


def captions_alike(seen: Seen) -> str | None:
    look = seen.look
    if look.get("alike", 0) < ALIKE or look["alike_truth"] > ALIKE / 2:
        return None
    return (
        f"{look['alike']:.0%} of {look['looked_at']} validation pictures get the same caption (of "
        f"the true ones {look['alike_truth']:.0%} are the same): the decoder does not look at the "
        "picture. See that pictures differ and captions are theirs (minicoca data), or train longer"
    )


def captions_repeat(seen: Seen) -> str | None:
    look = seen.look
    if look.get("looping", 0) <= look.get("looping_truth", 0) + LOOPING:
        return None
    return (
        f"words repeat three times running in {look['looping']:.0%} of {look['looked_at']} written "
        f"captions ({look['looping_truth']:.0%} of the true ones): too little is learned yet, "
        "or --caption-weight or --learning-rate is off"
    )


def embeddings_collapsed(seen: Seen) -> str | None:
    look = seen.look
    ranks = {name: look.get(f"{name}_rank", math.inf) for name in ("image", "text")}
    name = min(ranks, key=ranks.get)
    most = min(look.get("looked_at", 0), seen.config.embed_width or seen.config.text_width)
    if ranks[name] >= DIRECTIONS or most < VECTORS or look.get("alike_truth", 0) > ALIKE / 2:
        return None
    return (
        f"{look['looked_at']} {name} vectors lie in {ranks[name]:.2f} directions (effective rank; "
        f"{most} are possible, under {DIRECTIONS:g} is a collapse): see that {name}s differ, then "
        "try a third of --learning-rate or a longer --warmup"
    )


def rate_too_high(seen: Seen) -> str | None:
    if not seen.warm:
        return None
    values, guessing = [r["loss"] for r in seen.warm], seen.weighed(seen.guessing)
    rises = [max(0.0, b - a) / guessing for a, b in zip(values, values[1:], strict=False)]
    whole, first = sum(rises) / len(rises) * (WINDOW - 1), seen.steps[0]
    if fmean(values) - first["loss"] > ABOVE * guessing:
        what = f"is {fmean(values):.2f} and was {first['loss']:.2f} at step {first['step']}"
    elif whole >= RISES and max(rises) >= RISE:
        most = max(rises) * guessing
        what = f"jumps between {min(values):.2f} and {max(values):.2f}, by {most:.2f} at once"
    else:
        return None
    return (
        f"the loss {what} (guessing: {guessing:.2f}). Try a third of --learning-rate "
        f"{seen.config.learning_rate:g}, or a longer --warmup"
    )


def rate_too_low(seen: Seen) -> str | None:
    if not seen.warm or seen.config.init or rate_too_high(seen):
        return None
    first, now = seen.steps[0]["loss"], seen.mean("loss")
    if now <= STAYS * first:
        return None
    return (
        f"the loss is {now:.2f} after warm-up and was {first:.2f} at step {seen.steps[0]['step']}: "
        f"hardly anything is learned. Try ten times --learning-rate {seen.config.learning_rate:g}"
    )


def same_pictures(seen: Seen) -> str | None:
    records = [record for record in seen.last if "pixel_mean" in record]
    if len(records) < LEAST or seen.config.hide == "image" or seen.config.continues:
        return None
    means = [record["pixel_mean"] for record in records]
    if not any(record["pixel_spread"] for record in records):
        return (
            f"all {_batch(seen)} pictures of a step are equal (0 of 255 levels apart): see the "
            "picture files, and what reads them"
        )
    if len({*means}) > 1 or seen.pairs <= _batch(seen):
        return None
    return (
        f"{len(means)} records in a row have the same {_batch(seen)} pictures (their pixels' mean "
        f"is {means[-1]:.3f}), though there are {seen.pairs:,}: whatever makes batches is stuck"
    )


def overfitted(seen: Seen) -> str | None:
    config, look = seen.config, seen.look
    shared = [name for name in seen.guessing if name in look]
    if not shared or not seen.has(*shared, *["contrastive_floor"] * ("contrastive" in shared)):
        return None
    now, held = ({name: own(name) for name in shared} for own in (seen.mean, look.get))
    if "contrastive" in shared:
        now["contrastive"] -= seen.mean("contrastive_floor")
        held["contrastive"] -= look["contrastive_floor"]
    start = seen.weighed({name: seen.guessing[name] for name in shared})
    gained, general = start - seen.weighed(now), start - seen.weighed(held)
    if gained < (1 - GENERAL) * start or general >= GENERAL * gained:
        return None
    return (
        f"the loss is {seen.weighed(now):.2f} in training and {seen.weighed(held):.2f} in "
        f"validation (guessing: {start:.2f}): what is learned does not carry over. More pairs than "
        f"{seen.pairs:,} help most; else fewer --steps, more --weight-decay (now "
        f"{config.weight_decay:g}) or --augment"
    )


def waits_for_data(seen: Seen) -> str | None:
    names = ("images_per_second", "decoding_per_second")
    speeds = [record.get("throughput", {}) for record in seen.last]
    speeds = [own for own in speeds if names[1] in own]
    if len(speeds) < LEAST:
        return None
    fast, decoding = (median(own[name] for own in speeds) for name in names)
    step = 1e3 * _batch(seen) / fast
    waiting = median(own["data_ms"] for own in speeds) / step
    if waiting < WAITING or decoding > SPARE * fast:
        return None
    return (
        f"steps wait for their pictures {waiting:.0%} of the time: {fast:,.0f} images a second, "
        f"where computing alone would take {fast / max(1 - waiting, 0.01):,.0f} and reading and "
        f"decoding give {decoding:,.0f}. Keep files scaled to --image-size "
        f"{seen.config.image_size}, on a disk that is near"
    )


def _batch(seen):
    return seen.config.batch_size


def _gradients(seen):
    """{loss: norm of its weighed gradient} at the last look."""
    found = ((name, seen.look.get(f"gradient_{name}")) for name in seen.guessing)
    return {name: value for name, value in found if value is not None}


ASKED = (
    same_pictures, equal_captions, contrastive_flat, rate_too_high, rate_too_low,
    temperature_at_limit, gradient_clipped, loss_starved, embeddings_collapsed, captions_alike,
    captions_repeat, overfitted, waits_for_data,
)  # fmt: skip


OF_ALL = (same_pictures, gradient_clipped, waits_for_data)  # the others are about CoCa's losses


def advice(seen: Seen) -> dict[str, str]:
    """{what is wrong: a sentence}; empty for a run that is well, or has logged no step."""
    asked = ASKED if seen.config.objective == "coca" else OF_ALL
    found = ((ask.__name__, ask(seen)) for ask in asked) if seen.steps else ()
    return {name: text for name, text in found if text}


class Adviser:
    """Writes a run's log, and says what is wrong when it begins to be: once, unless it went away
    and came back. `standing` is what was wrong when last asked."""

    def __init__(self, config: Config, pairs: int, log: Any):
        self.config, self.pairs, self.log = config, pairs, log
        self.records = log.read(log.path)
        self.standing = next((r["advice"] for r in reversed(self.records) if "advice" in r), {})

    def write(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.log.write(record)

    def news(self, step: int) -> list[str]:
        """What is wrong now, and was not when last asked; what stands is logged as it changes."""
        before = self.standing
        self.standing = advice(Seen(self.config, self.pairs, self.records))
        if before.keys() != self.standing.keys():
            self.log.write({"step": step, "advice": self.standing})
        return [text for name, text in self.standing.items() if name not in before]
