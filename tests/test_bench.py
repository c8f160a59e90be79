"""What makes a step fast changes nothing: every short cut against the plain way, and open_clip."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from backends import Engine
from strategies import model_and_batch, small_config

from minicoca import bench, bench_sides
from minicoca.engine import attention as engine_attention
from minicoca.engine import ops as engine_ops
from minicoca.engine import text as engine_text
from minicoca.interop.open_clip import from_open_clip, to_open_clip
from minicoca.kernels import caption_loss as caption_kernel
from minicoca.params import flatten, initialise

OPEN_CLIP = dict(stem="clip", pooler="shared", multimodal_mlps=2, embed_width=12, pooler_heads=3)


def losses_and_gradients(params, config, images, tokens):
    outputs = Engine.outputs(params, config, images, tokens)
    gradients = flatten(Engine.gradients(params, config, images, tokens))
    return {name: outputs[name] for name in ("contrastive", "caption", "image", "text")} | gradients


def assert_equal(have, want, tolerance=1e-10):
    assert have.keys() == want.keys()
    for name in want:
        largest = max(np.abs(want[name]).max(), 1e-3)
        assert np.abs(have[name] - want[name]).max() <= tolerance * largest, name


def short_captions(config, seed=0, batch=5):
    """Most of the batch is padding, as it is for captions of ordinary length."""
    params, images, tokens = model_and_batch(config, seed, batch, tokens=8)
    for row, length in zip(tokens, (8, 2, 3, 3, 4), strict=True):
        row[length - 1], row[length:] = 2, 0
    return params, images, tokens


@pytest.mark.parametrize("changes", [{}, OPEN_CLIP, {"pooler": "none"}], ids=str)
def test_not_computing_padding_changes_no_loss_and_no_gradient(changes, monkeypatch):
    model = small_config(**changes)
    params, images, tokens = short_captions(model)
    rows = engine_text.TextRows(torch.tensor(tokens), model)
    assert rows.packing and rows.decoder_packing
    packed = losses_and_gradients(params, model, images, tokens)
    monkeypatch.setattr(engine_text, "PACK_BELOW", 0)
    assert engine_text.TextRows(torch.tensor(tokens), model).packing is None
    assert_equal(packed, losses_and_gradients(params, model, images, tokens))


@pytest.mark.parametrize("changes", [{}, {"pooler": "none"}], ids=str)
def test_not_forming_keys_changes_no_loss_and_no_gradient(changes, monkeypatch):
    """Long memories, few text rows; with a memory of the decoder's width and of another."""
    model = small_config(image_size=14, caption_queries=49, text_heads=2, **changes)
    params, images, tokens = short_captions(model)
    taken = []
    absorbed = engine_attention._absorbed_attention
    monkeypatch.setattr(
        engine_attention, "_absorbed_attention", lambda *a: taken.append(1) or absorbed(*a)
    )
    plain = losses_and_gradients(params, model, images, tokens)
    assert not taken
    monkeypatch.setattr(engine_attention, "ABSORB_FROM", 0)
    assert_equal(losses_and_gradients(params, model, images, tokens), plain)
    assert taken


def test_keys_are_avoided_only_where_that_saves_products():
    pays = engine_attention.absorbing_pays
    memory = torch.empty(16, 255, 512, device="meta")
    assert pays(16 * 12, memory, 512, 8)
    assert not pays(16 * 75, memory, 512, 8)  # too many rows
    assert not pays(16 * 12, torch.empty(16, 16, 64, device="meta"), 64, 4)  # too small


@pytest.mark.skipif(not engine_ops.ONEDNN, reason="this torch has no oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_one_dnns_product_is_as_good_as_torchs(bias, monkeypatch):
    """Against float64, value and gradients are off by no more than twice what torch's are."""
    monkeypatch.setattr(engine_ops, "ONEDNN_FROM", 0)
    torch.manual_seed(0)
    exact = {"weight": torch.randn(96, 130).double(), "bias": torch.randn(130).double()}
    if not bias:
        del exact["bias"]
    x, dy = torch.randn(3, 50, 96).double(), torch.randn(3, 50, 130).double()

    def run(dtype, function):
        leaves = [t.to(dtype).requires_grad_() for t in (x, *exact.values())]
        y = function(leaves[0], dict(zip(exact, leaves[1:], strict=True)))
        return [y, *torch.autograd.grad(y, leaves, dy.to(dtype))]

    def plain(x, params):
        return x @ params["weight"] + params.get("bias", 0)

    want = run(torch.float64, plain)
    for a, b, w in zip(
        run(torch.float32, engine_ops.linear), run(torch.float32, plain), want, strict=True
    ):
        assert (a - w).norm() <= 2 * (b - w).norm() + 1e-7 * w.norm()


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_caption_loss_in_chunks(chunk, monkeypatch):
    monkeypatch.setattr(caption_kernel, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = (9 * torch.randn(5, 11, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(1, 11, (7,))  # 0 is padding
    have = engine_ops.caption_loss(hidden, {"weight": weight}, targets)
    want = torch.nn.functional.cross_entropy(hidden @ weight, targets)
    torch.testing.assert_close(have, want)
    got = torch.autograd.grad(3 * have, (hidden, weight))
    torch.testing.assert_close(got, torch.autograd.grad(3 * want, (hidden, weight)))


def test_open_clip_names_there_and_back():
    config = small_config(**OPEN_CLIP)
    tree = initialise(config)
    theirs = to_open_clip(tree, config)
    assert theirs["visual.conv1.weight"].shape == (10, 3, 2, 2)
    assert theirs["logit_scale"].shape == () and theirs["logit_scale"] > 0
    again = flatten(from_open_clip(theirs, config))
    for name, leaf in flatten(tree).items():
        np.testing.assert_array_equal(again[name], leaf, err_msg=name)
    del theirs["logit_scale"]
    with pytest.raises(ValueError, match="missing.*logit_scale"):
        from_open_clip(theirs, config)
    with pytest.raises(ValueError, match="pooler=shared"):
        to_open_clip(tree, small_config())


def test_patches_are_open_clips_convolution():
    config = small_config(**OPEN_CLIP)
    tree = initialise(config)
    images = torch.randn(2, 6, 6, 3)
    kernel = torch.tensor(to_open_clip(tree, config)["visual.conv1.weight"])
    want = torch.nn.functional.conv2d(images.permute(0, 3, 1, 2), kernel, stride=2)
    from minicoca.engine.vision import patchify

    have = patchify(images, 2) @ torch.tensor(tree["image"]["patch"]["weight"])
    torch.testing.assert_close(have, want.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("batch", [16, 20])
def test_ordinary_captions_are_as_long_as_said(batch):
    config = small_config(text_length=76)
    lengths = (bench.make_batch(config, "ordinary", batch)[1] != 0).sum(1)
    assert lengths.max() == 24 and (batch % 16 or lengths.double().mean() == 12)
    assert (bench.make_batch(config, "full", batch)[1] != 0).all()


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_the_step_is_open_clips_step(tmp_path):
    """At its real sizes: losses and every gradient, padded and full; then the figures' file."""
    pytest.importorskip("open_clip", exc_type=ImportError)
    path = tmp_path / "bench.json"
    how = dict(batch=2, repeats=1, memory=False, precision="bfloat16")
    report = bench.step("open_clip", json_path=path, **how)
    assert json.loads(path.read_text()) == report
    for case in bench.CASES:
        assert report[case]["gradient_difference"] < bench_sides.AGREE
        assert report[case]["loss_difference_bf16"] < bench_sides.AGREE_NARROW
        assert report[case]["ratio"] > 0 and report[case]["ours_ms"] > 0


def test_ratios_say_how_many_times_as_fast_ours_is(monkeypatch, capsys):
    """Theirs over ours: 3 where they take three times as long, below 1 where they are faster; and
    like with like, where both are in bfloat16 too."""
    spent = {"ours": 10.0, "theirs": 30.0, "ours_bf16": 4.0, "theirs_bf16": 6.0}
    ours = bench.Ours(small_config())

    class Theirs:
        def __init__(self, *given, dtype):
            self.model, self.dtype = self, dtype

        def state_dict(self):
            return {}

    def milliseconds(model, batch):
        narrow = bench.NARROW if model.dtype == torch.bfloat16 else ""
        return spent[("theirs" if isinstance(model, Theirs) else "ours") + narrow]

    for name, value in {
        "OpenClip": Theirs,
        "preset": lambda name: small_config(),
        "import_open_clip": lambda: SimpleNamespace(__version__="0"),
        "from_open_clip": lambda *given: initialise(ours.config),
        "check_agreement": lambda *given: (0.0, 0.0),
        "check_losses": lambda *given: 0.0,
        "_milliseconds": milliseconds,
    }.items():
        monkeypatch.setattr(bench, name, value)
    for theirs, ratio in ((30.0, 3.0), (5.0, 0.5)):
        spent["theirs"] = theirs
        report = bench.step(against="open_clip", batch=2, repeats=1, memory=False, device="cpu")
        out = capsys.readouterr().out
        for case in bench.CASES:
            assert report[case]["ratio"] == ratio
            assert f"{case}: {ratio:.2f} times as fast as open_clip" in out
            assert "gain_bf16" not in report[case]
    how = dict(batch=2, repeats=1, memory=False, device="cpu", precision="bfloat16")
    row = bench.step(against="open_clip", **how)["full"]
    assert (row["ratio"], row["ratio_bf16"], row["gain_bf16"]) == (0.5, 1.5, 2.5)
    out = capsys.readouterr().out
    assert "full: 1.50 times as fast as open_clip, both in bfloat16" in out
    assert "full: in bfloat16 2.50 times as fast as in float32" in out


def test_the_bench_computes_in_the_type_that_it_says():
    """Of the same weights and moments: a step of either moves both."""
    config = small_config()
    wide = bench.Ours(config)
    narrow = bench.computing_in(wide, torch.bfloat16)
    batch = bench.make_batch(config, "full", 2)
    exact, rounded = wide.gradients(*batch), narrow.gradients(*batch)
    assert exact != rounded and exact == pytest.approx(rounded, abs=0.05)
    wide.zero_grad()
    before = wide.params["text"]["token"].detach().clone()
    narrow.step(*batch)
    assert not torch.equal(wide.params["text"]["token"], before)
    with pytest.raises(RuntimeError, match="losses in bfloat16 differ by 5.0e-01"):
        bench.check_losses(
            SimpleNamespace(gradients=lambda *b: [2.0, 1.0], zero_grad=list),
            SimpleNamespace(gradients=lambda *b: [1.0, 1.0], zero_grad=list),
            batch,
        )


@pytest.mark.slow
def test_a_step_of_any_preset_is_timed(tmp_path, capsys):
    path = tmp_path / "step.json"
    report = bench.step(batch=2, repeats=1, json_path=path, memory=False, preset_name="tiny")
    assert json.loads(path.read_text()) == report
    assert report["full"]["ours_ms"] > 0 and 0 < report["full"]["ours_flop_utilisation"] < 1.5
    assert "of tiny, batch 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="needs a --preset open_clip_"):
        bench.step(against="open_clip", preset_name="tiny")


def test_flops_are_those_of_the_products():
    """Of one linear layer more: 6 for each of its weights and rows."""
    config = small_config(pooler="none", embed_width=0)
    more = replace(config, vocabulary=config.vocabulary + 10)
    rows = 3 * (config.text_length - 1)
    difference = bench.model_flops(more, 3) - bench.model_flops(config, 3)
    assert difference == 6 * rows * config.text_width * 10
