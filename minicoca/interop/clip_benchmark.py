"""A run as clip_benchmark's tasks take a model: `load_minicoca` is a loader of its convention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from ..engine.generate import CoCa
from ..engine.ops import use
from ..engine.relatives import image_features, text_features
from ..images import from_picture
from ..model import load
from ..tasks import demand_vectors


class Towers(torch.nn.Module):
    """The two encoders of a CoCa, with the methods of a CLIP model.

    In float32 also where the caller has mixed precision on: then a run's figures are those that
    minicoca itself finds.
    """

    def __init__(self, coca: CoCa) -> None:
        super().__init__()
        self.coca = coca

    @property
    def logit_scale(self) -> torch.Tensor:
        """log of what cosines are multiplied by."""
        return -self.coca.params["log_temperature"]

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, I, I] as the transform makes them -> unit vectors [B, E]."""
        images = images.to(self.coca.device).permute(0, 2, 3, 1).contiguous()
        return self._exactly(image_features, images)

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [B, T] -> unit vectors [B, E]."""
        return self._exactly(text_features, ids.to(self.coca.device))

    @torch.no_grad()
    def _exactly(self, encode, given):
        coca = self.coca
        with use(coca.config.backend), torch.autocast(coca.device.type, enabled=False):
            return encode(coca.params, coca.config, given)[0]


def load_minicoca(
    model_name: str = "",
    pretrained: str = "",
    cache_dir: str | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Towers, Callable[[Image.Image], torch.Tensor], Callable[[Sequence[str]], torch.Tensor]]:
    """(model, transform, tokenizer) of a run.

    pretrained: its folder, or a name that `minicoca.load` knows; if empty, `model_name` is that.
    cache_dir: not used, for nothing is fetched. transform: a PIL image -> float32 [3, I, I];
    tokenizer: texts (or one) -> int64 [B, T]. Raises ValueError as `minicoca.load` does, and for a
    model that was not trained to compare.
    """
    model = load(pretrained or model_name, device=str(device), backend="auto")
    coca, words = model.coca, model.tokenizer
    demand_vectors(coca)
    mean, std = (np.array(x, np.float32) for x in (coca.config.pixel_mean, coca.config.pixel_std))

    def transform(picture: Image.Image) -> torch.Tensor:
        pixels = from_picture(picture, coca.config.image_size).astype(np.float32) / 255
        return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1).contiguous()

    def tokenizer(texts: str | Sequence[str]) -> torch.Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        return torch.from_numpy(words.encode(texts, coca.config.text_length))

    return Towers(coca).eval(), transform, tokenizer
