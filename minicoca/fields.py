"""One setting: its field of a dataclass, its limits, and what is said where they are not kept."""

import dataclasses
import difflib
import re

MOST_LETTERS = 4096  # of a setting that is text; as long as a path may be on Linux


def option(group, default, help, choices=None, low=None, high=None, part=False):
    """A field, shown in its group of `train --help`. Numbers are from `low` (1 for whole ones, else
    0) to `high` (a million and one for whole ones, else a million), which is left out: more than
    anyone trains, and few enough that nothing overflows. A `part` is over 0 and at most 1."""
    whole = type(default) is int
    low = low if low is not None else int(whole)
    high = high if high is not None else 10**6 + whole
    metadata = {"group": group, "help": help, "choices": choices, "low": low, "high": high}
    metadata["part"] = part
    return dataclasses.field(default=default, metadata=metadata)


def check_field(field, value):
    """Raise ValueError, naming the field, unless it may have this value."""
    name, kind, choices = field.name, type(field.default), field.metadata["choices"]
    if type(value) not in ((int, float) if kind is float else (kind,)):
        raise ValueError(f"{name}={shown(value)} is not of type {kind.__name__}{_limit(field)}")
    if kind in (int, float) and not _inside(value, **field.metadata):
        raise ValueError(f"{name}={shown(value)}{_limit(field)}")
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value)[:40], map(str, choices), 1, 0)
        raise ValueError(
            f"{name}={shown(value)} is not one of {choices}; did you mean {near[0]!r}?"
        )
    if kind is str:
        _check_text(name, value)
    if name == "answers":
        if any(type(text) is not str or not text for text in value) or len({*value}) < len(value):
            raise ValueError(f"answers={shown(value)} are not different texts")
    elif name == "settings":
        if any(type(pair) is not tuple or type(pair[0]) is not str for pair in value):
            raise ValueError(f"settings={shown(value)} are not names with values")
    elif kind is tuple:
        _check_colours(name, value, *((1e-9, 1e3) if name == "pixel_std" else (-1e3, 1e3)))


def _inside(value, low, high, part, **_):
    return 0 < value <= 1 if part else low <= value < high


def _check_text(name, value):
    if len(value) > MOST_LETTERS or "\0" in value:
        limit = f"it must have at most {MOST_LETTERS:,} letters, and no NUL among them"
        raise ValueError(f"{name}={shown(value)}; {limit}")
    if name == "device" and not re.fullmatch(r"[a-z]{1,20}(:[0-9]{1,4})?", value):
        raise ValueError(f"device={shown(value)} is no device; give auto, cpu, cuda or cuda:1")


def _check_colours(name, value, low, high):
    if len(value) != 3 or any(type(v) not in (int, float) for v in value):
        raise ValueError(f"{name}={shown(value)} is not three numbers, of red, green and blue")
    if not all(low <= v <= high for v in value):
        raise ValueError(f"{name}={shown(value)}; each must be from {low:g} to {high:g}")


def _limit(field):
    """The range of a number in words; of anything else nothing."""
    kind, low, high = type(field.default), field.metadata["low"], field.metadata["high"]
    if kind not in (int, float) or field.metadata["choices"]:
        return ""
    if field.metadata["part"]:
        return "; it must be over 0 and at most 1"
    most = f"at most {high - 1:,}" if kind is int else f"under {high:,}"
    return f"; it must be at least {low:.0f} and {most}"


def shown(value, most=60):
    """A setting as a message shows it, in `most` letters or so, however long, deep or large."""
    if isinstance(value, (tuple, list, dict)):
        plain = len(value) < 5 and all(isinstance(v, (str, int, float)) for v in value)
        if isinstance(value, dict) or not plain:
            return f"({len(value):,} values)"
        return f"({', '.join(shown(v, most // 4) for v in value)})"
    if isinstance(value, int) and abs(value) >= 10**most:  # Python writes no number of 5,000 digits
        return f"(a number of {value.bit_length():,} bits)"
    text = repr(value[: most + 1] if isinstance(value, str) else value)
    return text if len(text) <= most + 2 else f"{text[:most]}..."


def divides(config, whole, part):
    """Raise ValueError unless one of the settings is a multiple of another."""
    size, by = getattr(config, whole), getattr(config, part)
    if size % by:
        divisors = (d for d in range(1, size + 1) if size % d == 0)
        nearest = min(divisors, key=lambda d: abs(d - by))
        raise ValueError(
            f"{whole}={size} is not a multiple of {part}={by}; nearest {part}: {nearest}"
        )
