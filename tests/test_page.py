"""The page with the model inside: its JavaScript is the reference, function by function."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from javascript import in_node, needs_node
from strategies import OPTIONS, small_config

import minicoca
from minicoca.config import PAD
from minicoca.data import shapes
from minicoca.params import initialise
from minicoca.reference import generate as reference
from minicoca.reference import ops
from minicoca.reference.model import encode_image, encode_text
from minicoca.reference.text import multimodal_decoder
from minicoca.reference.vision import normalise

pytestmark = needs_node
CLOSE = 1e-4


@pytest.fixture(scope="module")
def model():
    return minicoca.load("shapes", backend="numpy")


def whole(model):
    return model.coca.params, model.config, model.tokenizer


def pictures(count, split="held_out"):
    drawn = shapes.scenes(split, count)
    return [shapes.draw(scene, 32) for scene in drawn], [shapes.caption(s) for s in drawn]


ANSWER = """
return given.images.map((image, i) => {
  const { image_E, memory, pooled_QS } = encode_image(params, config, image);
  const tokens = given.tokens[i];
  const [text_E] = encode_text(params, config, tokens);
  const [logits, p_HTS] = caption_logits(params, config, memory, tokens.slice(0, -1));
  return { image_E, text_E, logits, log_p: log_likelihoods(params, config, memory, tokens),
    looked: looked_at(p_HTS, pooled_QS, (config.image_size / config.patch_size) ** 2),
    written: generate(params, config, memory) };
});
"""


def answers(params, config, tokenizer, images, tokens, parts=None):
    """(what JavaScript says of each image and its tokens, what NumPy says in float64)."""
    lists = [image.ravel().tolist() for image in images]
    rows = [row.tolist() for row in tokens]
    said = in_node(ANSWER, (params, config, tokenizer), parts, images=lists, tokens=rows)
    return said, [of_numpy(params, config, *one) for one in zip(images, tokens, strict=True)]


def of_numpy(params, config, image, tokens):
    image, tokens = normalise(image[None], config).astype(float), tokens[None]
    image_E, memory, _ = encode_image(params, config, image)
    text_E, x, _ = encode_text(params, config, tokens)
    n, (caches, *_) = multimodal_decoder(x[:, :-1], memory, params["decoder"], config)
    logits, _ = ops.linear(n, params["decoder"]["head"])
    log_p = ops.log_softmax(logits[0])[0][np.arange(len(logits[0])), tokens[0, 1:]]
    written = reference.generate(params, config, image, np.array([[1]]))[0]
    return {"image_E": image_E[0], "text_E": text_E[0], "logits": logits[0], "log_p": log_p,
            "looked": looked(caches[-1][2][2][3][3][0], params, config, image),
            "written": written}  # fmt: skip


def looked(p_HTS, params, config, image):
    """The decoder's attention through the pooler's, from the caches of the reference."""
    _, _, (_, (mode, first, second), _) = encode_image(params, config, image)
    looked_TQ = p_HTS.mean(0)
    if mode != "none":
        pooled_QS = (first if mode == "shared" else second)[2][3][3][0].mean(0)
        looked_TQ = looked_TQ @ (pooled_QS[1:] if mode == "shared" else pooled_QS)
    return looked_TQ[:, -config.patches :]


def check_equal(said, want):
    for one, other in zip(said, want, strict=True):
        for name in ("image_E", "text_E", "logits", "log_p", "looked"):
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=CLOSE, err_msg=name)
        assert one["written"] == other["written"].tolist()


def check_shapes(parts=None):
    model = minicoca.load("shapes", backend="numpy")
    images, texts = pictures(3)
    tokens = [model.tokenizer.encode([text], 24)[0] for text in texts]
    said, want = answers(*whole(model), images, tokens, parts)
    check_equal(said, want)
    assert [model.tokenizer.decode(one["written"]) for one in said] == texts


def check_forms(parts=None, options=OPTIONS):
    """Every form of the model that a config can ask for, with padding in the text."""
    tokenizer = minicoca.load("shapes", backend="numpy").tokenizer
    rng = np.random.default_rng(0)
    for name, values in options.items():
        for value in values:
            config = small_config(**{name: value})
            params = initialise(config, seed=1)
            image = rng.integers(0, 256, (config.image_size, config.image_size, 3), np.uint8)
            tokens = rng.integers(4, config.vocabulary, config.text_length)
            tokens[0], tokens[-3:] = 1, PAD
            check_equal(*answers(params, config, tokenizer, [image], [tokens], parts))


def test_shapes_are_the_references():
    check_shapes()


def test_every_form_is_the_references():
    check_forms()


WORDS = [w for w in "a large small red blue green star ring heart left right of and the".split()]
ANY = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


@given(st.lists(st.lists(st.sampled_from(WORDS) | ANY, max_size=30), min_size=1, max_size=40))
def test_sentences_are_cut_alike(sentences):
    tokenizer = minicoca.load("shapes", backend="numpy").tokenizer
    texts = [" ".join(words) for words in sentences]
    body = (
        "return given.texts.map((text) => encode(words_of(text, given.pieces), given.pieces, 24));"
    )
    pieces = [piece.decode().strip() for piece in tokenizer.pieces()]
    said = in_node(body, texts=texts, pieces=pieces)
    assert said == [tokenizer.encode([text], 24)[0].tolist() for text in texts]


@given(st.lists(st.lists(st.floats(-50, 50), min_size=2, max_size=9), min_size=1, max_size=9))
def test_the_smallest_layers(rows):
    body = """return given.rows.map((x) => ({
      p: softmax(Float64Array.from(x)), log_p: log_softmax(Float64Array.from(x)),
      unit: l2_normalise(Float64Array.from(x)), exact: x.map((one) => gelu(one, "exact")),
      tanh: x.map((one) => gelu(one, "tanh")),
      norm: layer_norm([x], { scale: x.map(() => 2), bias: x.map(() => 1) })[0],
      none: softmax(x.map(() => -Infinity)) }))"""
    for x, said in zip(map(np.array, rows), in_node(body, rows=rows), strict=True):
        assert sum(said["p"]) == pytest.approx(1) and sum(said["none"]) == 0
        ones = {"scale": 2 * np.ones(len(x)), "bias": np.ones(len(x))}
        want = {
            "p": ops.softmax(x), "log_p": ops.log_softmax(x), "unit": ops.l2_normalise(x),
            "exact": ops.gelu(x, "exact"), "tanh": ops.gelu(x, "tanh"),
            "norm": ops.layer_norm(x, ones),
        }  # fmt: skip
        for name, (value, _) in want.items():
            np.testing.assert_allclose(said[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_weights_come_out_bit_for_bit(numbers):
    from minicoca.pages import packed

    code = "return given.bytes.length && floats(Uint8Array.from(given.bytes))"
    import base64
    import zlib

    planes = zlib.decompress(base64.b64decode(packed(np.array(numbers))))
    said = in_node(code, bytes=list(planes))
    assert np.array(said, np.float32).tobytes() == (np.array(numbers, np.float32) + 0.0).tobytes()
