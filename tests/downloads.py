"""open_clip's CoCa as people download it: small, with random weights."""

import json

import numpy as np
import torch
from safetensors.torch import save_file
from test_clip_tokenizer import MERGES as LEARNED
from torch_oracle import OpenClip

from minicoca import __main__ as cli
from minicoca.interop.open_clip_config import JSON, config_of_json
from minicoca.interop.open_clip_files import WEIGHTS

IDS = 514 + len(LEARNED)  # theirs
MODEL = {
    "embed_dim": 12,
    "vision_cfg": {
        "image_size": 32, "patch_size": 8, "layers": 2, "width": 10, "head_width": 5,
        "mlp_ratio": 2.0, "attentional_pool": True, "attn_pooler_heads": 3,
        "attn_pooler_queries": 6, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 9, "vocab_size": IDS, "width": 12, "heads": 4, "layers": 2,
        "embed_cls": True, "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": 9, "vocab_size": IDS, "width": 12, "heads": 4, "layers": 1,
        "attn_pooler_heads": 3,
    },
    "custom_text": True,
}  # fmt: skip
PIXELS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic"}


def described(folder, **changes):
    path = folder / JSON
    path.write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PIXELS, **changes}))
    return path


def weights(folder, seed=0):
    """Of the model above, by open_clip's names, and its description in a folder."""
    torch.manual_seed(seed)
    model = OpenClip(config_of_json(described(folder)))
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def downloaded(folder, seed=0):
    """A folder of the model above as it is downloaded."""
    folder.mkdir()
    save_file(weights(folder, seed), folder / WEIGHTS[0])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *LEARNED, "x y"]))
    return folder


def bring(*words):
    """`minicoca import` of them."""
    return cli.main(["import", "open_clip", *map(str, words)])


def drawn(config, seed):
    """Pixels, and theirs ids of texts of several lengths, padded to the whole length."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((3, config.image_size, config.image_size, 3))
    ids = np.zeros((3, config.text_length), np.int64)
    start = config.vocabulary - 4  # theirs, of ours
    for row, length in zip(ids, (1, 3, config.text_length - 2), strict=True):
        row[: length + 2] = [start, *rng.integers(1, start, length), start + 1]
    return images, ids
