"""CLIP's byte pairs: the quick way makes what the slow definition says, and what open_clip says."""

import gzip
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minicoca import clip_tokenizer as module
from minicoca.clip_tokenizer import ClipTokenizer, read_merges, theirs, tidy, tokenizer_of, words_of
from minicoca.config import END, PAD, START, UNKNOWN
from minicoca.tokenizer import Tokenizer

CORPUS = (
    "a photo of a cat's red star, two photos of stars!!! it's the théâtre of 東京 😀 aaaa aaa " * 2
)


def learned(count):
    """Merges of CORPUS: the most frequent neighbours, again and again."""
    letters = dict(zip(module.byte_order(), module.byte_letters(), strict=True))
    words, merges = [], []
    for word in words_of(tidy(CORPUS)):
        own = [letters[byte] for byte in word.encode()]
        words.append([*own[:-1], own[-1] + "</w>"])
    while len(merges) < count:
        pairs = [pair for word in words for pair in zip(word, word[1:], strict=False)]
        made = {"".join(merge.split()) for merge in merges}
        pairs = [pair for pair in pairs if "".join(pair) not in made]
        if not pairs:
            break
        pair = max(sorted(set(pairs)), key=pairs.count)
        merges.append(" ".join(pair))
        words = [joined(word, pair) for word in words]
    return merges


def joined(word, pair):
    """The word with the pair made one wherever it stands, from the left."""
    found, i = [], 0
    while i < len(word):
        both = tuple(word[i : i + 2]) == pair
        found.append("".join(pair) if both else word[i])
        i += 1 + both
    return found


MERGES = learned(60)
SMALL = ClipTokenizer(MERGES)


def slowly(text):
    """Pieces by the definition: every merge in turn, over the whole word."""
    letters = dict(zip(module.byte_order(), module.byte_letters(), strict=True))
    ends = [letter + "</w>" for letter in module.byte_letters()]
    pieces = [*module.byte_letters(), *ends, *("".join(merge.split()) for merge in MERGES)]
    found = []
    for word in words_of(tidy(text)):
        own = [letters[byte] for byte in word.encode()]
        own[-1] += "</w>"
        for merge in MERGES:
            own = joined(own, tuple(merge.split()))
        found += [4 + pieces.index(piece) for piece in own]
    return found


texts = st.one_of(
    st.text(),
    st.text(st.sampled_from(sorted(set(CORPUS))), max_size=60),
    st.lists(st.sampled_from(CORPUS.split() + ["a" * n for n in range(9)])).map(" ".join),
)


@given(texts)
@example("aaaaaaa aaaaa")
def test_pieces_are_those_of_the_definition(text):
    assert SMALL.beginning(text) == [START, *slowly(text)]


@given(texts)
def test_no_text_is_lost(text):
    """What is decoded is what was read, but for spaces."""
    ids = SMALL.encode([text], 10**6)[0]
    assert SMALL.decode(ids).replace(" ", "") == "".join(words_of(tidy(text)))
    assert SMALL.normalise(SMALL.normalise(text)) == SMALL.normalise(text)
    assert not SMALL.unseen(text) and SMALL.unknown_share([text]) == 0
    assert SMALL.count(text) == len(slowly(text))


@given(st.lists(st.integers(0, SMALL.vocab_size - 1).filter(lambda id: id != END)))
def test_pieces_are_the_bytes_of_every_id(row):
    """Also those of ids whose bytes are no whole letters."""
    pieces = SMALL.pieces()
    assert len(pieces) == SMALL.vocab_size and pieces[:4] == [b""] * 4
    whole = b"".join(pieces[id] for id in row).decode(errors="replace")
    assert " ".join(whole.split()) == SMALL.decode(row)


@given(st.lists(texts, min_size=1, max_size=4), st.integers(2, 12))
def test_rows_are_cut_and_padded(texts, length):
    ids = SMALL.encode(texts, length)
    rows = [[START, *slowly(text)[: length - 2], END] for text in texts]
    assert ids.shape[1] == min(length, 1 + max(map(len, rows)))
    for row, want in zip(ids, rows, strict=True):
        assert row.tolist() == want + [PAD] * (len(row) - len(want))
    assert SMALL.too_long(texts, length) == sum(len(slowly(t)) + 2 > length for t in texts)


@pytest.mark.parametrize("text", ["!", "!!", "!?!", "wow !", "a!b", "!" * 9])
def test_exclamation_marks_are_text(text):
    """Their ids hold pad there."""
    ids = SMALL.encode([text], 40)[0]
    end = ids.tolist().index(END)
    assert (ids[:end] != PAD).all() and (ids[end + 1 :] == PAD).all()
    assert SMALL.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_names_of_special_ids_are_text():
    ids = SMALL.encode(["<start_of_text> a <end_of_text>"], 80)[0]
    assert (ids == END).sum() == 1 and (ids == START).sum() == 1


def test_what_is_saved_is_read_again(tmp_path):
    SMALL.save(tmp_path / "t")
    again = tokenizer_of((tmp_path / "t").read_bytes())
    assert type(again) is ClipTokenizer and again.serialised() == SMALL.serialised()
    assert (again.encode([CORPUS], 99) == SMALL.encode([CORPUS], 99)).all()
    other = Tokenizer.train(["a red star"], 20).serialised()
    assert type(tokenizer_of(other)) is Tokenizer


@given(st.data())
def test_a_damaged_file_is_refused(data):
    whole = bytearray(SMALL.serialised())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    try:
        read = tokenizer_of(bytes(whole))
    except ValueError:
        return
    assert read.serialised() == SMALL.serialised()  # JSON may be spaced otherwise


@pytest.mark.parametrize(
    "merges, said",
    [
        (["a b", "a b"], "merge 2, 'a b', makes a piece that was there"),
        (["ab c"], "merge 1, 'ab c', is not of two known"),
        (["a"], "merge 1"),
        ([7], "merge 1"),
    ],
)
def test_lists_that_are_no_merges_are_refused(merges, said):
    with pytest.raises(ValueError, match=said):
        ClipTokenizer(merges)


def test_merges_are_read_from_what_people_have(tmp_path):
    lines = "\n".join(["#version: 0.2", *MERGES, ""])
    (tmp_path / "merges.txt").write_text(lines)
    (tmp_path / "crlf.txt").write_bytes(lines.replace("\n", "\r\n").encode())
    (tmp_path / "t.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "old.json").write_text(json.dumps({"model": {"merges": MERGES}}))
    (tmp_path / "new.json").write_text(
        json.dumps({"model": {"merges": [m.split() for m in MERGES]}})
    )
    for path in tmp_path.iterdir():
        assert read_merges(path) == MERGES, path
    (tmp_path / "none").write_bytes(b"\xff\xfe")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(lines.encode())[:50])
    (tmp_path / "empty.json").write_text("{}")
    for name in ("none", "cut.gz", "empty.json"):
        with pytest.raises(ValueError, match=name):
            read_merges(tmp_path / name)


def test_our_ids_and_theirs():
    found = theirs(4 + 512 + 60)
    assert found[[PAD, START, END, UNKNOWN]].tolist() == [0, 572, 573, 0]
    assert found[4:].tolist() == list(range(572))


# --- against open_clip itself ---------------------------------------------------------------------

LIKELY = st.one_of(
    st.text(),
    st.text(st.characters(max_codepoint=0x7F), max_size=60),
    st.lists(st.sampled_from(
        "&amp; &lt;b&gt; &eacute; &EACUTE; &#233; &#x1F600; &amp;amp;quot; &amp &notit; < > & ; "
        "ﬁ ŉ ǆ naïve\u00a0x \u3000 \u2028 &#xD800; &#59; \ufeff "
        "ﬅ Ｗ ｱ “a” ’s 's 'S 'ſ 's! don't 12 ½ Ⅷ 😀 👩\u200d🚀 é e\u0301 \u0345 \x85 \x93 \x07 "
        "\x1b[31m \ud83d\ude00 \ud83d İ ß ! !! !? <end_of_text-> 東京 ทดสอบ".split(" ")
        + ["\n", "\t", " ", "\r\n"])).map("".join),
)  # fmt: skip


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_ids_are_open_clips():
    pytest.importorskip("open_clip", exc_type=ImportError)
    import ftfy
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    wanted = SimpleTokenizer(context_length=76)
    ours = ClipTokenizer(read_merges(default_bpe())[: module.MERGES])
    assert ours.vocab_size == wanted.vocab_size + 2

    @given(st.one_of(LIKELY, LIKELY.map(lambda text: text * 9)))
    @example("a photo of a cat !!! wow!")
    @example("x " * 100)
    def check(text):
        unbroken = ftfy.TextFixerConfig(fix_encoding=False, explain=False)
        if ftfy.fix_text(text) != ftfy.fix_text(text, unbroken):
            return  # it guesses at an encoding, which we do not
        if any(unicodedata.category(letter) == "Cn" for letter in text):
            return  # a letter, perhaps, to a newer Unicode than this Python's
        want = wanted([text]).numpy()
        have = ours.theirs(ours.encode([text], 76))
        padded = np.pad(have, ((0, 0), (0, 76 - have.shape[1])))
        np.testing.assert_array_equal(padded, want)
        again = wanted.decode(want[0][want[0] > 0].tolist())
        if 0 not in want[0][1 : want[0].tolist().index(49407)]:
            plain = " ".join(again.replace("<start_of_text>", "").split("<end_of_text>")[0].split())
            assert ours.decode(ours.encode([text], 76)[0]) == plain

    check()
