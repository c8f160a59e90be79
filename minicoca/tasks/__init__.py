"""What people do with a trained CoCa. Every task takes a model (the CoCa of either backend), its
tokenizer, and uint8 images [n, side, side, 3]."""

from collections.abc import Iterable

import numpy as np

BATCH = 256
QUOTED = 5  # texts in a message


def batched(function, items):
    """`function` of consecutive slices of `items`, joined along the first axis."""
    parts = [function(items[i : i + BATCH]) for i in range(0, len(items), BATCH)]
    return np.concatenate(parts)


def embed_texts(model, tokenizer, texts: Iterable[str]) -> np.ndarray:
    """Unit vectors [n, E] of captions. Raises ValueError for a model not trained to match them."""
    demand_vectors(model)
    texts, length = list(texts), model.config.text_length
    if not texts:
        return no_vectors(model)
    return batched(lambda part: model.embed_texts(tokenizer.encode(part, length)), texts)


def demand_vectors(model) -> None:
    """Raises ValueError for a model not trained to match images and texts."""
    if not model.config.compares:
        raise ValueError(f"{trained(model.config, 'contrastive')}: it cannot compare")


def trained(config, loss: str) -> str:
    """How a model was trained that never learned what this loss teaches."""
    how = f"{loss}_weight 0" if config.objective == "coca" else f"objective {config.objective}"
    return f"this model was trained with {how}"


def no_vectors(model) -> np.ndarray:
    """[0, E]."""
    return np.zeros((0, model.config.embed_width or model.config.text_width), np.float32)


def unread(model, tokenizer, texts):
    """What the model does not read of the texts, as sentences: words it never saw, cut ends."""
    length = model.config.text_length
    unknown = [text for text in texts if tokenizer.unseen(text)]
    cut = [text for text in texts if tokenizer.too_long([text], length)]
    said = [f"this model never saw a word of {quoted(unknown)}"] if unknown else []
    if cut:
        said.append(f"this model reads {length} tokens of a text, and not the end of {quoted(cut)}")
    return said


def quoted(texts):
    """The first of them in quotes, long ones without their middle, and how many more there are."""
    more = f" and {len(texts) - QUOTED} more" if len(texts) > QUOTED else ""
    return ", ".join(map(shortened, texts[:QUOTED])) + more


def shortened(text, most=40):
    """A text in quotes; of one over `most` letters, both ends."""
    return repr(text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}")
