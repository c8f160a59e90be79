"""A training run: data in, a run folder out. The backend's Trainer computes; this keeps the books.

The folder holds config.json, tokenizer.model, metrics.jsonl, resume.safetensors (to go on),
model.safetensors (to use), results.json, README.md (its card), at the end pictures of what was
learned, and left_out.txt where files or captions could not be used.
"""

import math
import os
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import data, params
from ..clip_tokenizer import tokenizer_of
from ..evaluate import evaluate, nearest_truth, written
from ..files import OURS, make_folder, read_bytes, unfinished, write_atomically, write_json
from ..ranks import ALONE
from ..relatives import specs_of
from ..report import make_picture, table
from ..tuning import learning, locked
from .card import write_card
from .checkpoint import (
    CARD,
    CHECKPOINT,
    CONFIG,
    FILES,
    LEFT_OUT,
    LOG,
    RESULTS,
    TOKENIZER,
    WEIGHTS,
    all_captions,
    belongs,
    fingerprint,
    identity,
    known,
    read_checkpoint,
    read_own,
    read_results,
    read_tokenizer,
    read_weights,
    save_config,
    to_run,
)
from .distributed import Unheard, agree, leave, noticing
from .log import Log, machine
from .looks import losses
from .loop import Stopped, asked_to_stop, diverged, loop
from .owner import LOCK, LostError, owned
from .patience import patiently
from .profiling import profiled
from .start import check_memory, make_trainer, shorter_warmup, start
from .track import telling

GALLERY = {"shapes": 256}  # retrieval among so many pairs; elsewhere among all of a split


def given_command():
    return shlex.join(["minicoca", *sys.argv[1:]])


def beginning(command):
    """The first record of a log: what began the run, and which start of torchrun."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    return {"step": 0, "command": command} | ({"launch": launch} if launch else {})


def train(
    config, folder, *, taking_up=False, changes=None, command=None, say=print, report_to=None,
    profile=False, ranks=ALONE,
):  # fmt: skip
    """Train in `folder`, or take up the run that is there; returns its results as a dict.

    changes: settings to replace when a run is taken up. report_to: a tracker (track.py) that is
    told what metrics.jsonl is. profile: a few steps are watched (profiling.py). ranks: the
    processes that train together (distributed.py); the first one writes, speaks and gives the
    results, the others None. Raises TakenError where another process trains there, and Stopped if
    the run is interrupted, diverges, or can no longer read or write a file; a checkpoint is kept in
    each case.
    """
    folder, command = Path(folder), command or given_command()
    if not taking_up and ranks.first:
        make_folder(folder)
    elif not folder.is_dir() and taking_up:
        raise ValueError(f"{folder}: there is no such folder")
    try:
        ours = owned(folder) if ranks.first else nullcontext(lambda: None)
        with noticing(ranks), ours as still_ours:
            changes, say = changes or {}, say if ranks.first else lambda text: None
            how = command, say, still_ours, report_to, profile and ranks.first, ranks
            return _train(config, folder, taking_up, changes, *how)
    except (KeyboardInterrupt, OSError) as error:
        if isinstance(error, LostError) or not (folder / CHECKPOINT).is_file():
            raise
        said = f"{str(error) or 'interrupted'}; go on from the last checkpoint with: "
        raise Stopped(said + to_run("train", "--resume", folder)) from error
    finally:
        if not taking_up and ranks.first and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # it failed before there was anything to keep


def _train(
    config, folder, taking_up, changes, command, say, still_ours, report_to, profile, ranks
):  # fmt: skip
    first, seconds = 0, 0.0
    if ranks.first:
        clear(folder, taking_up)
    if ranks.any(taking_up and ranks.first and (folder / CHECKPOINT).is_file()):
        trainer, tokenizer, dataset, config, of, done = resume(folder, say, ranks, **changes)
        first, seconds, mark = done["step"], done["seconds"], done["data"]
    else:
        tokenizer = None
        if taking_up:
            if (folder / WEIGHTS).exists():  # of a run that came to its end
                raise ValueError(
                    f"{folder} has no {CHECKPOINT} to go on from; it holds what it learned, "
                    f"{WEIGHTS}: begin another run with: {to_run('train', '--init', folder)}"
                )
            say(f"{folder} came to no checkpoint; its training begins anew")
            config, of = read_own(folder)
            config, tokenizer = replace(config, **changes), read_tokenizer(folder, config, of)
            taking_up = False
        trainer, tokenizer, dataset, config = start(config, folder, say, tokenizer, ranks)
        mark, of = fingerprint(dataset), identity(config, tokenizer, dataset)
    agree(ranks, "data, settings or files", f"{first} {mark} {of} {config}")
    still_ours()
    if ranks.first:
        save_config(config, folder, of)  # whoever resumes it again need not repeat the changes
    if complaint := getattr(trainer, "complaint", ""):
        say(f"warning: {complaint}")
    log = Log(folder / LOG, first) if ranks.first else Unheard()
    if log.lost:
        say(f"{folder / LOG}: {log.lost:,} damaged lines are left out")
    if ranks.first and not Log.beginning(folder / LOG):
        log.write(beginning(command))
    size = params.count(specs_of(config))
    what, each = "pairs", "pairs"
    if config.task != "captions":
        what, each = "questions", f"pictures, {config.per_picture} questions each at most"
    say(f"{dataset.name}: {len(dataset.train):,} training {what}. {dataset.notes}".strip())
    if cut := tokenizer.too_long(all_captions(dataset), config.text_length):
        say(f"{cut:,} captions are cut at {config.text_length} tokens (--text-length)")
    say(f"{size:,} parameters; {config.steps:,} steps of {config.batch_size} {each}")
    if ranks.world > 1:
        say(f"{ranks.world} processes share each step (--parallel {config.parallel})")
    if fixed := size - learning(config):
        say(f"{fixed:,} of them stay as they are (--freeze, or a rate of 0)")
    if ranks.world == 1:
        trainer.locked = locked(specs_of(config), config, len(dataset.train), say)
    begun = time.perf_counter() - seconds

    def checkpoint(step):
        weights, state = trainer.weights(), trainer.state()
        if not ranks.first:
            return
        if not all(np.isfinite(x).all() for x in params.flatten(weights).values()):
            raise Stopped(diverged(step, {"a weight": math.nan}, folder, config))

        def save():
            still_ours()
            log.sync()
            kept = {"step": step, "seconds": time.perf_counter() - begun, "data": mark}
            params.save(folder / CHECKPOINT, state, config, **kept, **of.as_dict())

        if step == first:  # what cannot be written now may never have been
            save()
        else:
            patiently(save, OSError, asked)

    with asked_to_stop() if ranks.first else asked_to_stop(b"") as asked:
        if not taking_up:
            checkpoint(0)
        watching = (
            profiled(trainer, config, folder, first, say) if profile else nullcontext(trainer)
        )
        told = telling(
            report_to if ranks.first else None, log, folder, config.to_dict(), first, say
        )
        with told, watching as watched:
            how = folder, first, begun, log, checkpoint, asked, ranks
            wrong = loop(watched, tokenizer, dataset, config, *how)
    seconds = time.perf_counter() - begun
    weights, model = trainer.weights(), trainer.model()
    if ranks.world > 1:
        leave()
    if not ranks.first:
        return None
    still_ours()
    seal = params.save(folder / WEIGHTS, weights, config, **of.as_dict())
    advice = {"advice": list(wrong.values())}
    about = {"weights": seal, **of.as_dict(), **advice}
    if config.objective != "coca":
        about["losses"] = {
            name: losses(model, tokenizer, pairs)["loss"]
            for name, pairs in dataset.evaluations.items()
        }
    results = finish(model, tokenizer, dataset, config, folder, seconds, say, about)
    for text in wrong.values():
        say(f"advice:     {text}")
    check_whole(folder, seal, still_ours)
    return results | advice


def clear(folder, taking_up):
    """Remove what killed saves left. Raises ValueError where a run is to begin in a folder that
    holds anything but what came to no checkpoint."""
    for path in unfinished(folder, FILES) + unfinished(folder, (CARD,), OURS):
        path.unlink(missing_ok=True)
    there = {path.name for path in folder.iterdir()} - {LOCK}
    if taking_up or not there:
        return
    if not there <= {CONFIG, TOKENIZER, LOG} or not began(folder, there):
        raise ValueError(
            f"{folder} is not empty; choose another --run, or go on with: "
            f"{to_run('train', '--resume', folder)}"
        )
    for name in there:
        (folder / name).unlink()


def began(folder, there):
    """Whether these few files are of a run that came to no checkpoint, and not a person's."""
    try:
        if CONFIG in there:
            return bool(read_own(folder)[1].run)
        tokenizer_of(read_bytes(folder / TOKENIZER))
    except ValueError:
        return False
    return there == {TOKENIZER}


def check_whole(folder, seal, still_ours):
    """Raise where what was written does not come back: an end without an error is a run that can
    be used."""
    still_ours()
    config, _ = read_own(folder)
    read_weights(folder, config)
    if params.seal_of(folder / WEIGHTS) != seal:
        raise LostError(f"{folder / WEIGHTS} was replaced while its run was being measured")
    Log.read(folder / LOG)


def resume(folder, say, ranks=ALONE, **changes):
    """Take a run up where its last checkpoint left it: as `start`, and its Identity and what the
    checkpoint says of itself."""
    before, of = read_own(folder)
    check_memory(replace(before, **changes), ranks)
    tree, done = read_checkpoint(folder, before)
    belongs(done, of, folder / CHECKPOINT, folder)
    config = replace(before, **changes)
    if config.steps < done["step"]:
        raise ValueError(
            f"{folder} has come to step {done['step']:,} already; --steps {config.steps:,} is less"
        )
    if config.steps != before.steps:
        say(f"{config.steps:,} steps, not {before.steps:,}: the learning rate is planned anew")
        config = replace(config, warmup=shorter_warmup(config, say))
    trainer = make_trainer(tree["params"], config, ranks)
    trainer.load(tree)
    tokenizer = read_tokenizer(folder, config, of)
    dataset = data.load(config)
    done.setdefault("data", fingerprint(dataset))
    if done["data"] != fingerprint(dataset):
        what = "holds other" if config.data != before.data else "has changed since"
        end = " data than" if config.data != before.data else ""
        raise ValueError(f"{config.data} {what}{end} {folder} began; it cannot go on exactly")
    return trainer, tokenizer, dataset, config, of, done


def finish(model, tokenizer, dataset, config, folder, seconds, say=print, about=None):
    """Evaluate every held-out split; write results.json (with what it is `about`), say the table,
    draw the pictures."""
    results = {
        "train_seconds": round(seconds, 1),
        "steps": config.steps,
        "images_per_second": round(config.steps * config.batch_size / max(seconds, 1e-9), 1),
        "parameters": params.count(specs_of(config)),
        "data": config.data,
        "preset": config.preset,
        "seed": config.seed,
        "backend": config.backend,
        "command": str(Log.beginning(folder / LOG).get("command", "")),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "folder": str(folder),
        "samples": [],
    }
    if dataset.name == config.data == "emoji":
        from ..data.emoji import pixel_nearest_neighbour

        found = pixel_nearest_neighbour(dataset)
        results |= {f"pixel_nearest_neighbour_{name}": value for name, value in found.items()}
    captions, before, gallery = {}, known(dataset), GALLERY.get(config.data, 0)
    for name, pairs in dataset.evaluations.items():
        try:
            results[name], captions[name] = evaluate(model, tokenizer, pairs, gallery, before)
        except ValueError as error:  # images that could be opened, but not decoded
            say(f"{name} is left out: {error}")
            continue
        for i in range(min(4, len(captions[name]))):
            text = captions[name][i]
            truth = nearest_truth(text, written(pairs, i))
            results["samples"].append({"split": name, "truth": truth, "caption": text})
    about = dict(about or {})
    for name, value in about.pop("losses", {}).items():
        results.setdefault(name, {})["loss"] = value
    write_json(folder / RESULTS, results | about)
    write_card(folder, results, say=say)
    say(table(results))
    if not dataset.evaluations:
        say(f"nothing is held out of {len(dataset.train)} images, too few to measure it on")
    tell_left_out(dataset, folder, say)
    for name, texts in captions.items():
        pairs = dataset.evaluations[name]
        try:
            say(f"picture:    {make_picture(folder, model, tokenizer, name, pairs, texts)}")
        except Exception as error:  # matplotlib's settings and fonts are not ours
            say(f"no picture of {name}: {brief(error)}")
    read_results(folder)
    return results


def brief(error):
    """An error in a line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) < 200 else f"{words[:200]} ..."


def tell_left_out(dataset, folder, say):
    """Say which images turned out to be damaged; left_out.txt names all that was not used."""
    splits = (dataset.train, dataset.validation, *dataset.evaluations.values())
    decoded = [pairs for pairs in splits if hasattr(pairs, "report")]
    whole = [text for text in (dataset.left_out, *(p.report(None) for p in decoded)) if text]
    if whole:
        path = folder / LEFT_OUT
        write_atomically(path, b"".join(map(as_written, "\n".join(whole).split("\n"))))
        say("\n".join([*(p.report() for p in decoded if p.report()), f"left out:   {path}"]))


def as_written(line):
    """A line's bytes: those of a file's name as the system has them, whatever they are."""
    try:
        return f"{line}\n".encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a pair, from a list
        return f"{line}\n".encode(errors="backslashreplace")
