"""Hostile settings, tokenizers, texts and command lines: a right result, or one line in words."""

import dataclasses
import json
import os
import resource
import signal
import time

import pytest
from faulty import forked
from hostile_words import VALUES, config_bytes, model_bytes, settings
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from trials import trial

from minicoca import __main__ as cli
from minicoca.commands.flags import clipped
from minicoca.config import Config, from_dict
from minicoca.tokenizer import Tokenizer
from minicoca.training.checkpoint import CONFIG, read_config
from minicoca.words import clean, words_of

pytestmark = pytest.mark.slow
MANY = int(os.environ.get("MINICOCA_FUZZ", "1"))  # times as many drawn inputs: 60 for an hour
BYTES = "a \udcff b"  # as Python holds what is no UTF-8 in a command line
TEXTS = st.text(st.characters(exclude_categories=()), max_size=80)
SHORT = st.text(st.characters(exclude_categories=()), max_size=9)
ODD = st.sampled_from(VALUES) | st.integers() | st.floats() | SHORT | st.booleans()


def fitting(field):
    """Values that a field of Config may have, and the nearest that it may not."""
    kind, low, high = type(field.default), field.metadata["low"], field.metadata["high"]
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    if kind in (int, float):
        return st.integers(low - 1, high) if kind is int else st.floats(low - 0.1, high)
    return {bool: st.booleans(), tuple: st.tuples(*[st.floats(-0.5, 1)] * 3), str: SHORT}[kind]


FIELDS = st.one_of([st.tuples(st.just(f.name), fitting(f)) for f in dataclasses.fields(Config)])
OTHERS = st.tuples(st.sampled_from(sorted(Config().to_dict())) | SHORT, ODD)


def in_a_line(function, *names):
    """What a function gives, or the one short line of its ValueError, which holds the names."""
    try:
        return function()
    except ValueError as error:
        text = str(error)
        assert 5 < len(text) < 300 and "\n" not in text, text
        assert type(error) is not UnicodeDecodeError and all(name in text for name in names), text


@pytest.mark.parametrize("part", range(5))
def test_hostile_settings_are_told_so_in_a_line(part):
    trial("hostile settings, configs and tokenizers", 100)
    for seed in range(100 * part, 100 * part + 100):
        if made := in_a_line(lambda seed=seed: from_dict(settings(seed))):
            json.dumps(made.to_dict(), allow_nan=False)


BEYOND = [
    {"image_layers": 1001}, {"image_layers": 10**6}, {"unimodal_layers": 1001},
    {"multimodal_layers": 1001}, {"steps": 10**9 + 1}, {"image_size": 4097, "patch_size": 1},
    {"image_size": 10**6 + 3}, {"image_width": 10**6 + 1}, {"vocabulary": 10**6 + 1},
    {"batch_size": 10**400},
    {"learning_rate": float("nan")}, {"ema": 1}, {"ema": float("inf")}, {"seed": -1},
    {"data": "x" * 4097}, {"init": "a\0"}, {"device": "cuda:99999"}, {"device": "two words"},
    {"pixel_mean": [1e9, 0, 0]}, {"pixel_std": [0, 1, 1]}, {"pixel_std": [float("nan"), 1, 1]},
    {"pixel_mean": [0, 0]}, {"fold": 1}, {"steps": 3.0}, {"steps": True}, {"data": None},
]  # fmt: skip


@pytest.mark.parametrize("wrong", BEYOND, ids=lambda wrong: ",".join(wrong))
def test_what_is_beyond_all_use_is_refused_by_name_at_once(wrong):
    begun = time.process_time()
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}=") as told:
        from_dict(wrong)
    assert len(str(told.value)) < 300 and time.process_time() - begun < 0.5


@pytest.mark.parametrize("part", range(5))
def test_a_hostile_config_names_its_file(part, tmp_path):
    trial("hostile settings, configs and tokenizers", 100)
    for seed in range(100 * part, 100 * part + 100):
        (tmp_path / CONFIG).write_bytes(config_bytes(seed))
        in_a_line(lambda: read_config(tmp_path), CONFIG)


def use(path):
    """All that is done with a tokenizer."""
    tokenizer = in_a_line(lambda: Tokenizer.load(path), path.name)
    if tokenizer:
        for text in ("a red circle", "Ａ ﬁ é 语", "", "\ud800"):
            for ask in (tokenizer.unseen, tokenizer.normalise, tokenizer.count):
                in_a_line(lambda ask=ask, text=text: ask(text))
            ids = in_a_line(lambda text=text: tokenizer.encode([text], 9))
            in_a_line(lambda ids=ids: tokenizer.decode(ids[0]))


@pytest.mark.parametrize("part", range(4))
def test_a_hostile_tokenizer_ends_in_words_and_never_the_process(part, tmp_path):
    path = tmp_path / "tokenizer.model"

    def trials():
        signal.alarm(120)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for seed in range(100 * part, 100 * part + 100):
            path.write_bytes(model_bytes(seed))
            use(path)

    assert forked(trials) == 0
    trial("hostile settings, configs and tokenizers", 100)


@pytest.mark.parametrize(
    "arguments",
    [
        ["caption", "x.png", "--prompt", BYTES],
        ["classify", "x.png", "--labels", "a", BYTES],
        ["classify", "x.png", "--labels", "a", "--template", BYTES + "{}"],
        ["classify", "x.png", "--labels-file", "labels"],
        ["search", ".", BYTES],
        ["search", ".", BYTES, "--text"],
        ["embed", BYTES, "--text", "--out", "v.npz"],
    ],
)
def test_bytes_that_are_no_text_are_refused_in_words(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels").write_bytes(b"a\n\xff\n")
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert "is not UTF-8" in err and len(err) < 300 and err.count("\n") == 1


@pytest.mark.parametrize("long", ["x" * 10**5, "\udcff" * 5000, "9" * 5000])
@pytest.mark.parametrize(
    "arguments",
    [
        ["LONG"], ["train", "--LONG"], ["train", "--steps", "LONG"], ["train", "--data", "LONG"],
        ["train", "--device", "LONG"], ["caption", "LONG"], ["caption", ".", "--run", "LONG"],
        ["info", "--run", "LONG"], ["bench", "step", "--repeats", "LONG"], ["data", "LONG"],
        ["classify", ".", "--labels", "a", "--template", "LONG"], ["search", "LONG", "a"],
    ],
)  # fmt: skip
def test_no_message_is_longer_than_some_letters(arguments, long, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main([word.replace("LONG", long) for word in arguments])
    except SystemExit as end:
        code = end.code
    lines = capsys.readouterr().err.splitlines()
    assert code in (1, 2) and all(5 < len(line) < 400 for line in lines) and len(lines) < 4


def test_a_message_of_many_lines_is_cut_and_says_so():
    said = clipped("\n".join(map(str, range(99))))
    assert said.split("\n") == [*map(str, range(40)), "... and 59 lines more"]
    assert clipped("a\nb") == "a\nb"


def test_drawn_settings():
    """One at a time: most of many together are refused for the first of them."""
    taken = []

    @hypothesis(max_examples=3000 * MANY, deadline=None)
    @given(FIELDS | OTHERS)
    def each(field):
        trial("fuzzed inputs")
        if made := in_a_line(lambda: from_dict(dict([field]))):
            taken.append(made)
            assert from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False))) == made

    each()
    assert len(taken) > 500


@hypothesis(max_examples=3000 * MANY, deadline=None)
@given(TEXTS)
def test_drawn_texts(text):
    trial("fuzzed inputs")
    cleaned = clean(text)
    assert (
        clean(cleaned) == cleaned
        and cleaned.encode()
        and isinstance(words_of(text), list)
        or (not cleaned)
    )


@hypothesis(max_examples=3000 * MANY, deadline=None)
@given(st.binary(max_size=200))
def test_drawn_tokenizers(data):
    trial("fuzzed inputs")
    in_a_line(lambda: Tokenizer(data))


def test_endless_captions_cost_only_themselves():
    """A million words in "unigram", whose time was the square of a caption that repeats itself."""
    heard = []
    words = " ".join(f"w{i % 500}" for i in range(500_000))
    made = Tokenizer.train(["a red circle", words], 100, "unigram", say=heard.append)
    assert heard == [
        "1 captions have over 1,900 letters: the tokenizer learns from their beginnings"
    ]
    assert made.encode([words], 12).shape == (1, 12)
    marks = "a" + "\u0301\u0316" * 10**6
    assert clean(f"e\u0301 {marks}").startswith("\u00e9 a")
