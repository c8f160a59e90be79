"""Write captions (paper section 4.2.3)."""


def caption(model, tokenizer, images, prompt="", **how):
    """One caption for each image. `how`: beams, or temperature, top_k, top_p, seed.

    A prompt is the beginning of every caption, letter for letter. Raises ValueError if it holds
    what the model never saw or leaves no room for more, and for a model that was not trained to
    caption.
    """
    if not model.config.caption_weight:
        raise ValueError("this model was trained with caption_weight 0: it cannot caption")
    if unseen := tokenizer.unseen(prompt):
        raise ValueError(
            f"the prompt {prompt!r} holds {', '.join(map(repr, unseen[:5]))}, which this model "
            "never saw and cannot go on from; leave it out"
        )
    length, pieces = model.config.text_length, tokenizer.count(prompt)
    if pieces > length - 2:
        raise ValueError(f"the prompt has {pieces} tokens; at most {length - 2} leave room")
    ids = tokenizer.encode([prompt], length + 1)[0][:-1]  # without the end that encode puts
    known = len(tokenizer.decode(ids))
    rows = model.generate(images, tuple(map(int, ids)), **how)
    return [_joined(prompt, tokenizer.decode(row)[known:]) for row in rows]


def _joined(prompt, rest):
    return prompt + (rest.lstrip() if prompt[-1:].isspace() else rest)
