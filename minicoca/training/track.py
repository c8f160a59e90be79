"""A run's log told to a tracker too: tensorboard, trackio or wandb, whichever is installed.

metrics.jsonl stays what counts: a tracker that fails is said once and told no more, and the run
goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from .log import Log

FOLDER, PROJECT = "tensorboard", "minicoca"
NEEDS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}  # what to install
Figures = dict[str, float]


def check(name: str) -> None:
    """Raise ValueError, with what to install, where a tracker is not here."""
    try:
        import_module(NEEDS[name])
    except ImportError as error:
        raise ValueError(
            f"--report-to {name}: {name} cannot be imported ({error}); pip install {NEEDS[name]}"
        ) from None


@contextmanager
def telling(
    name: str | None, log: Log, folder: Path, settings: dict[str, Any], first: int,
    say: Callable[[str], None],
) -> Iterator[None]:  # fmt: skip
    """For a `with`: all that the log is told from step `first` on, the tracker is told too."""
    if name is None:
        yield
        return
    tell = close = None

    def failed(error):
        nonlocal tell
        tell = None
        say(f"{name} is told no more ({type(error).__name__}: {error}); {log.path} has it all")

    def also(record):
        if tell and (figures := figures_of(record)):
            try:
                tell(record["step"], figures)
            except Exception as error:  # a tracker's own: none may end a run
                failed(error)

    try:
        tell, close = TRACKERS[name](folder, settings, first)
    except Exception as error:
        failed(error)
    log.also = also
    try:
        yield
    finally:
        log.also = None
        if close:
            with suppress(Exception):
                close()


def figures_of(record: dict[str, Any]) -> Figures:
    """The numbers of a record of metrics.jsonl; those of a group (validation) under its name."""
    groups = {name: own for name, own in record.items() if isinstance(own, dict)}
    flat = {f"{name}/{key}": value for name, own in groups.items() for key, value in own.items()}
    flat |= record
    return {
        key: value
        for key, value in flat.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _tensorboard(folder, settings, first):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / FOLDER), purge_step=first + 1 if first else None)

    def tell(step, figures):
        for key, value in figures.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return tell, writer.close


def _trackio(folder, settings, first):
    import trackio

    trackio.init(
        project=PROJECT, name=folder.name, config=settings, resume="allow" if first else "never"
    )
    return lambda step, figures: trackio.log(figures, step=step), trackio.finish


def _wandb(folder, settings, first):
    import wandb

    run = wandb.init(
        project=PROJECT, name=folder.name, dir=str(folder), config=settings,
        resume="allow" if first else None,
    )  # fmt: skip
    return lambda step, figures: run.log(figures, step=step), run.finish


TRACKERS = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
