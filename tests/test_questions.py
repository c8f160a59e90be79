"""Questions as data: drawn shapes, lists of one's own, VQA's files; and how answers are judged."""

import itertools
import json
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import planted
from PIL import Image
from runs import few_shapes  # noqa: F401 - a fixture

from minicoca import data
from minicoca.config import preset
from minicoca.data import questions, shapes, vqa
from minicoca.data.asked_shapes import MORE, of_shapes, some
from minicoca.data.pairs import Pairs
from minicoca.data.questions import Looks, Questions, asked, classes
from minicoca.data.vqa import normal, soft_accuracy
from minicoca.tasks.questions import encode, shares
from minicoca.tokenizer import Tokenizer

KINDS = {"count", "exists", "colour", "size", "shape", "where"}


# --- drawn shapes -------------------------------------------------------------------------------


def test_rows_are_questions_about_their_scenes():
    """Picture, question, answer and kind belong together, in every split."""
    found = of_shapes("questions", 0, 16)
    for name, rows in [("train", found.train), *found.evaluations.items()]:
        scenes = shapes.scenes(name, 60, 0)
        assert set(rows.kinds) == KINDS
        images = rows.batch(np.arange(len(rows)))
        for i in range(len(rows)):
            scene = scenes[rows.about[i]]
            own = {asked(q.text): q for q in shapes.questions(scene)}[rows.questions[i]]
            assert rows.answers[i] == (own.answer,) and rows.kinds[i] == own.kind
            assert rows.captions[i] == (f"{own.text} ? {own.answer}",)
            assert (images[i] == shapes.draw(scene, 16)).all()
        per_picture = Counter(zip(rows.about.tolist(), rows.kinds, strict=True))
        most = {kind: 1 for kind in KINDS} | (MORE["questions"] if name == "train" else {})
        assert all(times <= most[kind] for (_, kind), times in per_picture.items())
        assert len(set(zip(rows.about.tolist(), rows.questions, strict=True))) == len(rows)


def test_neither_the_words_nor_a_kind_give_the_answer_away():
    """Over many scenes: each kind's most frequent answer, and that of each question, is rare, and
    yes and no are even for every question that is often asked."""
    own = [q for s in shapes.scenes("train", 4000) for q, _ in some(s)]
    for kind, most in dict(count=0.43, exists=0.53, colour=0.17, size=0.53, shape=0.17).items():
        counts = Counter(q.answer for q in own if q.kind == kind)
        assert max(counts.values()) / sum(counts.values()) < most, (kind, counts)
    by_text = {}
    for q in own:
        by_text.setdefault(q.text, []).append(q.answer)
    often = {text: Counter(found) for text, found in by_text.items() if len(found) > 60}
    for text, counts in often.items():
        if text.startswith("is there"):
            assert 0.3 < counts["yes"] / sum(counts.values()) < 0.7, (text, counts)


def test_hidden_is_hidden():
    whole, no_image, no_words = (
        of_shapes("questions", 0, 16, hide).train for hide in ("none", "image", "question")
    )
    rows = np.arange(40)
    assert np.ptp(no_image.batch(rows)) == 0 and no_image.questions == whole.questions
    assert set(no_words.questions) == {"?"}
    assert (no_words.batch(rows) == whole.batch(rows)).all()
    assert no_image.answers == no_words.answers == whole.answers


# --- the form -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["is it red", "is it red?", " is  it red ??", "is it red ?"])
def test_a_question_ends_in_one_mark_of_its_own(text):
    assert asked(text) == "is it red ?"
    assert asked(asked(text)) == asked(text)


def some_rows(**changes):
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((4, 2, 2, 3), np.uint8)
    pictures = Pairs(images, (("x",),) * 4)
    own = dict(questions=["a", "b", "a", "c", "a"], kinds=[""] * 5, about=[3, 0, 1, 1, 2])
    own["answers"] = [("yes",), ("no", "no", "yes"), ("yes",), ("no",), ("no",)]
    return Questions(pictures, **own | changes)


def test_pictures_of_rows_and_of_pairs():
    rows = some_rows()
    assert rows.batch([0, 2, 3])[:, 0, 0, 0].tolist() == [3, 1, 1]
    assert rows.shown(np.array([4, 1])).tolist() == [4, 1]
    pairs = some_rows(about=[[3, 0], [0, 1], [1, 1], [1, 2], [2, 3]])
    assert pairs.batch([0, 3]).shape == (2, 2, 2, 2, 3)
    assert pairs.batch([0, 3])[:, :, 0, 0, 0].tolist() == [[3, 0], [1, 2]]


class Damaged(Pairs):
    """Picture 1 stands in for picture 3."""

    def shown(self, indices):
        return np.where(indices == 3, 1, indices)


def test_where_a_picture_stands_in_for_another_its_question_does_too():
    rows = some_rows()
    rows.pictures = Damaged(rows.pictures.images, rows.pictures.captions)
    assert rows.shown(np.array([0, 1, 3])).tolist() == [2, 1, 3]  # row 0 showed picture 3


def check_drawn():
    """Of each picture at most so many of its questions, none twice, each with an answer of its own,
    as often as people gave it; the same numbers draw the same."""
    rows = some_rows()
    looks = Looks(rows)
    assert rows.looks == [[0], [1], [2, 3], [4]] and len(looks.captions) == 4
    indices = np.array([3, 2, 1])
    assert (looks.batch(indices)[:, 0, 0, 0] == [2, 1, 0]).all()
    assert looks.shown(indices).tolist() == [3, 2, 1]
    said = Counter()
    for seed in range(300):
        found = looks.drawn(indices, 1 + seed % 2, np.random.default_rng(seed))
        assert found == looks.drawn(indices, 1 + seed % 2, np.random.default_rng(seed))
        own = [[row for place, row, _ in found if place == p] for p in range(3)]
        assert [len(rows) for rows in own] == [1, 1 + seed % 2, 1]
        for place, row, answer in found:
            assert row in rows.looks[indices[place]] and answer in rows.answers[row]
        assert len({row for _, row, _ in found}) == len(found)
        said.update(found)
    assert abs(said[2, 1, "no"] / 300 - 2 / 3) < 0.1  # two of three people said so
    assert 0.3 < said[1, 2, "yes"] / 300 < 0.95  # alone in half of the steps, then drawn in half


def test_a_step_asks_a_few_questions_about_each_picture():
    check_drawn()


def test_covered_pictures_are_looks_of_their_own():
    found = of_shapes("entailment", 0, 16).train
    for own in found.looks:
        images = found.batch(own)
        assert (images == images[:1]).all()
        assert len({found.covers[row] for row in own}) == 1
    assert 0.2 < sum(map(bool, found.covers)) / len(found.covers) < 0.8


def test_guesses_and_classes_count_every_answer():
    rows = some_rows()
    assert rows.guesses() == {"": "no", "a ?": "yes", "b ?": "no", "c ?": "no"}
    assert classes(rows) == ("no", "yes") and classes(rows, 1) == ("no",)
    even = some_rows(answers=[("b",), ("a",), ("b",), ("a",), ("c",)])
    assert classes(even) == ("a", "b", "c")


def test_shares_are_of_all_who_answered():
    found = shares([("yes", "no", "yes", "blue"), ("blue",)], ("no", "yes"))
    assert found.tolist() == [[0.25, 0.5], [0, 0]]


@given(st.integers(6, 30), st.data())
def test_what_is_read_of_question_and_answer(length, drawing):
    """start, the question's tokens, the answer's, end; the same question has the same tokens
    whatever its answer; where there is no room the question leaves some for the answer."""
    tokenizer = Tokenizer.train(["a b c d e f ?"], 20)
    texts = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20).map(" ".join)
    questions_, answers = (drawing.draw(st.lists(texts, min_size=3, max_size=3)) for _ in range(2))
    batch = encode(tokenizer, length, questions_, answers)
    tokens, lengths = batch["tokens"], batch["lengths"]
    assert tokens.shape[1] <= length
    for row, n, question, answer in zip(tokens, lengths, questions_, answers, strict=True):
        whole = (row != 0).sum()
        assert row[0] == 1 and row[whole - 1] == 2 and (row[:whole] != 0).all()
        ids, theirs = tokenizer.beginning(question), tokenizer.beginning(answer)[1:]
        assert row[:n].tolist() == ids[: length - 3]
        assert row[n : whole - 1].tolist() == theirs[: length - n - 1] and whole - 1 > n
    other = encode(tokenizer, length, questions_, ["a"] * 3)
    assert other["lengths"].tolist() == lengths.tolist()


# --- how answers are judged ---------------------------------------------------------------------


def by_definition(answer, people):
    """min(#people who said so / 3, 1), the mean over all sets of one fewer people."""
    sets = itertools.combinations(range(len(people)), len(people) - 1)
    each = [min(sum(people[i] == answer for i in some) / 3, 1) for some in sets]
    return sum(each) / len(each)


def check_soft_accuracy():
    random = Random(0)
    for _ in range(200):
        people = [random.choice("abcd") for _ in range(random.choice([4, 10, 10]))]
        for answer in "abcde":
            np.testing.assert_allclose(soft_accuracy(answer, people), by_definition(answer, people))
    assert [round(soft_accuracy("a", ["a"] * n + ["b"] * (10 - n)), 2) for n in range(5)] == [
        0, 0.3, 0.6, 0.9, 1,
    ]  # fmt: skip
    assert soft_accuracy("red", ["red"]) == 1 and soft_accuracy("blue", ["red", "green"]) == 0


def test_soft_accuracy_is_vqas():
    check_soft_accuracy()


@pytest.mark.parametrize(
    ("text", "same"),
    [("Yes.", "yes"), ("a dog", "dog"), ("The  dogs", "dogs"), ("two", "2"), ("none", "0"),
     ("1,000", "1000"), ("3.5", "3.5"), ("don't", "dont"), ("black/white", "black white"),
     ("t-shirt", "t shirt"), ("10", "ten"), ("an", "")],
)  # fmt: skip
def test_normal_answers(text, same):
    assert normal(text) == normal(same) == same.replace("ten", "10")


def test_different_answers_stay_different():
    assert len({normal(t) for t in ("1", "10", "1.0", "red", "reds", "ein hund", "日本")}) == 7


# --- lists of one's own -------------------------------------------------------------------------


def pictures_in(folder, count=12, name="{}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((16, 16, 3), 9 * i, np.uint8)).save(folder / name.format(i))


def loaded(source, **more):
    config = preset("tiny", data=str(source), task="questions", contrastive_weight=0.0, **more)
    return data.load(config)


def everything(dataset):
    """{(grey of the picture, question): answers} of all splits."""
    found = {}
    for rows in filter(None, (dataset.train, dataset.validation, *dataset.evaluations.values())):
        images = rows.batch(np.arange(len(rows)))[:, 0, 0, 0].tolist()
        for grey, *own in zip(images, rows.questions, rows.answers, strict=True):
            found[grey, own[0]] = own[1]
    return found


ROWS = [(f"{i}.png", q, a) for i in range(12) for q, a in (("what is it", f"n{i}"), ("big?", "no"))]
HALF = dict(validation_part=0.2, held_out_part=0.3)


def test_a_table_with_questions_and_answers(tmp_path):
    pictures_in(tmp_path)
    lines = ["image,question,answer", *map(",".join, ROWS), "3.png,big?,yes"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    found = loaded(tmp_path / "list.csv", **HALF)
    want = {(9 * i, "what is it ?"): (f"n{i}",) for i in range(12)}
    want |= {(9 * i, "big ?"): ("no",) for i in range(12)} | {(27, "big ?"): ("no", "yes")}
    assert everything(found) == want
    sides = [{*rows.about.tolist()} for rows in (found.train, found.validation)]
    assert all(len(rows) == 2 * len({*rows.about}) for rows in found.evaluations.values()), sides


@pytest.mark.parametrize("form", ["jsonl", "json", "named"])
def test_json_lists_and_columns_by_name(tmp_path, form):
    pictures_in(tmp_path)
    names = ("photo", "asked", "told") if form == "named" else ("image", "question", "answers")
    rows = [dict(zip(names, (i, q, [a, a, "x"]), strict=True)) for i, q, a in ROWS]
    path = tmp_path / ("list.json" if form == "json" else "list.jsonl")
    path.write_text(json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)))
    given = ("image_column", "question_column", "answer_column")
    columns = dict(zip(given, names, strict=True)) if form == "named" else {}
    found = everything(loaded(path, **HALF, **columns))
    assert found[0, "what is it ?"] == ("n0", "n0", "x") and len(found) == 24


@pytest.mark.parametrize(
    ("header", "said"),
    [("image,question,caption", "--answer-column"), ("image,text,answer", "--question-column")],
)
def test_a_missing_column_is_named(tmp_path, header, said):
    pictures_in(tmp_path, 1)
    (tmp_path / "list.csv").write_text(f"{header}\n0.png,a,b\n")
    with pytest.raises(ValueError, match=said):
        loaded(tmp_path / "list.csv")


def test_rows_without_an_answer_are_counted(tmp_path):
    pictures_in(tmp_path)
    lines = ["image,question,answer", *map(",".join, ROWS), "3.png,why,", "4.png,,yes"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    notes = loaded(tmp_path / "list.csv").notes
    assert "24 questions" in notes and "2 rows without a question or an answer" in notes


# --- VQA v2 -------------------------------------------------------------------------------------


def vqa_files(folder, part, count=8):
    """Its two files as they are, with 10 answers a question; and its pictures."""
    pictures_in(folder / part, count, f"COCO_{part}_{{:012d}}.jpg".replace("{:", "{0:"))
    asked_ = [
        {"image_id": i, "question": f"What is in {part}?", "question_id": 10 * i}
        for i in range(count)
    ]
    told = [
        {
            "question_type": "what", "multiple_choice_answer": "Two", "image_id": i,
            "question_id": 10 * i, "answer_type": ("number", "other")[i % 2],
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n}
                        for n, a in enumerate(["Two"] * (i + 1) + ["a dog."] * (9 - i), 1)],
        }
        for i in range(count)
    ]  # fmt: skip
    about = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}
    about["data_subtype"] = part
    names = (f"v2_OpenEnded_mscoco_{part}_questions.json", f"v2_mscoco_{part}_annotations.json")
    (folder / names[0]).write_text(json.dumps(about | {"questions": asked_}))
    (folder / names[1]).write_text(json.dumps({"info": {}, "annotations": told[::-1]}))
    return folder / names[0]


def test_vqas_files_as_they_are(tmp_path):
    questions_file = vqa_files(tmp_path, "train2014")
    found = loaded(questions_file, **HALF)
    assert "8 questions" in found.notes
    answers = everything(found).values()
    want = [("2",) * (i + 1) + ("dog",) * (9 - i) for i in range(8)]
    assert sorted(answers) == sorted(want)
    assert set(found.train.kinds) == {"number", "other"}
    vqa_files(tmp_path, "val2014", 4)
    both = loaded(tmp_path)
    assert len(both.train) == 8 and len(both.evaluations["held_out"]) == 4
    assert set(both.evaluations["held_out"].questions) == {"What is in val2014 ?"}


def test_what_vqas_files_lack_is_named(tmp_path):
    questions_file = vqa_files(tmp_path, "train2014")
    notes = tmp_path / "v2_mscoco_train2014_annotations.json"
    whole = json.loads(notes.read_text())
    notes.write_text(json.dumps({"annotations": whole["annotations"][1:]}))
    with pytest.raises(ValueError, match="question 8: not as VQA has it"):
        loaded(questions_file)
    notes.write_text(json.dumps({"info": 1}))
    with pytest.raises(ValueError, match="annotations is missing"):
        loaded(questions_file)
    notes.unlink()
    with pytest.raises(ValueError, match="v2_mscoco_train2014_annotations.json"):
        loaded(questions_file)
    with pytest.raises(ValueError, match="no file of VQA"):
        loaded(tmp_path / "train2014")


BUGS = [
    (vqa, "min((same - 1) / 3, 1)", "min(same / 3, 1)", check_soft_accuracy),
    (vqa, "(len(given) - same) * min(same / 3, 1)", "0", check_soft_accuracy),
    (
        questions,
        "permutation(self.questions.looks[i])[:most]",
        "integers(0, len(self.questions.questions), most)",
        check_drawn,
    ),
    (questions, "given[rng.integers(len(given))]", "given[0]", check_drawn),
    (vqa, "len(given) < FEWEST", "len(given) < 0", check_soft_accuracy),
]


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=range(len(BUGS)))
def test_a_planted_bug_is_caught(module, old, new, check):
    check()
    with planted(module, old, new), pytest.raises(AssertionError):
        check()
