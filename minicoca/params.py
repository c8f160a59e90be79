"""The parameter tree that reference and engine share: names, shapes, first values, files;
and where random numbers come from.

A tree is a nested dict whose leaves are arrays. Axis letters (the same in the whole project):
P pixels per patch, D width, M width of the tokens read across, F hidden of the MLP, V vocabulary,
T text tokens, N image patches, Q pooler queries, E shared embedding, A answers. Matrices are
[in, out].
"""

import json
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save as to_bytes

from .files import FORM, MARK, SEAL, canonical, check_seal, digest, write_atomically


class Spec:
    """Shape and first value of one parameter: std of a normal, or the name of a filling."""

    def __init__(self, shape, fill):
        self.shape, self.fill = tuple(shape), fill

    def draw(self, rng):
        if self.fill == "sincos":
            return _sincos(*self.shape)
        if isinstance(self.fill, str):
            return np.full(
                self.shape, {"zeros": 0.0, "ones": 1.0, "ln 0.07": math.log(0.07)}[self.fill]
            )
        return rng.standard_normal(self.shape) * self.fill


def specs(config):
    """The tree of Specs of a model. The paper gives no initialisation; this one is ours.

    Matrices keep the variance of unit-variance inputs (std 1/sqrt(in)); those that write to the
    residual stream are smaller by sqrt(2 x layers) so that depth does not raise its variance.
    Pooler queries have std 1; they are normed, so another scale would change little.
    """
    c = config
    D, M, clip = c.text_width, c.memory_width, c.stem == "clip"
    image = {
        "patch": {"weight": matrix(c.patch_size**2 * 3, c.image_width)},
        "position": Spec((c.patches + clip, c.image_width), 0.02 if clip else "sincos"),
        "blocks": blocks(c.image_layers, c.image_layers, c.image_width, c.image_hidden),
    }
    if clip:
        image |= {"class": Spec((c.image_width,), 0.02), "norm_pre": norm(c.image_width)}
    else:
        image["patch"]["bias"] = Spec((c.image_width,), "zeros")
    contrast_reads = D if c.pooler == "cascade" else c.image_width
    poolers = {"contrast": pooler(1, contrast_reads, D)}
    if c.pooler in ("cascade", "parallel"):
        poolers["caption"] = pooler(c.caption_queries, c.image_width, D)
    if c.pooler == "shared":
        poolers = {"shared": pooler(1 + c.caption_queries, c.image_width, D)}
    depth = c.unimodal_layers + c.multimodal_layers
    tree = {
        "image": image,
        "pooler": poolers,
        "text": {
            "token": Spec((c.vocabulary, D), 0.5),
            "position": Spec((c.text_length, D), 0.5),
            "cls": Spec((D,), 0.5),
            "blocks": blocks(c.unimodal_layers, depth, D, c.text_hidden),
            "norm": norm(D),
        },
        "decoder": {
            "blocks": {str(i): _multimodal(c, depth, D, M) for i in range(c.multimodal_layers)},
            "norm": norm(D),
            "head": {"weight": matrix(D, c.vocabulary)},
        },
        "log_temperature": Spec((), "ln 0.07"),
    }
    if c.embed_width:
        tree["image_projection"] = {"weight": matrix(D, c.embed_width)}
        tree["text_projection"] = {"weight": matrix(D, c.embed_width)}
    if c.answers:  # appendix B: last, so that all else is drawn as without it
        read = D if c.pictures == 1 else 3 * D  # two vectors and their product
        tree["head"] = {"pooler": pooler(1, D, D), "classifier": linear(read, len(c.answers))}
    return tree


def matrix(rows, columns, shrink=1.0):
    return Spec((rows, columns), shrink * rows**-0.5)


def linear(rows, columns, shrink=1.0):
    return {"weight": matrix(rows, columns, shrink), "bias": Spec((columns,), "zeros")}


def norm(width):
    return {"scale": Spec((width,), "ones"), "bias": Spec((width,), "zeros")}


def attention(width, reads, shrink):
    return {
        "query": linear(width, width),
        "key": linear(reads, width),
        "value": linear(reads, width),
        "output": linear(width, width, shrink),
    }


def mlp(width, hidden, shrink):
    return {"up": linear(width, hidden), "down": linear(hidden, width, shrink)}


def blocks(layers, depth, width, hidden):
    shrink = (2 * depth) ** -0.5
    block = {
        "norm_attention": norm(width),
        "attention": attention(width, width, shrink),
        "norm_mlp": norm(width),
        "mlp": mlp(width, hidden, shrink),
    }
    return {str(i): block for i in range(layers)}


def _multimodal(config, depth, width, reads):
    shrink = (2 * depth) ** -0.5
    layer = {
        "norm_attention": norm(width),
        "attention": attention(width, width, shrink),
        "norm_cross": norm(width),
        "norm_memory": norm(reads),
        "cross": attention(width, reads, shrink),
        "norm_mlp": norm(width),
        "mlp": mlp(width, config.text_hidden, shrink),
    }
    if config.multimodal_mlps == 2:
        layer |= {"norm_inner": norm(width), "inner_mlp": mlp(width, config.text_hidden, shrink)}
    return layer


def pooler(queries, reads, width):
    return {
        "queries": Spec((queries, width), 1.0),
        "norm_query": norm(width),
        "norm_key": norm(reads),
        "attention": attention(width, reads, 1.0),
        "norm_output": norm(width),
    }


def probe_specs(width, classes, frames=0):
    """The tree of Specs of a probe (reference/probe.py) of tokens [.., width]; of a video whose
    frames are told apart, with a vector for each."""
    classifier = {"weight": Spec((width, classes), "zeros"), "bias": Spec((classes,), "zeros")}
    tree = {"pooler": pooler(1, width, width), "classifier": classifier}
    return tree | ({"frame": Spec((frames, width), 1.0)} if frames else {})


def _sincos(patches, width):
    """Fixed 2-D waves as first positions: half the width for the row, half for the column."""
    side = math.isqrt(patches)
    row, column = np.divmod(np.arange(patches), side)
    quarter = max(1, math.ceil(width / 4))
    frequency = (side / 2.0) ** (-np.arange(quarter) / quarter) * np.pi / 2
    waves = [f(p[:, None] * frequency) for p in (row, column) for f in (np.sin, np.cos)]
    return np.concatenate(waves, 1)[:, :width]


# What is drawn beside first values, which have the seed's own stream.
STREAMS = ("order", "captions", "augment", "sample", "patches", "objective")


def stream(use, seed, place):
    """The random numbers of one use (of STREAMS) at one place (a step, an epoch, a row): a NumPy
    generator that no other use, seed or place has. Raises ValueError for a seed that is none.

    A spawn key keeps them apart: to NumPy the seeds 5, (5, 0) and (5, 0, 0) are one, and torch's
    generator on a CPU takes a seed modulo 2^32.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed} is not from 0 to 2^64 - 1")
    key = STREAMS.index(use), place
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def initialise(config, seed=0, dtype=np.float32, tree=None):
    """First values of every parameter, the same for every backend. tree: Specs, if not CoCa's."""
    rng = np.random.default_rng(seed)
    return tree_map(lambda spec: spec.draw(rng).astype(dtype), tree or specs(config))


def count(tree):
    """How many numbers a tree of arrays or Specs holds."""
    return sum(math.prod(leaf.shape) for leaf in flatten(tree).values())


def tree_map(function, tree, *others):
    """`function` of every leaf (and the leaves at its place in `others`), as a tree."""
    if isinstance(tree, dict):
        return {k: tree_map(function, v, *(o[k] for o in others)) for k, v in tree.items()}
    return function(tree, *others)


def flatten(tree, prefix=""):
    """{"image.patch.weight": leaf, ...}, in order of name: a tree from a file, whose order is
    another, must give the same sums to the last bit."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    parts = (flatten(tree[key], f"{prefix}{key}.") for key in sorted(tree))
    return {name: leaf for part in parts for name, leaf in part.items()}


def unflatten(flat):
    """The tree of which `flat` is the flattening."""
    tree = {}
    for name, leaf in flat.items():
        *path, last = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def save(path, tree, config, **metadata):
    """Write a tree and the config it belongs to as one sealed safetensors file; its seal."""
    flat = {name: np.array(leaf, order="C") for name, leaf in flatten(tree).items()}
    text = {"config": json.dumps(config.to_dict())} | {k: str(v) for k, v in metadata.items()}
    text |= {"format": "pt", MARK: str(FORM)}  # format: what other readers of the kind ask for
    text[SEAL] = _seal(flat, text)
    write_atomically(path, to_bytes(flat, metadata=text))
    return text[SEAL]


TYPES = ("BF16", "F16", "F32", "F64", "I64")  # of numbers that are read; the last counts steps


def _seal(flat, metadata):
    said = {name: text for name, text in metadata.items() if name != SEAL}
    forms = {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in flat.items()}
    numbers = (flat[name].tobytes() for name in sorted(flat))
    return digest(canonical([said, forms]), *numbers)


def load(path, check=None):
    """(tree, metadata) of a safetensors file, of ours or another's.

    check: called with {name: shape} and the metadata before any number is read, to raise
    ValueError. Every float comes as float32 and is finite. Raises ValueError with what is wrong.
    Where `metadata` has no MARK the file could not be checked for damage.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata, names = file.metadata() or {}, sorted(file.keys())
        parts = {name: file.get_slice(name) for name in names}
        forms = {name: (tuple(p.get_shape()), p.get_dtype()) for name, p in parts.items()}
        if check:
            check({name: shape for name, (shape, _) in forms.items()}, metadata)
        for name, (_, kind) in forms.items():
            if kind not in TYPES:
                raise ValueError(f"{path}: {name} is of type {kind}, not of {', '.join(TYPES)}")
            if kind == "I64" and name.split(".")[-1] != "step":
                raise ValueError(f"{path}: {name} holds whole numbers, of type {kind}")
        wide = "BF16" in {kind for _, kind in forms.values()}
        flat = _read_all(path) if wide else {name: file.get_tensor(name) for name in names}
    check_seal(metadata, lambda: _seal(flat, metadata), path)
    for name, leaf in flat.items():
        if not np.isfinite(leaf).all():
            raise ValueError(f"{path}: {name} holds numbers that are not finite")
        if leaf.dtype.kind == "f":
            flat[name] = leaf.astype(np.float32, copy=False)
    return unflatten(flat), metadata


@contextmanager
def _opened(path):
    try:
        if not path.is_file():
            raise FileNotFoundError
        with safe_open(path, framework="numpy") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def said_in(path):
    """What a file of weights says beside them: {name: text}."""
    with _opened(Path(path)) as file:
        return file.metadata() or {}


def seal_of(path):
    """The seal that a file of weights says it has; empty for one that has none."""
    return said_in(path).get(SEAL, "")


def compare(found, want, path):
    """Raise ValueError, with all that differs, unless {name: shape} of a file is what is wanted."""
    missing, extra = sorted(want.keys() - found.keys()), sorted(found.keys() - want.keys())
    wrong = [
        f"{name} has shape {found[name]}, expected {tuple(want[name])}"
        for name in sorted(want.keys() & found.keys())
        if tuple(want[name]) != found[name]
    ]
    words = [_some("missing ", missing), _some("not expected ", extra), _some("", wrong)]
    if any(words):
        raise ValueError(f"{path}: {'; '.join(filter(None, words))}")


def _some(what, names):
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}{', '.join(name[:99] for name in names[:3])}{more}" if names else ""


def _read_all(path):
    """The arrays of a file in which some are bfloat16, which NumPy does not have."""
    flat = {}
    for name, part in deserialize(path.read_bytes()):
        if part["dtype"] == "BF16":  # the upper half of a float32
            bits = np.frombuffer(part["data"], np.uint16).astype(np.uint32) << 16
            flat[name] = bits.view(np.float32).reshape(part["shape"])
        else:
            kind = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I64": np.int64}
            flat[name] = np.frombuffer(part["data"], kind[part["dtype"]]).reshape(part["shape"])
    return flat


def demand_finite(finite, what):
    """Raise ValueError unless what a model gives is finite: NaN must not pass for an answer."""
    if not finite:
        raise ValueError(
            f"the model's {what} are not finite numbers: its weights are too large, or damaged"
        )


def shapes(tree):
    """{name: shape} of a tree of arrays or Specs."""
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
