"""Write captions (paper section 4.2.3)."""


def caption(model, tokenizer, images, prompt="", **how):
    """One caption for each image. `how`: beams, or temperature, top_k, top_p, seed.

    A prompt is the beginning of every caption. Raises ValueError if it leaves no room for more.
    """
    length = model.config.text_length
    ids = tokenizer.encode([prompt], length + 1)[0][:-1]  # without the end that encode puts
    if len(ids) >= length:
        raise ValueError(f"the prompt has {len(ids) - 1} tokens; at most {length - 2} leave room")
    return [tokenizer.decode(row) for row in model.generate(images, tuple(map(int, ids)), **how)]
