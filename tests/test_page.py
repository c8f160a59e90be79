"""The page with the model inside: its JavaScript is the reference, function by function."""

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from javascript import in_node, needs_node
from strategies import OPTIONS, small_config

import minicoca
from minicoca.config import PAD, START
from minicoca.data import shapes
from minicoca.pages.page import packed, words_of
from minicoca.params import initialise
from minicoca.reference import generate as reference
from minicoca.reference import ops
from minicoca.reference.decoding import draw, restrict_logits
from minicoca.reference.model import encode_image, encode_text
from minicoca.reference.text import multimodal_decoder
from minicoca.reference.vision import normalise

pytestmark = [needs_node, pytest.mark.extras]
CLOSE = 1e-4
ANSWER = """
return given.cases.map(({ params, model: { config }, image, tokens }) => {
  const { image_E, memory, pooled_QS } = encode_image(params, config, Uint8Array.from(image));
  const [text_E] = encode_text(params, config, tokens);
  const [logits, p_HTS] = caption_logits(params, config, memory, tokens.slice(0, -1));
  const written = generate(params, config, memory);
  return { image_E, text_E, logits, written, log_p: log_likelihoods(params, config, memory, tokens),
    looked: looked_at(p_HTS, pooled_QS, (config.image_size / config.patch_size) ** 2),
    guessed: generate(params, config, memory, 0, [], tokens),
    again: generate(params, config, memory, 0, [], written) };
});
"""


def shapes_model():
    model = minicoca.load("shapes", backend="numpy")
    return model.coca.params, model.config, model.tokenizer


def pictures(count, split="held_out"):
    """(images, their captions)."""
    drawn = shapes.scenes(split, count)
    return [shapes.draw(scene, 32) for scene in drawn], [shapes.caption(s) for s in drawn]


def of_numpy(params, config, image, tokens):
    """What ANSWER gives, by the reference in float64."""
    image, tokens = normalise(image[None], config).astype(float), tokens[None]
    image_E, memory, (_, pool_cache, _) = encode_image(params, config, image)
    text_E, x, _ = encode_text(params, config, tokens)
    n, (caches, *_) = multimodal_decoder(x[:, :-1], memory, params["decoder"], config)
    logits = ops.linear(n, params["decoder"]["head"])[0][0]
    log_p = ops.log_softmax(logits)[0][np.arange(len(logits)), tokens[0, 1:]]
    written = reference.generate(params, config, image, np.array([[START]]))[0]
    looked = attention_of(caches[-1][2]) @ pooled(*pool_cache, config)
    return {"image_E": image_E[0], "text_E": text_E[0], "logits": logits, "log_p": log_p,
            "looked": looked[:, -config.patches :], "written": written}  # fmt: skip


def attention_of(cross_cache):
    """[T, S], averaged over heads, of a layer's cache."""
    return cross_cache[2][3][3][0].mean(0)


def pooled(mode, first, second, config):
    """[Q, S]: what each image token of the decoder's read of the patches."""
    if mode == "none":
        return np.eye(config.patches + (config.stem == "clip"))
    pooled_QS = attention_of(first if mode == "shared" else second)
    return pooled_QS[1:] if mode == "shared" else pooled_QS


def check_equal(cases, parts=None):
    """JavaScript says of every case (params, config, tokenizer, image, tokens) what NumPy says."""
    given = [
        {"model": case[:3], "image": case[3].ravel().tolist(), "tokens": case[4].tolist()}
        for case in cases
    ]
    answers = in_node(ANSWER, parts, cases=given)
    for said, (params, config, _, image, tokens) in zip(answers, cases, strict=True):
        want = of_numpy(params, config, image, tokens)
        for name in ("image_E", "text_E", "logits", "log_p", "looked"):
            np.testing.assert_allclose(said[name], want[name], rtol=0, atol=CLOSE, err_msg=name)
        assert said["written"] == want["written"].tolist()
        assert said["guessed"] == said["again"] == said["written"]
    return answers


def check_shapes(parts=None):
    """The model that comes with minicoca, on pictures that it never saw."""
    model, (images, texts) = shapes_model(), pictures(3)
    tokens = [model[2].encode([text], 24)[0] for text in texts]
    said = check_equal([(*model, *one) for one in zip(images, tokens, strict=True)], parts)
    assert [model[2].decode(one["written"]) for one in said] == texts


def check_forms(parts=None):
    """Every form of the model that a config can ask for, with padding in the text."""
    tokenizer, rng, cases = shapes_model()[2], np.random.default_rng(0), []
    for name, values in OPTIONS.items():
        for value in values:
            config = small_config(**{name: value})
            image = rng.integers(0, 256, (config.image_size, config.image_size, 3), np.uint8)
            tokens = rng.integers(4, config.vocabulary, config.text_length)
            tokens[0], tokens[-3:] = START, PAD
            cases.append((initialise(config, seed=1), config, tokenizer, image, tokens))
    check_equal(cases, parts)


def check_heads(parts=None):
    """A head that is off gives zeros; what is hidden from CLS changes nothing else."""
    (params, config, tokenizer), (images, texts) = shapes_model(), pictures(2)
    body = """return given.cases.map(({ params, model: { config }, image, tokens, off }) => {
      if (off) params.image.blocks[1].attention.off = [false, true];
      const { image_E, memory } = encode_image(params, config, Uint8Array.from(image));
      const [text_E, x] = encode_text(params, config, tokens, [2, 3]);
      return { image_E, text_E, same: encode_text(params, config, tokens)[1], x };
    });"""
    tokens = tokenizer.encode([texts[1]], 24)[0]
    case = {"image": images[1].ravel().tolist(), "tokens": tokens.tolist()}
    cases = [{"model": (params, config, tokenizer), **case, "off": off} for off in (False, True)]
    whole, less = in_node(body, parts, cases=cases)
    assert whole["x"] == whole["same"] and whole["image_E"] != less["image_E"]
    changed = minicoca.load("shapes", backend="numpy").coca.params
    output = changed["image"]["blocks"]["1"]["attention"]["output"]["weight"]
    output[16:32] = 0  # what the second of four heads of 16 numbers writes through
    image = normalise(images[1][None], config).astype(float)
    np.testing.assert_allclose(
        less["image_E"], encode_image(changed, config, image)[0][0], atol=CLOSE
    )
    seen = encode_text(params, config, np.array([tokens]))[0][0]
    assert np.abs(np.array(whole["text_E"]) - seen).max() > 0.01


def check_draws(parts=None):
    """A uniform number chooses the token that the reference's stream would."""
    rng = np.random.default_rng(0)
    logits, uniforms = rng.normal(size=(60, 9)), rng.random(60)

    class Stream:
        def __init__(self, uniform):
            self.random = lambda: uniform

    body = """return given.logits.map((logits, i) =>
      draw(restrict_logits(logits), given.temperatures[i], given.uniforms[i]));"""
    temperatures = [0.0, 0.5, 1.0, 3.0] * 15
    given = dict(logits=logits.tolist(), uniforms=uniforms.tolist(), temperatures=temperatures)
    said = in_node(body, parts, **given)
    rows = zip(logits, uniforms, temperatures, strict=True)
    free = [(restrict_logits(x[None], np.array([[START]]), 0), u, t) for x, u, t in rows]
    assert said == [int(draw(x, [Stream(u)], t)[0]) for x, u, t in free]


@pytest.mark.parametrize("check", [check_shapes, check_forms, check_heads, check_draws])
def test_javascript_is_the_reference(check):
    check()


WORDS = "a large small red blue green star ring heart left right of and the".split()
ANY = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


@given(st.lists(st.lists(st.sampled_from(WORDS) | ANY, max_size=30), min_size=1, max_size=40))
def test_sentences_are_cut_alike(sentences):
    tokenizer = shapes_model()[2]
    check_sentences([" ".join(words) for words in sentences], tokenizer)


def check_sentences(texts, tokenizer, parts=None):
    """The same words, and the same ids of them."""
    body = """return given.texts.map((text) => {
      const words = words_of(text, given.pieces);
      return [words.join(" "), encode(words, given.pieces, 24)];
    });"""
    said = in_node(body, parts, texts=texts, pieces=words_of(tokenizer))
    ids = [tokenizer.encode([text], 24)[0].tolist() for text in texts]
    assert said == [[tokenizer.normalise(text), row] for text, row in zip(texts, ids, strict=True)]


def check_hard_sentences(parts=None):
    texts = ["", "a  red\tstar", "an old zebra saw a star", "RED red\u200b e\u0301", "a " * 40]
    check_sentences([*texts, "\u00e9 \ufdd0a", "\u2581a <a \u200b"], shapes_model()[2], parts)


def test_hard_sentences_are_cut_alike():
    check_hard_sentences()


@given(st.lists(st.lists(st.floats(-50, 50), min_size=2, max_size=9), min_size=1, max_size=9))
def test_the_smallest_layers(rows):
    body = """return given.rows.map((x) => ({
      p: softmax(x), log_p: log_softmax(x), unit: l2_normalise(x),
      exact: x.map((one) => gelu(one, "exact")), tanh: x.map((one) => gelu(one, "tanh")),
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


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_weights_come_out_bit_for_bit(numbers):
    planes = zlib.decompress(base64.b64decode(packed(np.array(numbers))))
    said = in_node("return floats(Uint8Array.from(given.bytes))", bytes=[*planes])
    assert list(map(float, said)) == np.array(numbers, np.float32).astype(float).tolist()
