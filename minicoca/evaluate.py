"""What a model can do with held-out pairs: caption, retrieve, classify. Any backend will do.

Captions are compared with what was written (`clean`: NFC and single spaces), never with what a
tokenizer makes of it.
"""

import numpy as np

from .metrics import (
    bleu_order,
    caption_scores,
    places,
    recall,
    sharing,
    top_k_accuracy,
    wrong_before,
)
from .tasks import BATCH, embed_texts
from .tasks.captioning import caption
from .tasks.zero_shot import class_scores
from .words import clean


def evaluate(model, tokenizer, pairs, gallery=0, limit=None):
    """The figures of one split as a dict of floats, and its generated captions.

    gallery: retrieval is among this many images and all their captions, averaged over as many
    galleries as the split fills; 0: among all. limit: look at the first `limit` images only.
    """
    indices = np.arange(len(pairs) if limit is None else min(limit, len(pairs)))
    config, captions, vectors = model.config, [], []
    for i in range(0, len(indices), BATCH):
        images = pairs.batch(indices[i : i + BATCH])
        if config.caption_weight:
            captions += caption(model, tokenizer, images)
        if config.contrastive_weight:
            vectors.append(model.embed_images(images))
    # Read after `batch`: a folder replaces a damaged image, and its captions with it.
    references = [written(pairs, i) for i in indices]
    figures = {"images": len(indices)}
    if captions:
        scores = caption_scores(captions, references)
        figures |= {f"caption_{k.replace('exact_match', 'exact')}": v for k, v in scores.items()}
        figures["caption_bleu_order"] = bleu_order(captions)
    if vectors:
        image_vectors, texts = np.concatenate(vectors), [t for own in references for t in own]
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # equal ones read once
        text_vectors = embed_texts(model, tokenizer, place)[[place[text] for text in texts]]
        figures |= retrieval(image_vectors, text_vectors, references, gallery)
        figures |= zero_shot(model, tokenizer, image_vectors, pairs.zero_shot)
    return figures, captions


def written(pairs, i):
    """What may rightly be said of image i, in one spelling."""
    return [clean(text) for text in pairs.captions[i]]


def nearest_truth(caption, right):
    """The right caption that a generated one is, or the first of them if it is none."""
    return caption if caption in right else right[0]


def zero_shot(model, tokenizer, image_vectors, task):
    """Accuracy of a split's classification task on the images that there are vectors of."""
    inside = () if task is None else task.images < len(image_vectors)
    if not np.any(inside):
        return {}
    vectors, labels = image_vectors[task.images[inside]], task.labels[inside]
    scores = class_scores(model, tokenizer, vectors, task.prompts)
    top = top_k_accuracy(scores, labels, ks=(1, 5))
    return {"zero_shot_top1": top[1], "zero_shot_top5": top[5]}


def retrieval(image_vectors, text_vectors, references, gallery=0):
    """Recall at 1, 5 and 10, both ways, of n images in galleries of a size.

    As COCO does it (Karpathy and Fei-Fei 2015, section 4.1): an image is to find any of its
    captions, and every caption is a query that is to find an image of its own. text_vectors: those
    of all captions, image by image. Holds [BATCH, n], never all similarities.
    """
    size = min(gallery or len(references), len(references))
    ends = np.cumsum([0] + [len(own) for own in references])
    found = []
    for start in range(0, len(references) - size + 1, size):
        images, own = image_vectors[start : start + size], references[start : start + size]
        texts, said = text_vectors[ends[start] : ends[start + size]], [[t] for o in own for t in o]
        ranks = _ranks(images, texts, own, said), _ranks(texts, images, said, own)
        found.append([recall(of_one_way) for of_one_way in ranks])
    mean = {
        f"{way}_r{k}": float(np.mean([pair[side][k] for pair in found]))
        for side, way in enumerate(("image_to_text", "text_to_image"))
        for k in (1, 5, 10)
    }
    return mean | {"gallery": size, "gallery_captions": int(ends[size * len(found)]) // len(found)}


def _ranks(queries, candidates, asked, held):
    """`wrong_before` of every query, BATCH at a time. asked, held: the texts of either side's."""
    others, found = places(held), []
    for i in range(0, len(queries), BATCH):
        right = sharing(asked[i : i + BATCH], others, len(held))
        found.append(wrong_before(queries[i : i + BATCH] @ candidates.T, right))
    return np.concatenate(found)
