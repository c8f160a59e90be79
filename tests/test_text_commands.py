"""Text on the command line is taken as it was typed; what the model does not read of it is said."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from minicoca import __main__ as cli
from minicoca import params
from minicoca.config import from_dict
from minicoca.tasks import unread
from minicoca.tasks.captioning import caption
from minicoca.tasks.zero_shot import check_labels, fill_templates
from minicoca.tokenizer import Tokenizer
from minicoca.training.checkpoint import load_model

CAPTIONS = ["Ein großer Hund auf der Straße", "Eine kleine Katze im Café", "ένας μικρός σκύλος"]
LONG = "Ein Hund " * 9
KEPT, FOLDED = (Tokenizer.train([*CAPTIONS, LONG], 100, "unigram", fold=f) for f in (False, True))
NEWER = ("minicoca", "of", "sha256")
TINY = ("--steps", 2, "--image-layers", 1, "--evaluate-every", 0, "--text-length", 16)


def call(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def draw(folder, captions):
    rows = ["image,caption"]
    for i, text in enumerate(captions):
        Image.new("RGB", (32, 32), (9 * i, 80, 200 - i)).save(folder / f"{i}.png")
        rows.append(f'{i}.png,"{text}"')
    (folder / "own.csv").write_text("\n".join(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has hardly learned: what is said of text is of its tokenizer and its length."""
    folder = tmp_path_factory.mktemp("text")
    draw(folder, CAPTIONS * 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "--data", "own.csv", "--run", "run", *map(str, TINY)]) == 0
    return folder


@pytest.fixture
def here(run, monkeypatch):
    monkeypatch.chdir(run)


@pytest.fixture(scope="module")
def opened(run):
    return load_model(run / "run", "numpy")


@pytest.mark.parametrize(
    "prompt", ["", "Ein", "Ein  großer ", " Hund", "Cafe\u0301", "σκύλος", "Ein Hu", "K\tK"]
)
@pytest.mark.parametrize("how", [{}, {"beams": 2}, {"temperature": 1.0, "seed": 3}])
def test_a_caption_begins_with_the_prompt_as_it_was_typed(opened, prompt, how):
    model, tokenizer = opened
    (text,) = caption(model, tokenizer, np.zeros((1, 32, 32, 3), np.uint8), prompt, **how)
    assert text.startswith(prompt) and "\u2047" not in text
    if prompt.strip() == prompt:
        assert tokenizer.normalise(text).startswith(tokenizer.normalise(prompt))


@given(
    st.lists(st.sampled_from(["Ein", "Hund", " ", "Katze", "Straße", "im"]), max_size=4),
    st.integers(1, 2),
)
@example(["Ein", " "], 1)
@example(["Ein", " "], 2)
def test_what_follows_a_prompt_is_what_the_model_wrote(parts, begin):
    """A new word (begin 1), or the end of the one that the prompt ends with: a space that was typed
    after it stays."""
    tokenizer, prompt = KEPT, "".join(parts)
    rest = tokenizer.encode(["Katze"], 9)[0][begin:-1].tolist()

    class Model:
        config = SimpleNamespace(task="captions", writes=True, text_length=40)

        def generate(self, images, ids):
            return [[*ids, *rest, 2, 0]]

    (text,) = caption(Model(), tokenizer, [None], prompt)
    whole = tokenizer.decode([*tokenizer.encode([prompt], 99)[0][:-1], *rest])
    assert text.startswith(prompt) and "".join(text.split()) == "".join(whole.split())
    if begin == 1 or not prompt.endswith(" "):
        assert text.split() == whole.split()
    assert "  " in prompt or "  " not in text


def test_letters_that_the_model_never_saw_are_refused_in_a_prompt(here, capsys):
    code, out, err = call(capsys, "caption", "0.png", "--run", "run", "--prompt", "Ein 语 Hund ж")
    assert code == 1 and out == "" and "'语', 'ж'" in err and len(err) < 300


def test_text_that_is_too_long_is_said_by_every_command(here, run, capsys):
    (run / "labels.txt").write_text(f"Hund\n{LONG}\n")
    said = "this model reads 16 tokens of a text, and not the end of 'Ein Hund Ein Hund Ei..."
    for command in (
        ["classify", "0.png", "--labels", "Hund", LONG],
        ["classify", "0.png", "--labels-file", "labels.txt"],
        ["search", ".", LONG],
        ["embed", "--text", LONG, "Hund", "--out", "v.npz"],
    ):
        code, _, err = call(capsys, *command, "--run", "run")
        assert code == 0 and said in err, err
    code, _, err = call(capsys, "caption", "0.png", "--run", "run", "--prompt", LONG)
    assert code == 1 and "at most 14 leave room" in err
    code, out, _ = call(capsys, "train", "--data", "own.csv", *TINY[:-1], 5, "--run", "short")
    assert code == 0 and f"{re.search(r'train (.+?),', out)[1]} captions are cut at 5 tokens" in out


def test_one_label_alone_shows_its_cosine(here, capsys):
    code, out, _ = call(capsys, "classify", "0.png", "1.png", "--run", "run", "--labels", "Hund")
    assert code == 0 and out.count("Hund  (cosine ") == 2 and "%" not in out
    _, out, _ = call(capsys, "classify", "0.png", "--run", "run", "--labels", "Hund", "--json")
    (row,) = json.loads(out)["results"]
    assert row["probability"] is None and f"{row['scores']['Hund']:.2f}"


def test_labels_of_a_file(here, run, capsys):
    (run / "l.txt").write_bytes("\ufeffHund\r\nKatze\r\nσκύλος\r\n".encode())
    _, out, _ = call(
        capsys, "classify", "0.png", "--run", "run", "--labels-file", "l.txt", "--json"
    )
    labels = ["Hund", "Katze", "σκύλος"]
    again = call(capsys, "classify", "0.png", "--run", "run", "--json", "--labels", *labels)[1]
    assert out == again and list(json.loads(out)["results"][0]["scores"]) == labels
    for content, code, message in (
        (b"Hund\n\nKatze", 2, "label 2, '', is empty"),
        (b"", 2, "label 1, '', is empty"),
        ("Café".encode("latin-1"), 2, "l.txt is not UTF-8 (byte 3)"),
    ):
        (run / "l.txt").write_bytes(content)
        got, _, err = call(capsys, "classify", "0.png", "--run", "run", "--labels-file", "l.txt")
        assert (got, message in err) == (code, True), err
    assert call(capsys, "classify", "0.png", "--run", "run", "--labels-file", "none.txt")[0] == 1


@pytest.mark.parametrize(
    ("tokenizer", "labels", "templates", "message"),
    [
        (KEPT, ["Hund", "Katze", "Hund"], ["{}"], "the label 'Hund' is given twice"),
        (KEPT, ["Hund", " Hund"], ["{}"], "'Hund' and ' Hund' are one to this model: both give"),
        (KEPT, ["Hund", "  "], ["{}"], "label 2, '  ', is empty"),
        (KEPT, ["", "Hund"], ["{}"], "label 1, '', is empty"),
        (FOLDED, ["Hund", "\u00ad"], ["{}"], "label 2, '\\xad', is empty"),
        (FOLDED, ["Hund", "hund"], ["{}"], "'Hund' and 'hund' are one to this model, which folds"),
        (FOLDED, ["ﬁn", "fin"], ["{}"], "'ﬁn' and 'fin' are one to this model, which folds"),
        (KEPT, [LONG + "im", LONG + "Hund"], ["{}"], "which reads 16 tokens of a text"),
        (KEPT, ["im", "Hund"], ["{}", LONG + "{}"], "'im' and 'Hund' are one to this model, which"),
        (KEPT, ["语", "话"], ["{}"], "which never saw '语', '话'"),
        (KEPT, ["Hund", "im Hund"], ["{}", "im {}"], "both give 'im Hund'"),
    ],
)
def test_labels_that_are_one_or_empty_are_refused_by_name(tokenizer, labels, templates, message):
    model = SimpleNamespace(config=SimpleNamespace(text_length=16))
    with pytest.raises(ValueError) as told:
        check_labels(model, tokenizer, labels, fill_templates(labels, templates))
    assert message in str(told.value) and len(str(told.value)) < 300
    if "reads" in message:
        assert "Hund im'" in str(told.value) and "Hund Hund'" in str(told.value)


def test_labels_that_differ_are_taken():
    model = SimpleNamespace(config=SimpleNamespace(text_length=16))
    labels = ["Hund", "Hun", "Hund Hund", "im"]
    check_labels(model, KEPT, labels, fill_templates(labels, ["{}", "ein {}", "ein {}"]))
    assert unread(model, KEPT, labels) == []


def test_many_texts_are_quoted_in_few_words():
    model = SimpleNamespace(config=SimpleNamespace(text_length=16))
    unknown, cut = unread(model, KEPT, [LONG + chr(0x4E00 + i) for i in range(30)])
    assert unknown.endswith("and 25 more") and cut.endswith("and 25 more")
    assert len(unknown) < 320 and len(cut) < 340


def test_a_run_says_what_it_folds_and_writes_what_it_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path, CAPTIONS[:2] * 9)
    code, out, err = call(capsys, "train", "--data", "own.csv", "--run", "f", "--fold", *TINY)
    assert code == 0 and f"{re.search(r'train (.+?),', out)[1]} captions are folded" in out, err
    model, tokenizer = load_model("f", "numpy")
    assert model.config.fold and tokenizer.normalise(CAPTIONS[0]) == CAPTIONS[0].lower()
    settings = json.loads((tmp_path / "f" / "config.json").read_text())
    assert settings.pop("fold")  # as of a run from before there was a choice: its tokenizer tells
    settings = {name: value for name, value in settings.items() if name not in NEWER}
    (tmp_path / "f" / "config.json").write_text(json.dumps(settings))
    weights = tmp_path / "f" / "model.safetensors"
    params.save(weights, params.load(weights)[0], from_dict(settings))
    again = ("train", "--data", "own.csv", "--init")
    assert "captions are folded" in call(capsys, *again, "f", "--run", "g", "--steps", 1)[1]
    assert load_model("g", "numpy")[0].config.fold
    code, out, _ = call(capsys, "train", "--data", "own.csv", "--run", "k", *TINY)
    assert code == 0 and "folded" not in out and "unknown" not in out
    code, _, err = call(capsys, *again, "k", "--run", "h", "--steps", 1, "--fold")
    assert code == 1 and "--fold: the run that --init names keeps captions as written" in err


def test_a_caption_that_is_the_second_right_one_is_marked_right(here, capsys, monkeypatch):
    from minicoca.training import run as training

    def evaluate(model, tokenizer, pairs, gallery, known):
        return {"images": len(pairs)}, [own[-1] for own in pairs.captions]

    monkeypatch.setattr(training, "evaluate", evaluate)
    rows = [f"{i}.png,{text}\n" for i in range(24) for text in (f"thing {i}", f"another {i}")]
    with open("two.csv", "w") as file:
        file.write("image,caption\n" + "".join(rows))
    code, out, err = call(capsys, "train", "--data", "two.csv", "--run", "two", *TINY)
    assert code == 0 and "\n= another " in out and "\nx " not in out, err


def test_a_tokenizer_of_another_run_is_refused(here, run, tmp_path, capsys):
    shutil.copytree(run / "run", tmp_path / "copy")
    Tokenizer.train(["something else"], 30).save(tmp_path / "copy" / "tokenizer.model")
    code, out, err = call(capsys, "caption", "0.png", "--run", tmp_path / "copy")
    assert code == 1 and out == "" and "another run's" in err
    code, _, err = call(capsys, "train", "--resume", tmp_path / "copy")
    assert code == 1 and "another run's" in err
