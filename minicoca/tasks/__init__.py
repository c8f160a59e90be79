"""What people do with a trained CoCa. Every task takes a model (the CoCa of either backend), its
tokenizer, and uint8 images [n, side, side, 3]."""

import numpy as np

BATCH = 256


def batched(function, items):
    """`function` of consecutive slices of `items`, joined along the first axis."""
    parts = [function(items[i : i + BATCH]) for i in range(0, len(items), BATCH)]
    return np.concatenate(parts)


def embed_texts(model, tokenizer, texts):
    """Unit vectors [n, E] of captions. Raises ValueError for a model not trained to match them."""
    if not model.config.contrastive_weight:
        raise ValueError("this model was trained with contrastive_weight 0: it cannot compare")
    length = model.config.text_length
    return batched(lambda part: model.embed_texts(tokenizer.encode(part, length)), list(texts))
