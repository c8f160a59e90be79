"""open_clip's description of a CoCa as our Config, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ..config import Config, from_dict
from ..files import read_json
from ..images import CLIP_MEAN, CLIP_STD
from ..presets import PRESETS

JSON = "open_clip_config.json"
SECTIONS = ("vision_cfg", "text_cfg", "multimodal_cfg")
TRAINED = ("open_clip_b32", "open_clip_l14")  # whose shapes say all

Say = Callable[[str], None]

_PLAIN = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn")
# What our model is. Of other values, none is read over in silence.
_BOTH = dict.fromkeys((*_PLAIN, "scale_fc", "final_ln_after_pool"), (False, None)) | {
    "ls_init_value": (None,), "act_kwargs": (None, {}), "norm_kwargs": (None, {}),
    "block_type": (None, "default"), "output_tokens": None,
}  # fmt: skip
ONLY = {
    "": {
        "quick_gelu": (False, None), "init_logit_bias": (None,), "custom_text": None,
        "init_logit_scale": None, "nonscalar_logit_scale": None, "embed_dim": None,
        **dict.fromkeys(SECTIONS),
    },
    "vision_cfg": _BOTH | {
        "attentional_pool": (True,), "no_ln_pre": (False,), "pos_embed_type": ("learnable",),
        "pool_type": ("tok",), "timm_model_name": (None,), "timm_model_pretrained": None,
        "timm_pool": None, "timm_proj": None, "timm_proj_bias": None, "timm_drop": None,
        "timm_drop_path": None, "patch_dropout": None, "layers": None, "width": None,
        "head_width": None, "mlp_ratio": None, "patch_size": None, "image_size": None,
        "attn_pooler_queries": None, "attn_pooler_heads": None,
    },
    "text_cfg": _BOTH | {
        "embed_cls": (True,), "pad_id": (0,), "no_causal_mask": (False,), "proj_bias": (False,),
        "proj_type": ("linear",), "hf_model_name": (None,), "hf_tokenizer_name": (None,),
        "hf_model_pretrained": None, "hf_proj_type": None, "hf_pooler_type": None,
        "tokenizer_mode": (None, "clip"), "tokenizer_kwargs": (None, {}), "eos_id": None,
        "pool_type": None, "correct_cls_mask": (False, True), "context_length": None,
        "vocab_size": None, "width": None, "heads": None, "layers": None, "mlp_ratio": (4,),
    },
}  # fmt: skip
NEEDED = {"vision_cfg": ("attentional_pool",), "text_cfg": ("embed_cls",)}  # theirs are False


def config_of_json(path: Path, say: Say = lambda line: None) -> Config:
    """The Config of a model's JSON, as open_clip's Hugging Face folders have it or its package.

    Raises ValueError, naming what it is, for a model that is none of ours.
    """
    fields, _ = read_json(path)
    model, pixels = fields.get("model_cfg", fields), fields.get("preprocess_cfg") or {}
    try:
        if not isinstance(model, dict) or not isinstance(pixels, dict):
            raise ValueError("it describes no model")
        return from_dict(_model(model) | _pixels(pixels, path, say))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _model(model):
    for name in SECTIONS:
        if not isinstance(model.get(name), dict):
            raise ValueError(f"it has no {name}: it is not of a CoCa")
    for section, only in ONLY.items():
        given = model[section] if section else model
        for name, value in given.items():
            if name not in only or only[name] and value not in only[name]:
                raise ValueError(
                    f"{section or 'the model'} has {name}={value!r}"[:120] + ", which is not read"
                )
        for name in NEEDED.get(section, ()):
            if name not in given:
                raise ValueError(f"{section} has no {name}, which a CoCa of open_clip has")
    image, text, decoder = (partial(_number, model[name]) for name in SECTIONS)
    if model["multimodal_cfg"].get("ls_init_value") is not None:
        raise ValueError("multimodal_cfg has ls_init_value, which is not read")
    width, heads, wide = text("width", 512), text("heads", 8), image("width", 768)
    other, embed = (decoder("width", 512), decoder("heads", 8)), _number(model, "embed_dim", None)
    if other != (width, heads) or embed != width:
        raise ValueError(
            f"(width, heads) are {(width, heads)} in text_cfg and {other} in multimodal_cfg, and "
            f"embed_dim is {embed}: they are to be of one width, and of the same heads"
        )
    side = model["vision_cfg"].get("image_size", 224)
    if isinstance(side, list) and len(set(side)) != 1:
        raise ValueError(f"images of {side} are not square")
    return PRESETS["open_clip_b32"] | dict(
        preset="open_clip_b32",
        image_size=side[0] if isinstance(side, list) else side,
        patch_size=image("patch_size", 16),
        image_width=wide,
        image_layers=image("layers", 12),
        image_heads=wide // image("head_width", 64),
        image_hidden=int(wide * image("mlp_ratio", 4.0)),
        caption_queries=image("attn_pooler_queries", 256) - 1,
        pooler_heads=image("attn_pooler_heads", 8),
        vocabulary=text("vocab_size", 49_408),
        text_length=text("context_length", 77),
        text_width=width,
        text_heads=heads,
        text_hidden=4 * width,
        unimodal_layers=text("layers", 12),
        multimodal_layers=decoder("layers", 12),
        embed_width=embed,
        legacy_cls_mask=not model["text_cfg"].get("correct_cls_mask", False),
        tokenizer="bpe",
    )


def _number(given, name, default):
    value = given.get(name, default)
    if type(value) not in (int, float) or not 0 < value < 10**6:
        raise ValueError(f"{name}={value!r}"[:80] + " is no number over 0")
    return value


def _pixels(given, path, say):
    found = {
        "pixel_mean": given.get("mean", CLIP_MEAN),
        "pixel_std": given.get("std", CLIP_STD),
    }
    if given.get("interpolation", "bicubic") not in ("bicubic", "random"):
        raise ValueError(f"interpolation {given['interpolation']!r}: only bicubic is done here")
    if (mode := given.get("resize_mode", "shortest")) != "shortest":
        fit = {"squash": "squash", "longest": "pad"}.get(mode, "crop")
        say(f"{path}: its pictures are resized by {mode!r}; here that is --fit {fit}")
    return {name: [float(v) for v in value] for name, value in found.items()}


def config_of_shapes(state: Mapping, path: Path) -> Config:
    """The Config of weights alone, where they have the shapes of B/32 or L/14 that open_clip
    trained: shapes do not say how many heads there are. Raises ValueError with what was found."""
    found = _sizes({name: tuple(value.shape) for name, value in state.items()
                    if hasattr(value, "shape")}, path)  # fmt: skip
    differ = {
        name: [f for f, value in found.items() if PRESETS[name][f] != value] for name in TRAINED
    }
    near = min(differ, key=lambda name: len(differ[name]))
    if differ[near]:
        said = [f"{f} {found[f]} (not {PRESETS[near][f]})" for f in differ[near][:4]]
        raise ValueError(
            f"{path} has the shapes of neither B/32 nor L/14 ({', '.join(said)}), and no {JSON} "
            "beside it says how many heads it has"
        )
    fixed = dict(preset=near, legacy_cls_mask=True, tokenizer="bpe")
    return from_dict(PRESETS[near] | fixed | dict(pixel_mean=CLIP_MEAN, pixel_std=CLIP_STD))


def _sizes(shapes, path):
    def axis(name, number):
        if len(shapes.get(name, ())) <= number:
            raise ValueError(f"{path}: no weights of a CoCa of open_clip: there is no {name}")
        return shapes[name][number]

    def layers(prefix):
        numbers = [re.match(re.escape(prefix) + r"\.(\d{1,4})\.", name) for name in shapes]
        return 1 + max((int(found[1]) for found in numbers if found), default=-1)

    patch = axis("visual.conv1.weight", 2)
    return dict(
        image_width=axis("visual.class_embedding", 0),
        image_layers=layers("visual.transformer.resblocks"),
        patch_size=patch,
        image_size=patch * math.isqrt(max(0, axis("visual.positional_embedding", 0) - 1)),
        caption_queries=axis("visual.attn_pool.query", 0) - 1,
        text_width=axis("text.cls_emb", 0),
        unimodal_layers=layers("text.transformer.resblocks"),
        multimodal_layers=layers("text_decoder.resblocks"),
        text_length=axis("text.positional_embedding", 0) - 1,
        vocabulary=axis("text.token_embedding.weight", 0),
        embed_width=axis("visual.proj", 1),
    )


def to_json(config: Config) -> dict:
    """What open_clip reads beside the weights; undoes `config_of_json`. Raises ValueError for a
    model that is none of theirs."""
    if (config.stem, config.pooler, config.multimodal_mlps) != ("clip", "shared", 2):
        raise ValueError("open_clip's CoCa has stem=clip, pooler=shared, multimodal_mlps=2")
    if config.gelu != "exact" or config.embed_width != config.text_width:
        raise ValueError("open_clip's CoCa has gelu=exact, and embed_width that of its text")
    text = {
        "context_length": config.text_length, "vocab_size": config.vocabulary - 2,
        "width": config.text_width, "heads": config.text_heads,
    }  # fmt: skip
    if config.text_hidden != 4 * config.text_width:
        raise ValueError("open_clip's CoCa has text_hidden four times its text_width")
    own = {} if config.legacy_cls_mask else {"correct_cls_mask": True}
    model = {
        "embed_dim": config.embed_width,
        "vision_cfg": {
            "image_size": config.image_size, "layers": config.image_layers,
            "width": config.image_width, "patch_size": config.patch_size,
            "head_width": config.image_width // config.image_heads,
            "mlp_ratio": config.image_hidden / config.image_width,
            "attentional_pool": True, "attn_pooler_heads": config.pooler_heads,
            "attn_pooler_queries": config.caption_queries + 1, "output_tokens": True,
        },
        "text_cfg": text | own | {"layers": config.unimodal_layers, "embed_cls": True,
                                  "output_tokens": True},
        "multimodal_cfg": text | {"layers": config.multimodal_layers,
                                  "attn_pooler_heads": config.pooler_heads},
        "custom_text": True,
    }  # fmt: skip
    pixels = {
        "size": [config.image_size] * 2, "mode": "RGB", "mean": list(config.pixel_mean),
        "std": list(config.pixel_std), "interpolation": "bicubic", "resize_mode": "shortest",
    }  # fmt: skip
    return {"model_cfg": model, "preprocess_cfg": pixels}
