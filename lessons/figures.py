"""The pages' figures: `python -m lessons.figures` draws them all again."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

from . import figures_part_1, figures_part_2  # noqa: E402, F401 (each registers its figures)
from .drawing import CREATOR, DRAWN, FOLDER, differ, draw  # noqa: E402

__all__ = ["CREATOR", "DRAWN", "FOLDER", "differ", "draw"]


def main():
    """Draw every figure."""
    FOLDER.mkdir(exist_ok=True)
    for name in DRAWN:
        (FOLDER / name).write_text(draw(name), encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
