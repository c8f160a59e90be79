"""open_clip's CoCa weights as our tree, and back.

A mapping is a list of (their name, which third of it or None, our name, turn): a turn is how their
array becomes ours and how ours becomes theirs. open_clip stacks query, key and value in one array.
"""

import base64
from collections.abc import Mapping

import numpy as np

from ..clip_tokenizer import theirs as their_ids
from ..config import END, PAD, START, UNKNOWN
from ..params import compare, flatten, shapes, specs, unflatten


def _transpose(array):
    return array.T


_KEEP = (np.asarray, np.asarray)
_TURN = (_transpose, _transpose)  # their matrices are mostly [out, in], ours [in, out]
_NEGATE = (np.negative, np.negative)  # they learn the logarithm of 1 / sigma, we of sigma


def _patch(size):
    """Their convolution [D, 3, row, column] is our matrix [(row, column, 3), D]."""

    def ours(array):
        return array.transpose(2, 3, 1, 0).reshape(-1, len(array))

    def theirs(array):
        return array.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)

    return ours, theirs


def _norm(theirs, ours):
    return [
        (f"{theirs}.weight", None, f"{ours}.scale", _KEEP),
        (f"{theirs}.bias", None, f"{ours}.bias", _KEEP),
    ]


def _linear(theirs, ours):
    return [
        (f"{theirs}.weight", None, f"{ours}.weight", _TURN),
        (f"{theirs}.bias", None, f"{ours}.bias", _KEEP),
    ]


def _attention(theirs, ours, stacked=True):
    names = _linear(f"{theirs}.out_proj", f"{ours}.output")
    for third, part in enumerate(("query", "key", "value")):
        weight = (f"{theirs}.in_proj_weight", third)
        if not stacked:
            weight = (f"{theirs}.{part[0]}_proj_weight", None)
        names.append((*weight, f"{ours}.{part}.weight", _TURN))
        names.append((f"{theirs}.in_proj_bias", third, f"{ours}.{part}.bias", _KEEP))
    return names


def _block(theirs, ours, attention="attention", norms=("attention", "mlp"), mlp="mlp"):
    return [
        *_norm(f"{theirs}.ln_1", f"{ours}.norm_{norms[0]}"),
        *_attention(f"{theirs}.attn", f"{ours}.{attention}"),
        *_norm(f"{theirs}.ln_2", f"{ours}.norm_{norms[1]}"),
        *_linear(f"{theirs}.mlp.c_fc", f"{ours}.{mlp}.up"),
        *_linear(f"{theirs}.mlp.c_proj", f"{ours}.{mlp}.down"),
    ]


def _mapping(config):
    if (config.stem, config.pooler, config.multimodal_mlps) != ("clip", "shared", 2):
        raise ValueError("open_clip's CoCa has stem=clip, pooler=shared, multimodal_mlps=2")
    stacked = config.image_width == config.text_width  # torch's layer stacks what is of one width
    names = [
        ("visual.class_embedding", None, "image.class", _KEEP),
        ("visual.positional_embedding", None, "image.position", _KEEP),
        ("visual.conv1.weight", None, "image.patch.weight", _patch(config.patch_size)),
        *_norm("visual.ln_pre", "image.norm_pre"),
        ("visual.attn_pool.query", None, "pooler.shared.queries", _KEEP),
        *_norm("visual.attn_pool.ln_q", "pooler.shared.norm_query"),
        *_norm("visual.attn_pool.ln_k", "pooler.shared.norm_key"),
        *_attention("visual.attn_pool.attn", "pooler.shared.attention", stacked),
        *_norm("visual.ln_post", "pooler.shared.norm_output"),
        ("visual.proj", None, "image_projection.weight", _KEEP),
        ("text.token_embedding.weight", None, "text.token", _KEEP),
        *_norm("text.ln_final", "text.norm"),
        ("text.text_projection", None, "text_projection.weight", _KEEP),
        *_norm("text_decoder.ln_final", "decoder.norm"),
        ("text_decoder.text_projection", None, "decoder.head.weight", _KEEP),
        ("logit_scale", None, "log_temperature", _NEGATE),
    ]
    for i in range(config.image_layers):
        names += _block(f"visual.transformer.resblocks.{i}", f"image.blocks.{i}")
    for i in range(config.unimodal_layers):
        names += _block(f"text.transformer.resblocks.{i}", f"text.blocks.{i}")
    for i in range(config.multimodal_layers):
        ours, cross = f"decoder.blocks.{i}", f"text_decoder.cross_attn.{i}"
        norms = ("attention", "inner")
        names += _block(f"text_decoder.resblocks.{i}", ours, norms=norms, mlp="inner_mlp")
        names += _block(cross, ours, "cross", ("cross", "mlp"))
        names += _norm(f"{cross}.ln_1_kv", f"{ours}.norm_memory")
    return names


# Not in the mapping: their last position is only ever that of CLS; we keep the two as one vector.
_CLS, _POSITION = "text.cls_emb", "text.positional_embedding"


def their_shapes(config):
    """{their name: the shape it has}, for all that the config's model has there."""
    ours, found = flatten(specs(config)), {}
    for name, third, our, (_, turn) in _mapping(config):
        like = turn(np.broadcast_to(np.float32(0), ours[our].shape))  # holds one number
        found[name] = like.shape if third is None else (3 * len(like), *like.shape[1:])
    tokens, width = ours["text.position"].shape
    return found | {_CLS: (width,), _POSITION: (tokens + 1, width)}


def _array(name, value, dtype):
    """A weight as an array of floats, whatever holds it: NumPy has no bfloat16 of torch's, and
    reads no parameter and nothing on a card. Raises ValueError."""
    try:
        if hasattr(value, "detach"):
            value = value.detach()
            if not value.dtype.is_floating_point:
                raise TypeError(f"it holds {value.dtype}")
            value = value.double().cpu().numpy()
        array = np.asarray(value)
        if array.dtype.kind not in "fV":  # V: bfloat16 that another library gave NumPy
            raise TypeError(f"it holds {array.dtype}")
        with np.errstate(over="ignore"):  # which is not finite then
            array = array.astype(dtype)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise ValueError(f"{name} is no array of floats ({reason})") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return array


def from_open_clip(state_dict, config, dtype=np.float32):
    """Our tree of arrays from the state dict of open_clip's model, of whatever holds floats: torch
    tensors and parameters of any precision, on any device, or arrays.

    Raises ValueError where names or shapes are not those of `config`, or one is not of floats.
    """
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise ValueError(f"open_clip weights: a {kind} is no state dict; give model.state_dict()")
    want, parts, flat = their_shapes(config), {}, {}
    # A list says no shape; `array` finds it.
    found = {str(n): tuple(getattr(x, "shape", want.get(n, ()))) for n, x in state_dict.items()}
    compare(found, want, "open_clip weights")

    def array(name):
        value = _array(name, state_dict[name], dtype)
        compare({name: value.shape}, {name: want[name]}, "open_clip weights")
        return value

    for name, third, ours, (turn, _) in _mapping(config):
        parts.setdefault(name, []).append((third, ours, turn))
    for name, own in parts.items():  # one after the other: all at once take as much again
        whole = array(name)
        for third, ours, turn in own:
            part = whole if third is None else np.split(whole, 3)[third]
            flat[ours] = np.array(turn(part), order="C")
    position = array(_POSITION)
    flat["text.cls"], flat["text.position"] = array(_CLS) + position[-1], position[:-1].copy()
    return unflatten(flat)


def cls_apart(state_dict):
    """open_clip's CLS and its position, whose sum is ours, as text: for to_open_clip."""
    rows = [_array(_CLS, state_dict[_CLS], "<f4")]
    rows.append(_array(_POSITION, state_dict[_POSITION], "<f4")[-1])
    return base64.b64encode(np.stack(rows).tobytes()).decode()


def to_open_clip(tree, config, dtype=np.float32, apart=""):
    """The state dict (NumPy arrays) that open_clip's model loads; undoes from_open_clip.

    apart: what cls_apart gave; without it, or if CLS was trained since, its position is zero.
    Raises ValueError where the tree is not that of `config`, or a leaf not of floats.
    """
    mapping = _mapping(config)
    flat, parts = {n: _array(n, leaf, dtype) for n, leaf in flatten(tree).items()}, {}
    compare(shapes(flat), shapes(specs(config)), "the weights")
    for name, _, ours, (_, turn) in mapping:  # thirds come in order
        parts.setdefault(name, []).append(turn(flat[ours]))
    theirs = {name: np.concatenate(p) if len(p) > 1 else p[0] for name, p in parts.items()}
    own, last = flat["text.cls"], np.zeros_like(flat["text.cls"])
    if len(content := base64.b64decode(apart)) == 8 * len(own):
        rows = np.frombuffer(content, "<f4").reshape(2, -1).astype(dtype)
        if np.array_equal(rows.sum(0), own):
            own, last = rows
    theirs[_CLS], theirs[_POSITION] = own, np.concatenate([flat["text.position"], last[None]])
    return {name: np.array(array, order="C") for name, array in theirs.items()}


def to_our_ids(tree):
    """A tree whose rows of words are open_clip's, with the two more that ours have: its ids are
    ClipTokenizer's. A leaf that need not change stays the same array."""
    token, head = tree["text"]["token"], tree["decoder"]["head"]["weight"]
    ids = their_ids(len(token) + 2)
    head = np.take(head, ids, 1)
    head[:, [PAD, UNKNOWN]] = 0  # never written: no second and third column of "!"
    return _with_words(tree, token[ids], head)


def to_their_ids(tree):
    """Undoes to_our_ids, bit for bit."""
    token, head = tree["text"]["token"], tree["decoder"]["head"]["weight"]
    ids = their_ids(len(token))
    ours = np.empty(len(token) - 2, np.int64)
    ours[ids[UNKNOWN + 1 :]] = np.arange(UNKNOWN + 1, len(token))
    ours[ids[[START, END]]] = START, END
    return _with_words(tree, token[ours], np.take(head, ours, 1))


def _with_words(tree, token, head):
    return tree | {
        "text": tree["text"] | {"token": token},
        "decoder": tree["decoder"] | {"head": {"weight": head}},
    }
