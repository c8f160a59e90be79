"""What frozen image tokens are good for, by the same small learners for all: 100 labels, questions,
and the most alike picture. The first two of drawn shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from ..config import preset
from ..data import Pairs, asked_shapes, shapes
from ..data.shapes import Scene
from ..params import initialise, stream
from ..tasks import BATCH
from ..tokenizer import Tokenizer

Tokens = Callable[[np.ndarray], np.ndarray]  # uint8 [B, I, I, 3] -> float32 [B, N, M]
ASPECTS = {
    "colour": lambda thing: thing.colour,
    "shape": lambda thing: thing.shape,
    "place": shapes._place,
}
LABELS, TESTED = 100, 500  # scenes of one thing that a probe learns from, and is tested on
ASKED, TESTED_ON = 6000, 500  # scenes that are asked about, in training and of each test split
ALIKE = 6000  # training pictures, at most, of which one is the most alike
RECIPE = dict(
    task="questions", contrastive_weight=0.0, caption_weight=0.0, optimizer="adamw", pooler="none",
    batch_size=128, steps=600, learning_rate=3e-3, warmup=100, weight_decay=0.05,
)  # fmt: skip


def pixels(images: np.ndarray) -> np.ndarray:
    """The patches of images as tokens, and which patch each is."""
    B, side, N = len(images), images.shape[1] // 8, (images.shape[1] // 8) ** 2
    patches = images.reshape(B, side, 8, side, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, N, -1)
    places = np.broadcast_to(np.eye(N, dtype=np.float32), (B, N, N))
    return np.concatenate([patches.astype(np.float32) / 255, places], 2)


def nothing(images: np.ndarray) -> np.ndarray:
    """One token that is the same for all images."""
    return np.zeros((len(images), 1, 4), np.float32)


def singles(split: str, count: int, seed: int) -> list[Scene]:
    """The first so many scenes of a split that show one thing."""

    def found() -> Iterator[Scene]:
        index = missing = 0
        while missing < count:
            scene = shapes.scene(split, index, seed)
            index += 1
            if len(scene.things) == 1:
                missing += 1
                yield scene

    return list(found())


def vectors(tokens: Tokens, images: np.ndarray) -> np.ndarray:
    """The mean token of every image [n, M]; of patches' pixels, all of them [n, N M]."""
    found = _seen(tokens, images)
    return found.reshape(len(found), -1) if tokens is pixels else found.mean(1)


def by_labels(tokens: Tokens, seed: int, side: int) -> dict[str, float]:
    """How often logistic regression on LABELS scenes names the colour, the shape and the place of a
    scene's one thing."""
    from ..engine.probe import fit_linear

    learned, tested = (singles(*of, seed) for of in (("train", LABELS), ("held_out", TESTED)))
    known, asked = (vectors(tokens, _drawn(scenes, side)) for scenes in (learned, tested))
    mean, std = known.mean(0), np.maximum(known.std(0), 1e-6)
    found = {}
    for name, aspect in ASPECTS.items():
        classes = sorted({aspect(scene.things[0]) for scene in learned + tested})
        labels, truth = (
            np.array([classes.index(aspect(scene.things[0])) for scene in scenes])
            for scenes in (learned, tested)
        )
        tree = fit_linear(known, labels, len(classes), mean, std)["classifier"]
        scores = asked @ tree["weight"] + tree["bias"]
        found[f"probe_{name}"] = float((scores.argmax(1) == truth).mean())
    return found


def by_nearest(tokens: Tokens, learned: Pairs, tested: Pairs) -> dict[str, float]:
    """How often a picture is rightly captioned as the most alike picture that was learned from is,
    by the cosine of what differs from their mean; and, where the split has classes, rightly
    classified, by those pictures whose caption is a class's."""
    rows = np.arange(min(ALIKE, len(learned)))
    known, asked = (
        vectors(tokens, pairs.batch(of))
        for pairs, of in ((learned, rows), (tested, np.arange(len(tested))))
    )
    mean = known.mean(0)
    known, asked = (x - mean for x in (known, asked))
    known /= np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-12)
    said = [learned.captions[i][0] for i in (asked @ known.T).argmax(1)]
    found = {"exact": float(np.mean([t in tested.captions[i] for i, t in enumerate(said)]))}
    if task := tested.zero_shot:
        classes = {text: i for i, own in enumerate(task.prompts) for text in own}
        those = np.array([i for i in rows if learned.captions[i][0] in classes])
        label = np.array([classes[learned.captions[i][0]] for i in those])
        guessed = label[(asked[task.images] @ known[those].T).argmax(1)]
        found["zero_shot"] = float((guessed == task.labels).mean())
    return found


class Asked(NamedTuple):
    """Questions about scenes: about [R] which, texts [R, T] of start, question and end, answers [R]
    and kinds [R]."""

    scenes: list[Scene]
    about: np.ndarray
    texts: np.ndarray
    answers: np.ndarray
    kinds: np.ndarray


@cache
def asked(seed: int) -> tuple[dict[str, Asked], Tokenizer, tuple[str, ...]]:
    """({split: Asked}, the tokenizer of the questions, the answers that there are)."""
    rows, scenes = {}, {}
    for split, count in {"train": ASKED, "held_out": TESTED_ON, "compositional": TESTED_ON}.items():
        scenes[split] = shapes.scenes(split, count, seed)
        most = asked_shapes.MORE["questions"] if split == "train" else {}
        rows[split] = asked_shapes.rows_of("questions", scenes[split], most)
    texts = [row.question.text for row in rows["train"]]
    tokenizer = Tokenizer.train(texts, 200, "word", False, say=lambda text: None)
    classes = tuple(sorted({row.question.answer for row in rows["train"]}))

    def of(split: str) -> Asked:
        about, own, _ = zip(*rows[split], strict=True)
        tokens = tokenizer.encode([question.text for question in own], 24)
        answers = np.array([classes.index(question.answer) for question in own])
        kinds = np.array([question.kind for question in own])
        return Asked(scenes[split], np.array(about), tokens, answers, kinds)

    return {split: of(split) for split in rows}, tokenizer, classes


def by_questions(tokens: Tokens, seed: int, side: int, steps: int = 0) -> dict[str, float]:
    """How often a text decoder and a head that learn from scratch, on frozen tokens, answer right:
    all questions, and those of each kind, of either split. steps: RECIPE's."""
    import torch

    from ..engine.answers import answer_head, answer_loss
    from ..engine.optim import clip_by_global_norm, learning_rate, optimizers
    from ..engine.text import lengths_of
    from ..engine.towers import decoded
    from ..params import flatten, specs, tree_map

    own, tokenizer, classes = asked(seed)
    seen = {split: _seen(tokens, _drawn(of.scenes, side)) for split, of in own.items()}
    mean, std = (getattr(seen["train"], name)((0, 1)) for name in ("mean", "std"))
    seen = {split: (x - mean) / np.maximum(std, 1e-6) for split, x in seen.items()}
    given = {"image_width": len(mean), "vocabulary": tokenizer.vocab_size, "answers": classes}
    config = preset("tiny", **RECIPE | given | ({"steps": steps} if steps else {}))
    tree = {
        name: part for name, part in specs(config).items() if name in ("text", "decoder", "head")
    }
    del tree["decoder"]["head"]
    params = tree_map(
        lambda a: torch.tensor(a, dtype=torch.float32, requires_grad=True),
        initialise(config, seed, tree=tree),
    )

    def logits(split: str, rows: np.ndarray):
        of = own[split]
        x, texts = torch.from_numpy(seen[split][of.about[rows]]), torch.from_numpy(of.texts[rows])
        *_, n, packing = decoded(params, config, x, texts, encode=lambda *given: (None, given[2]))
        n = packing.pad(n) if packing else n
        return answer_head(n, params["head"], lengths_of(texts) - 1, config)

    learners, leaves = optimizers(params, config), [*flatten(params).values()]
    for step in range(config.steps):
        draw = stream("order", seed, step).integers(0, len(own["train"].about), config.batch_size)
        right = torch.eye(len(classes))[own["train"].answers[draw]]
        for leaf in leaves:
            leaf.grad = None
        answer_loss(logits("train", draw), right).backward()
        clip_by_global_norm(leaves, config.clip_norm)
        for learner in learners:
            for group in learner.param_groups:
                group["lr"] = learning_rate(step, config) * group["factor"]
            learner.step()
    found = {}
    for split in ("held_out", "compositional"):
        of, right = own[split], []
        with torch.inference_mode():
            for i in range(0, len(of.about), BATCH):
                rows = np.arange(i, min(i + BATCH, len(of.about)))
                right.append(logits(split, rows).argmax(1).numpy() == of.answers[rows])
        right = np.concatenate(right)
        found[f"answers_{split}"] = float(right.mean())
        for kind in np.unique(of.kinds):
            found[f"answers_{kind}_{split}"] = float(right[of.kinds == kind].mean())
    return found


def by_router(model, tokenizer, seed: int, count: int = 128) -> dict[str, float]:
    """Of each layer of a model whose router chooses among experts, what the choice tells of the
    modality (`router_LAYER`): the mutual information in bits, were patches and words as frequent; 0
    nothing, 1 all; and the share of all tokens that its fullest expert takes (`load_LAYER`). Of
    pictures with their captions, both in one sequence."""
    import torch

    from ..engine.attention import self_attention_layer
    from ..engine.ops import layer_norm, linear
    from ..engine.relatives.experts import routed
    from ..engine.relatives.modalities import read, seen

    config, params = model.config, model.params
    scenes = shapes.scenes("held_out", count, seed)
    images = np.stack([shapes.draw(scene, config.image_size) for scene in scenes])
    texts = [shapes.caption(scene) for scene in scenes]
    tokens = torch.as_tensor(tokenizer.encode(texts, config.text_length), device=model.device)
    found = {}
    with torch.inference_mode():
        words, real = read(tokens, params)
        patches = seen(model._normalised(images), params, config)
        x, T = torch.cat([words, patches], 1), words.shape[1]
        is_text = torch.arange(x.shape[1], device=real.device).expand(len(x), -1) < T
        real = torch.cat([real, real.new_ones(patches.shape[:2])], 1)
        for i in range(len(params["blocks"])):
            layer = params["blocks"][str(i)]
            given = layer["norm_attention"], layer["attention"], config.text_heads
            x, own = self_attention_layer(x, *given, mask=real[:, None]), layer["routed"]
            chosen = linear(layer_norm(x, own["norm"]), own["router"]).argmax(-1)
            kinds = chosen[real & is_text], chosen[real & ~is_text]
            found[f"router_{i}"] = told([kind.cpu().numpy() for kind in kinds])
            found[f"load_{i}"] = float(chosen[real].bincount().max() / real.sum())
            x, _ = routed(x, own, real, 0.0, config.gelu)
    return found


def told(chosen: list[np.ndarray]) -> float:
    """The mutual information, in bits, of which of two kinds, as likely, and of what was chosen."""
    most = max(own.max() for own in chosen) + 1
    shares = np.array([np.bincount(own, minlength=most) / len(own) for own in chosen])
    return float(_bits(shares.mean(0)) - np.mean([_bits(share) for share in shares]))


def _bits(share):
    share = share[share > 0]
    return -(share * np.log2(share)).sum()


def _drawn(scenes, side):
    return np.stack([shapes.draw(scene, side) for scene in scenes])


def _seen(tokens, images):
    parts = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
    return np.concatenate([tokens(part) for part in parts])
