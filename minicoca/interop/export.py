"""A trained CoCa as files for other runtimes: ONNX, and torch.export's programs.

A folder of them stands alone: programs.py says what is in it; about.json has what a caller must
know, the text of every id included, and tokenizer.model cuts texts. Each program is run as it was
written, on inputs of other sizes than it was traced with, and must give what the model does; a
folder that fails that is never seen.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..clip_tokenizer import ClipTokenizer
from ..config import END, PAD, START, UNKNOWN, Config
from ..engine.decoding import restrict_logits
from ..engine.generate import CoCa
from ..engine.model import encode_image, encode_text
from ..engine.ops import linear, use
from ..engine.text import TextRows, multimodal_decoder
from ..engine.vision import normalise
from ..files import folder_atomically
from ..params import flatten
from ..tasks import trained
from ..tokenizer import STOOD_FOR, AnyTokenizer
from .programs import Program, past_shape, programs

ABOUT, TOKENIZER = "about.json", "tokenizer.model"
TOLERANCE = 1e-4  # of the largest number that is compared, and of 1
ONE_FILE = 2**31 - 2**24  # bytes of weights; a protobuf holds 2 GB at most
NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "torch": ()}
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}

Run = Callable[..., list[np.ndarray]]  # inputs in order, as arrays -> outputs in order


def demand(form: str) -> None:
    """Raises ValueError where packages that write a form are not installed."""
    missing = []
    for name in NEEDED[form]:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        what = f"export {form} needs {', '.join(missing)}"
        raise ValueError(f"{what}; install with: pip install 'minicoca[export]'")


def export(
    coca: CoCa, tokenizer: AnyTokenizer, form: str, folder: Path, say: Callable = print
) -> None:
    """Write a model into a folder that is not there yet, as "onnx" or "torch".

    coca: on the CPU. Raises ValueError where packages are missing, for a model that neither
    compares nor writes, or where a program does not give what the model does to TOLERANCE, and
    OSError where it cannot be written: nothing is left then.
    """
    demand(form)
    if not (coca.config.compares or coca.config.writes):
        raise ValueError(f"{trained(coca.config, 'contrastive')}: it has nothing to export")
    config, write = coca.config, {"onnx": write_onnx, "torch": write_torch}[form]
    made = programs(coca.params, config)
    with folder_atomically(folder) as inside:
        runs = {}
        for name, program in made.items():
            with quiet():
                runs[name] = write(program, inside / f"{name}{SUFFIXES[form]}")
        furthest = check(coca, runs)
        (inside / TOKENIZER).write_bytes(tokenizer.serialised())
        about = description(coca, tokenizer, form, made)
        (inside / ABOUT).write_text(json.dumps(about, indent=1), "utf-8")
        names = sorted(path.name for path in inside.iterdir())
    say(f"{folder}: {', '.join(names)}")
    say(f"checked against the model: at most {furthest:.0e} apart (limit {TOLERANCE:.0e})")
    for line in left_out(config):
        say(f"left out: {line}")


def left_out(config: Config) -> list[str]:
    """What a model has no part for, or none that was trained."""
    lines = []
    if not config.compares:
        lines.append(f"vectors and the text tower ({trained(config, 'contrastive')})")
    if not config.writes:
        lines.append(f"tokens, memory and step ({trained(config, 'caption')})")
    if config.answers:
        lines.append("the head that answers questions")
    return lines


def description(coca: CoCa, tokenizer: AnyTokenizer, form: str, made: dict[str, Program]) -> dict:
    """about.json: what stands in no program."""
    config = coca.config
    is_clip = isinstance(tokenizer, ClipTokenizer)
    return {
        "programs": {
            name: {
                "file": f"{name}{SUFFIXES[form]}",
                "inputs": list(program.inputs),
                "outputs": list(program.outputs),
            }
            for name, program in made.items()
        },
        "left_out": left_out(config),
        "image_size": config.image_size,
        "text_length": config.text_length,
        "vocabulary": config.vocabulary,
        "pad": PAD,
        "start": START,
        "end": END,
        "unknown": UNKNOWN,
        "legacy_cls_mask": config.legacy_cls_mask,
        "temperature": float(torch.exp(coca.params["log_temperature"])),
        "past": past_shape(config, 1, 0),
        "tokenizer": {
            "file": TOKENIZER,
            "kind": "clip" if is_clip else "sentencepiece",
            "stand_ins": {} if is_clip else {chr(n): text for n, text in STOOD_FOR.items()},
        },
        "pieces": [piece.decode("latin-1") for piece in tokenizer.pieces()],  # JSON has no bytes
    }


def write_torch(program: Program, path: Path) -> Run:
    """A program of torch.export's, and how it runs once it is read back."""
    torch.export.save(program.traced(), path)
    module = torch.export.load(path).module()

    def run(*inputs):
        with torch.no_grad():
            return [output.numpy() for output in module(*map(torch.from_numpy, inputs))]

    return run


def write_onnx(program: Program, path: Path) -> Run:
    """A program of ONNX's, and how onnxruntime runs it. Weights of over 2 GB are beside it, in a
    file of its name and .data."""
    import onnxruntime

    names = {"input_names": list(program.inputs), "output_names": list(program.outputs)}
    found = torch.onnx.export(program.traced(), (), dynamo=True, verbose=False, **names)
    weights = flatten(program.module.weights.tree()).values()
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    found.save(path, external_data=size > ONE_FILE)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(
        list(program.outputs), dict(zip(program.inputs, inputs, strict=True))
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What exporters warn of and log is for whoever works on them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def check(coca: CoCa, runs: dict[str, Run]) -> float:
    """The furthest that a program is from the model. Raises ValueError above TOLERANCE.

    Batches of 1 and of 5, texts of all lengths, and captions from their first token to the last.
    """
    furthest = 0.0
    with use("torch"), torch.inference_mode():
        for batch in (1, 5):
            for name, what, have, want in outputs(coca, runs, batch):
                apart = distance(have, want)
                if have.shape != want.shape or not apart <= TOLERANCE:  # NaN is not either
                    raise ValueError(
                        f"the {name} program was written, but its {what} of a batch of {batch} are "
                        f"{apart:.1e} from the model's; at most {TOLERANCE:.0e} is allowed"
                    )
                furthest = max(furthest, apart)
    return furthest


def distance(have: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, as a part of the largest number of `want` or of 1. Equal infinities
    do not differ."""
    apart = np.subtract(have, want, out=np.zeros_like(want), where=have != want)
    return float(np.abs(apart).max() / np.abs(want[np.isfinite(want)]).max(initial=1.0))


def outputs(coca: CoCa, runs: dict[str, Run], batch: int) -> Iterator[tuple[str, str, Any, Any]]:
    """(program, output, as it computes it, as the model does), on random inputs."""
    config, params, rng = coca.config, coca.params, np.random.default_rng(batch)
    pixels = rng.integers(0, 256, (batch, config.image_size, config.image_size, 3), np.uint8)
    normal = normalise(torch.from_numpy(pixels).float() / 255, config)
    vectors, tokens = encode_image(params, config, normal)
    kept = [("vectors", vectors)] * config.compares
    kept += [("tokens", tokens)] * config.writes
    for (what, want), have in zip(kept, runs["image"](pixels), strict=True):
        yield "image", what, have, want.numpy()
    ids = rng.integers(4, config.vocabulary, (batch, config.text_length))
    ids[:, 0] = START
    if "text" in runs:
        for length in sorted({2, 1 + config.text_length // 2, config.text_length}):
            texts = ids[:, :length].copy()
            for row, end in zip(texts, rng.integers(1, length, batch), strict=True):
                row[end], row[end + 1 :] = END, PAD
            want = encode_text(params, config, torch.from_numpy(texts))[0]
            yield "text", "vectors", runs["text"](texts)[0], want.numpy()
    if "step" in runs:
        memory = runs["memory"](have)[0]
        texts_BT = torch.from_numpy(ids)
        _, x_BTD = encode_text(params, config, texts_BT, TextRows(texts_BT, config))
        n_BTD = multimodal_decoder(x_BTD, tokens, params["decoder"], config)
        past = np.zeros(past_shape(config, batch, 0), np.float32)
        for at in range(config.text_length - 1):
            logits, past = runs["step"](ids[:, at], past, memory)
            want = linear(n_BTD[:, at], params["decoder"]["head"])
            restrict_logits(want, texts_BT[:, : at + 1], at)
            yield "step", "logits", logits, want.numpy()
