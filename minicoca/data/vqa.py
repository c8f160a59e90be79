"""Questions about pictures of your own: a list with columns of questions and answers, or VQA v2's
files as they are; and VQA's measure of an answer (Antol et al. 2015; Goyal et al. 2017)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from minicoca.data import folder
from minicoca.data.lists import records
from minicoca.data.objects import begins_as_json, is_json_lines
from minicoca.data.pairs import Dataset
from minicoca.data.questions import Questions
from minicoca.data.records import Reading, Record, brief, clean_all, opened, parse
from minicoca.images import name_of

QUESTION_COLUMNS = ("question", "questions", "hypothesis", "sentence2")
ANSWER_COLUMNS = ("answer", "answers", "label", "gold_label")
ARTICLES = {"a", "an", "the"}
NUMBERS = (
    "none",
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
DIGITS = {word: str(max(0, n - 1)) for n, word in enumerate(NUMBERS)}
FEWEST = 4  # people who answered, for a majority of three to be possible without any one of them


@lru_cache(maxsize=2**16)
def normal(text: str) -> str:
    """An answer as it is compared: in lower case, without articles and apostrophes, numbers up to
    ten as digits, commas and points only inside numbers, and a space for any other punctuation.

    What VQA's own evaluation does, but for its list of contractions: it writes the apostrophes
    that are missing, and here all are dropped.
    """
    text = re.sub("['\\u2019`]", "", text.lower())
    text = re.sub(r"(?<=\d)[,](?=\d)", "", text)
    text = re.sub(r"(?<!\d)[.]|[.](?!\d)", "", text)
    text = re.sub(r"[^\w\s.]", " ", text)
    words = (DIGITS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in ARTICLES)


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
    """min(n / 3, 1) where n of the people gave this answer, as the mean over all of them but one:
    VQA's accuracy. Of fewer than FEWEST people: 1 where any of them gave it."""
    same = sum(normal(answer) == normal(text) for text in given)
    if len(given) < FEWEST:
        return float(same > 0)
    without = same * min((same - 1) / 3, 1) + (len(given) - same) * min(same / 3, 1)
    return without / len(given)


class Entry(NamedTuple):
    """A question with what people answered, as often as they did."""

    question: str
    answers: tuple[str, ...]
    kind: str = ""


def load(config, untrained: bool = False) -> Dataset:
    """The questions that a config's data hold, split by picture: one with all its questions is in
    one split. untrained, and what is raised, as `folder.load` has it."""
    entries: list[Entry] = []
    find = partial(found, entries=entries, answers=config.answer_column)
    dataset = folder.of(config, config.question_column, find=find, untrained=untrained)

    def split(pictures):
        rows = [(row, int(n)) for row, own in enumerate(pictures.captions) for n in own]
        own = [entries[n] for _, n in rows]
        columns = ([getattr(entry, name) for entry in own] for name in Entry._fields)
        return Questions(pictures, [row for row, _ in rows], *columns, config.hide)

    return replace(
        dataset,
        train=split(dataset.train),
        validation=dataset.validation and split(dataset.validation),
        evaluations={name: split(pairs) for name, pairs in dataset.evaluations.items()},
        notes=f"{len(entries):,} questions. {dataset.notes}",
    )


def found(source: Path, reading: Reading, entries: list[Entry], answers: str):
    """As `layouts.records_of`: what is said of an image is the places of its questions among
    `entries`, which are added."""
    if source.is_dir():
        paths = [path for path in sorted(source.glob("*.json")) if is_vqa(path)]
        if not paths:
            raise ValueError(f"{source}: no file of VQA's questions is in it; name a list of yours")
    else:
        paths = [source] if is_vqa(source) else []
    if not paths:
        return reading.root or source.parent, None, listed(source, reading, entries, answers)
    root = reading.root or paths[0].parent
    reading.kind = "VQA's questions"
    return root, "", vqa(paths, root, entries, len(paths) > 1)


def listed(source, reading, entries, answers) -> Iterator[Record]:
    """Records of a list that has a column of questions and one of answers; a question that stands
    in several rows has the answers of all."""
    asks = replace(reading, what="question", known=QUESTION_COLUMNS)
    told = replace(reading, what="answer", known=ANSWER_COLUMNS, caption=answers)
    report, place = reading.report, {}
    for asked, told_of in zip(records(source, asks), records(source, told), strict=True):
        reading.kind = asks.kind
        where, image = asked.where, asked.image
        question = clean_all(asked.captions, where, report)
        given = clean_all(told_of.captions, where, report)
        if len(question) != 1 or not given:
            report.add("rows without a question or an answer left out", where)
            continue
        n = place.setdefault((repr(image), question[0]), len(entries))
        if n == len(entries):
            entries.append(Entry(question[0], tuple(given)))
        else:
            entries[n] = entries[n]._replace(answers=(*entries[n].answers, *given))
        yield Record(image, str(n), where, asked.split)


def is_vqa(path: Path) -> bool:
    """Whether a file is VQA's of questions, by how it begins."""
    if path.suffix != ".json" or not begins_as_json(path) or is_json_lines(path):
        return False
    with opened(path) as file:
        begins = file.read(4096)
    return '"task_type"' in begins or bool(re.match(r'\s*{\s*"questions"', begins))


def vqa(paths, root, entries, several) -> Iterator[Record]:
    """Records of VQA's pairs of files; of several, what is not of a "train" part is held out."""
    for path in paths:
        asked = read(path, ("data_subtype", "questions"))
        beside = re.sub(
            "questions", "annotations", re.sub("(OpenEnded|MultipleChoice)_", "", path.name)
        )
        notes = path.with_name(beside)
        if notes == path or not notes.is_file():
            raise ValueError(f"{path}: its answers should be beside it, in {notes.name}")
        said = {note["question_id"]: note for note in read(notes, ("annotations",))["annotations"]}
        part, kind = asked["data_subtype"], asked.get("data_type", "mscoco")
        form = f"COCO_{part}_{{:012d}}.jpg" if kind == "mscoco" else f"{kind}_{part}_{{:012d}}.png"
        inside = f"{part}/" if (root / part).is_dir() else ""
        for number, question in enumerate(asked["questions"], 1):
            where = f"{name_of(path)}, question {number}"
            try:
                note = said[question["question_id"]]
                answers = tuple(filter(None, (normal(one["answer"]) for one in note["answers"])))
                image = inside + form.format(question["image_id"])
                entry = Entry(question["question"], answers, note.get("answer_type", ""))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{where}: not as VQA has it ({brief(str(error))})") from error
            split = ("train" if part.startswith("train") else "held_out") if several else None
            entries.append(entry)
            yield Record(image, str(len(entries) - 1) if answers else None, where, split)


def read(path: Path, names: Sequence[str]) -> dict:
    """A JSON object with these fields. Raises ValueError, naming the first that is missing."""
    with opened(path) as file:
        content = parse(file.read(), name_of(path))
    for name in names:
        if not isinstance(content, dict) or name not in content:
            raise ValueError(f"{name_of(path)}: {name} is missing, as VQA's file has it")
    return content
