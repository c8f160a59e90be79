"""The steps of a run: one after another, until the last, a signal, or numbers that are none."""

import math
import os
import signal
import sys
import time
from contextlib import contextmanager

from tqdm import tqdm

from ..data.order import Order, batches
from ..data.questions import Looks
from ..evaluate import evaluate
from ..images import ReadError
from ..ranks import ALONE, Elsewhere
from ..tasks.questions import batch_of
from .advice import Adviser
from .checkpoint import to_run
from .looks import looked
from .meter import Meter, of_batch
from .patience import Patient

LOOK = 256  # validation pairs in a quick look during training
LOG_EVERY = 10
ADVISE_EVERY = 100
# Ctrl-C, a kill, a terminal that is closed (which Windows does not tell).
POLITE = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


class Stopped(Exception):
    """A run that ended before its last step; the message says why and what to do."""


def loop(
    trainer, tokenizer, dataset, config, folder, first, begun, log, checkpoint, asked, ranks=ALONE
):
    """Steps `first` to the last, of every process of the run; what is wrong as they end,
    {key: sentence}. Raises Stopped."""
    adviser = Adviser(config, len(dataset.train), log)
    meter = Meter(trainer, config, lambda step: logs(step, config), ranks)
    pairs, crowded = dataset.train, False
    pairs = Patient(pairs if config.task == "captions" else Looks(pairs), asked)
    distinct = config.distinct and config.reads
    order = Order(pairs.captions, config.batch_size, config.seed, distinct, pairs.same)

    def encode(texts, rows, step):
        if config.task != "captions":
            return batch_of(tokenizer, config, pairs, rows, step)
        return tokenizer.encode(texts, config.text_length)

    made = batches(meter.decoding(pairs), order, encode, first, config.steps, ranks)
    made = meter.steps(_while_readable(made, first, checkpoint))
    shown = dict(unit="step", mininterval=0.5, disable=not ranks.first)
    with pairs, tqdm(total=config.steps, initial=first, **shown) as bar:
        for step, images, texts in made:
            if order.crowded and not crowded and ranks.first:
                crowded = True
                bar.write(_crowded(order, config), file=sys.stderr)
            report = trainer.step(step, images, texts)
            meter.count(images, texts)
            if not all(map(math.isfinite, report.values())):
                raise Stopped(diverged(step, report, folder, config))
            bar.update()
            last = step + 1 == config.steps
            if logs(step, config):
                elapsed = time.perf_counter() - begun
                parts = {"gradient_shares": trainer.gradient_shares(), "throughput": meter.read()}
                record = {"step": step + 1, "seconds": round(elapsed, 3)} | report | parts
                adviser.write(record | of_batch(images, texts, config.text_length, ranks))
                bar.set_postfix_str(_brief(report), refresh=False)
            looks = config.evaluate_every and ((step + 1) % config.evaluate_every == 0 or last)
            if looks:
                model = trainer.model()  # of parts that all processes give; the first has it
                if model and not last:
                    _look(model, tokenizer, dataset, step + 1, log, bar)
                if model:
                    own = (trainer, images, texts) if ranks.world == 1 else None
                    found = looked(model, tokenizer, dataset.validation, step, own)
                    adviser.write({"step": step + 1, "look": found})
                    if "loss" in found and not last:
                        text = f"step {step + 1}: validation loss {found['loss']:.3f}"
                        bar.write(text, file=sys.stderr)
            if looks or last or (step + 1) % ADVISE_EVERY == 0:
                for said in adviser.news(step + 1) if ranks.first else ():
                    bar.write(f"step {step + 1}: {said}", file=sys.stderr)
            stop = ranks.any(asked)
            if stop or last or (step + 1) % config.checkpoint_every == 0:
                checkpoint(step + 1)
            if stop:
                bar.close()
                raise Stopped(
                    f"stopped after step {step + 1} of {config.steps}; go on with: "
                    f"{to_run('train', '--resume', folder)}"
                )
    return adviser.standing


def logs(step, config):
    return (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps


def _while_readable(made, first, checkpoint):
    """The batches; a checkpoint before the ReadError of an image that cannot be read."""
    done = first
    try:
        for batch in made:
            yield batch
            done = batch[0] + 1
    except (ReadError, Elsewhere):
        checkpoint(done)
        raise


def _crowded(order, config):
    """What to say where steps hold equal pairs."""
    what = "an equal image or caption" if config.distinct else "an equal image"
    return (
        f"{order.crowded:,} of the {len(order.captions):,} pairs share a step with {what}: there "
        f"are too many of it for steps of {config.batch_size} (--batch-size)"
    )


def _look(model, tokenizer, dataset, step, log, bar):
    """A quick figure on validation pairs, so that a person sees whether it learns."""
    if dataset.validation is None or not len(dataset.validation):
        return
    try:
        how = {"limit": LOOK, "draws": 0, "rerank": False}
        figures, _ = evaluate(model, tokenizer, dataset.validation, **how)
    except (ValueError, ReadError) as error:  # or NaN, which the next step will find
        bar.write(f"step {step}: no look at validation data: {error}", file=sys.stderr)
        return
    if figures.keys() <= {"images"}:
        return
    log.write({"step": step, "validation": figures})
    shown = {
        "captions exact": figures.get("caption_exact"),
        "image to text R@1": figures.get("image_to_text_r1"),
        "answers of the head": figures.get("answer_head"),
        "answers written": figures.get("answer_generation"),
    }
    text = ", ".join(f"{name} {value:.1%}" for name, value in shown.items() if value is not None)
    if "perplexity" in figures:
        text = f"perplexity {figures['perplexity']:.2f}"
    bar.write(f"step {step}: validation {text}", file=sys.stderr)


def _brief(report):
    parts = {"loss": "loss", "contrastive": "contrast", "caption": "caption", "answer": "answer"}
    return " ".join(
        f"{short} {report[name]:.3f}" for name, short in parts.items() if name in report
    )


def diverged(step, report, folder, config):
    bad = next(name for name, value in report.items() if not math.isfinite(value))
    slower = ("--learning-rate", f"{config.learning_rate / 3:.2g}")
    return (
        f"{bad} is {report[bad]} at step {step}; {folder} keeps its last checkpoint. Begin anew "
        "with a longer --warmup or --clip-norm 1, or go on from it with a third of the rate: "
        f"{to_run('train', '--resume', folder, *slower)}"
    )


@contextmanager
def asked_to_stop(answer=b"\nstopping after this step; once more to stop at once\n"):
    """A list that is empty until Ctrl-C or a polite kill; a second one ends at once."""
    asked, before = [], {}

    def ask(number, frame):
        signal.signal(number, before[number])
        asked.append(number)
        os.write(2, answer)

    try:
        for number in POLITE:
            if (handler := signal.getsignal(number)) != signal.SIG_IGN:  # as nohup wants it
                before[number] = handler  # first: it may be asked at once
                signal.signal(number, ask)
    except ValueError:  # not the main thread: whoever runs us handles signals
        before.clear()
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
