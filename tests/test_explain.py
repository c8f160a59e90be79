"""Where words looked: what attention weights must be, and how far they can be believed."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from oracles import planted
from PIL import Image
from strategies import configs, model_and_batch, seeds, small_config

import minicoca
from minicoca import __main__ as cli
from minicoca.config import PAD
from minicoca.data import shapes
from minicoca.params import tree_map
from minicoca.reference import generate
from minicoca.reference.generate import CoCa
from minicoca.reference.model import encode_image, encode_text
from minicoca.tasks import explain as task
from minicoca.tasks import looking
from minicoca.tasks.explain import explain, greyed
from minicoca.tasks.looking import looks

COUNT = 3  # patches greyed at once
DRAWS = 16  # random sets of so many


def check_weights(config, seed):
    """They sum to 1; log P is that of log_likelihoods; each image token's output matters to a word
    exactly as much as it is read: with the read values alone the cross-attention is the same."""
    params, images, tokens = model_and_batch(config, seed)
    log_p, words, contrast = looks(params, config, images, tokens)
    seen = config.patches + (config.stem == "clip")
    B, T = tokens.shape
    assert words.shape == (config.multimodal_layers, B, config.text_heads, T - 1, seen)
    assert contrast.shape == (B, config.pooler_heads, seen)
    for weights in (words, contrast):
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-12)
    whole = generate.log_likelihoods(params, config, images, tokens)
    for b in range(B):
        own = np.take_along_axis(log_p[b], tokens[b, 1:, None], 1)[:, 0]
        np.testing.assert_allclose(
            own * (tokens[b, 1:] != PAD), whole[b, b], rtol=1e-10, atol=1e-12
        )


@given(config=configs(), seed=seeds)
def test_weights_sum_to_one_and_probabilities_are_those_of_log_likelihoods(config, seed):
    check_weights(config, seed)


def check_carried_back(pooler):
    """Of a token that no pooler query reads, no word and no vector reads anything."""
    config = small_config(pooler=pooler, multimodal_layers=2)
    params, images, tokens = model_and_batch(config, 1)
    _, memory, (_, cache, _) = encode_image(params, config, images)
    _, words, contrast = looks(params, config, images, tokens)
    mode, first, second = cache
    read = looking.weights((second or first)[2])  # [B, H, Q, S] of the pooler nearest the image
    if mode == "shared":
        np.testing.assert_allclose(contrast, read[:, :, 0], rtol=1e-12)
        read = read[:, :, 1:]
    else:
        asked = looking.weights(first[2])[:, :, 0]
        want = np.einsum("bhq,bqs->bhs", asked, read.mean(1))
        np.testing.assert_allclose(contrast, want, rtol=1e-10)
    lowest, highest = read.mean(1).min(1), read.mean(1).max(1)  # [B, S]: over the queries
    for b, own in enumerate(words.transpose(1, 0, 2, 3, 4)):
        assert (own >= lowest[b] - 1e-12).all() and (own <= highest[b] + 1e-12).all()


@pytest.mark.parametrize("pooler", ["cascade", "shared"])
def test_what_words_read_lies_between_what_queries_read(pooler):
    check_carried_back(pooler)


def test_later_tokens_change_nothing():
    config = small_config()
    params, images, tokens = model_and_batch(config, 2)
    changed = tokens.copy()
    changed[:, -1] = np.where(tokens[:, -1] == 5, 6, 5)
    before, after = (looks(params, config, images, t)[1] for t in (tokens, changed))
    np.testing.assert_array_equal(before, after)
    one = looks(params, config, images[:1], tokens[:1])[1]
    np.testing.assert_allclose(one[:, 0], before[:, 0], rtol=1e-12)


def test_greyed_changes_the_named_patches_alone():
    model = shipped()
    image = pictures(1)[0]
    masks = np.eye(16, dtype=bool)[[0, 5, 15]]
    for mask, made in zip(masks, greyed(model.config, image, masks), strict=True):
        row, column = divmod(int(mask.argmax()), 4)
        inside = np.zeros((32, 32), bool)
        inside[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = True
        np.testing.assert_array_equal(made[~inside], image[~inside])
        assert (made[inside] == np.rint(255 * np.array(model.config.pixel_mean))).all()
    grey = greyed(model.config, image, np.ones((1, 16), bool))[0]
    tokens = model.tokenizer.encode(["a small red ring"], model.config.text_length)
    fall = task.occlusion(model.coca, grey, tokens)
    np.testing.assert_allclose(fall, 0, atol=1e-5)  # what is grey already


@cache
def shipped():
    return minicoca.load("shapes")


@cache
def scenes(count):
    return shapes.scenes("validation", count)


def pictures(count):
    return [shapes.draw(scene, 32) for scene in scenes(count)]


def test_both_backends_explain_alike():
    image = pictures(1)[0]
    found = [
        minicoca.load("shapes", backend=backend).explain(image) for backend in ("torch", "numpy")
    ]
    assert found[0].caption == found[1].caption == shapes.caption(scenes(1)[0])
    for a, b in zip(found[0].words, found[1].words, strict=True):
        assert a.text == b.text
        np.testing.assert_allclose(a.probability, b.probability, atol=1e-5)
        np.testing.assert_allclose(a.attention, b.attention, atol=1e-5)
        np.testing.assert_allclose(a.occlusion, b.occlusion, atol=1e-3)
    texts = " ".join(word.text for word in found[0].words).strip()
    assert texts == found[0].caption and found[0].words[-1].text == ""


def test_heads_average_to_the_mean_and_what_is_not_there_is_refused():
    model, image = shipped(), pictures(1)[0]
    whole = model.explain(image)
    heads = [model.explain(image, head=h) for h in range(model.config.text_heads)]
    for w, *own in zip(whole.words, *(e.words for e in heads), strict=True):
        np.testing.assert_allclose(np.mean([x.attention for x in own], 0), w.attention, rtol=1e-6)
    assert not np.allclose(heads[0].words[2].attention, heads[1].words[2].attention)
    for wrong in (dict(layer=1), dict(layer=-1), dict(head=model.config.text_heads)):
        with pytest.raises(ValueError, match="this model has"):
            model.explain(image, **wrong)
    with pytest.raises(ValueError, match="is empty to this model"):
        model.explain(image, " ")
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        model.explain([image, image], ["a ring"])


def test_a_false_word_is_unlikely_and_its_rival_is_the_truth():
    model, image, truth = shipped(), pictures(1)[0], scenes(1)[0].things[0].colour
    caption = shapes.caption(scenes(1)[0])
    false = next(colour for colour in shapes.COLOURS if colour not in caption)
    words = model.explain(image, caption.replace(truth, false, 1)).words
    told = next(word for word in words if word.text == false)
    assert told.probability < 0.05 and told.rivals[0][0] == truth
    assert told.probability + sum(p for _, p in told.rivals) <= 1 + 1e-6


PLACES = {"left", "right", "above", "below", "middle", "top", "bottom"}
KINDS = {"colours and shapes": {*shapes.COLOURS, *shapes.SHAPES}, "places": PLACES}


def faithful(how, count=30):
    """Of each word that the picture decides (log P falls by over 1 when all of it is grey): its
    text, and in what part of DRAWS greying the COUNT patches that a map names costs it more than
    COUNT random ones. [(text, part)]"""
    model, rng, won = shipped(), np.random.default_rng(0), []
    for scene, image in zip(scenes(count), pictures(count), strict=True):
        found = explain(model.coca, model.tokenizer, image, shapes.caption(scene))
        tokens = model.tokenizer.encode([found.caption], model.config.text_length)
        sets = np.array([rng.permutation(16) < COUNT for _ in range(DRAWS)])
        named = [np.argsort(-how(word, rng).ravel())[:COUNT] for word in found.words]
        masks = np.array([np.isin(np.arange(16), own) for own in named])
        shown = np.concatenate([np.zeros((1, 16)), np.ones((1, 16)), sets, masks]).astype(bool)
        log_p = model.coca.log_likelihoods(greyed(model.config, image, shown), tokens)[:, 0]
        fall = log_p[:1] - log_p
        for t, word in enumerate(found.words):
            if fall[1, t] > 1:
                draws = fall[2 + DRAWS + t, t] > fall[2 : 2 + DRAWS, t]
                won.append((word.text, draws.mean()))
    return won


def told(won):
    """{kind: (words for which the map's patches cost more than most random ones, of all draws, how
    many words)}, parts of 1."""
    found = {}
    for kind, texts in ({"all": None} | KINDS).items():
        own = np.array([part for text, part in won if texts is None or text in texts])
        found[kind] = (np.mean(own > 0.5), np.mean(own), len(own))
    return found


MAPS = {
    "occlusion": lambda word, rng: word.occlusion,
    "attention": lambda word, rng: word.attention,
    "random": lambda word, rng: rng.random(16),
}


def test_what_the_maps_name_matters():
    """Occlusion names what words hang on; attention does for colours and shapes, not for places,
    which the image encoder has written into tokens elsewhere."""
    found = {name: told(faithful(how)) for name, how in MAPS.items()}
    occlusion, attention = found["occlusion"], found["attention"]
    assert occlusion["all"][2] > 100 and occlusion["places"][2] > 20
    assert min(occlusion["all"][:2]) >= 0.9, occlusion
    assert min(attention["colours and shapes"][:2]) >= 0.9 > attention["all"][0], attention
    assert 0.65 < attention["all"][1] < occlusion["all"][1]
    assert attention["places"][0] < 0.5
    assert max(found["random"]["all"][:2]) < 0.65


def test_words_look_at_the_thing_that_they_name():
    """Of what a colour's or a shape's word reads, the part inside the outline of the thing is
    several times that of its area."""
    model, inside, area = shipped(), [], []
    for scene, image in zip(scenes(30), pictures(30), strict=True):
        found = model.explain(image, shapes.caption(scene)).words
        for thing in scene.things:
            if sum(t.colour == thing.colour or t.shape == thing.shape for t in scene.things) > 1:
                continue  # whose word it is, is not plain
            ink = thing.__class__(**vars(thing) | {"tint": (0, 0, 0)})
            drawn = shapes.draw(shapes.Scene((ink,), (255, 255, 255)), 32)[..., 0] < 128
            part = drawn.reshape(4, 8, 4, 8).mean((1, 3))
            for word in found:
                if word.text in (thing.colour, thing.shape):
                    inside.append((word.attention * part).sum())
                    area.append(drawn.mean())
    assert len(inside) > 40
    assert np.mean(inside) > 3 * np.mean(area), (np.mean(inside), np.mean(area))
    assert np.mean(np.array(inside) > area) > 0.95


BUGS = [
    (looking, "contrast_BHQS @ pooled_BQS[:, None]", "pooled_BQS[:, None]", "cascade"),
    (looking, "contrast_BHQS[:, :, 1:].mean(1)", "contrast_BHQS[:, :, :-1].mean(1)", "shared"),
    (looking, "p_BHTQ @ pooled_BQS[:, None]", "p_BHTQ @ pooled_BQS[:, None, ::-1]", "order"),
]


def test_the_pooler_is_followed_query_by_query():
    check_query_by_query()


def check_query_by_query():
    """A decoder layer that reads one query reads what that query reads."""
    config = small_config(pooler="parallel")
    params, images, tokens = model_and_batch(config, 4)
    cross = params["decoder"]["blocks"]["0"]["cross"]
    cross["query"] = tree_map(lambda x: 0 * x, cross["query"])
    cross["query"]["bias"] = cross["query"]["bias"] + 1
    memory = encode_image(params, config, images)[1]
    _, words, _ = looks(params, config, images, tokens)
    pooled = looking.pooler_weights(encode_image(params, config, images)[2][1])[0]
    own = looking.weights(multimodal_cross(params, config, memory, tokens))
    want = np.einsum("bhtq,bqs->bhts", own, pooled)
    np.testing.assert_allclose(words[0], want, rtol=1e-10)


def multimodal_cross(params, config, memory, tokens):
    x = encode_text(params, config, tokens)[1][:, :-1]
    caches = generate.multimodal_decoder(x, memory, params["decoder"], config)[1][0]
    return caches[0][2][2]


@pytest.mark.parametrize("module, old, new, which", BUGS, ids=[b[3] for b in BUGS])
def test_a_planted_bug_is_seen(module, old, new, which):
    check = {"order": check_query_by_query}.get(which, lambda: check_carried_back(which))
    with planted(module, old, new), pytest.raises((AssertionError, ValueError)):
        check()


def test_the_command_says_draws_and_refuses(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pictures(1)[0]).save("a.png")
    run = ["explain", "a.png", "--run", "shapes"]
    assert cli.main([*run, "--out", "words.png"]) == 0
    told = capsys.readouterr().out
    for word in shapes.caption(scenes(1)[0]).split():
        assert f"\n{word} " in told
    assert "(end)" in told and "of 4 x 4 patches" in told
    with Image.open("words.png") as drawn:
        assert min(drawn.size) > 300
    assert cli.main([*run, "--json"]) == 0
    found, want = json.loads(capsys.readouterr().out), shipped().explain("a.png")
    assert found["caption"] == want.caption
    np.testing.assert_allclose(found["words"][2]["attention"], want.words[2].attention, atol=1e-5)
    before = (tmp_path / "words.png").read_bytes()
    for wrong, why in (
        (["--out", "words.png"], "is there already"),
        (["--layer", "3"], "layer 3: this model has 1, from 0 to 0"),
        (["--caption", ""], "is empty to this model"),
    ):
        assert cli.main([*run, *wrong]) == 2
        assert why in capsys.readouterr().err
    assert (tmp_path / "words.png").read_bytes() == before


def test_a_class_token_and_padding_have_no_place():
    config = small_config(stem="clip", pooler="shared")
    params, images, tokens = model_and_batch(config, 3)
    model = CoCa(params, config)

    class Tokens:
        pad = PAD

        def encode(self, texts, length):
            return tokens[:1]

        def decode(self, ids):
            return " ".join(map(str, ids))

    image = np.random.default_rng(0).integers(0, 256, (config.image_size,) * 2 + (3,), np.uint8)
    found = explain(model, Tokens(), image, "whatever")
    side = config.image_size // config.patch_size
    assert all(word.attention.shape == (side, side) for word in found.words)
    assert all(word.attention.sum() < 1 for word in found.words)
    assert len(found.words) == (tokens[0] != PAD).sum() - 1


if __name__ == "__main__":  # what the guide says of 150 scenes
    for name, how in MAPS.items():
        for kind, (words, draws, many) in told(faithful(how, 150)).items():
            print(f"{name:10} {kind:20} {many:4} words: {words:.1%} of words, {draws:.1%} of draws")
