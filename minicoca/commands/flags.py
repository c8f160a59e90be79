"""The grammar that all commands share: flags made from the settings, and mistakes in words."""

import argparse
import dataclasses
import difflib
import os
import re
import sys

from .. import config
from ..relatives import RELATIVES, specs_of
from ..training.checkpoint import find_run, read_config

MOST, MOST_LINES = 290, 40  # letters of a line of a message, and lines
ENCODERS = ("vit", "resnet")
HALF = re.compile("[\ud800-\udfff]")


class Usage(ValueError):
    """A wrong command line, though every flag in it exists."""


def check_text(what, *texts):
    """Raise Usage for bytes that are no UTF-8: Python keeps them as halves of surrogate pairs,
    which the name of a file may hold and a text may not."""
    for text in texts:
        if found := HALF.search(text):
            near = text[max(0, found.start() - 20) : found.start() + 20]
            raise Usage(f"{what} is not UTF-8 (letter {found.start() + 1} of {near!r}); convert it")


def clipped(message):
    """A message of at most MOST letters a line; of a longer one the beginning, and the end, where
    the advice stands."""
    text = str(message).encode(errors="backslashreplace").decode()  # names that are no text
    half, lines = MOST // 2 - 10, text.split("\n")
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"... and {len(lines) - MOST_LINES} lines more"]
    return "\n".join(x if len(x) <= MOST else f"{x[:half]} ... {x[-half:]}" for x in lines)


def said(error):
    """What to say of an exception; never nothing."""
    if isinstance(error, MemoryError):
        return clipped(f"there is not enough memory ({str(error) or 'none is left'})")
    return clipped(str(error).strip() or f"it failed, without saying why ({type(error).__name__})")


class Parser(argparse.ArgumentParser):
    """argparse that names the nearest flag when one is wrong."""

    index_is_first = False  # --index stands in the place of the first word
    has_objectives = False  # --objective brings the flags of what it names

    def parse_known_args(self, args=None, namespace=None):
        """With an empty first word where --index says what it would say. That it may be left out
        could not be told to argparse: it would take the query of `-k 3 QUERY` for too much."""
        if self.has_objectives:
            add_objective(self, args)
        if self.index_is_first and any(word.split("=")[0] == "--index" for word in args):
            args = ["", *args]
        return super().parse_known_args(args, namespace)

    def error(self, message):
        words = message.partition("unrecognized arguments: ")[2].split()
        wrong = next((word for word in words if word.startswith("--")), None)
        if wrong:
            near = difflib.get_close_matches(wrong.split("=")[0][:40], self.known_flags(), 1, 0.5)
            message += f"; did you mean {near[0]}?" if near else ""
        if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks
            self.exit(2)
        self.exit(2, f"{self.prog}: {clipped(message)} (see {self.prog} --help)\n")

    def parse_args(self, argv=None):
        self.argv = sys.argv[1:] if argv is None else argv
        return super().parse_args(argv)

    def known_flags(self):
        inside = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        chosen = [sub for a in inside for name, sub in a.choices.items() if name in self.argv[:1]]
        return [flag for p in (self, *chosen) for flag in p._option_string_actions]


def add_settings(parser, names):
    """Add `--a-field` for the named fields of Config, in that order; flags not given stay None."""
    for field in (config.Config.__dataclass_fields__[name] for name in names):
        value = config.PRESETS["tiny"].get(field.name, field.default)
        add_field(parser, field, f" (tiny: {value})" if value != "" else "")


def add_objective(parser, words):
    """The flags of the relative that a command line names, or whose run it begins with."""
    name = following("--objective", words)
    if not name and following("--image-encoder", words) == "resnet":
        name = "resnet"
    name = name or objective_of(following("--init", words))
    kind = RELATIVES.get(name)
    own = dataclasses.fields(kind) if kind else ()
    if own:
        group = parser.add_argument_group(f"of --objective {name}")
        for field in own:
            add_field(group, field, f" (default {field.default})")
    parser.set_defaults(own=[field.name for field in own])


def following(flag, words):
    """What follows a flag in a command line; None where it is not there."""
    found = re.search(rf"\0{flag}[=\0]([^\0]*)", "\0" + "\0".join(words))
    return found and found[1]


def objective_of(run):
    """That of a run; None where there is none to be read, which is said later."""
    try:
        return read_config(find_run(run)).objective if run else None
    except (ValueError, OSError):
        return None


def add_field(parser, field, more):
    flag, kind = "--" + field.name.replace("_", "-"), type(field.default)
    text = field.metadata["help"] + more
    extra = (
        {"action": argparse.BooleanOptionalAction}
        if kind is bool
        else {"type": kind, "choices": field.metadata["choices"], "metavar": kind.__name__}
    )
    if field.metadata["choices"]:
        del extra["metavar"]
    parser.add_argument(flag, default=None, help=text.replace("%", "%%"), **extra)


def settings_by_group():
    """{"data": [names], "model": [names], ...}: the fields of Config that a person may set."""
    groups = {group: [] for group in config.GROUPS}
    for field in dataclasses.fields(config.Config):
        if field.name not in (*config.DATA_FIELDS, "preset", "settings"):
            groups[field.metadata["group"]].append(field.name)
    return groups


def from_flags(arguments, earlier=None):
    """The preset of an argparse namespace (or an `earlier` Config) under its other flags.

    Without a preset, data of a person's own, which may hold any words, has settings for that.
    """
    names = [field.name for field in dataclasses.fields(config.Config)]
    given = {n: getattr(arguments, n) for n in names if getattr(arguments, n, None) is not None}
    if encoder := getattr(arguments, "image_encoder", None):
        named = given.setdefault("objective", "resnet") if encoder == "resnet" else None
        named = named or given.get("objective")
        if (encoder == "resnet") != (named == "resnet"):
            raise Usage(f"--image-encoder {encoder} and --objective {named} are two")
    name = given.pop("preset", None)
    if not earlier or given.get("task", earlier.task) != earlier.task:
        begins = config.TASK_SETTINGS.get(given.get("task"), {})
        given = begins | (config.TUNED if begins and earlier else {}) | given
    own = {n: getattr(arguments, n) for n in getattr(arguments, "own", ())}
    own = {name: value for name, value in own.items() if value is not None}
    if earlier and given.get("objective", earlier.objective) == earlier.objective:
        own = dict(earlier.settings) | own
    given["settings"] = tuple(sorted(own.items()))
    if earlier:
        given = {"init_parts": "", "init_decay": 1.0} | given  # of that run's own beginning
        what = [given.get(name, getattr(earlier, name)) for name in ("data", "task")]
        if what != ["shapes", "captions"]:
            given = {"noise": 0.0} | given
        return _built(dataclasses.replace(earlier, **given))
    if not name and given.get("data", "shapes") not in config.BUILT_IN:
        given = {
            "tokenizer": "unigram",
            "vocabulary": config.OWN_VOCABULARY,
            "text_length": 64,
        } | given
    return _built(config.preset(name or "tiny", **given))


def _built(settings):
    """The same Config. Raises ValueError for what its objective cannot be built with."""
    specs_of(settings)
    return settings
