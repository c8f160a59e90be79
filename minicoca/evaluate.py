"""What a model can do with held-out pairs: caption, retrieve, classify. Any backend will do."""

import numpy as np

from .metrics import caption_scores, recall_at_k, right_texts, top_k_accuracy
from .tasks import BATCH, embed_texts
from .tasks.captioning import caption
from .tasks.zero_shot import class_scores


def evaluate(model, tokenizer, pairs, gallery=0, limit=None):
    """The figures of one split as a dict of floats, and its generated captions.

    gallery: retrieval is among this many pairs, averaged over as many galleries as the split
    fills; 0: among all. limit: look at the first `limit` pairs only.
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
    references = [[tokenizer.normalise(text) for text in pairs.captions[i]] for i in indices]
    figures = {"images": len(indices)}
    if captions:
        scores = caption_scores(captions, references)
        figures |= {f"caption_{k.replace('exact_match', 'exact')}": v for k, v in scores.items()}
    if vectors:
        image_vectors, texts = np.concatenate(vectors), [own[0] for own in references]
        text_vectors = embed_texts(model, tokenizer, texts)
        figures |= retrieval(image_vectors, text_vectors, references, texts, gallery)
        figures |= zero_shot(model, tokenizer, image_vectors, pairs.zero_shot)
    return figures, captions


def zero_shot(model, tokenizer, image_vectors, task):
    """Accuracy of a split's classification task on the images that there are vectors of."""
    inside = () if task is None else task.images < len(image_vectors)
    if not np.any(inside):
        return {}
    vectors, labels = image_vectors[task.images[inside]], task.labels[inside]
    scores = class_scores(model, tokenizer, vectors, task.prompts)
    top = top_k_accuracy(scores, labels, ks=(1, 5))
    return {"zero_shot_top1": top[1], "zero_shot_top5": top[5]}


def retrieval(image_vectors, text_vectors, references, texts, gallery=0):
    """Recall at 1, 5 and 10, both ways, of n images and their n texts, in galleries of a size."""
    size = min(gallery or len(texts), len(texts))
    found = []
    for start in range(0, len(texts) - size + 1, size):
        part = slice(start, start + size)
        similarity = image_vectors[part] @ text_vectors[part].T
        right = right_texts(references[part], texts[part])
        found.append([recall_at_k(similarity, right), recall_at_k(similarity.T, right.T)])
    mean = {
        f"{way}_r{k}": float(np.mean([pair[side][k] for pair in found]))
        for side, way in enumerate(("image_to_text", "text_to_image"))
        for k in (1, 5, 10)
    }
    return mean | {"gallery": size}
