"""Text survives the tokenizer, and its four special ids never come from text."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicoca.data import shapes
from minicoca.tokenizer import MODEL_TYPES, Tokenizer
from minicoca.words import clean

CAPTIONS = [shapes.caption(scene) for scene in shapes.scenes("train", 300)]
RESERVED = "<pad> </s> <s> <unk>"
TOKENIZERS = {
    kind: Tokenizer.train([*CAPTIONS, f"{RESERVED} < > / pad"], 100, kind) for kind in MODEL_TYPES
}
every_type = pytest.mark.parametrize("kind", MODEL_TYPES)


@every_type
def test_round_trip(kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(CAPTIONS, 200)
    assert ids.dtype == np.int64 and ids.shape[1] <= 200
    assert [tokenizer.decode(row) for row in ids] == CAPTIONS
    assert tokenizer.unknown not in ids and ids.max() < tokenizer.vocab_size <= 100


@every_type
@given(texts=st.lists(st.text() | st.just(RESERVED), min_size=1, max_size=4), data=st.data())
def test_rows_are_start_text_end_pad(kind, texts, data):
    tokenizer = TOKENIZERS[kind]
    length = data.draw(st.integers(2, 30))
    whole, cut = tokenizer.encode(texts, 10_000), tokenizer.encode(texts, length)
    widths = []
    for long, short in zip(whole, cut, strict=True):
        size = int(np.flatnonzero(long == tokenizer.end)[0]) + 1
        widths.append(size)
        text = long[1 : size - 1]
        assert long[0] == tokenizer.start and (long[size:] == tokenizer.pad).all()
        assert not np.isin(text, [tokenizer.pad, tokenizer.start, tokenizer.end]).any()
        kept = min(size, length)
        expected = [*long[: kept - 1], tokenizer.end]
        assert short.tolist() == expected + [tokenizer.pad] * (len(short) - kept)
    assert whole.shape[1] == max(widths) and cut.shape[1] == min(max(widths), length)
    assert tokenizer.too_long(texts, length) == sum(width > length for width in widths)


@every_type
def test_literal_markers_are_plain_text(kind):
    tokenizer = TOKENIZERS[kind]
    (row,) = tokenizer.encode([f"a red circle {RESERVED}"], 200)
    assert (np.isin(row, [tokenizer.start, tokenizer.end])).sum() == 2
    assert tokenizer.decode(row) == f"a red circle {RESERVED}" and tokenizer.unknown not in row


def test_batch_is_padded_to_its_longest():
    tokenizer = TOKENIZERS["word"]
    ids = tokenizer.encode(["a red circle", "a"], 9)
    a, red, circle = ids[0, 1:4]
    pad, start, end = tokenizer.pad, tokenizer.start, tokenizer.end
    assert ids.tolist() == [[start, a, red, circle, end], [start, a, end, pad, pad]]
    assert tokenizer.encode(["a red circle"], 4).tolist() == [[start, a, red, end]]
    assert (pad, start, end, tokenizer.unknown) == (0, 1, 2, 3)
    assert tokenizer.encode(["a zebra"], 9)[0, 2] == tokenizer.unknown
    assert tokenizer.encode([], 9).shape == (0, 0)
    assert tokenizer.too_long(["a red circle", "a"], 4) == 1
    assert tokenizer.too_long(["a red circle", "a"], 5) == 0


def test_decode_stops_at_the_first_end():
    tokenizer = TOKENIZERS["word"]
    a, red = tokenizer.encode(["a red"], 9)[0, 1:3]
    pad, start, end = tokenizer.pad, tokenizer.start, tokenizer.end
    assert tokenizer.decode([start, a, end, red]) == "a"
    assert tokenizer.decode([pad, a, pad, red]) == "a red"
    assert tokenizer.decode([]) == ""
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            tokenizer.decode([a, wrong])


AS_WRITTEN = [
    "ένας μικρός σκύλος",
    "می\u200cروم به خانه\u200cها",
    "น้ำในถ้วย",
    "ein Hund auf der Straße",
    "10 m² und 2⁵",
    "½ Glas, № 5 … ™",
    "ＲＥＤ ﬁsh ｱｲｽ ①",
    "İstanbul'da ıslak",
    "▁▂▃▄▅▆▇█",
    RESERVED,
    "👩🏽\u200d🚒 ❤️ 🇩🇪",
    "half\xadway \u200fשלום",
]


@every_type
@pytest.mark.parametrize("text", AS_WRITTEN)
def test_captions_keep_their_letters(kind, text):
    tokenizer = Tokenizer.train([text] * 3, 8000, kind)
    ids = tokenizer.encode([text], 64)
    assert tokenizer.decode(ids[0]) == text == tokenizer.normalise(text)
    assert tokenizer.unknown not in ids and not tokenizer.unseen(text) and not tokenizer.folds


@every_type
@given(texts=st.lists(st.text(max_size=9), min_size=1, max_size=4))
def test_any_text_comes_back_in_one_spelling(kind, texts):
    texts = [text for text in texts if clean(text)] or ["a"]
    tokenizer = Tokenizer.train(texts, 8000, kind)
    for text in texts:
        (row,) = tokenizer.encode([text], 99)
        assert tokenizer.decode(row) == clean(text) == tokenizer.normalise(text)
        assert (row == tokenizer.encode([f" {clean(text)}\t"], 99)[0]).all()


@given(st.text())
def test_one_spelling_changes_nothing_else(text):
    once = clean(text)
    assert clean(once) == once and once == " ".join(once.split())
    whole = unicodedata.normalize("NFC", text)
    kept = [c for c in whole if not c.isspace()]
    assert [c for c in once if c != " "] == kept or not any(map(str.isprintable, kept))


def test_what_looks_the_same_is_the_same():
    assert clean("  cafe\u0301 \n\u00a0au\u3000lait ") == "café au lait"
    assert clean("\u200b \u00ad\x00") == "" == clean("\ud800 \ufdd0")
    assert clean("a\udce9 \U0001fae8 \uf8ff") == "a \U0001fae8 \uf8ff"  # newer than Python, private


@every_type
@given(
    texts=st.lists(st.text(max_size=9) | st.sampled_from(AS_WRITTEN), max_size=4), data=st.data()
)
def test_pieces_are_the_text_of_every_id(kind, texts, data):
    tokenizer = Tokenizer.train([*texts, "a"], 8000, kind)
    pieces = tokenizer.pieces()
    assert len(pieces) == tokenizer.vocab_size and pieces[:3] == [b""] * 3
    ids = st.integers(0, tokenizer.vocab_size - 1).filter(lambda id: id != tokenizer.end)
    row = data.draw(st.lists(ids))
    whole = b"".join(pieces[id] for id in row).decode()
    assert " ".join(whole.split()) == tokenizer.decode(row)


@every_type
def test_folding_is_asked_for_and_told(kind):
    wide, composed, split = "ＲＥＤ ﬁsh", "caf\u00e9", "cafe\u0301"
    tokenizer = Tokenizer.train([wide, split] * 5, 60, kind, fold=True)
    assert tokenizer.folds and tokenizer.normalise(wide) == "red fish"
    assert tokenizer.decode(tokenizer.encode([wide], 99)[0]) == "red fish"
    ids = tokenizer.encode([composed, split], 99)
    assert (ids[0] == ids[1]).all() and tokenizer.unknown not in ids
    persian = Tokenizer.train(["می\u200cروم"], 60, kind, fold=True)
    assert persian.normalise("می\u200cروم") == "می\u200cروم"


def test_a_tokenizer_of_an_older_run_does_what_it_did():
    """Trained as runs were before captions were kept as written: folded, nothing stood in for."""
    import io

    import sentencepiece

    model, captions = io.BytesIO(), ["A Red Ring < x", "می\u200cروم m²"] * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        vocab_size=99,
        model_type="unigram",
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    old, theirs = Tokenizer(model.getvalue()), sentencepiece.SentencePieceProcessor()
    theirs.LoadFromSerializedProto(model.getvalue())
    for text in [*captions, "a <unk> ring é"]:
        (row,) = old.encode([text], 99)
        assert row[1:-1].tolist() == theirs.encode(text)
        assert old.decode(row) == " ".join(theirs.decode(theirs.encode(text)).split())
    assert old.folds and old.normalise("A Red Ring <") == "a red ring <"
    assert old.unseen("a Zed ring é") == ["z", "é"] or old.unseen("a Zed ring é") == ["é"]


@every_type
def test_same_captions_same_vocabulary(kind, tmp_path):
    one, two = (Tokenizer.train(iter(CAPTIONS), 80, kind) for _ in range(2))
    one.save(tmp_path / "one.model")
    two.save(tmp_path / "two.model")
    assert (tmp_path / "one.model").read_bytes() == (tmp_path / "two.model").read_bytes()


def test_save_and_load(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.model"
    TOKENIZERS["bpe"].save(path)
    again = Tokenizer.load(path)
    assert again.vocab_size == TOKENIZERS["bpe"].vocab_size
    assert (again.encode(CAPTIONS, 99) == TOKENIZERS["bpe"].encode(CAPTIONS, 99)).all()

    def fail(*_):
        raise OSError("disk full")

    before = path.read_bytes()
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        TOKENIZERS["word"].save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@every_type
@pytest.mark.parametrize("text", ["a", "ab", "a red circle", "<pad>", "日本語 emoji 🙂"])
def test_vocabulary_larger_than_the_text_allows(kind, text):
    tokenizer = Tokenizer.train([text], 5000, kind)
    assert 4 <= tokenizer.vocab_size < 100
    assert tokenizer.decode(tokenizer.encode([text], 99)[0]) == text


def test_training_is_quiet(capfd):
    Tokenizer.train(CAPTIONS, 60, "unigram")
    assert capfd.readouterr() == ("", "")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="no model type 'words'"):
        Tokenizer.train(CAPTIONS, 60, "words")
    with pytest.raises(ValueError, match="cannot train"):
        Tokenizer.train([], 60)
    with pytest.raises(ValueError, match="cannot train"):
        Tokenizer.train(CAPTIONS, 10, "bpe")
    with pytest.raises(ValueError, match="no SentencePiece model"):
        Tokenizer(b"something else")
    with pytest.raises(ValueError, match="missing.model"):
        Tokenizer.load(tmp_path / "missing.model")
    with pytest.raises(TypeError, match="not a string"):
        TOKENIZERS["word"].encode("a red circle", 9)
    with pytest.raises(ValueError, match="no room"):
        TOKENIZERS["word"].encode(["a"], 1)


def test_foreign_special_ids_are_refused():
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        vocab_size=40,
        model_type="word",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="not 0, 1, 2, 3"):
        Tokenizer(model.getvalue())


def test_what_a_model_never_saw_is_named():
    tokenizers = {kind: Tokenizer.train(["a red thing"] * 3, 60, kind) for kind in MODEL_TYPES}
    assert tokenizers["word"].unseen("a Red zebra  and a thing, ⁇") == [
        "Red",
        "zebra",
        "and",
        "thing,",
        "⁇",
    ]
    for kind in ("bpe", "unigram"):
        assert tokenizers[kind].unseen("a réd 语 thing 语") == ["é", "语"]
    for tokenizer in tokenizers.values():
        assert tokenizer.count("a red thing") >= 3 and not tokenizer.unseen(" a red ")
        assert tokenizer.unknown_share(["a red thing"]) == 0 < tokenizer.unknown_share(["语"])


def test_more_characters_than_pieces_are_told_in_numbers():
    captions = ["".join(map(chr, range(0x4E00 + 9 * i, 0x4E09 + 9 * i))) for i in range(20)]
    with pytest.raises(ValueError, match="180 different characters do not fit in --vocabulary 100"):
        Tokenizer.train(captions, 100, "unigram")


def test_a_very_long_caption_is_learned_from():
    assert Tokenizer.train(["a cat " * 2000], 50).unknown_share(["a cat"]) == 0
