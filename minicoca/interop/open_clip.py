"""open_clip's CoCa weights as our tree, and back.

A mapping is a list of (their name, which third of it or None, our name, turn): a turn is how their
array becomes ours and how ours becomes theirs. open_clip stacks query, key and value in one array.
"""

import numpy as np

from ..params import check, flatten, unflatten


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
    names = [
        ("visual.class_embedding", None, "image.class", _KEEP),
        ("visual.positional_embedding", None, "image.position", _KEEP),
        ("visual.conv1.weight", None, "image.patch.weight", _patch(config.patch_size)),
        *_norm("visual.ln_pre", "image.norm_pre"),
        ("visual.attn_pool.query", None, "pooler.shared.queries", _KEEP),
        *_norm("visual.attn_pool.ln_q", "pooler.shared.norm_query"),
        *_norm("visual.attn_pool.ln_k", "pooler.shared.norm_key"),
        *_attention("visual.attn_pool.attn", "pooler.shared.attention", stacked=False),
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


def from_open_clip(state_dict, config):
    """Our tree of arrays from the state dict (torch or NumPy) of open_clip's model.

    Raises ValueError where names or shapes are not those of `config`.
    """
    theirs, mapping = {n: np.asarray(a) for n, a in state_dict.items()}, _mapping(config)
    want = {name for name, *_ in mapping} | {_CLS, _POSITION}
    if want != theirs.keys():
        missing, extra = sorted(want - theirs.keys()), sorted(theirs.keys() - want)
        raise ValueError(f"open_clip weights: missing {missing[:3]}, not expected {extra[:3]}")
    flat = {
        "text.cls": theirs[_CLS] + theirs[_POSITION][-1],
        "text.position": theirs[_POSITION][:-1],
    }
    for name, third, ours, (turn, _) in mapping:
        array = theirs[name]
        flat[ours] = turn(array if third is None else np.split(array, 3)[third])
    tree = unflatten({name: np.array(array, order="C") for name, array in flat.items()})
    check(tree, config, "open_clip weights")
    return tree


def to_open_clip(tree, config):
    """The state dict (NumPy arrays) that open_clip's model loads; undoes from_open_clip."""
    flat, parts = {n: np.asarray(a) for n, a in flatten(tree).items()}, {}
    for name, _, ours, (_, turn) in _mapping(config):  # thirds come in order
        parts.setdefault(name, []).append(turn(flat[ours]))
    theirs = {name: np.concatenate(p) if len(p) > 1 else p[0] for name, p in parts.items()}
    theirs[_CLS] = flat["text.cls"]
    theirs[_POSITION] = np.pad(flat["text.position"], ((0, 1), (0, 0)))
    return {name: np.array(array, order="C") for name, array in theirs.items()}
