"""What a filter finds and what it is worth, on shapes with captions exchanged on purpose: the
guide's table, in runs of minutes. `python tests/filtering.py FOLDER [SEED ...]`

FOLDER keeps the runs. Two judges: the model `shapes`, which was trained on the true captions and so
knows the truth; and the model that was trained on the exchanged ones themselves.
"""

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from minicoca import config
from minicoca.data import shapes
from minicoca.data.noise import noisy
from minicoca.tasks import BATCH
from minicoca.tasks.filtering import cosines, least_of, written
from minicoca.training.checkpoint import find_run, load_model
from minicoca.training.run import train

SHARE, PASSING = 0.3, (0.01, 0.05)  # training takes the first


def exchanged(captions, share, seed=0):
    """(captions of which a share is another picture's, which of them are)."""
    made = noisy([own[0] for own in captions], share, seed, ["captions of other pictures"])
    found, kinds = zip(*made, strict=True)
    return [(text,) for text in found], np.array(kinds) != ""


def batches(images, rows):
    for i in range(0, len(rows), BATCH):
        yield rows[i : i + BATCH], images[rows[i : i + BATCH]]


def judged(run, images, captions):
    """(which captions pass, for each of PASSING; what the model writes of those that do not, by the
    first, and that passes), as `minicoca filter --by RUN --replace` does."""
    model, tokenizer = load_model(run)
    own, others = cosines(model, tokenizer, batches(images, np.arange(len(images))), captions)
    near = np.array([own[row][0] for row in range(len(images))])
    least = [least_of(own, others, None, passing) for passing in PASSING]
    said = written(model, tokenizer, batches(images, np.flatnonzero(near < least[0])))
    return [near >= x for x in least], {r: text for r, (text, x) in said.items() if x >= least[0]}


def found_of(kept, wrong):
    """Precision and recall of what is dropped, and the share of good captions that is kept, %."""
    dropped = ~kept
    return 100 * np.array([wrong[dropped].mean(), dropped[wrong].mean(), kept[~wrong].mean()])


def run_on(dataset, captions, rows, folder, seed, **changes):
    """Exactly right captions, held out and compositional, in %, of a model trained on these."""
    pairs = replace(
        dataset.train, images=dataset.train.images[rows], captions=tuple(captions[r] for r in rows)
    )
    settings = config.preset("tiny", seed=seed, evaluate_every=0, **changes)
    with mock.patch.object(shapes, "load", lambda seed, side, *_: replace(dataset, train=pairs)):
        results = train(settings, folder, say=lambda text: None, command="")
    return [100 * results[part]["caption_exact"] for part in ("held_out", "compositional")]


def experiment(folder, seeds, dataset, **changes):
    """{way: rows of figures}, a row a seed, said as they come."""
    truth, images = dataset.train.captions, dataset.train.images
    captions, wrong = exchanged(truth, SHARE)
    everything, rows = np.arange(len(images)), {}

    def say(name, seed, found):
        rows.setdefault(name, []).append(found)
        print(f"# {name}, seed {seed}: {np.round(found, 2).tolist()}", flush=True)

    def learn(name, seed, texts, chosen):
        own = Path(folder) / f"{name} {seed}"
        say(name, seed, run_on(dataset, texts, chosen, own, seed, **changes))
        return own

    for seed in seeds:
        noisy = learn("as they are", seed, captions, everything)
        for judge, run in (("shapes", find_run("shapes")), ("itself", noisy)):
            passed, said = judged(run, images, captions)
            for passing, kept in zip(PASSING, passed, strict=True):
                say(f"found by {judge}, {passing:.0%}", seed, found_of(kept, wrong))
            kept = passed[0]
            right = np.mean([(text,) == truth[row] for row, text in said.items()] or np.nan)
            say(f"written by {judge}", seed, [len(said), 100 * right])
            learn(f"filtered by {judge}", seed, captions, np.flatnonzero(kept))
            texts = [(said[r],) if r in said else own for r, own in enumerate(captions)]
            chosen = [r for r in everything if kept[r] or r in said]
            learn(f"replaced by {judge}", seed, texts, chosen)
    return rows


def table(rows):
    """Mean and spread of the seeds, a line a way."""
    lines = []
    for name, found in rows.items():
        spread = np.std(found, 0, ddof=1) if len(found) > 1 else np.zeros(len(found[0]))
        cells = (f"{m:8.1f} ± {s:3.1f}" for m, s in zip(np.mean(found, 0), spread, strict=True))
        lines.append(f"{name:24}" + "  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    place, *numbers = sys.argv[1:]
    print(table(experiment(place, [*map(int, numbers)] or [0, 1, 2], shapes.load(0, 32))))
