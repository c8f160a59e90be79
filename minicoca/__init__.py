"""CoCa (Contrastive Captioners) from first principles.

From Python: `minicoca.load(folder_or_name)` is a `Model`, which captions, embeds, classifies,
searches and scores. Nothing else is imported until one of the two is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Model", "load"):
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
