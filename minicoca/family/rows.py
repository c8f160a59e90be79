"""The rows of the family's table: what is trained, and what it is to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FEW = 1000  # pairs of the rows about a pretrained tower


@dataclass(frozen=True)
class Row:
    """label: as the table has it. flags: settings that differ from the preset's; None: nothing is
    trained. begins: the row whose run, of the same seed and time, gives the first weights."""

    label: str
    flags: Mapping[str, Any] | None = field(default_factory=dict)
    begins: str = ""


def _of(objective: str, **own: Any) -> dict[str, Any]:
    return {"objective": objective, "settings": tuple(sorted(own.items()))}


CONTRAST, CAPTIONS = {"caption_weight": 0.0}, {"contrastive_weight": 0.0}
PAIRS = CONTRAST | {"scenes": FEW}
TOWER = {"init_parts": "image", "init_decay": 0.0}
ROWS = {
    "pixels": Row("pixels", None),
    "random": Row("a random tower", None),
    "blind": Row("text alone", None),
    "coca": Row("CoCa"),
    "coca-noise": Row("CoCa, 30 % of the captions noise", {"noise": 0.3}),
    "clip": Row("the contrastive loss alone (CLIP)", CONTRAST),
    "captioner": Row("the captioning loss alone", CAPTIONS),
    "siglip": Row("SigLIP and captioning", _of("siglip")),
    "siglip-alone": Row("SigLIP", _of("siglip") | CONTRAST),
    "matching": Row("CoCa and matching (BLIP)", _of("matching")),
    "resnet": Row("CoCa with a ResNet-D", _of("resnet")),
    "vlmo": Row("VLMo", _of("vlmo")),
    "switch": Row("VLMo, routed (Switch)", _of("vlmo", experts=4)),
    "simvlm": Row("SimVLM", _of("simvlm")),
    "cappa": Row("CapPa", _of("cappa")),
    "gpt": Row("GPT", _of("gpt")),
    "simclr": Row("SimCLR", _of("simclr")),
    "simclr-colours": Row("SimCLR, colours kept", _of("simclr", colours=0.0)),
    "mae": Row("MAE", _of("mae")),
    "mae-masks": Row("MAE, mask tokens in the tower", _of("mae", mask_tokens=True)),
    "simmim": Row("SimMIM", _of("simmim")),
    "lit-locked": Row(
        f"{FEW:,} pairs, MAE's tower locked (Lu)", PAIRS | TOWER | {"freeze": "image"}, "mae"
    ),
    "lit-tuned": Row(f"{FEW:,} pairs, MAE's tower tuned (Uu)", PAIRS | TOWER, "mae"),
    "lit-text": Row(
        f"{FEW:,} pairs, GPT's text locked (uL)",
        PAIRS | {"freeze": "text.token,text.position,text.blocks"},
        "gpt",
    ),
    "lit-none": Row(f"{FEW:,} pairs, both from scratch (uu)", PAIRS),
}
