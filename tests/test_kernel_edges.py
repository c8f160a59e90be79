"""Kernels at the edge of what they take: far apart, misaligned, too long, too many, too old."""

import sys

import pytest
import torch
from kernel_cases import (
    DEVICE,
    check_captions,
    check_pairs,
    exact_attention,
    exact_pool,
    run_attention,
)

from minicoca.engine import ops as seam
from minicoca.kernels import (
    attention,
    attention_pool,
    caption_loss,
    checks,
    info_nce,
    toolchain,
)


def randn(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs memory that is not there")
@pytest.mark.parametrize("B, apart", [(2, 2**31 + 64), (3, 2**30 + 2**12)])
def test_samples_whose_places_need_more_than_31_bits(B, apart):
    """The stride may need them, or only the last sample's place. 4 GB are asked for; of what is not
    touched nothing is taken."""
    memory = torch.empty((B - 1) * apart + 2**13, device=DEVICE, dtype=torch.float16)
    packed = [randn(B, 20, 2, 16, seed=i, dtype=torch.float16) for i in range(4)]
    far = [memory.as_strided((B, 20, 2, 16), (apart, 32, 16, 1), 1024 * i) for i in range(4)]
    for a, b in zip(far, packed, strict=True):
        a.copy_(b)
    for queries in (B, 1):  # the short backward, and the general one
        calls = ([xs[0][:queries], *xs[1:]] for xs in (far, packed))
        a, b = (run_attention(attention, *xs, False, None, 0.25) for xs in calls)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(*(_pooled(x[:, :, 0]) for x in (far[0], packed[0])))


def _pooled(x):
    x, g = x.detach().requires_grad_(), randn(3, 16, dtype=torch.float16)
    m = attention_pool.attention_pool(x, g)
    return torch.cat([t.flatten() for t in (m, *torch.autograd.grad(m.square().sum(), x))])


def test_rows_too_far_apart_to_count_in_32_bits_are_refused():
    def strided(shape, strides):
        return torch.empty_strided(shape, strides, device="meta")

    first = strided((1, 2, 1, 16), (0, 2**31 - 15, 0, 1))
    with pytest.raises(ValueError, match="q's samples span 2147483648 elements"):
        checks.check_attention(first, first, first, False, None)
    far, q = strided((2, 5, 2, 16), (0, 2**29, 0, 1)), torch.empty(2, 20, 2, 16, device="meta")
    with pytest.raises(ValueError, match="k's samples span 2147483663 elements"):
        attention.attention(q, far, far)
    text, scale = torch.empty(2, 4, device="meta"), torch.empty((), device="meta")
    with pytest.raises(ValueError, match="image is .2, 4., rows 16777216 apart"):
        checks.check_pairs(strided((2, 4), (2**24, 1)), text, scale, 1)
    checks.check_pairs(strided((2, 4), (2**24 - 1, 1)), text, scale, 1)


class Launches:
    """Stands where kernels do, and writes down whether each launch says that heads are aligned."""

    def __init__(self):
        self.aligned = []

    def __getitem__(self, grid):
        return lambda *_, ALIGNED, **__: self.aligned.append(ALIGNED)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("crooked", [None, 0, 1, 2, 3])
def test_one_misaligned_tensor_of_several_is_enough(monkeypatch, crooked, shared):
    """A card would load it 16 bytes at a time from places that are no multiple of 16."""
    launches = Launches()
    for name in list(vars(attention)):
        if name.endswith("_kernel"):
            monkeypatch.setattr(attention, name, launches)
    sizes = [(1 if shared else 2, 5, 2)] + 3 * [(2, 5, 2)]
    tensors = [randn(*s, 17 if i == crooked else 24)[..., :16] for i, s in enumerate(sizes)]
    q, k, v, do = (x.requires_grad_() for x in tensors)
    o = attention.attention(q, k, v)
    assert launches.aligned == [crooked not in (0, 1, 2)]
    torch.autograd.grad(o, (q, k, v), do)
    assert launches.aligned[1:] == (3 if shared else 1) * [crooked is None]


def test_lengths_beyond_what_there_is_are_all_there_is():
    """On a card nobody looks at them first; what follows in memory is not theirs."""
    memory = torch.full((2, 15, 2, 16), torch.nan, device=DEVICE)
    memory[:, :7] = randn(2, 7, 2, 16)
    q, k = randn(2, 5, 2, 16, seed=1).requires_grad_(), memory[:, :7].detach().requires_grad_()
    x, g = memory[:, :7, 0].detach().requires_grad_(), randn(3, 16, seed=2).requires_grad_()
    calls = {
        "short": (lambda n: attention.attention_forward(q, k, k, n, False, 0.3)[0], (q, k)),
        "general": (lambda n: attention.attention_forward(q[:1], k, k, n, False, 0.3)[0], (q, k)),
        "pool": (lambda n: attention_pool.attention_pool_forward(x, g, n)[0], (x, g)),
    }
    for name, (call, leaves) in calls.items():
        found = []
        for lengths in ([7, 7], [12, 2**31 - 1]):
            y = call(torch.tensor(lengths, dtype=torch.int32, device=DEVICE))
            found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_hundreds_of_chunks_are_not_summed_in_16_bits(dtype):
    """Chunks are summed by the same code whoever computes them."""
    check_captions(caption_loss, 0, R=600, D=4, V=7, pads=0, chunk=2, dtype=dtype, fused=False)
    check_pairs(info_nce, 0, 300, 6, dtype, workspace=1, fused=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_no_result_leans_one_way(dtype):
    """Rounding errors cancel over a whole tensor. A cut instead of a rounding, or a constant that
    is left over, does not, and may still be within the gate for single numbers."""
    q, k, v, do = (randn(2, 50, 2, 64, seed=i, dtype=dtype) for i in range(4))
    x, g = (3 + randn(4, 50, 96)).to(dtype), (0.3 * randn(4, 96, seed=1)).to(dtype)
    dm = randn(4, 4, 96, seed=2)
    case, pooled = (q, k, v, do, False, None, 0.125), [x.requires_grad_(), g.requires_grad_()]
    m = attention_pool.attention_pool(*pooled)
    ours = run_attention(attention, *case) + [m, *torch.autograd.grad(m, pooled, dm)]
    right = exact_attention(*case) + exact_pool(x.detach(), g.detach(), dm, None)
    for name, got, want in zip(("o", "dq", "dk", "dv", "m", "dx", "dg"), ours, right, strict=True):
        gap = (got.detach().double() - want) / want.square().mean().sqrt()
        for lean in (gap.mean(), (gap * want.sign()).mean()):
            chance = gap.square().mean().sqrt() / gap.numel() ** 0.5
            limit = torch.finfo(dtype).eps / 20 + 4 * chance
            assert lean.abs() < limit, f"{name} leans by {lean:.1e}; {limit:.1e} may be chance"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_unit_vectors_are_float32_at_least(dtype):
    """Cosines are divided by the temperature; the squares of a float16 may overflow it."""
    x = (300 * randn(9, 24)).to(dtype)
    y = seam.l2_normalise(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), torch.nn.functional.normalize(x.double()))


@pytest.mark.parametrize("way", ["torch", "chunks", "triton"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_temperature_is_float32_at_least(monkeypatch, way, dtype):
    """exp(-log_temperature) in 16 bits would be up to 0.4 % off, and so would every logit."""
    monkeypatch.setattr(seam, "PAIRS_IN_CHUNKS", 2 if way == "chunks" else 2048)
    x, y = (torch.nn.functional.normalize(randn(40, 24, seed=i)).to(dtype) for i in range(2))
    log_temperature = torch.tensor(-2.61, device=DEVICE).to(dtype).requires_grad_()
    exact = log_temperature.detach().double().requires_grad_()
    with seam.use("triton" if way == "triton" else "torch"):
        loss = seam.contrastive_loss(x, y, log_temperature)
    want = _pairs_in_float64(x, y, exact)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=0)
    (got,), (want,) = (
        torch.autograd.grad(a, b) for a, b in ((loss, log_temperature), (want, exact))
    )
    assert got.dtype == dtype
    torch.testing.assert_close(got, want.to(dtype), rtol=torch.finfo(dtype).eps * 4, atol=0)


def _pairs_in_float64(x, y, log_temperature):
    s = torch.exp(-log_temperature) * (x.double() @ y.double().T)
    own = s.diagonal()
    return ((s.logsumexp(1) - own).mean() + (s.logsumexp(0) - own).mean()) / 2


META = torch.zeros(1, 2, 16, device="meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(5, 16)), "x is (5, 16)"),
        (dict(x=torch.zeros(2, 16, 5).mT), "strides (80, 1, 5); expected [B, N, M], last 1"),
        (dict(g=torch.zeros(3, 15)), "g is (3, 15); expected [H, 16] with H at most 64"),
        (dict(g=torch.zeros(16)), "g is (16,)"),
        (dict(g=torch.zeros(0, 16)), "g is (0, 16)"),
        (dict(g=torch.zeros(65, 16)), "g is (65, 16)"),
        (dict(x=torch.zeros(2, 5, 16, dtype=torch.int32)), "x is torch.int32, g torch.float32"),
        (dict(g=torch.zeros(3, 16, dtype=torch.complex64)), "g torch.complex64"),
        (dict(x=torch.zeros(1, 1, 16).expand(65_536, 1, 16)), "x has 65536 samples"),
        (dict(x=META.as_strided((1, 2, 16), (0, 2**31 - 16, 1)), g=META[0]), "rows of stride"),
        (dict(g=torch.zeros(3, 16, device="meta")), "g is on meta, x on cpu"),
        (dict(key_lengths=torch.tensor([6, 1])), "not in 0 to 5"),
        (dict(key_lengths=torch.tensor([-1, 1])), "not in 0 to 5"),
        (dict(key_lengths=torch.tensor([1])), "not int (2,)"),
        (dict(key_lengths=torch.tensor([1.0, 2.0])), "torch.float32"),
        (dict(key_lengths=torch.zeros(2, dtype=torch.int32, device="meta")), "key_lengths is on"),
    ],
)
def test_a_wrong_call_of_attention_pool_is_told_what_is_wrong(change, message):
    case = dict(x=torch.zeros(2, 5, 16), g=torch.zeros(3, 16), key_lengths=None) | change
    with pytest.raises(ValueError) as caught:
        attention_pool.attention_pool(case["x"], case["g"], key_lengths=case["key_lengths"])
    assert message in str(caught.value)


def test_where_another_number_pads_the_first_word_is_a_target():
    x, weight = randn(6, 8, seed=1), randn(8, 12, seed=2)
    targets = torch.tensor([0, 3, -1, 0, 11, -1], device=DEVICE)
    got = caption_loss.caption_loss(x, weight, targets, pad_id=-1)
    want = torch.nn.functional.cross_entropy(x @ weight, targets, ignore_index=-1)
    assert torch.allclose(got, want, rtol=1e-5)


def test_what_is_just_inside_every_limit_is_taken():
    x, g = torch.zeros(2, 5, 16), torch.zeros(64, 16, dtype=torch.float64)
    checks.check_pool(x, g, torch.tensor([0, 5]))
    checks.check_pool(x[:1].expand(65_535, 5, 16), g[:1], None)
    checks.check_pool(META.as_strided((1, 2, 16), (0, 2**31 - 17, 1)), META[0], None)
    last = META.as_strided((1, 2, 1, 16), (0, 2**31 - 16, 0, 1))  # spans 2^31 - 1
    checks.check_attention(last, last, last, False, None)
    q = torch.zeros(1, 5, 3, 128)
    checks.check_attention(q, *2 * [q.expand(21_845, 5, 3, 128)], True, None)


@pytest.mark.parametrize("release", [(11, 8), (12, 9), (13, 2)])
@pytest.mark.parametrize("beside", [None, (13, 2), (13, 3)])
def test_an_assembler_before_the_sound_one_is_complained_of(monkeypatch, release, beside):
    monkeypatch.setattr(toolchain, "ptxas_release", lambda: release)
    monkeypatch.setattr(toolchain, "release_of", lambda path: beside)
    said = toolchain.complaint((9, 0))
    assert f"ptxas is {release[0]}.{release[1]}; on Hopper one before 13.3" in said
    assert "TRITON_PTXAS_PATH" in said and "--backend torch" in said
    comes_with_triton = str(toolchain.bundled("ptxas-blackwell")) in said
    assert comes_with_triton == (beside == (13, 3))
    assert ("pip install nvidia-cuda-nvcc" in said) != comes_with_triton
    assert not any(toolchain.complaint(card) for card in ((8, 0), (8, 9), (10, 0), (0, 0)))


@pytest.mark.parametrize("release", [(13, 3), (13, 4), (14, 0), None])
def test_the_sound_assembler_and_later_ones_are_not(monkeypatch, release):
    monkeypatch.setattr(toolchain, "ptxas_release", lambda: release)
    assert toolchain.complaint((9, 0)) == ""


@pytest.mark.parametrize(
    ("says", "release"),
    [("Cuda compilation tools, release 13.12, V13.12.59", (13, 12)), ("no such thing", None)],
)
def test_the_assembler_that_triton_is_told_to_use_is_asked(monkeypatch, tmp_path, says, release):
    ptxas = tmp_path / "ptxas"
    ptxas.write_text(
        f"#!/bin/sh\necho 'ptxas: NVIDIA (R) Ptx optimizing assembler'\necho '{says}'\n"
    )
    ptxas.chmod(0o755)
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(ptxas))
    assert toolchain.ptxas_release() == release
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(tmp_path / "nothing"))
    assert toolchain.ptxas_release() is None
