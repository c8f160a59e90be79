"""What a model can do with held-out pairs: caption, retrieve, classify. Any backend's CoCa will do."""

import numpy as np

from .metrics import caption_scores, recall_at_k, right_texts, top_k_accuracy

BATCH = 256


def batched(function, items):
    """`function` of consecutive slices of `items`, joined."""
    parts = [function(items[i : i + BATCH]) for i in range(0, len(items), BATCH)]
    return np.concatenate(parts)


def embed_images(model, pairs, indices):
    """Unit vectors [n, E] of the images of a split."""
    return batched(lambda part: model.embed_images(pairs.batch(part)), np.asarray(indices))


def embed_texts(model, tokenizer, texts):
    """Unit vectors [n, E] of captions."""
    length = model.config.text_length
    return batched(lambda part: model.embed_texts(tokenizer.encode(part, length)), list(texts))


def generate(model, tokenizer, pairs, indices, **how):
    """One caption for each image of a split."""
    texts = []
    for i in range(0, len(indices), BATCH):
        ids_BT = model.generate(pairs.batch(indices[i : i + BATCH]), **how)
        texts += [tokenizer.decode(ids) for ids in ids_BT]
    return texts


def class_scores(model, tokenizer, image_vectors, prompts):
    """[n, classes]: a class scores what its best prompt scores.

    The best, not the mean: a prompt may say more than the class (a place, a size), and the mean
    of such prompts is near no image.
    """
    text_vectors = embed_texts(model, tokenizer, [p for group in prompts for p in group])
    starts = np.cumsum([0] + [len(group) for group in prompts[:-1]])
    return np.maximum.reduceat(image_vectors @ text_vectors.T, starts, axis=1)


def evaluate(model, tokenizer, pairs, gallery=0, limit=None):
    """The figures of one split as a dict of floats, and its generated captions.

    gallery: retrieval is among this many pairs, averaged over as many galleries as the split
    fills; 0: among all. limit: look at the first `limit` pairs only.
    """
    indices = np.arange(len(pairs) if limit is None else min(limit, len(pairs)))
    references = [pairs.captions[i] for i in indices]
    figures, captions = {"images": len(indices)}, []
    if model.config.caption_weight:
        captions = generate(model, tokenizer, pairs, indices)
        scores = caption_scores(captions, references)
        figures |= {f"caption_{k.replace('exact_match', 'exact')}": v for k, v in scores.items()}
    if model.config.contrastive_weight:
        image_vectors = embed_images(model, pairs, indices)
        first = [own[0] for own in references]
        text_vectors = embed_texts(model, tokenizer, first)
        figures |= _retrieval(image_vectors, text_vectors, references, first, gallery)
        task = pairs.zero_shot
        if task is not None:
            inside = task.images < len(indices)
            vectors, labels = image_vectors[task.images[inside]], task.labels[inside]
            scores = class_scores(model, tokenizer, vectors, task.prompts)
            top = top_k_accuracy(scores, labels, ks=(1, 5))
            figures |= {"zero_shot_top1": top[1], "zero_shot_top5": top[5]}
    return figures, captions


def _retrieval(image_vectors, text_vectors, references, texts, gallery):
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
