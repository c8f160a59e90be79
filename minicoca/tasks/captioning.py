"""Write captions (paper section 4.2.3)."""


def caption(model, tokenizer, images, prompt="", **how):
    """One caption for each image. `how`: beams, or temperature, top_k, top_p, seed.

    A prompt is the beginning of every caption. Raises ValueError if it leaves no room for more, and
    for a model that was not trained to caption.
    """
    if not model.config.caption_weight:
        raise ValueError("this model was trained with caption_weight 0: it cannot caption")
    length, pieces = model.config.text_length, tokenizer.count(prompt)
    if pieces > length - 2:
        raise ValueError(f"the prompt has {pieces} tokens; at most {length - 2} leave room")
    ids = tokenizer.encode([prompt], length + 1)[0][:-1]  # without the end that encode puts
    return [tokenizer.decode(row) for row in model.generate(images, tuple(map(int, ids)), **how)]
