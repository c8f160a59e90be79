"""VLMo, or Switch: one transformer for images, texts and pairs. As reference/relatives/vlmo.py."""

from dataclasses import replace

import torch

from ...config import PAD
from ..answers import answer_loss
from ..losses import caption_loss, contrastive_loss
from ..ops import layer_norm, linear, widened
from .experts import expert_blocks
from .matching import right_answers, rows_asked
from .modalities import alone, read, seen


def together(words_XTD, image_XND, params, config, settings, real_XS):
    """Pairs -> (n [X, S, D] that heads read, the layers' balance)."""
    x_XSD = torch.cat([words_XTD, image_XND], 1)
    parts = {"text": words_XTD.shape[1], "image": image_XND.shape[1]}
    given = params["blocks"], config, settings, real_XS, parts
    x_XSD, balance = expert_blocks(x_XSD, *given, fused=True)
    return layer_norm(x_XSD, params["norm"]), balance


def loss(params, config, settings, batch):
    """-> {loss, contrastive, matching, words, balance, image [B, D], text [B, D]}."""
    tokens, masked = batch["tokens"], batch["masked"]
    texts, real = read(tokens, params)
    blanks, _ = read(tokens.masked_fill(masked, config.vocabulary), params)
    images = seen(batch["images"], params, config)
    there = real.new_ones(images.shape[:2])
    image_BD, _, first = alone(images, params, config, settings, there, "image")
    text_BD, _, second = alone(texts, params, config, settings, real, "text")
    contrastive = contrastive_loss(image_BD, text_BD, params["log_temperature"])
    with torch.no_grad():
        scale = torch.exp(-widened(params["log_temperature"]))
        image_R, text_R = rows_asked(scale * (image_BD @ text_BD.T), tokens, batch["noise"])
    own_B = torch.arange(len(tokens), device=tokens.device)
    image_X = torch.cat([image_R, own_B])
    words_X = torch.cat([text_R, len(tokens) + own_B])
    words = torch.cat([texts, blanks]).index_select(0, words_X)
    real_X = torch.cat([torch.cat([real, real])[words_X], there[image_X]], 1)
    shown = images.index_select(0, image_X)
    n, third = together(words, shown, params, config, settings, real_X)
    asked, T = len(image_R), tokens.shape[1]
    right_R2 = right_answers(asked, len(tokens), tokens.device)
    matching = answer_loss(linear(n[:asked, T], params["matching"]), right_R2)
    found = caption_loss(n[asked:, :T], params["words"], torch.where(masked, tokens, PAD))
    losses = {"contrastive": contrastive, "matching": matching, "words": found}
    losses["balance"] = first + second + third
    weights = config.contrastive_weight, settings.matching_weight, settings.words_weight
    weights += (settings.balance_weight,)
    value = sum(w * one for w, one in zip(weights, losses.values(), strict=True))
    outputs = {name: torch.as_tensor(one) for name, one in losses.items()}
    return {"loss": value} | outputs | {"image": image_BD, "text": text_BD}


def used(settings):
    """The settings of a model that is used: an expert has a place for every token that wants it."""
    return replace(settings, capacity=0.0)


def image_features(params, config, settings, images):
    """-> (unit vectors [B, D], nothing that a decoder reads, tokens [B, N + 1, D])."""
    x_BSD = seen(images, params, config)
    real_BS = torch.ones(x_BSD.shape[:2], dtype=torch.bool, device=x_BSD.device)
    image_BD, x_BSD, _ = alone(x_BSD, params, config, used(settings), real_BS, "image")
    return image_BD, None, x_BSD


def text_features(params, config, settings, tokens_BT):
    """-> (unit vectors [B, D], nothing that a decoder begins with)."""
    x_BSD, real_BS = read(tokens_BT, params)
    return alone(x_BSD, params, config, used(settings), real_BS, "text")[0], None


def matcher(params, config, settings, images, tokens_RT):
    """-> a function of P pairs, of which image and text each is: logits [P, 2] of no and yes."""
    (texts, real_RS), shown = read(tokens_RT, params), seen(images, params, config)

    def matches(image_P, text_P):
        words, image = texts.index_select(0, text_P), shown.index_select(0, image_P)
        real_PS = torch.cat([real_RS[text_P], real_RS.new_ones(image.shape[:2])], 1)
        n, _ = together(words, image, params, config, used(settings), real_PS)
        return linear(n[:, tokens_RT.shape[1]], params["matching"])

    return matches
