"""Captions as people ask for them: options that go together, several captions with their scores,
ranked again by the model's own vectors; from Python and from the command line."""

import argparse
import inspect

import numpy as np
import pytest
from test_cli import call
from test_model import here, inside, model, paths, printed, quiet  # noqa: F401

from minicoca import params
from minicoca.commands import build_parser
from minicoca.config import from_dict
from minicoca.engine import generate as engine_generate
from minicoca.model import Model
from minicoca.reference import generate as reference_generate
from minicoca.tasks.captioning import Candidate, decoding

SEVERAL = [
    {"best": 4},
    {"best": 3, "beams": 5, "prompt": "a small"},
    {"best": 4, "beams": 6, "beam_groups": 3, "diversity": 0.7, "max_length": 9},
    {"best": 2, "beams": 4, "length_penalty": 0.5, "no_repeat_ngram": 1, "min_length": 3},
]


def flags(how):
    """Options as a person types them."""
    for name, value in how.items():
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield str(value)


@pytest.mark.parametrize("how", SEVERAL, ids=str)
def test_the_best_are_several_texts_the_best_first(here, model, how):  # noqa: F811
    found = model.caption(paths(here), **how)
    assert len(found) == 5
    plain = {name: value for name, value in how.items() if name != "best"}
    plain.setdefault("beams", how["best"])
    assert [own[0].caption for own in found] == model.caption(paths(here), **plain)
    for own in found:
        assert 1 <= len(own) <= how["best"] and all(isinstance(one, Candidate) for one in own)
        assert len({one.caption for one in own}) == len(own)
        assert all(one.caption.startswith(how.get("prompt", "")) for one in own)
        scores = [one.score for one in own]
        assert scores == sorted(scores, reverse=True) and max(scores) < 0
        assert all(one.cosine is None for one in own)
    assert max(map(len, found)) > 1
    alone = model.caption(paths(here)[2], **how)
    assert [one.caption for one in alone] == [one.caption for one in found[2]]
    assert [one.score for one in alone] == pytest.approx([one.score for one in found[2]], abs=1e-5)


def test_ranking_again_is_by_the_models_own_vectors(here, model):  # noqa: F811
    images, moved = paths(here), 0
    plain = model.caption(images, best=6)
    for image, first, own in zip(
        images, plain, model.caption(images, best=6, rerank=True), strict=True
    ):
        vectors = model.embed_texts([one.caption for one in own])
        cosines = [one.cosine for one in own]
        assert cosines == pytest.approx((vectors @ model.embed_images(image)).tolist(), abs=1e-6)
        assert cosines == sorted(cosines, reverse=True)
        assert sorted(first) == sorted(one._replace(cosine=None) for one in own)
        moved += own[0].caption != first[0].caption
    assert moved, "nothing is ranked otherwise: nothing is tested"
    best = model.caption(images, best=2, beams=6, rerank=True)
    assert best == [own[:2] for own in model.caption(images, best=6, rerank=True)]
    one = model.caption(images, beams=6, rerank=True)
    assert one == [own[0].caption for own in best]


def test_both_backends_find_the_same(here, model):  # noqa: F811
    other = quiet(here / "runs" / "shapes", backend="numpy")
    for how in (*SEVERAL[1:3], {"best": 3, "rerank": True}):
        a, b = (m.caption(paths(here)[:2], **how) for m in (model, other))
        for own, others in zip(a, b, strict=True):
            assert [one.caption for one in own] == [one.caption for one in others]
            np.testing.assert_allclose(
                np.array([one[1:] for one in own], float),
                np.array([one[1:] for one in others], float), atol=1e-4,
            )  # fmt: skip


@pytest.mark.parametrize("how", [*SEVERAL, {"best": 3, "rerank": True}], ids=str)
def test_the_command_tells_what_python_gives(here, model, how, capsys):  # noqa: F811
    rows, found = printed("caption", "pictures", *flags(how)), model.caption(paths(here), **how)
    for row, own in zip(rows, found, strict=True):
        told = [{k: v for k, v in one._asdict().items() if v is not None} for one in own]
        assert row["best"] == told
        assert {k: v for k, v in row.items() if k in told[0]} == told[0]
    _, out, _ = call(capsys, "caption", "pictures/1.png", *flags(how))
    lines = out.splitlines()
    assert len(lines) == len(found[1])
    for line, one in zip(lines, found[1], strict=True):
        numbers = [f"{x:.3f}" for x in one[1:] if x is not None]
        assert line.split()[: 1 + len(numbers)] == ["pictures/1.png", *numbers]
        assert line.endswith(one.caption)


def test_ranked_again_and_one_asked_for_both_scores_are_shown(here, model):  # noqa: F811
    rows = printed("caption", "pictures", "--rerank")
    found = model.caption(paths(here), best=5, rerank=True)
    for row, own in zip(rows, found, strict=True):
        assert {k: v for k, v in row.items() if k != "file"} == own[0]._asdict()
    assert model.caption(paths(here), rerank=True) == [row["caption"] for row in rows]


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 3}, {"beams": 3}], ids=str)
def test_lengths_and_repetition_are_controlled_in_every_way(here, model, how):  # noqa: F811
    images = paths(here)
    for text in model.caption(images, max_length=3, **how):
        assert len(text.split()) <= 3
    for text in model.caption(images, min_length=12, no_repeat_ngram=1, **how):
        assert len(set(text.split())) == len(text.split()) >= 11
    assert model.caption(images, repetition_penalty=50.0, min_length=12, **how) != model.caption(
        images, min_length=12, **how
    )


MISTAKES = {
    "a negative length": ({"min_length": -1}, "{min_length} -1 is not from 0 to 1,000,000"),
    "no length left": ({"min_length": 4, "max_length": 3}, "{max_length} 3 leave no length"),
    "half an n-gram": ({"no_repeat_ngram": 10**7}, "{no_repeat_ngram} 10000000 is not from 0"),
    "a penalty of 0": ({"repetition_penalty": 0.0}, "{repetition_penalty} 0.0 is not from 0.01"),
    "no number": ({"repetition_penalty": float("nan")}, "nan is not from 0.01 to 100"),
    "none": ({"best": 0}, "{best} 0 is not from 1 to 64"),
    "too many": ({"best": 3, "beams": 2}, "{best} 3 needs as many {beams}"),
    "sampled": ({"best": 3, "temperature": 1.0}, "{best} and {temperature} exclude each other"),
    "sampled, ranked": ({"rerank": True, "temperature": 1.0}, "{rerank} and {temperature}"),
    "no beams": ({"length_penalty": 1.0}, "{length_penalty} is for beam search: give {beams}"),
    "no beams of groups": ({"beam_groups": 2}, "{beam_groups} is for beam search: give {beams}"),
    "a great power": ({"beams": 2, "length_penalty": 11.0}, "11.0 is not from -10 to 10"),
    "uneven": ({"beams": 5, "beam_groups": 2}, "{beams} 5, {beam_groups} 2: every group has"),
    "no groups": ({"beams": 4, "diversity": 0.5}, "{diversity} is of groups: give {beam_groups}"),
    "attracted": (
        {"beams": 4, "beam_groups": 2, "diversity": -1.0}, "{diversity} -1.0 is not from 0 to 1000"
    ),
}  # fmt: skip
NAMES = inspect.signature(decoding).parameters.keys() - {"spelt"}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_go_together_is_said(name, here, model, capsys):  # noqa: F811
    how, message = MISTAKES[name]
    with pytest.raises(ValueError) as error:
        model.caption(paths(here), **how)
    assert message.format(**{n: n for n in NAMES}) in str(error.value)
    code, _, err = call(capsys, "caption", "pictures", *flags(how))
    said = message.format(**{n: "--" + n.replace("_", "-") for n in NAMES})
    assert code == 2 and said in err and err.count("\n") == 1


def test_a_least_length_that_the_model_cannot_write_is_said(here, model):  # noqa: F811
    room = model.config.text_length - 1
    with pytest.raises(ValueError, match=f"length of {room + 1} tokens .* at most {room}$"):
        model.caption(paths(here), min_length=room + 1)
    assert all(model.caption(paths(here)[:1], min_length=room))
    with pytest.raises(ValueError, match=f"at most {room - 2}$"):
        model.caption(paths(here), "a small", min_length=room)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_ranking_again_needs_vectors(backend, here, model):  # noqa: F811
    tree, _ = params.load(here / "runs" / "shapes" / "model.safetensors")
    changed = model.config.to_dict() | {"contrastive_weight": 0.0, "device": "auto"}
    kind = {"torch": engine_generate.CoCa, "numpy": reference_generate.CoCa}[backend]
    other = Model(kind(tree, from_dict(changed | {"backend": backend})), model.tokenizer)
    assert other.caption(paths(here)[0], best=2)
    with pytest.raises(ValueError, match="contrastive_weight 0: it cannot compare"):
        other.caption(paths(here)[0], best=2, rerank=True)


def test_options_are_the_same_everywhere():
    """Of the command, of Python, and of what checks both."""
    ours = inspect.signature(decoding).parameters
    python = inspect.signature(Model.caption).parameters
    assert python.keys() - {"self", "images", "prompt", "fit"} == NAMES
    subs = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    known = {a.dest: a.default for a in subs.choices["caption"]._actions}
    for name in NAMES:
        assert ours[name].default == python[name].default == known[name], name
