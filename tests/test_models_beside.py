"""Models of different backends in one process, in turn and in threads."""

import threading

import numpy as np
import pytest
import torch
from strategies import small_config

from minicoca import params
from minicoca.engine import generate as engine_generate
from minicoca.engine import ops
from minicoca.reference import generate as reference_generate

PIXELS = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
IDS = np.array([[1, 5, 2]])


def tiny(backend, seed):
    """A CoCa of one layer and one head each, whose weights are its own."""
    names = "image_layers unimodal_layers multimodal_layers image_heads text_heads pooler_heads"
    ones = dict.fromkeys(names.split(), 1)
    config = small_config(**ones, image_size=4, text_length=3, backend=backend)
    coca = reference_generate.CoCa if backend == "numpy" else engine_generate.CoCa
    return coca(params.initialise(config, seed), config)


def answers(coca):
    return [
        coca.embed_images(PIXELS), coca.embed_texts(IDS), coca.log_likelihoods(PIXELS, IDS),
        coca.generate(PIXELS),
    ]  # fmt: skip


def agree(found, want):
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def kernels(monkeypatch):
    """{thread: what computed `attention` there}; `stops`: {thread: (an event that it sets at its
    first attention, an event that it then waits for)}."""
    pytest.importorskip("triton")
    from minicoca.kernels import attention as kernel

    class Seen(dict):
        stops = {}

        def note(self, by):
            me = threading.current_thread().name
            self.setdefault(me, set()).add(by)
            if me in self.stops:
                here, other = self.stops.pop(me)
                here.set()
                assert other.wait(60)

    seen, fused, plain = Seen(), kernel.attention, ops.F.scaled_dot_product_attention
    monkeypatch.setattr(kernel, "attention", lambda *a, **k: seen.note("triton") or fused(*a, **k))
    monkeypatch.setattr(
        ops.F, "scaled_dot_product_attention",
        lambda *a, **k: seen.note("torch") or plain(*a, **k),
    )  # fmt: skip
    return seen


OWN = {"torch": {"torch"}, "triton": {"triton"}, "numpy": set()}


def test_models_in_turn_compute_with_their_own_kernels(kernels):
    models = {backend: tiny(backend, seed) for seed, backend in enumerate(OWN)}
    equal = {backend: tiny("numpy", seed) for seed, backend in enumerate(OWN)}
    for backend in ("torch", "triton", "torch", "numpy"):
        kernels.clear()
        agree(answers(models[backend]), answers(equal[backend]))
        assert kernels.get("MainThread", set()) == OWN[backend]
    assert "backend auto" in ops.implementations()["attention"]


@pytest.mark.parametrize("first, second", [("triton", "torch"), ("torch", "triton")])
def test_models_in_two_threads_compute_with_their_own_kernels(kernels, first, second):
    """Each begins before the other ends: the first stops in its first attention until the second
    is in its own, which lasts until the first has answered everything."""
    models = {first: tiny(first, 1), second: tiny(second, 2)}
    numpy, found = tiny("numpy", 2), []
    first_in, second_in, done = (threading.Event() for _ in range(3))
    kernels.stops |= {"first": (first_in, second_in), "MainThread": (second_in, done)}

    def answer():
        try:
            found.append(answers(models[first]))
        finally:
            done.set()

    thread = threading.Thread(target=answer, name="first")
    thread.start()
    assert first_in.wait(60)
    agree(answers(models[second]), answers(numpy))
    thread.join()
    assert kernels == {"first": OWN[first], "MainThread": OWN[second]}
    agree(found[0], answers(tiny("numpy", 1)))


def test_a_choice_ends_with_its_block_however_that_ends():
    before = ops.implementations()
    with pytest.raises(ZeroDivisionError), ops.use("torch"):
        assert "backend torch" in ops.implementations()["attention"]
        with ops.use("auto"):
            assert ops.implementations() == before
        assert "backend torch" in ops.implementations()["attention"]
        raise ZeroDivisionError
    assert ops.implementations() == before
    with pytest.raises(ValueError, match="4 axes|positions"):
        tiny("torch", 0).embed_texts(np.ones((1, 99), int))
    assert ops.implementations() == before


def test_a_compiled_function_asks_anew(monkeypatch):
    """One graph for each choice; no graph is left where the choice is asked for."""
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: x * 10 if ops.has_kernels(x) else x + 1, backend=backend,
                             fullgraph=True)  # fmt: skip
    for choice, want in (("torch", 2), ("triton", 10), ("torch", 2), ("triton", 10)):
        if choice == "triton":
            pytest.importorskip("triton")
        with ops.use(choice):
            assert compiled(torch.ones(1)).item() == want
    assert len(graphs) == 2
